"""The parts of the loop, against closed forms and against detectors that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dart_core.batches import Batches
from dart_core.data.boxes import BoxedPicture
from dart_core.data.phantoms import cell_picture
from sissi.detectors import build_detector, load_initial, resizing
from sissi.method import Progress, ap50, detect, pseudo_labels, validation_loss
from sissi.pictures import MixedBatches, Samples, targets_of
from sissi.settings import Correction

CPU = torch.device("cpu")


class Bright(nn.Module):
    """A perfect detector of bright rectangles that do not touch: no weights, one box for each."""

    def __init__(self, score: float = 1.0) -> None:
        super().__init__()
        self.score = score
        self.transform = type("Transform", (), {"resizes": False})()
        self.modes: list[bool] = []

    def forward(self, images):
        from scipy import ndimage

        self.modes.append(self.training)
        found = []
        for image in images:
            labels, _ = ndimage.label(image[0].numpy() > 0.5)
            boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
            found.append({
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "scores": torch.full((len(boxes),), self.score), "labels": torch.ones(len(boxes), dtype=torch.int64),
            })  # fmt: skip
        return found


def frames_with(boxes, side=100):
    frames = torch.zeros(len(boxes), 3, side, side, dtype=torch.uint8)
    for frame, own in zip(frames, boxes, strict=True):
        for x1, y1, x2, y2 in own:
            frame[:, y1:y2, x1:x2] = 255
    return frames


BOXES = [[(10, 20, 40, 50), (60, 20, 90, 60)], [(30, 60, 55, 95)]]


@pytest.mark.parametrize("words", [{}, {"views": "one"}, {"fusion": "nms"}, {"fusion": "nms", "views": "one"}])
def test_a_perfect_detector_gives_its_boxes_back(words):
    """All 20 views, each picture on its own, in the picture's pixels: (W - 1)/side of the frame (P4)."""
    sizes = [(201, 101), (51, 301)]
    found = pseudo_labels(Bright(), frames_with(BOXES), sizes, CPU, Correction(**words))
    for boxes, expected, (height, width) in zip(found, BOXES, sizes, strict=True):
        scale = np.array([width - 1, height - 1, width - 1, height - 1]) / 100
        boxes = boxes[np.argsort(boxes[:, 0])]
        np.testing.assert_allclose(boxes, np.array(expected) * scale, atol=1.3 * scale.max())


def test_scores_below_the_limits_give_nothing():
    for score, words in ((0.2, {}), (0.2, {"fusion": "nms"}), (0.3, {"least_score": 0.5}), (0.005, {"skip_score": 0.0, "least_score": 0.0})):  # fmt: skip
        found = pseudo_labels(Bright(score), frames_with(BOXES), [(100, 100)] * 2, CPU, Correction(**words))
        assert [len(boxes) for boxes in found] == [0, 0]


def test_scores_that_are_no_numbers_stop():
    with pytest.raises(ValueError, match="not finite; train with a lower --learning-rate"):
        pseudo_labels(Bright(float("nan")), frames_with(BOXES), [(100, 100)] * 2, CPU, Correction())


def test_always_in_evaluation_mode():
    """Pitfall 1: detections, the curve and pseudo labels never come from a detector in training mode; it is put back."""
    detector = Bright().train()
    detect(detector, frames_with(BOXES), CPU)
    pseudo_labels(detector, frames_with(BOXES), [(100, 100)] * 2, CPU, Correction())
    assert not any(detector.modes)
    assert detector.training


def test_ap50_of_a_perfect_detector():
    found = detect(Bright(), frames_with(BOXES), CPU)
    assert ap50(found, [np.array(boxes, float) for boxes in BOXES]) == 1.0
    assert ap50(found, [np.zeros((0, 4))] * 2) == -1.0


def samples(count=3, side=64, **words):
    pictures, images = [], {}
    for number in range(count):
        image, boxes = cell_picture(number, "smear", side, 4)
        pictures.append(BoxedPicture(number, boxes.astype(float), ("cell",) * len(boxes)))
        images[number] = image
    return Samples(pictures, images.__getitem__, side, 20, **words)


def test_validation_loss_is_a_pure_function():
    detector = build_detector("small", 64).train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    state = torch.get_rng_state()
    one = validation_loss(detector, samples(), CPU, 2)
    torch.rand(7)
    assert validation_loss(detector, samples(), CPU, 2) == one
    torch.set_rng_state(state)
    validation_loss(detector, samples(), CPU, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert detector.training


# --- Mixed batches ---------------------------------------------------------------------------------------------------


def test_mixed_batches():
    target, source = Batches(samples(), 3, 2, 0), Batches(samples(2), 2, 2, 5)
    batch = MixedBatches(target, source).batch(4)
    assert batch["image"].shape == (4, 3, 64, 64)
    for half, part in ((slice(0, 2), target), (slice(2, 4), source)):
        for name, tensor in part.batch(4).items():
            assert torch.equal(batch[name][half], tensor)


def test_gradients_are_those_of_the_joint_batch():
    """One forward and one backward pass over both halves (D3): the same as of all pictures in one list."""
    torch.manual_seed(0)
    detector = build_detector("small", 64)
    batch = MixedBatches(Batches(samples(), 3, 2, 0), Batches(samples(2), 2, 2, 5)).batch(0)
    gradients = []
    images, targets = targets_of(batch)
    apart = [
        {
            "boxes": batch["boxes"][i, : batch["count"][i]],
            "labels": torch.ones(int(batch["count"][i]), dtype=torch.int64),
        }
        for i in range(4)
    ]
    for given in (targets, apart):
        detector.zero_grad()
        torch.manual_seed(1)
        sum(detector(images, given).values()).backward()
        gradients.append([p.grad.clone() for p in detector.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_pictures_without_cells_can_be_learned_from():
    detector = build_detector("small", 64)
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    loss = sum(detector([torch.rand(3, 64, 64)] * 2, [empty, empty]).values())
    loss.backward()
    assert torch.isfinite(loss)


# --- Detectors -------------------------------------------------------------------------------------------------------


def test_parameters_of_the_paper():
    """Specification 3: 41,352,281 with trained batch norm; backbone and FPN 26,799,296 with a frozen one."""
    with torch.device("meta"):
        trained, frozen = build_detector(), build_detector(frozen=True)
    assert sum(p.numel() for p in trained.parameters()) == 41_352_281
    assert sum(p.numel() for p in frozen.backbone.parameters()) == 26_799_296
    assert sum(p.numel() for p in trained.rpn.parameters()) == 593_935
    assert sum(p.numel() for p in trained.roi_heads.parameters()) == 13_905_930
    assert all(p.requires_grad for p in frozen.parameters())
    rpn, heads = trained.rpn, trained.roi_heads
    assert (rpn._post_nms_top_n["training"], rpn._post_nms_top_n["testing"], rpn.nms_thresh) == (2000, 1000, 0.7)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.2, 400)


def test_views_keep_their_size_unless_asked():
    detector = build_detector("small", 64).eval()
    seen = []
    detector.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-1]))
    with torch.no_grad():
        detector([torch.rand(3, 96, 96)])
        with resizing(detector):
            detector([torch.rand(3, 96, 96)])
        detector([torch.rand(3, 32, 32)])
    assert seen == [96, 64, 32]


@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"]
)
def test_other_detectors_can_be_built(name):
    with torch.device("meta"):
        made = build_detector(name, 64)
    assert not made.transform.resizes
    with pytest.raises(ValueError, match="no detector 'yolo'; give one of small, fasterrcnn"):
        build_detector("yolo")


@pytest.mark.parametrize("name", ["small", "fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn_v2"])
def test_frozen_batch_norm(name):
    """No layer learns its statistics, and a weight file's names are the same."""
    with torch.device("meta"):
        trained, frozen = build_detector(name, 64), build_detector(name, 64, frozen=True)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in frozen.modules())
    expected = {key: value.shape for key, value in trained.state_dict().items() if "num_batches_tracked" not in key}
    assert {key: value.shape for key, value in frozen.state_dict().items()} == expected
    epsilons = [[m.eps for m in made.modules() if hasattr(m, "running_var")] for made in (trained, frozen)]
    assert epsilons[0] == epsilons[1]


def test_weights_with_names_of_older_versions(tmp_path):
    """torchvision's files trained on COCO call the convolution of the proposals by its old name."""
    one, other = build_detector("small", 64), build_detector("small", 64)
    state = one.state_dict()
    for part in ("weight", "bias"):
        state[f"rpn.head.conv.{part}"] = state.pop(f"rpn.head.conv.0.0.{part}")
    torch.save(dict(state), tmp_path / "old.pth")
    taken, left = load_initial(other, tmp_path / "old.pth")
    assert left == []
    assert taken == sum("num_batches_tracked" not in name for name in one.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_progress_survives_a_checkpoint(tmp_path):
    from dart_core.checkpoint import load_checkpoint, save_checkpoint

    one = Progress([np.array([[1.0, 2, 3, 4]]), np.zeros((0, 4))], [0.1, 0.2], [3.0], 2, 1, 5, 0, {"detector": {"a": torch.ones(2)}})  # fmt: skip
    save_checkpoint(tmp_path / "a.pt", {"progress": one.state_dict()})
    other = Progress([])
    other.load_state_dict(load_checkpoint(tmp_path / "a.pt")["progress"])
    assert {k: v for k, v in vars(one).items() if k not in ("labels", "best")} == {k: v for k, v in vars(other).items() if k not in ("labels", "best")}  # fmt: skip
    assert all(np.array_equal(a, b) for a, b in zip(one.labels, other.labels, strict=True))
    assert torch.equal(other.best["detector"]["a"], torch.ones(2))


# --- Learning --------------------------------------------------------------------------------------------------------


def test_overfits_one_batch():
    torch.manual_seed(0)
    detector = build_detector("small", 64)
    optimizer = torch.optim.SGD(detector.parameters(), 0.02, momentum=0.9)
    batch = Batches(samples(2, 128), 2, 2, 0).batch(0)
    losses = []
    for _ in range(50):
        loss = sum(detector(*targets_of(batch)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-5:]) < 0.4 * np.mean(losses[:5])
    found = detect(detector, batch["image"], CPU)
    assert ap50(found, [batch["boxes"][i, : batch["count"][i]].double().numpy() for i in range(2)]) > 0.8
