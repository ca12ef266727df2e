"""SISSI in the order of the paper: learn from mixed batches, find out when memorisation begins, correct the labels every epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dart_core.batches import Batches
from dart_core.checkpoint import unwrap
from dart_core.data.boxes import CELL, BoxedPicture
from dart_core.errors import InputError, Interrupted
from dart_core.metrics import coco_summary
from dart_core.run import Run
from sissi.detectors import resizing
from sissi.fusion import correct_labels, fuse
from sissi.memorisation import memorisation_epoch
from sissi.pictures import Augmentation, Files, MixedBatches, Samples, frame_tensor, targets_of
from sissi.settings import Correction, Training
from sissi.views import SCALES, VIEWS, undo_views, view_of

PATIENCE, DECAY, MOMENTUM = 10, 0.1, 0.9
"""Epochs without a lower validation loss before the learning rate falls, by which factor; of SGD (D2)."""
ASKED_FROM = 3
"""First epoch in which the curve is asked (pitfall 13)."""
LOWEST = 0.01
"""Score below which a box of a view does not count at all (P2)."""
LIMIT = 400
"""Detections of a picture that count in the AP50 curve (specification 6)."""
ONE_VIEW = VIEWS.index(next(view for view in VIEWS if view.scale == 1.0 and view.flip == "none"))


# --- Detecting -------------------------------------------------------------------------------------------------------


def _in_parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


@torch.no_grad()
def detect(detector: nn.Module, frames: Tensor, device: torch.device, autocast: Any = None) -> list[dict[str, Tensor]]:
    """What the detector finds in pictures, strictly in evaluation mode (pitfall 1).

    Args:
        detector: takes a list of pictures from 0 to 1, gives boxes and scores of each.
        frames: uint8 (N, 3, S, S).
        device: where the detector is.
        autocast: context of the run's precision.

    Returns:
        boxes (n, 4) in the frame and scores (n,) of each picture.
    """
    was_training = detector.training
    detector.eval()
    with autocast if autocast is not None else torch.no_grad():
        found = detector(list(frames.to(device).float() / 255))
    detector.train(was_training)
    return [{"boxes": item["boxes"].float(), "scores": item["scores"].float()} for item in found]


def ap50(found: Sequence[Mapping[str, Tensor]], truth: Sequence[NDArray[np.float64]]) -> float:
    """Average precision at an IoU of one half, from 0 to 1; -1 without any box to find."""
    return coco_summary([{"boxes": boxes} for boxes in truth], found, (LIMIT,))["AP50"]


@torch.no_grad()
def detect_views(
    detector: nn.Module, frames: Tensor, device: torch.device, settings: Correction
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]]:
    """Boxes in the frame, their scores and views, of all test-time views of each picture (P1, P2).

    Args:
        detector: the network.
        frames: uint8 (N, 3, S, S).
        device: where the detector is.
        settings: which views.
    """
    side = frames.shape[-1]
    boxes, scores, views, owners = [], [], [], []
    frames = frames.to(device)
    for scale in SCALES if settings.views == "all" else (1.0,):
        chosen = [
            i for i, view in enumerate(VIEWS) if view.scale == scale and (settings.views == "all" or i == ONE_VIEW)
        ]
        versions = [view_of(frames, VIEWS[i], VIEWS[i].size((side, side))) for i in chosen]
        with resizing(unwrap(detector), settings.authors_tta):
            found = detect(detector, torch.cat(versions), device)
        for place, item in enumerate(found):
            view, owner = divmod(place, len(frames))
            count = len(item["scores"])
            boxes.append(item["boxes"])
            scores.append(item["scores"])
            views.append(torch.full((count,), chosen[view], device=device))
            owners.append(torch.full((count,), owner, device=device))
    index, owner_of = torch.cat(views), torch.cat(owners)
    back = undo_views(torch.cat(boxes), index, (side, side)).double().cpu().numpy()
    values, index, owner_of = torch.cat(scores).double().cpu().numpy(), index.cpu().numpy(), owner_of.cpu().numpy()  # type: ignore[assignment]
    if not np.isfinite(values).all() or not np.isfinite(back).all():
        raise InputError("the detector's scores are not finite", remedy="train with a lower --learning-rate")
    keep = values > LOWEST
    return [
        (back[mask], values[mask], np.asarray(index)[mask])
        for mask in (keep & (np.asarray(owner_of) == i) for i in range(len(frames)))
    ]


def pseudo_labels(
    detector: nn.Module, frames: Tensor, sizes: Sequence[tuple[int, int]], device: torch.device, settings: Correction
) -> list[NDArray[np.float64]]:
    """New labels of pictures in their own pixels (2D): views, fusion, selection.

    Args:
        detector: the network.
        frames: uint8 (N, 3, S, S).
        sizes: (H, W) of each picture.
        device: where the detector is.
        settings: views, fusion, thresholds.

    Returns:
        (n, 4) of each, from the highest score down; n = 0 where nothing is left.
    """
    side, labels = frames.shape[-1], []
    for (boxes, scores, views), size in zip(detect_views(detector, frames, device, settings), sizes, strict=True):
        if settings.fusion == "wbf":
            count = len(VIEWS) if settings.views == "all" else 1
            boxes, scores, _ = fuse(
                boxes / side, scores, np.ones(len(boxes), np.int64), views if count > 1 else views * 0,
                np.ones(count), settings.fusion_iou, settings.skip_score,
            )  # fmt: skip
            boxes = boxes * side
        labels.append(np.asarray(correct_labels(boxes.clip(0, side), scores, size, settings.least_score, side)))
    return labels


def validation_loss(detector: nn.Module, samples: Samples, device: torch.device, batch_size: int) -> float:
    """Loss on the validation pictures of the source (D5), with the same draws of proposals each time."""
    losses, counts = [], []
    frozen = [module for module in detector.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    was_training = detector.training
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        detector.train()  # which is when torchvision's detectors give losses
        for module in frozen:
            module.eval()  # but the statistics of the validation pictures stay out
        for part in _in_parts(len(samples.pictures), batch_size):
            loaded = [samples(i, np.random.default_rng(0)) for i in range(part.start, part.stop)]
            batch = {
                name: torch.stack([torch.as_tensor(item[name]) for item in loaded]).to(device) for name in loaded[0]
            }
            losses.append(float(sum(detector(*targets_of(batch)).values())))
            counts.append(len(loaded))
    detector.train(was_training)
    return float(np.average(losses, weights=counts))


# --- What changes from epoch to epoch ---------------------------------------------------------------------------------


@dataclass
class Progress:
    """Labels, AP50 curve and the best state so far; a part of the checkpoints, so that a run resumes inside and between cycles."""

    labels: list[NDArray[np.float64]]
    """Of each target picture, in its pixels."""
    curve: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Validation loss after each epoch."""
    begun: int = -1
    """Epoch whose start was worked on."""
    memorised: int = -1
    """Epoch of the flag; -1: not yet."""
    cycles: int = 0
    """Corrections so far."""
    best_epoch: int = -1
    best: dict[str, Any] = field(default_factory=dict)
    """Start validation: network and optimiser of the epoch with the lowest loss, as long as it may be gone back to."""

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {**vars(self), "labels": [torch.from_numpy(boxes.copy()) for boxes in self.labels]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
        self.labels = [boxes.numpy() for boxes in state["labels"]]
        self.best = dict(state["best"])


@dataclass(frozen=True)
class Material:
    """Everything that is learned from."""

    source: Sequence[BoxedPicture]
    validation: Sequence[BoxedPicture]
    target: Sequence[BoxedPicture]
    """With the initial weak labels."""
    sizes: Sequence[tuple[int, int]]
    """(H, W) of each target picture."""
    files: Files
    side: int

    @property
    def most(self) -> int:
        """Boxes of the fullest picture, or the 200 that a correction can give."""
        return max(
            200, *(len(picture.boxes) for part in (self.source, self.validation, self.target) for picture in part)
        )

    def frames(self, part: slice) -> Tensor:
        """Target pictures in their frames, uint8 (N, 3, S, S)."""
        return torch.stack([frame_tensor(self.files(picture.image), self.side) for picture in self.target[part]])

    def weak(self, index: int) -> NDArray[np.float64]:
        """The initial labels of a target picture in its frame."""
        height, width = self.sizes[index]
        return self.target[index].boxes * (self.side / np.array([width, height, width, height]))


class Trainer:
    """The loop, and what it needs of the epoch before.

    Of several processes each computes what is decided between two epochs (losses, the curve, labels), and all take what the main
    one found: where processors round differently, they would otherwise go on with other labels and learning rates.

    An epoch is one pass over the target in whole batches (D3): with 5 pictures and batches of 4 it draws 8, the last 3 of them
    from the next pass, since passes follow each other without a gap. The source goes through its own passes, shuffled anew
    for each, in the same way; it is not cut off and shuffled at the start of an epoch, as the authors do.

    Args:
        run: entered.
        detector: as `run.prepare` gave it.
        material: pictures.
        correction: when and how labels are corrected.
        training: the recipe.
        say: gets a line for people after each epoch.
        save_labels: gets the epoch and the new labels of all target pictures, before they are learned from.
    """

    def __init__(
        self, run: Run, detector: nn.Module, material: Material, correction: Correction, training: Training,
        say: Callable[[str], None], save_labels: Callable[[int, Sequence[BoxedPicture]], None],
    ) -> None:  # fmt: skip
        self.run, self.detector, self.material = run, detector, material
        self.correction, self.training, self.say, self.save_labels = correction, training, say, save_labels
        self.optimizer = SGD(
            [weights for weights in detector.parameters() if weights.requires_grad], training.learning_rate,
            MOMENTUM, weight_decay=training.weight_decay,
        )  # fmt: skip
        self.schedule = ReduceLROnPlateau(self.optimizer, factor=DECAY, patience=PATIENCE)
        self.progress = Progress([picture.boxes for picture in material.target])
        self.epoch_steps = -(-len(material.target) // training.batch_size)

    @property
    def supervised(self) -> int:
        """Start validation: epochs with the first labels."""
        return self.correction.supervised or -(-self.training.epochs // 2)

    @property
    def goes_back(self) -> bool:
        """Whether the best of those epochs is gone back to: before labels are corrected."""
        return self.correction.starts == "validation" and self.training.learn_from == "both"

    def train(self) -> Progress:
        """Train to the end; resumes where a checkpoint says."""
        run, steps = self.run, self.epoch_steps
        run.restore(detector=self.detector, optimizer=self.optimizer, schedule=self.schedule, progress=self.progress)
        for epoch in range(run.step // steps, self.training.epochs):
            if self.progress.begun < epoch:
                self.begin(epoch)
            self.detector.train()
            try:
                for step, batch in run.steps(self.batches(epoch), (epoch + 1) * steps, f"epoch {epoch}"):
                    self.step(step, epoch, batch)
            except Interrupted as error:
                # `steps` knows of this epoch alone, people ask how far the whole run is.
                stopped = error.problem.partition(" of ")[0]
                raise Interrupted(
                    f"{stopped} of {self.training.epochs * steps}",
                    signal_number=error.signal_number,
                    remedy=error.remedy,
                ) from None
        if self.progress.begun < self.training.epochs:
            self.begin(self.training.epochs)
        return self.progress

    # --- One epoch ---

    def begin(self, epoch: int) -> None:
        """Everything between two epochs: validate, ask the curve, correct. A pure function of the state after the epoch before."""
        progress, last = self.progress, epoch == self.training.epochs
        self.share_statistics()
        numbers: dict[str, float] = {}
        if epoch > 0:
            numbers["validation_loss"] = self.validate(epoch)
        if self.correction.starts == "adele" and self.training.learn_from == "both":
            numbers |= self.ask(epoch, last)
        if self.goes_back and epoch == self.supervised and not last:
            self.go_back(epoch)
        if self.corrects(epoch) and not last:
            numbers |= self.correct(epoch)
        progress.begun = epoch
        self.run.log.write(epoch * self.epoch_steps, epoch=epoch, **numbers)
        words = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()]
        if words:
            self.say(f"epoch {epoch} of {self.training.epochs}: {', '.join(words)}")

    @torch.no_grad()
    def share_statistics(self) -> None:
        """Give all processes the main one's running statistics, as before every step: the last step of an epoch leaves each its own."""
        if self.run.world_size == 1:
            return
        buffers = dict(unwrap(self.detector).named_buffers())
        main = self.run.from_main({name: buffer.cpu() for name, buffer in buffers.items()})
        for name, buffer in buffers.items():
            buffer.copy_(main[name])

    def corrects(self, epoch: int) -> bool:
        """Whether the labels of an epoch are corrected ones."""
        if self.training.learn_from != "both":
            return False
        if self.correction.starts == "validation":
            return epoch >= self.supervised
        return self.correction.starts == "adele" and 0 <= self.progress.memorised < epoch

    def clones(self, epoch: int) -> bool:
        """Whether target pictures of an epoch hide what has no box."""
        if self.correction.blur == "none":
            return False
        flagged = self.correction.timing == "authors" and self.progress.memorised == epoch
        return self.corrects(epoch) or flagged

    def validate(self, epoch: int) -> float:
        """Loss of the source's validation pictures, for the schedule and the choice of the best epoch."""
        material, progress = self.material, self.progress
        samples = Samples(material.validation, material.files, material.side, material.most)
        own = validation_loss(unwrap(self.detector), samples, self.run.device, 2 * self.training.batch_size)
        loss: float = self.run.from_main(own)
        if not np.isfinite(loss):
            raise InputError("the validation loss is not finite", remedy="train with a lower --learning-rate")
        self.schedule.step(loss)
        # Only epochs with the first labels compete; after that there is nothing to go back to.
        if self.goes_back and epoch <= self.supervised and loss <= min([loss, *progress.losses]):
            progress.best_epoch = epoch - 1
            # A copy: the optimiser changes its momentum in place.
            optimizer = copy.deepcopy(self.optimizer.state_dict())
            progress.best = {"detector": self.run.weights(self.detector), "optimizer": optimizer}
        progress.losses.append(loss)
        return loss

    def go_back(self, epoch: int) -> None:
        """Return to the epoch with the lowest validation loss, its optimiser included (specification 10)."""
        unwrap(self.detector).load_state_dict(self.progress.best["detector"])
        self.optimizer.load_state_dict(self.progress.best["optimizer"])
        self.progress.best = {}
        self.say(
            f"epoch {epoch}: back to the detector after epoch {self.progress.best_epoch}, which had the lowest validation loss"
        )

    @torch.no_grad()
    def ask(self, epoch: int, last: bool) -> dict[str, float]:
        """AP50 of the target pictures against the initial labels (S1), and whether memorisation has begun (S2 to S4)."""
        found: list[dict[str, Tensor]] = []
        for part in _in_parts(len(self.material.target), 2 * self.training.batch_size):
            found += detect(self.detector, self.material.frames(part), self.run.device, self.run.autocast())
        value: float = self.run.from_main(ap50(found, [self.material.weak(i) for i in range(len(found))]))
        progress = self.progress
        progress.curve.append(value)
        if progress.memorised >= 0 or epoch < ASKED_FROM or last:
            return {"ap50": value}
        flag, update = self.run.from_main(
            memorisation_epoch(progress.curve, self.training.epochs, self.correction.memorisation)
        )
        if flag:
            progress.memorised = epoch
            then = "; labels are corrected from the next epoch on" if epoch + 1 < self.training.epochs else ""
            self.say(f"epoch {epoch}: the AP50 curve has slowed down (expected from epoch {update}){then}")
        return {"ap50": value, "memorisation": update}

    def correct(self, epoch: int) -> dict[str, float]:
        """Replace the labels of the target by what the detector sees in all views (Algorithm 1)."""
        material, progress = self.material, self.progress
        found: list[NDArray[np.float64]] = []
        for part in _in_parts(len(material.target), self.training.batch_size):
            found += pseudo_labels(
                self.detector, material.frames(part), material.sizes[part], self.run.device, self.correction
            )
        found = [boxes.numpy() for boxes in self.run.from_main([torch.from_numpy(boxes) for boxes in found])]
        # A picture in which nothing is left keeps its old labels (P4).
        kept = sum(not len(boxes) for boxes in found)
        progress.labels = [new if len(new) else old for new, old in zip(found, progress.labels, strict=True)]
        progress.cycles += 1
        if self.run.is_main:
            self.save_labels(epoch, self.relabelled())
        if kept:
            what = "every picture: all" if kept == len(found) else f"{kept} of {len(found)} pictures, which"
            self.say(f"epoch {epoch}: nothing was detected in {what} keep their labels")
        return {"boxes": sum(map(len, progress.labels)), "unchanged_pictures": kept}

    def relabelled(self) -> list[BoxedPicture]:
        """Target pictures with the labels as they are now."""
        pairs = zip(self.material.target, self.progress.labels, strict=True)
        return [
            replace(
                picture,
                boxes=boxes,
                labels=(CELL,) * len(boxes),
                places=(),
                mask=None if self.progress.cycles else picture.mask,
            )
            for picture, boxes in pairs
        ]

    def batches(self, epoch: int) -> Batches:
        """Mixed batches with the labels of an epoch (D3)."""
        training, material, seed = self.training, self.material, self.run.settings.seed
        how = Augmentation(training.zoom, training.blur, training.turned) if training.augment else None
        source = Samples(material.source, material.files, material.side, material.most, how)
        first = Batches(source, len(material.source), training.batch_size, seed)
        if training.learn_from == "source":
            return MixedBatches(None, first)
        background = self.correction.blur if self.clones(epoch) else "none"
        target = Samples(
            self.relabelled(), material.files, material.side, material.most, how, background, self.correction.paste
        )
        second = Batches(target, len(material.target), training.batch_size, seed + 1)
        return MixedBatches(second, first, self.run.settings.accumulate)

    def step(self, step: int, epoch: int, batch: dict[str, Tensor]) -> None:
        """One step on a mixed batch: the detector's losses over all its pictures, one backward pass."""
        parts: dict[str, Tensor] = {}

        def loss_of(part: dict[str, Tensor]) -> Tensor:
            losses = self.detector(*targets_of(part))
            parts.update({name: value.detach() for name, value in losses.items()})
            return torch.stack(list(losses.values())).sum()

        loss = self.run.optimise(self.optimizer, loss_of, batch)
        if step % self.training.log_every == 0:
            value = float(loss)
            if not np.isfinite(value):
                raise InputError(f"the loss of step {step} is not finite", remedy="train with a lower --learning-rate")
            rate = self.optimizer.param_groups[0]["lr"]
            self.run.log.write(
                step, loss=value, learning_rate=rate, **{name: float(part) for name, part in parts.items()}
            )
