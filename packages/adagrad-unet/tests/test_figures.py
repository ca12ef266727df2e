"""What the pictures show."""

from __future__ import annotations

import numpy as np

from adagrad_unet.analysis import by_group
from adagrad_unet.figures import bars, label_panel, rates_figure, slices_figure, update_figure

LAYERS = {
    "conv_blocks_context.0.blocks.0.conv": 1e-3, "conv_blocks_context.1.0.blocks.0.conv": 2e-3,
    "conv_blocks_localization.0.0.blocks.0.conv": 3e-3, "tu.0": 4e-3, "seg_outputs.1": 5e-3,
}  # fmt: skip


def test_one_panel_per_run_with_every_layer_once():
    figure = update_figure(dict.fromkeys(("S-25", "AG-25", "SGDm-25"), LAYERS), "relative")
    used = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in used] == ["S-25", "AG-25", "SGDm-25"]
    for axes in used:
        assert axes.get_yscale() == "log"
        drawn = [y for line in axes.lines for y in line.get_ydata()]
        assert drawn == list(LAYERS.values())
        places = [x for line in axes.lines for x in line.get_xdata()]
        assert places == list(range(5))
    assert "norm of the weight" in used[0].get_ylabel()
    assert [text.get_text() for text in used[0].get_legend().get_texts()] == list(by_group(LAYERS))


def test_layers_that_have_not_moved_are_drawn_too():
    figure = update_figure({"AG-1": dict.fromkeys(LAYERS, 0.0)})
    assert figure.axes[0].get_yscale() == "linear"


def test_rates():
    values = {"rate_min": 0.5, "rate_p1": 0.9, "rate_p50": 1.0, "rate_p99": 1.1, "rate_max": 2.0}
    axes = rates_figure({"AG-25": values, "A-25": values}).axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["AG-25", "A-25"]
    assert list(axes.lines[0].get_xdata()) == [0.5, 2.0]


def test_bars_stand_beside_each_other():
    axes = bars({"A": {"x": 0.5, "y": 0.75}, "C": {"x": 0.25}}, "Dice").axes[0]
    heights = [patch.get_height() for patch in axes.patches]
    assert heights[0] == 0.5
    assert heights[2] == 0.75
    assert np.isnan(heights[3])
    assert axes.patches[0].get_x() + axes.patches[0].get_width() <= axes.patches[2].get_x() + 0.05


def test_every_label_has_its_outline():
    labels = np.zeros((6, 6), int)
    labels[1:3, 1:3], labels[4, 4] = 1, 3
    panel = label_panel("t", np.arange(36.0).reshape(6, 6), labels)
    assert panel.outlines is not None
    assert sorted(int(mask.sum()) for mask in panel.outlines.values()) == [1, 4]
    assert panel.image.min() == 0
    assert panel.image.max() == 1
    assert label_panel("t", np.ones((4, 4)), None).outlines == {}
    assert len(slices_figure([("row", [("t", np.ones((4, 4)), labels[:4, :4])])]).axes) == 1
