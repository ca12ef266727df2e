from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.collections import PolyCollection

from dart_core import figures
from dart_core.figures import Panel, Points, comparison, oriented, scatter, training_curves, violins, wrapped
from dart_core.report import Report


def drawn(figure) -> None:
    figure.savefig("/dev/null", format="png", dpi=50)


def test_slices_are_seen_from_the_feet():
    """RAS: the first axis grows to the patient's right side... of the array, the second to the front."""
    image = np.zeros((3, 4))
    image[2, 3] = 1  # right, front
    assert np.argwhere(oriented(image)).tolist() == [[0, 0]]  # top left: front up, right side on the left
    assert oriented(image).shape == (4, 3)


def test_comparison_has_a_row_per_pair_and_outlines_in_their_colours():
    image, mask = np.random.default_rng(0).random((12, 10)).astype(np.float16), np.zeros((12, 10), bool)
    mask[3:8, 3:7] = True
    rows = [
        ("A → B\n$1_2", [Panel("image", image), Panel("both $x$", image, mask, mask[::-1], {"#00ffff": mask})]),
        ("B → A", [Panel("nothing", image, mask & False, mask | True)]),
    ]
    figure = comparison(rows)
    drawn(figure)
    assert len(figure.axes) == 4
    outlines = [[tuple(c.get_edgecolor()[0][:3]) for c in axes.collections] for axes in figure.axes]
    assert [len(colours) for colours in outlines] == [0, 3, 0, 0]
    assert len(set(outlines[1])) == 3
    assert [axes.get_title() for axes in figure.axes][:3] == ["image", "both $x$", "nothing"]


def test_scatter_plots_share_their_range():
    rng = np.random.default_rng(0)
    points = [Points(rng.random((5, 2)), "green", "train", size=32), Points(rng.random((4, 2)) + 3, ["red", "k"] * 2)]
    figure = scatter([("first", points), ("second $", points[:1]), ("third", []), ("fourth", points)], columns=2)
    drawn(figure)
    assert len(figure.axes) == 4
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert [len(axes.collections) for axes in figure.axes] == [2, 1, 0, 2]
    assert figure.axes[0].get_legend() is not None
    assert len(figure.axes[0].collections[1].get_facecolors()) == 4
    free = scatter([("first", points[:1]), ("second", points[1:]), ("third", points)], same_axes=False)
    drawn(free)
    assert len({axes.get_xlim() for axes in free.axes}) > 1
    assert len(scatter([("one", points)]).axes) == 1


def test_violins_show_quartiles_and_means():
    values = np.array([0.1, 0.2, 0.4, 0.8, np.nan])
    figure = violins({"none": values, "aiva $k$": values + 0.1}, "surface Dice", {"oracle": 0.9}, (0, 1))
    drawn(figure)
    (axes,) = figure.axes
    assert sum(isinstance(c, PolyCollection) for c in axes.collections) == 2
    heights = sorted(
        {
            float(y)
            for c in axes.collections
            if hasattr(c, "get_segments")
            for seg in c.get_segments()
            for y in seg[:, 1]
        }
    )
    quartiles = np.quantile(values[:4], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(heights, np.sort(np.concatenate([quartiles, quartiles + 0.1])))
    (means, level) = axes.lines
    np.testing.assert_allclose(means.get_ydata(), [0.375, 0.475])
    assert means.get_linestyle() == "None"
    assert level.get_ydata()[0] == 0.9
    assert axes.get_ylim() == (0, 1)


def test_violins_of_series_join_their_means():
    groups = {"7": {"fta": [0.1, 0.2, 0.4], "ftf": [0.5, 0.5, 0.5]}, "90": {"fta": [0.6, 0.8], "ftf": []}}
    figure = violins(groups, "surface Dice")
    drawn(figure)
    (axes,) = figure.axes
    fta, ftf = axes.lines
    np.testing.assert_allclose(fta.get_ydata(), [np.mean([0.1, 0.2, 0.4]), 0.7])
    assert fta.get_linestyle() == "-"
    assert len(ftf.get_ydata()) == 1
    assert sum(isinstance(c, PolyCollection) for c in axes.collections) == 1  # no density of equal or of two values
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fta", "ftf"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["7", "90"]


def test_training_curves(tmp_path):
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None, "validation": 2.0}, {"step": 3, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    report = Report("title")
    training_curves(report, tmp_path, {"loss": "batch", "validation": "patients"}, "loss", "Loss of the run")
    training_curves(report, tmp_path, {"other": "never"}, "loss", "Not there")
    text = report.write(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "loss against step for batch, patients" in text
    assert "Not there" not in text


def test_colours_are_those_of_the_outlines():
    assert (figures.TRUTH, figures.PREDICTION) == ("#2ca02c", "#d62728")
    with pytest.raises(ValueError, match="max"):
        comparison([])


def test_long_titles_wrap_above_their_pictures():
    assert wrapped("bn", 1.9) == "bn"
    found = wrapped("aiva_clusters10_iterations-per-epoch40_acc-amount12_last\n0.30", 1.9)
    assert found.splitlines()[-1] == "0.30"
    assert len(found.splitlines()) > 2
    assert max(map(len, found.splitlines())) <= 1.9 * 72 / (0.6 * 8)
    assert found.replace("\n", "") == "aiva_clusters10_iterations-per-epoch40_acc-amount12_last0.30"
    image = np.zeros((8, 8))
    figure = comparison([("", [Panel(found, image), Panel("none\n0.1", image)])])
    figure.draw_without_rendering()
    boxes = [cell.title.get_window_extent() for cell in figure.axes]
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[0].y1 <= figure.bbox.y1 + 1  # a pixel above the letters
