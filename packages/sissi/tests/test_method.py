"""The parts of the loop, against closed forms and against detectors that are known."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection

from dart_core.batches import Batches
from dart_core.data.boxes import BoxedPicture
from dart_core.data.phantoms import cell_picture
from dart_core.run import Run
from dart_core.settings import RunSettings
from sissi import detectors, memorisation_epoch, method
from sissi.detectors import (
    SMALL,
    About,
    build_detector,
    has_zero_eps,
    load_detector,
    load_initial,
    make,
    names,
    resizing,
    save_detector,
)
from sissi.method import Material, Progress, Trainer, ap50, detect, pseudo_labels, validation_loss
from sissi.pictures import MixedBatches, Samples, targets_of
from sissi.settings import Correction, DetectorSettings, Training

CPU = torch.device("cpu")


class Bright(nn.Module):
    """A perfect detector of bright rectangles that do not touch: no weights, one box for each."""

    def __init__(self, score: float = 1.0) -> None:
        super().__init__()
        self.score = score
        self.transform = type("Transform", (), {"resizes": False})()
        self.modes: list[bool] = []
        self.resizes: list[bool] = []

    def forward(self, images):
        from scipy import ndimage

        self.modes.append(self.training)
        self.resizes.append(self.transform.resizes)
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


@pytest.mark.parametrize("authors_tta", [False, True])
def test_only_the_authors_views_are_resized(authors_tta):
    """P1: in each of the five scales, and not afterwards."""
    detector = Bright()
    pseudo_labels(detector, frames_with(BOXES), [(100, 100)] * 2, CPU, Correction(authors_tta=authors_tta))
    assert detector.resizes == [authors_tta] * 5
    assert not detector.transform.resizes


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


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_every_part_of_a_divided_batch_holds_both(parts):
    """Of 4 + 4 pictures, as `Run.optimise` divides them; the pictures are those of the undivided batch."""
    both = samples(8)
    halves = [Batches(dataclasses.replace(both, pictures=both.pictures[i : i + 4]), 4, 4, i) for i in (0, 4)]
    whole, divided = (MixedBatches(*halves, count).batch(0) for count in (1, parts))
    owner = torch.tensor([0] * 4 + [1] * 4)  # of the undivided batch: the target's first
    places = [next(i for i in range(8) if torch.equal(image, whole["image"][i])) for image in divided["image"]]
    assert sorted(places) == list(range(8))
    for name, tensor in divided.items():
        assert torch.equal(tensor, whole[name][places])
    for part in owner[places].tensor_split(parts):
        assert set(part.tolist()) == {0, 1}


class First:
    """In place of a sampler's draws: the first so many, half of them positive where there are as many."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, matched):
        found = ([], [])
        for values in matched:
            positive = torch.where(values >= 1)[0][: self.count // 2]
            negative = torch.where(values == 0)[0][: self.count - len(positive)]
            assert len(positive) + len(negative) == self.count
            for masks, chosen in zip(found, (positive, negative), strict=True):
                masks.append(torch.zeros_like(values, dtype=torch.uint8).index_fill(0, chosen, 1))
        return found


def test_gradients_are_those_of_the_joint_batch(trainer):
    """One step (D3), whole or in two parts, has the gradient of one list of all its pictures.

    Draws and batch norm look at a batch as a whole; here they are fixed.
    """

    def fixed():
        torch.manual_seed(0)
        detector = build_detector("small", 64, frozen=True)
        detector.rpn.fg_bg_sampler, detector.roi_heads.fg_bg_sampler = First(32), First(8)
        return detector

    joint, gradients = fixed(), []
    for accumulate in (1, 2):
        made = trainer(detector=fixed(), accumulate=accumulate)
        batch = made.batches(0).batch(0)
        assert len(batch["image"]) == 4
        made.step(0, 0, batch)
        gradients.append([weights.grad for weights in made.detector.parameters()])
    images = [image.float() / 255 for image in batch["image"]]
    targets = [{"boxes": boxes[:count], "labels": torch.ones(int(count), dtype=torch.int64)} for boxes, count in zip(batch["boxes"], batch["count"], strict=True)]  # fmt: skip
    sum(joint(images, targets).values()).backward()
    expected = [weights.grad for weights in joint.parameters()]
    assert sum(float(grad.abs().sum()) for grad in expected) > 0
    for found in gradients:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


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
    taken, left, coco = load_initial(other, tmp_path / "old.pth")
    assert (left, coco) == ([], False)
    assert taken == sum("num_batches_tracked" not in name for name in one.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


# --- COCO's files ----------------------------------------------------------------------------------------------------


def test_detectors_whose_files_mean_no_epsilon():
    """torchvision's own code says which (`overwrite_eps`)."""
    found = {
        name for name in names() if name != SMALL and "overwrite_eps" in inspect.getsource(getattr(detection, name))
    }
    assert set(detectors._ZERO_EPS) == found


@pytest.mark.parametrize(
    ("classes", "batch_norm", "eps"), [(91, "auto", 0.0), (2, "auto", 1e-5), (91, "trained", 1e-5)]
)
def test_epsilon_of_cocos_files(classes, batch_norm, eps, tmp_path, monkeypatch):
    """Frozen batch norm of a file with COCO's 91 classes adds nothing to the variance, and stays so in the detector's own file."""
    monkeypatch.setattr(detectors, "_ZERO_EPS", (SMALL,))
    state = build_detector(SMALL, 64).state_dict()
    for part in ("weight", "bias"):
        name = f"roi_heads.box_predictor.cls_score.{part}"
        state[name] = torch.zeros(classes, *state[name].shape[1:])
    torch.save(state, tmp_path / "coco.pth")
    made, frozen, _ = make(DetectorSettings(SMALL, size=64, init=tmp_path / "coco.pth", batch_norm=batch_norm))
    about = About(SMALL, 64, frozen, "rgb", 0.05, 0.2, 400, "x", 1, 0, has_zero_eps(made))
    save_detector(tmp_path, made, about)
    for network in (made, load_detector(tmp_path)[0]):
        assert {module.eps for module in network.modules() if hasattr(module, "running_var")} == {eps}
    old = {key: value for key, value in dataclasses.asdict(about).items() if key != "zero_eps"}
    assert not About(**old).zero_eps  # files of earlier versions


def test_progress_survives_a_checkpoint(tmp_path):
    from dart_core.checkpoint import load_checkpoint, save_checkpoint

    one = Progress([np.array([[1.0, 2, 3, 4]]), np.zeros((0, 4))], [0.1, 0.2], [3.0], 2, 1, 5, 0, {"detector": {"a": torch.ones(2)}})  # fmt: skip
    save_checkpoint(tmp_path / "a.pt", {"progress": one.state_dict()})
    other = Progress([])
    other.load_state_dict(load_checkpoint(tmp_path / "a.pt")["progress"])
    assert {k: v for k, v in vars(one).items() if k not in ("labels", "best")} == {k: v for k, v in vars(other).items() if k not in ("labels", "best")}  # fmt: skip
    assert all(np.array_equal(a, b) for a, b in zip(one.labels, other.labels, strict=True))
    assert torch.equal(other.best["detector"]["a"], torch.ones(2))


# --- The loop --------------------------------------------------------------------------------------------------------


def material(side=64):
    """Three pictures each of source and target, and two that validate, in memory."""
    images, listed = {}, []
    for number in range(8):
        images[number], boxes = cell_picture(number, "smear", side, 4)
        listed.append(BoxedPicture(number, boxes.astype(float), ("cell",) * len(boxes)))
    return Material(listed[:3], listed[3:5], listed[5:], [(side, side)] * 3, images.__getitem__, side)


RECIPE = Training(epochs=6, batch_size=2, learning_rate=0.01)


@pytest.fixture
def trainer(tmp_path):
    """Makes trainers of tiny detectors."""
    with contextlib.ExitStack() as stack:

        def make(correction=Correction(), training=RECIPE, given=None, detector=None, accumulate=1):  # noqa: B008 (frozen)
            settings = RunSettings(tmp_path / f"run{len(made)}", seed=0, device="cpu", accumulate=accumulate)
            run = stack.enter_context(Run(settings))
            detector = run.prepare(build_detector("small", 64) if detector is None else detector)
            made.append(Trainer(run, detector, given or material(), correction, training, said.append, lambda epoch, pictures: None))  # fmt: skip
            return made[-1]

        made, said = [], []
        yield make


def learn(trainer, epoch):
    """One epoch, without checkpoint."""
    trainer.begin(epoch)
    trainer.detector.train()
    for step in range(epoch * trainer.epoch_steps, (epoch + 1) * trainer.epoch_steps):
        trainer.step(step, epoch, trainer.batches(epoch).batch(step))


def test_going_back_takes_the_momentum_along(trainer, monkeypatch):
    """The first of two epochs was the best: its weights and its momentum come back, not those of the second (specification 10)."""
    losses = iter([1.0, 2.0])
    monkeypatch.setattr(method, "validation_loss", lambda *given: next(losses))
    made = trainer(Correction("baseline", supervised=2, views="one"))

    def state():
        momentum = {
            f"momentum {key}": value["momentum_buffer"] for key, value in made.optimizer.state_dict()["state"].items()
        }
        return {name: value.clone() for name, value in {**made.detector.state_dict(), **momentum}.items()}

    learn(made, 0)
    best = state()
    learn(made, 1)
    last = state()
    made.begin(2)
    assert made.progress.best_epoch == 0
    found = state()
    assert any(name.startswith("momentum") for name in best)
    assert all(torch.equal(found[name], value) for name, value in best.items())
    assert not all(torch.equal(found[name], value) for name, value in last.items() if name.startswith("momentum"))


def test_the_flag_stays_up(trainer, monkeypatch):
    """Memorisation is asked for in epoch 3 first; the bare test falls back afterwards, the correction goes on (sections 9 and 11)."""
    curve = [0.04, 0.3, 0.35, 0.36, 0.45, 0.58, 0.6]  # flat for a while, then on
    flags = [memorisation_epoch(curve[: epoch + 1], RECIPE.epochs)[0] for epoch in range(3, 6)]
    assert flags[0]
    assert not all(flags)
    values = iter(curve)
    monkeypatch.setattr(method, "ap50", lambda found, truth: next(values))
    made = trainer(Correction("plain-a", views="one"))
    corrects = []
    for epoch in range(RECIPE.epochs):
        learn(made, epoch)
        corrects.append(made.corrects(epoch))
    assert corrects == [False] * 4 + [True] * 2
    assert (made.progress.memorised, made.progress.cycles) == (3, 2)


@pytest.mark.parametrize(("timing", "first"), [("next", 4), ("authors", 3)])
def test_when_cloning_starts(timing, first, trainer, monkeypatch):
    """S5: with the correction, in the epoch after the flag; in the authors' code in that of the flag, with the labels at first."""
    monkeypatch.setattr(method, "ap50", lambda found, truth: 0.5)
    monkeypatch.setattr(method, "memorisation_epoch", lambda curve, epochs, threshold: (True, 3))
    made = trainer(Correction("a-sissi-w", views="one", timing=timing))
    clones, backgrounds = [], []
    for epoch in range(RECIPE.epochs):
        made.begin(epoch)
        clones.append(made.clones(epoch))
        backgrounds.append(made.batches(epoch).halves[0].load.background)
    assert clones == [epoch >= first for epoch in range(RECIPE.epochs)]
    assert backgrounds == ["weak" if epoch >= first else "none" for epoch in range(RECIPE.epochs)]
    assert [made.corrects(epoch) for epoch in range(RECIPE.epochs)] == [False] * 4 + [True] * 2
    made = trainer(Correction("plain-a", timing=timing))
    made.progress.memorised = 3
    assert not any(made.clones(epoch) for epoch in range(RECIPE.epochs))


def test_the_curve_is_asked_about_the_first_labels(trainer, monkeypatch):
    """S1: also after corrections, which change what is learned from."""
    asked = []
    monkeypatch.setattr(method, "ap50", lambda found, truth: asked.append(truth) or 0.5)
    monkeypatch.setattr(
        method, "pseudo_labels", lambda detector, frames, *words: [np.array([[1.0, 2, 9, 9]])] * len(frames)
    )
    made = trainer(Correction("plain-a"))
    side = made.material.side
    made.material = dataclasses.replace(made.material, sizes=[(2 * side, side // 2)] * 3)
    first = [picture.boxes * [2, 0.5, 2, 0.5] for picture in made.material.target]  # in the frame
    made.ask(3, False)
    made.correct(4)
    assert all((boxes == [[1, 2, 9, 9]]).all() for boxes in made.progress.labels)
    made.ask(4, False)
    assert len(asked) == 2
    for truth in asked:
        for boxes, expected in zip(truth, first, strict=True):
            np.testing.assert_allclose(boxes, expected)


def test_steps_of_the_optimiser(trainer):
    """D2: SGD with momentum 0.9 and weight decay 0.0002, against its formula."""
    made = trainer(detector=Learner(), training=dataclasses.replace(RECIPE, learning_rate=0.001))
    (weight,) = made.optimizer.param_groups[0]["params"]
    value = float(weight.detach().fill_(2.0)[0])
    momentum = 0.0
    for _ in range(3):
        weight.grad = torch.full_like(weight, 5.0)
        made.optimizer.step()
        momentum = 0.9 * momentum + 5.0 + 0.0002 * value
        value -= 0.001 * momentum
        assert float(weight.detach()[0]) == pytest.approx(value, rel=1e-6)


def test_when_the_learning_rate_falls(trainer, monkeypatch):
    """D2: to a tenth after ten epochs without a lower validation loss."""
    monkeypatch.setattr(method, "validation_loss", lambda *given: 1.0)
    made = trainer(Correction(start="never"))
    rates = []
    for epoch in range(1, 14):
        made.validate(epoch)
        rates.append(made.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01] * 11 + [0.001] * 2)  # the eleventh epoch after the first is one too many


class Learner(Bright):
    """With a weight, so that there is something to optimise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def test_pictures_gain_boxes(trainer):
    """Section 9, pitfall 2: after a correction a sample has as many boxes as there are pseudo labels, also more than before."""
    frames = frames_with(BOXES)
    images = {number: frame.permute(1, 2, 0).numpy() for number, frame in enumerate(frames)}
    pictures = [BoxedPicture(number, np.array(boxes[:1], float), ("cell",)) for number, boxes in enumerate(BOXES)]
    given = Material(pictures, pictures, pictures, [(100, 100)] * 2, images.__getitem__, 100)
    made = trainer(Correction("plain-a"), given=given, detector=Learner())
    pseudo = pseudo_labels(Bright(), frames, given.sizes, CPU, made.correction)
    assert [len(boxes) for boxes in pseudo] == [2, 1]
    made.correct(1)
    relearned = Samples(made.relabelled(), given.files, given.side, given.most)
    for number, boxes in enumerate(pseudo):
        sample = relearned(number, np.random.default_rng(0))
        assert sample["count"] == len(boxes)
        np.testing.assert_allclose(sample["boxes"][: len(boxes)], boxes, rtol=1e-6)


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
