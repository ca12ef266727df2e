from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.patches import Rectangle
from PIL import Image

from dart_core.adapt import LAYERS, policy_figure
from dart_core.errors import InputError


def test_every_layer_has_its_colour_of_magma_and_its_number() -> None:
    one, other = np.linspace(0, 1, 32), torch.rand(32)
    figure = policy_figure({"7 slices": one, "800 slices": other})
    maps = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in maps] == ["7 slices", "800 slices"]
    for axis, values in zip(maps, (one, other.numpy()), strict=True):
        cells = {
            (round(p.get_x() + 0.45, 3), round(p.get_y() + 0.45, 3)): p
            for p in axis.patches
            if isinstance(p, Rectangle)
        }
        texts = {text.get_text(): text.get_position() for text in axis.texts}
        assert set(texts) == {str(n) for n in range(1, 33)}
        for index in range(len(LAYERS)):
            x, y = texts[str(index + 1)]
            assert cells[round(x, 3), round(y, 3)].get_facecolor() == pytest.approx(
                colormaps["magma"](float(values[index]))
            )
    bar = figure.axes[-1]
    assert bar.get_ylim() == (0, 1)
    assert "fine-tuned" in bar.get_ylabel()


def test_the_drawing_is_a_u() -> None:
    axis = next(a for a in policy_figure({"policy": np.zeros(32)}).axes if a.get_title())
    place = {int(text.get_text()): text.get_position() for text in axis.texts}
    depths = [place[n][1] for n in (1, 5, 9, 13)]
    assert depths == sorted(depths, reverse=True)
    assert [place[n][1] for n in (26, 22, 18)] == depths[:3] == [place[n][1] for n in (30, 31, 32)]
    along = [place[n][0] for n in (4, 30, 26)]
    assert along == sorted(along)
    assert len(set(place.values())) == 32


@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_can_be_drawn(number: int) -> None:
    figure = policy_figure({str(n): np.full(32, n / 9) for n in range(number)} | {"none": np.full(32, np.nan)})
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    assert Image.open(buffer).size[0] > 200


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="no policy to draw"):
        policy_figure({})
    with pytest.raises(InputError, match=r"policy 'a' has shape \(31,\)"):
        policy_figure({"a": np.zeros(31)})
    with pytest.raises(InputError, match=r"policy 'a' holds values outside \[0, 1\]"):
        policy_figure({"a": np.full(32, 1.01)})
