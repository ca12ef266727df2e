"""Sheet and distribution of skin tones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skintone_debias.photos import LabelOptions, label_photo
from skintone_debias.tone_figures import PUBLISHED_SHARES, Tile, contact_sheet, distribution_figure, shares, tile


def test_shares() -> None:
    assert shares([1, 1, 6, -1, 2]) == [50, 25, 0, 0, 0, 25]
    assert shares([-1]) == [0] * 6
    assert sum(PUBLISHED_SHARES) == pytest.approx(100, abs=0.05)


def test_distribution_shows_every_share() -> None:
    groups = {"a_$b$": [50.0, 25, 0, 0, 0, 25], "paper": list(PUBLISHED_SHARES)}
    figure = distribution_figure(groups)
    (axes,) = figure.axes
    heights = [bar.get_height() for container in axes.containers for bar in container]
    assert heights == [*groups["a_$b$"], *PUBLISHED_SHARES]
    figure.canvas.draw()
    assert distribution_figure({"alone": [0.0] * 6}).axes[0].get_legend() is None


def test_sheet_places_tiles_in_rows() -> None:
    tiles = [Tile(str(k), [Image.new("RGB", (200, 200), (k, 0, 0))]) for k in range(1, 6)]
    sheet = np.asarray(contact_sheet(tiles, columns=2))
    places = [(32 + 232 * (k // 2), 8 + 210 * (k % 2)) for k in range(5)]
    for k, (top, left) in enumerate(places):
        assert (sheet[top : top + 200, left : left + 200] == (k + 1, 0, 0)).all()
    assert (sheet[32 + 2 * 232 :, 218:] == 255).all()


def test_a_long_title_is_cut() -> None:
    panel = Image.new("RGB", (200, 200), "red")
    sheet = np.asarray(contact_sheet([Tile("a very long name " * 20 + "\n\x00", [panel])]))
    assert (sheet[:32, 209:] == 255).all()
    assert (sheet[:32, 190:208] == 0).any()


@pytest.mark.parametrize(("method", "panels"), [("patches", 2), ("groh", 2), ("groh-full", 1)])
def test_tile(method: str, panels: int, tmp_path: Path) -> None:
    picture = np.full((60, 120, 3), (210, 170, 140), np.uint8)
    picture[:30] = (0, 0, 255)
    Image.fromarray(picture).save(tmp_path / "a.png")
    options = LabelOptions(method=method)  # type: ignore[arg-type]
    shown = tile(tmp_path / "a.png", label_photo(tmp_path / "a.png", options), options)
    assert shown.title.endswith("a.png")
    assert [panel.size for panel in shown.panels] == [(200, 200)] * panels
    if method == "groh":  # the whole picture, and without what is no skin
        whole, masked = map(np.asarray, shown.panels)
        assert (whole[20] == 255).all()
        assert (whole[60, 100] == (0, 0, 255)).all()
        assert (masked[60, 100] == 0).all()
        assert (masked[140, 100] == (210, 170, 140)).all()


def test_rejected_patches_are_grey(tmp_path: Path) -> None:
    picture = np.full((256, 256, 3), (180, 140, 120), np.uint8)
    picture[:, :64] = 190
    Image.fromarray(picture).save(tmp_path / "a.png")
    for reject, expected in ((False, 0), (True, 3)):
        options = LabelOptions(reject_neutral=reject)
        panel = np.asarray(tile(tmp_path / "a.png", label_photo(tmp_path / "a.png", options), options).panels[0])
        outlines = (panel == (154, 154, 154)).all(-1).sum()
        assert outlines // 55 == expected  # an outline has about 60 pixels
