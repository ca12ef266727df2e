"""Pictures about skin tones: photographs with their patches (paper Fig. 3), and how often each type occurs (Fig. 4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dart_core.data.images import open_image
from dart_core.report import COLOURS
from skintone_debias.groh import groh_skin_mask
from skintone_debias.photos import LabelOptions, Photo
from skintone_debias.scores import TYPES
from skintone_debias.tone import CORNERS, PATCH, SIDE, middle_square, remove_hair

PUBLISHED_SHARES = (70.59, 9.02, 6.02, 2.79, 1.80, 9.79)
"""Percent of the ISIC training pictures with types 1 to 6 (Fig. 4; read from the authors' figure file)."""

CHOSEN, OFFERED, REJECTED = "#00c800", "#d62728", "#9a9a9a"
_SHOWN = 200  # side of a picture on the sheet
_GAP, _TITLE = 8, 24


class Tile(NamedTuple):
    """One file on the sheet."""

    title: str
    panels: Sequence[Image.Image]
    """Pictures shown beside each other."""


def tile(path: Path, photo: Photo, options: LabelOptions) -> Tile:
    """A labelled file: the photograph, and what its label was computed from.

    With patches that is the hair-free picture; the squares are green where the tone comes from, grey where a patch was
    rejected as no skin, red elsewhere. With Groh's mask it is the picture without what is no skin.

    Raises:
        InputError: the file cannot be read any more.
    """
    image = open_image(path)
    title = f"type {photo.fitzpatrick}  {photo.ita:.1f}°  {path.name}"
    if options.method == "patches":
        square = np.asarray(image) if options.pre_sized else middle_square(image)
        return Tile(title, [_with_patches(picture, photo, options) for picture in (square, remove_hair(square))])
    panels = [image]
    if options.method == "groh":
        pixels = np.asarray(image)
        panels.append(Image.fromarray(pixels * groh_skin_mask(pixels)[..., None]))
    return Tile(title, [_fitted(panel) for panel in panels])


def _with_patches(picture: np.ndarray, photo: Photo, options: LabelOptions) -> Image.Image:
    shown = Image.fromarray(picture).resize((_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
    draw, scale = ImageDraw.Draw(shown), _SHOWN / SIDE
    rejected = [options.reject_neutral and neutral for neutral in photo.neutral]
    # The chosen square comes last, on top of the others.
    for place in sorted(range(len(CORNERS)), key=lambda place: place == photo.patch):
        row, column = CORNERS[place]
        colour = CHOSEN if place == photo.patch else REJECTED if rejected[place] else OFFERED
        corners = [scale * column, scale * row, scale * (column + PATCH) - 1, scale * (row + PATCH) - 1]
        draw.rectangle(corners, outline=colour, width=2 if place == photo.patch else 1)
    return shown


def _fitted(image: Image.Image) -> Image.Image:
    shown = Image.new("RGB", (_SHOWN, _SHOWN), "white")
    whole = ImageOps.contain(image, (_SHOWN, _SHOWN), Image.Resampling.LANCZOS)
    shown.paste(whole, ((_SHOWN - whole.width) // 2, (_SHOWN - whole.height) // 2))
    return shown


def contact_sheet(tiles: Sequence[Tile], columns: int = 4) -> Image.Image:
    """Tiles in rows, each with its title above it.

    Args:
        tiles: at least one, all with the same number of panels.
        columns: tiles in a row.
    """
    columns = min(columns, len(tiles))
    width, height = len(tiles[0].panels) * (_SHOWN + 2) + _GAP, _SHOWN + _TITLE + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, -(-len(tiles) // columns) * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for place, (title, panels) in enumerate(tiles):
        left, top = _GAP + place % columns * width, _GAP + place // columns * height
        draw.text((left, top), _cut(title, font, width - _GAP), fill="black", font=font)
        for number, panel in enumerate(panels):
            sheet.paste(panel, (left + number * (_SHOWN + 2), top + _TITLE))
    return sheet


def _cut(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def shares(types: Iterable[int]) -> list[float]:
    """Percent of types 1 to 6 among the pictures that have one."""
    given = [kind for kind in types if kind in TYPES]
    return [100 * given.count(kind) / max(len(given), 1) for kind in TYPES]


def distribution_figure(groups: Mapping[str, Sequence[float]]) -> Figure:
    """Bars of how often each type occurs (after Fig. 4 of the paper).

    Args:
        groups: name -> percent of types 1 to 6.
    """
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(groups)
    for number, (name, values) in enumerate(groups.items()):
        places = np.array(TYPES) + (number - (len(groups) - 1) / 2) * width
        bars = axes.bar(places, values, width * 0.94, color=COLOURS[number % len(COLOURS)], label=name)
        axes.bar_label(bars, [f"{value:.1f}" for value in values], fontsize=7, padding=1)
    axes.set_xticks(list(TYPES))
    axes.set_xlabel("Fitzpatrick type (1 light, 6 dark)")
    axes.set_ylabel("pictures (%)")
    axes.spines[["top", "right"]].set_visible(False)
    if len(groups) > 1:
        for text in axes.legend(fontsize=8).get_texts():
            text.set_parse_math(False)
    return figure
