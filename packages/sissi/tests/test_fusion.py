"""Weighted boxes fusion against its closed forms and against ensemble-boxes, and the selection after it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from ensemble_boxes import weighted_boxes_fusion as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from sissi import correct_labels, weighted_boxes_fusion
from sissi.fusion import CONFIDENCE_TYPES


def views_of(rng, views=4, cells=6, classes=1):
    """Boxes of the same cells in several views, jittered, some missing.

    Scores are drawn from a continuum, so that neither they nor their sums are equal: the order of ties is rounding.
    """
    centre, half = rng.uniform(0.1, 0.9, (cells, 2)), rng.uniform(0.02, 0.1, (cells, 2))
    kind = rng.integers(1, classes + 1, cells)
    boxes, scores, labels = [], [], []
    for _ in range(views):
        seen = rng.random(cells) < 0.8
        moved = np.concatenate([centre - half, centre + half], axis=1)[seen] + rng.normal(0, 0.01, (seen.sum(), 4))
        boxes.append(moved)
        scores.append(rng.uniform(0.001, 1, seen.sum()))
        labels.append(kind[seen])
    return boxes, scores, labels


def test_three_of_twenty_views():
    boxes = [[[0.2, 0.2, 0.4, 0.4]], [[0.22, 0.2, 0.42, 0.4]], [[0.2, 0.21, 0.4, 0.41]]] + [[]] * 17
    fused, scores, labels = weighted_boxes_fusion(boxes, [[0.9], [0.6], [0.3]] + [[]] * 17, [[1], [1], [1]] + [[]] * 17)
    np.testing.assert_allclose(fused, [[0.206667, 0.201667, 0.406667, 0.401667]], atol=1e-6)
    np.testing.assert_allclose(scores, [0.09], atol=1e-12)
    assert labels.tolist() == [1]


def test_the_same_box_in_every_view():
    fused, scores, _ = weighted_boxes_fusion([[[0.1, 0.2, 0.3, 0.5]]] * 20, [[0.7]] * 20, [[1]] * 20)
    np.testing.assert_allclose(fused, [[0.1, 0.2, 0.3, 0.5]], atol=1e-12)
    np.testing.assert_allclose(scores, [0.7], atol=1e-12)


def test_iou_at_the_threshold_does_not_merge():
    """Two halves of a square overlap by a third of their union."""
    boxes = [[[0.0, 0.0, 0.5, 1.0]], [[0.25, 0.0, 0.75, 1.0]]]
    args = (boxes, [[0.9], [0.8]], [[1], [1]])
    assert len(weighted_boxes_fusion(*args, iou_threshold=0.25 / 0.75)[0]) == 2
    assert len(weighted_boxes_fusion(*args, iou_threshold=0.33)[0]) == 1


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(CONFIDENCE_TYPES), st.booleans(), st.booleans())
def test_as_ensemble_boxes(seed, conf_type, overflow, weighted):
    rng = np.random.default_rng(seed)
    boxes, scores, labels = views_of(rng, classes=2)
    weights = rng.uniform(0.5, 2, 4).tolist() if weighted else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = reference(boxes, scores, labels, weights, 0.5, 0.1, conf_type, overflow)
    found = weighted_boxes_fusion(boxes, scores, labels, weights, 0.5, 0.1, conf_type, overflow)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_order_of_views_does_not_matter(seed, order):
    boxes, scores, labels = views_of(np.random.default_rng(seed))
    one = weighted_boxes_fusion(boxes, scores, labels)
    other = weighted_boxes_fusion(*([part[i] for i in order] for part in (boxes, scores, labels)))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 1.0))
def test_scores_scale(seed, factor):
    boxes, scores, labels = views_of(np.random.default_rng(seed))
    fused, values, _ = weighted_boxes_fusion(boxes, scores, labels)
    other, scaled, _ = weighted_boxes_fusion(boxes, [factor * part for part in scores], labels)
    np.testing.assert_allclose(other, fused, atol=1e-9)
    np.testing.assert_allclose(scaled, factor * values, atol=1e-9)


def test_corners_and_borders():
    """Swapped corners are put in order, boxes are cut to the picture, those without area go."""
    boxes = [[[0.4, 0.5, 0.2, 0.3]], [[-0.5, 0.9, 0.1, 1.5]], [[0.3, 0.3, 0.3, 0.6]], [[1.2, 0.0, 1.4, 0.2]]]
    fused, scores, _ = weighted_boxes_fusion(boxes, [[0.9], [0.8], [0.7], [0.6]], [[1]] * 4)
    np.testing.assert_allclose(fused, [[0.2, 0.3, 0.4, 0.5], [0, 0.9, 0.1, 1.0]], atol=1e-12)
    np.testing.assert_allclose(scores, [0.225, 0.2])


def test_scores_of_zero_stay_finite():
    fused, scores, _ = weighted_boxes_fusion([[[0.1, 0.1, 0.2, 0.2]]] * 2, [[0.0]] * 2, [[1]] * 2)
    assert np.isfinite(fused).all()
    assert scores.tolist() == [0.0]


@pytest.mark.parametrize("skip", [0.0, 2.0])
def test_nothing_left(skip):
    for boxes, scores, labels in (([[], []], [[], []], [[], []]), ([[[0, 0, 1, 1]]], [[0.5]], [[1]])):
        if scores[0] and not skip:
            continue
        fused, values, kinds = weighted_boxes_fusion(boxes, scores, labels, skip_box_threshold=skip)
        assert (fused.shape, values.shape, kinds.shape) == ((0, 4), (0,), (0,))


def test_tensors_stay_tensors():
    boxes = [torch.tensor([[0.2, 0.2, 0.4, 0.4]])] * 2
    fused, scores, labels = weighted_boxes_fusion(boxes, [torch.tensor([0.5])] * 2, [torch.tensor([3])] * 2)
    assert (fused.dtype, scores.dtype, labels.tolist()) == (torch.float32, torch.float32, [3])
    torch.testing.assert_close(fused, boxes[0])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_the_floating_point_type_stays(kind):
    boxes = [np.array([[0.2, 0.2, 0.4, 0.4]], kind)] * 2
    fused, scores, _ = weighted_boxes_fusion(boxes, [np.array([0.5], kind)] * 2, [np.array([3])] * 2)
    assert (fused.dtype, scores.dtype) == (kind, kind)
    np.testing.assert_allclose(fused, boxes[0])
    assert correct_labels(fused * 512, scores, (100, 100)).dtype == kind
    assert correct_labels(torch.from_numpy(fused * 512), scores, (100, 100)).numpy().dtype == kind


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (([[[0, 0, 1, 1]]], [[0.5]], [[]]), "view 0 has 1 boxes, 1 scores, 0 labels"),
        (([[[0, 0, 1, 1]]], [[float("nan")]], [[1]]), "score that is not finite"),
        (([[[0, 0, 1]]], [[0.5]], [[1]]), "boxes have shape"),
        (([[[0, 0, 1, float("inf")]]], [[0.5]], [[1]]), "not finite"),
        (([[]], [[]], [[]], [0.0]), "weights are"),
        (([[]], [[]], [[]], [1, 1]), "weights are"),
        (([[]], [[]], []), "1 views with boxes"),
        (([[]], [[]], [[]], None, 0.5, 0.0, "median"), "conf_type"),
    ],
)
def test_refused(words, line):
    with pytest.raises(ValueError, match=line):
        weighted_boxes_fusion(*words)


# --- correct_labels --------------------------------------------------------------------------------------------------


def test_scale_and_order():
    """P4: scaled by (W - 1)/512 and (H - 1)/512, the best first."""
    boxes = [[0, 0, 100, 100], [256, 256, 512, 512]]
    found = correct_labels(boxes, [0.3, 0.9], (480, 640))
    np.testing.assert_allclose(found, np.array([[256, 256, 512, 512], [0, 0, 100, 100]]) * [639, 479, 639, 479] / 512)


def test_selection():
    boxes = [[0, 0, 100, 100], [0, 0, 100, 90], [300, 300, 300.005, 400], [400, 0, 500, 100], [0, 400, 99, 500]]
    found = correct_labels(boxes, [0.9, 0.8, 0.7, 0.25, 0.249], (513, 513))
    np.testing.assert_allclose(found, [boxes[0], boxes[3]])


def test_overlap_at_the_limit_stays():
    """100 x 100 squares that share 100 x 20 overlap by 1/9, those that share 100 x 50 by a third."""
    assert len(correct_labels([[0, 0, 100, 100], [0, 80, 100, 180]], [0.9, 0.8], (513, 513))) == 2
    assert len(correct_labels([[0, 0, 100, 100], [0, 50, 100, 150]], [0.9, 0.8], (513, 513))) == 1


def test_the_best_200():
    corner = np.stack(np.meshgrid(np.arange(16) * 30, np.arange(16) * 30), axis=-1).reshape(-1, 2)
    boxes = np.concatenate([corner, corner + 20], axis=1)
    scores = np.linspace(0.3, 0.9, 256)
    found = correct_labels(boxes, scores, (513, 513))
    np.testing.assert_allclose(found, boxes[::-1][:200])


def test_no_box():
    assert correct_labels(np.zeros((0, 4)), [], (10, 10)).shape == (0, 4)
    assert isinstance(correct_labels(torch.zeros(0, 4), torch.zeros(0), (10, 10)), torch.Tensor)
    with pytest.raises(ValueError, match="not finite"):
        correct_labels([[0, 0, 1, 1]], [float("nan")], (10, 10))
