"""Skin lesions: made-up dermoscopic pictures of six skin types and two cameras, benign and malignant.

The skin is one colour of CIELAB whose individual typology angle (ITA) is known, under uneven light; lesion, hairs and the
dermoscope's rim absorb light on top of it. A malignant lesion has an irregular outline and several colours, a benign one is
round and brown.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dart_core.data.phantoms.shapes import Field, grid_axes, inside, smooth_picture
from dart_core.errors import SettingError


@dataclass(frozen=True)
class SkinSite:
    """How a site takes its pictures."""

    redness: float
    """Added to a* of the skin; L* and b*, and with them the ITA, stay as they are."""
    falloff: float
    """Light that is lost at a distance of one half side from the middle."""
    rim: float
    """Radius of the dermoscope's black rim in half sides; above 1.42 it is outside the picture."""
    hairs: float
    """Mean number of hairs."""
    radius: tuple[float, float]
    """Smallest and largest radius of a lesion in half sides."""
    blur: float
    """Standard deviation of the point spread, relative to the side."""
    noise: float
    """Standard deviation of the noise in grey levels."""


SKIN_SITES: dict[str, SkinSite] = {
    "A": SkinSite(2.0, 0.06, 2.0, 2.0, (0.30, 0.52), 0.002, 1.5),
    "B": SkinSite(11.0, 0.16, 1.16, 6.0, (0.36, 0.58), 0.004, 2.5),
}
"""The two made-up sites: A is even and neutral; B is red, darker outside, hairier, and shows the black rim."""

_ITA = {1: (57.0, 68.0), 2: (43.0, 53.0), 3: (30.0, 39.0), 4: (20.5, 26.5), 5: (11.5, 17.5), 6: (-55.0, 5.0)}
"""ITA in degrees drawn for each skin type: inside the bands above 55, 41, 28, 19, 10 and up to 10 (skintone-debias, A7)."""
_YELLOW = {1: 12.5, 2: 16.0, 3: 18.5, 4: 20.0, 5: 20.0, 6: 17.0}
"""Mean b* of each skin type."""
_MELANIN = np.array([0.62, 1.0, 1.45])
"""Absorption of the pigment in red, green and blue, relative to green."""
_SHARES = (0.36, 0.27, 0.17, 0.10, 0.06, 0.04)
"""Share of skin types 1 to 6 among the malignant training pictures; among the benign ones it is the other way round."""
_GOLDEN = (math.sqrt(5) - 1) / 2


def skin_lesion(
    subject: int, fitzpatrick: int, malignant: bool, size: int = 256, seed: int = 0, site: str = "A"
) -> NDArray[np.uint8]:
    """Make a picture of one lesion.

    The lightest of the spots along the border has the ITA that `skin_ita` tells, but for noise, hairs and rounding; no lesion
    reaches them.

    Args:
        subject: number of the subject.
        fitzpatrick: skin type, 1 (light) to 6 (dark).
        malignant: irregular outline and several colours.
        size: side in pixels; the same lesion is seen at any size.
        seed: changes all subjects.
        site: one of SKIN_SITES.

    Returns:
        uint8 (size, size, 3).

    Raises:
        SettingError: an unknown site, another skin type, or a side below 32 pixels.
    """
    from scipy import ndimage

    model = _find_site(site)
    if size < 32:
        raise SettingError(f"a picture of {size} pixels", remedy="give a side of at least 32 pixels")
    rng = np.random.default_rng([seed, subject, 1 + list(SKIN_SITES).index(site), 1 + int(malignant)])
    y, x = grid_axes((size, size), (2 / size, 2 / size), (0.0, 0.0))
    light = _skin(model, _skin_lab(subject, fitzpatrick, seed), y, x, rng)
    light = _lesion(model, light, y, x, rng, malignant)
    light *= _hairs(model, size, rng)[..., None]
    light = ndimage.gaussian_filter(light, [model.blur * size, model.blur * size, 0])
    distance = np.hypot(y[:, None], x[None])
    # The rim is never quite black, and as warm as the skin: a black spot has no angle to speak of.
    light *= 0.02 + 0.98 * inside(model.rim - distance, 0.04)[..., None]
    grey = 255 * _gamma(light) + model.noise * rng.standard_normal(light.shape)
    return np.asarray(np.rint(np.clip(grey, 0, 255)), dtype=np.uint8)


def skin_ita(subject: int, fitzpatrick: int, seed: int = 0) -> float:
    """The true individual typology angle of a subject's skin in degrees, atan((L* - 50) / b*).

    Raises:
        SettingError: another skin type than 1 to 6.
    """
    lightness, _, yellow = _skin_lab(subject, fitzpatrick, seed)
    return math.degrees(math.atan((lightness - 50) / yellow))


def write_skin_lesions(
    folder: str | os.PathLike[str],
    sites: Sequence[str] = ("A", "B"),
    pictures_per_site: int = 24,
    size: int = 256,
    seed: int = 0,
) -> Path:
    """Write pictures of several sites as PNG files, with a datalist.

    Half of the pictures are malignant. Of each site's pictures one third are test and one sixth validation. In training and
    validation the malignant lesions are mostly on light skin and the benign ones on dark skin; in the test part skin type and
    label are independent, and six pictures already show both labels on types 1 and 2, 3 and 4, and 5 and 6.

    Args:
        folder: where images/ and datalist.csv go.
        sites: some of SKIN_SITES.
        pictures_per_site: how many.
        size: side in pixels.
        seed: changes all pictures.

    Returns:
        the path of `datalist.csv` in `folder`, with columns image, subject, site, split, label (1 malignant, 0 benign),
        fitzpatrick (1 to 6) and ita (degrees).

    Raises:
        SettingError: an unknown site, no site, no picture, or a side below 32 pixels.
        OutputError: the files cannot be written.
    """
    from dart_core.data.datalist import Datalist, Row
    from dart_core.data.images import write_image

    if not sites or pictures_per_site < 1:
        raise SettingError("no site or no picture to write", remedy="give at least one of each")
    for site in sites:
        _find_site(site)
    folder = Path(folder)
    rows = []
    for site in dict.fromkeys(sites):
        place = list(SKIN_SITES).index(site)
        for number, (split, malignant, fitzpatrick) in enumerate(_deal(pictures_per_site, place, seed)):
            subject = 1000 * (1 + place) + number
            picture = skin_lesion(subject, fitzpatrick, malignant, size, seed, site)
            rows.append(
                Row(
                    image=write_image(folder / "images" / f"{site}_{subject}.png", picture),
                    subject=f"phantom{subject}",
                    site=site,
                    split=split,
                    labels={
                        "label": str(int(malignant)),
                        "fitzpatrick": str(fitzpatrick),
                        "ita": f"{skin_ita(subject, fitzpatrick, seed):.2f}",
                    },
                )
            )
    return Datalist(tuple(rows)).write(folder / "datalist.csv")


def _find_site(site: str) -> SkinSite:
    if site not in SKIN_SITES:
        raise SettingError(f"no site {site!r}", remedy=f"choose from {', '.join(SKIN_SITES)}")
    return SKIN_SITES[site]


def _deal(count: int, place: int, seed: int) -> list[tuple[str, bool, int]]:
    """Split, malignancy and skin type of each picture of a site."""
    test, val = count // 3, count // 6
    # Types 1, 3, 5 of one label, then 2, 4, 6 of the other, then the labels swapped; every second site begins halfway.
    balanced = [
        (bool(label), kind)
        for first in (1, 0)
        for label, odd in ((first, 1), (1 - first, 2))
        for kind in (odd, odd + 2, odd + 4)
    ]
    edges = np.cumsum(_SHARES)
    start = np.random.default_rng([seed, 1 + place]).random()
    dealt = []
    for number in range(count - test):
        malignant = number % 2 == 0
        # Multiples of the golden ratio fill the unit interval evenly, so that a small set has the shares of a large one.
        kind = min(1 + int(np.searchsorted(edges, (start + (number // 2) * _GOLDEN) % 1)), 6)
        dealt.append(("val" if number >= count - test - val else "train", malignant, kind if malignant else 7 - kind))
    return dealt + [("test", *balanced[(number + 6 * place) % 12]) for number in range(test)]


def _skin_lab(subject: int, fitzpatrick: int, seed: int) -> tuple[float, float, float]:
    """L*, a*, b* of a subject's skin."""
    if fitzpatrick not in _ITA:
        raise SettingError(f"no skin type {fitzpatrick!r}", remedy="choose from 1 to 6")
    rng = np.random.default_rng([seed, subject, fitzpatrick])
    ita = math.radians(rng.uniform(*_ITA[fitzpatrick]))
    yellow = _YELLOW[fitzpatrick] * rng.uniform(0.93, 1.07)
    return 50 + yellow * math.tan(ita), float(rng.uniform(9, 13)), yellow


def _skin(model: SkinSite, lab: tuple[float, float, float], y: Field, x: Field, rng: np.random.Generator) -> Field:
    """Linear RGB (H, W, 3) of bare skin: its colour, red blotches, furrows, and uneven light."""
    size = len(y)
    blotches = smooth_picture(rng, y, x, 0.7, 24)
    furrows = np.abs(smooth_picture(rng, y, x, 0.10, 48))
    mottle = smooth_picture(rng, y, x, 0.16, 32)
    lightness, red, yellow = lab
    red_HW = red + model.redness + 1.2 * blotches + 1.2 * mottle
    lab_HWC = np.stack([np.full_like(red_HW, lightness), red_HW, np.full_like(red_HW, yellow)], axis=-1)
    turn = rng.uniform(0, 2 * math.pi)
    tilt = 0.03 * (math.cos(turn) * y[:, None] + math.sin(turn) * x[None])
    light = (1 - model.falloff * (y[:, None] ** 2 + x[None] ** 2) + tilt) * (0.94 + 0.06 * inside(furrows - 0.15, 0.4))
    # Under less light the ITA is smaller: the lightest spot of the border decides, and gets all of it.
    light = light / max(float(part.mean()) for part in _border(light, size))
    return np.asarray(_linear(lab_HWC) * light[..., None], dtype=np.float32)


def _border(picture: Field, size: int) -> list[Field]:
    """The eight spots along the border where skin is looked for: 20 of 256 pixels wide, corners and middles of the sides."""
    near, corner, middle, side = (round(part * size / 256) for part in (5, 20, 115, 20))
    inner, far, last = size - near - side, size - corner - side, size - middle - side
    centre = (middle + last) // 2
    places = [(near, centre), (inner, centre), (centre, near), (centre, inner)]
    places += [(corner, corner), (corner, far), (far, corner), (far, far)]
    return [picture[top : top + side, left : left + side] for top, left in places]


def _lesion(model: SkinSite, light: Field, y: Field, x: Field, rng: np.random.Generator, malignant: bool) -> Field:
    """Lay a lesion on the skin: absorbed light for the pigment, and veil, redness and scar for a malignant one."""
    down, right = y[:, None] - rng.uniform(-0.06, 0.06), x[None] - rng.uniform(-0.06, 0.06)
    wild = rng.uniform(0.6, 1.0) if malignant else rng.uniform(0.0, 0.25)
    radius = rng.uniform(*model.radius)
    angle, distance = np.arctan2(down, right), np.hypot(down, right)
    outline = np.zeros_like(distance)
    for wave in range(2, 6):
        strength = (0.08 if wave == 2 else 0.0) + 0.34 * wild / wave
        outline += strength * rng.uniform(0.3, 1.0) * np.cos(wave * angle + rng.uniform(0, 2 * math.pi))
    ragged = sum(
        part * wild * smooth_picture(rng, y, x, wavelength, 32)
        for part, wavelength in ((0.035, 0.30), (0.022, 0.13), (0.012, 0.05))
    )
    edge = np.clip(radius * (1 + outline), 0.3 * radius, 0.70) + ragged - distance
    share = inside(edge, rng.uniform(0.06, 0.16))
    network = np.abs(smooth_picture(rng, y, x, rng.uniform(0.05, 0.09), 48))
    cloud = smooth_picture(rng, y, x, 0.22, 32)
    zones, other = (smooth_picture(rng, y, x, 2 * radius, 16) for _ in range(2))
    pigment = rng.uniform(0.9, 2.8) * (1 - 0.35 * inside(network - 0.6, 0.8)) * (0.55 + 0.45 * inside(edge - 0.2, 0.4))
    pigment *= (1 + 0.2 * cloud) * (1 + 0.25 * zones)
    pigment += 2.0 * wild * wild * inside(zones + 0.3 * cloud - 0.3, 0.9)
    absorbed = (share * np.maximum(pigment, 0.08))[..., None] * _MELANIN
    result = np.asarray(light * np.exp(-absorbed))
    if malignant:
        skin = float(light.max())
        for amount, colour in (
            (0.6 * inside(other + 0.2 * cloud - 0.7, 0.8), (0.09, 0.12, 0.18)),  # blue-white veil
            (0.5 * inside(-other - 0.2 * cloud - 0.7, 0.8), (0.36, 0.08, 0.08)),  # vessels
            (0.45 * inside(-zones - 0.2 * cloud - 1.3, 0.7), (0.66, 0.50, 0.46)),  # scar
        ):
            weight = (share * amount)[..., None]
            result = result * (1 - weight) + weight * np.asarray(colour) * (0.3 + 0.7 * skin)
    return np.asarray(result, dtype=np.float32)


def _hairs(model: SkinSite, size: int, rng: np.random.Generator) -> Field:
    """Share of light (H, W) that bent, dark hairs leave."""
    from PIL import Image, ImageDraw

    fine = 4 * size
    sheet = Image.new("L", (fine, fine), 255)
    draw = ImageDraw.Draw(sheet)
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(rng.poisson(model.hairs)):
        start = rng.uniform(-0.05, 1.05, 2)
        turn = rng.uniform(0, 2 * math.pi)
        end = start + rng.uniform(0.35, 0.9) * np.array([math.cos(turn), math.sin(turn)])
        bend = (start + end) / 2 + rng.normal(0, 0.08, 2)
        curve = fine * ((1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end)
        width = max(1, round(fine * float(rng.uniform(0.003, 0.007))))
        draw.line([(float(a), float(b)) for a, b in curve], fill=int(rng.integers(20, 70)), width=width)
    return np.asarray(sheet.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / np.float32(255)


def _linear(lab: Field) -> Field:
    """CIELAB (..., 3) of white D65 to linear sRGB (..., 3)."""
    f_y = (lab[..., 0] + 16) / 116
    f = np.stack([f_y + lab[..., 1] / 500, f_y, f_y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array([0.95047, 1.0, 1.08883])
    matrix = np.array(
        [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
    )
    return np.asarray(xyz @ matrix.T)


def _gamma(linear: Field) -> Field:
    """Linear sRGB to its stored values, 0 to 1."""
    light = np.clip(linear, 0, 1)
    return np.asarray(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))
