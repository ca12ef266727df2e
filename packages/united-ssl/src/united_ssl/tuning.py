"""The command `fine-tune`: transfer of encoder, or encoder and decoder, to classification and segmentation (specification 4, 5)."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core import figures, metrics
from dart_core.batches import Batches
from dart_core.checkpoint import load_weights, save_model, weights_file
from dart_core.cli import say
from dart_core.errors import InputError, SettingError
from dart_core.fine_tuning import FineTuning, fine_tune
from dart_core.report import Report
from dart_core.run import Run
from united_ssl import settings as of
from united_ssl.cubes import INDEX, Cubes, load_cube
from united_ssl.cubes import read_cubes as read
from united_ssl.figures import SHOWN, masks_figure
from united_ssl.measures import case_iou, pooled_iou
from united_ssl.method import carry_over
from united_ssl.models import PACKAGE, Pretrained, Target, build, load_pretrained
from united_ssl.networks import set_momentum
from united_ssl.schedules import Plateau, bad_epochs_allowed

THRESHOLD = 0.5
_FRACTION = 14
"""Key of random numbers, beside those of `dart_core`."""


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - (2 sum(y p) + 1) / (sum y + sum p + 1) over the whole batch, p = sigmoid(logits); the mean over classes.

    Args:
        logits: (N, K, H, W, D).
        masks: (N, H, W, D) with labels 0 (background) to K.
    """
    p = torch.sigmoid(logits.float())
    losses = []
    for k in range(p.shape[1]):
        y = (masks == k + 1).to(p.dtype)
        losses.append(1 - (2 * (y * p[:, k]).sum() + 1) / (y.sum() + p[:, k].sum() + 1))
    return torch.stack(losses).mean()


def fine_tune_command(command: of.FineTune) -> None:
    """Fine-tune; write the weights of the best epoch and report.html."""
    cubes = read(command.cubes)
    parts = {name: cubes.split(name) for name in ("train", "val")}
    task = task_of(command, cubes)
    classes = 1 if task == "classification" else foreground_classes(parts)
    labels = {name: known_labels(part) for name, part in parts.items()} if task == "classification" else {}
    chosen = fraction_of(len(parts["train"]), command.fraction, command.run.seed)
    parts["train"] = parts["train"].take(chosen)
    if labels:
        labels["train"] = labels["train"][chosen]
        if len(set(labels["train"].tolist())) < 2:
            raise InputError(
                f"all {len(chosen)} training cubes have label {labels['train'][0]}", where=command.cubes,
                remedy="give cubes of both classes, or a larger --fraction",
            )  # fmt: skip
    pretrained = None if command.init is None else load_pretrained(command.init)[1]
    model = _target(command, pretrained, task, classes, cubes.shape)
    with Run(command.run, command) as run:
        network = build(model)
        set_momentum(network, command.norm_momentum)
        if pretrained is not None:
            assert command.init is not None
            state = load_weights(weights_file(command.init))[0]
            with_decoder = model.transfer == "encoder-decoder"
            taken = transfer(network, state, with_decoder)
            if run.is_main:
                say(f"{', '.join(taken)} from {command.init}")
        best, found = _train(run, command, network, parts, labels, task)
        if not run.is_main:
            return
        model = Target(**{**model.__dict__, "epoch": best[0], "validation_loss": best[1]})
        content = {
            "name": model.name, "task": task, "transfer": model.transfer, "fraction": model.fraction, "steps": run.step,
            "training_cubes": len(parts["train"]), "validation_cubes": len(parts["val"]), "best_epoch": best[0], **found,
        }  # fmt: skip
        run.finish(content)
        _report(run, command, network, parts, model, found)
        save_model(run.out, network, PACKAGE, model)
    say(f"network: {run.out}   report: {run.out / 'report.html'}")


def task_of(command: of.FineTune, cubes: Cubes) -> str:
    """classification or segmentation.

    Raises:
        InputError: no masks for segmentation.
    """
    task = command.task
    if task == "auto":
        return "segmentation" if cubes.has_masks else "classification"
    if task == "segmentation" and not cubes.has_masks:
        raise InputError("some cubes have no masks", where=command.cubes, remedy="prepare them with --target segment")
    return task


def known_labels(cubes: Cubes) -> NDArray[np.int64]:
    """Classes (n,) of 0 and 1.

    Raises:
        InputError: one that is unknown or neither.
    """
    labels = cubes.labels()
    for row, label in zip(cubes.rows, labels, strict=True):
        if label not in (0, 1):
            problem = "has no label" if label < 0 else f"has the label {label}"
            raise InputError(
                f"cube {row.place} of {row.file.name} {problem}", where=cubes.source / INDEX, remedy="give 0 or 1"
            )
    return labels


def foreground_classes(parts: dict[str, Cubes]) -> int:
    """Highest label of the masks.

    Raises:
        InputError: all masks are empty, or a label below the highest is in none.
    """
    source = next(iter(parts.values())).source
    present = {int(label) for part in parts.values() for i in range(len(part)) for label in np.unique(part.mask(i))}
    known = sorted(present - {0})
    if not known:
        raise InputError("all masks are empty", where=source, remedy="check the masks of the datalist")
    # A class that no voxel has would score 1 wherever it is not predicted, and so raise the mean.
    if known[-1] != len(known):
        raise InputError(
            f"the masks hold the labels {', '.join(map(str, known))}",
            where=source,
            remedy="number the classes 1, 2, 3 ... without gaps (one class: 1)",
        )
    return len(known)


def fraction_of(count: int, fraction: float, seed: int) -> NDArray[np.int64]:
    """Numbers of the cubes whose labels are used, at least 2; with the same seed, larger shares hold the smaller ones."""
    if fraction == 1:
        return np.arange(count)
    order = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_FRACTION,))).permutation(count)
    return np.sort(order[: max(2, math.ceil(fraction * count - 1e-9))])


def transfer(network: nn.Module, state: dict[str, Tensor], decoder: bool) -> tuple[str, ...]:
    """Take encoder and, if asked for, decoder of a pretrained network over; the last layer of the decoder stays random.

    Raises:
        SettingError: other shapes.
    """
    own = network.state_dict()
    wanted = {name: value for name, value in state.items() if not name.startswith("head.")}
    # A new output layer, whatever its shape.
    wanted |= {name: own[name] for name in own if name.startswith("decoder.out.")}
    return tuple(name for name in carry_over(network, wanted, decoder) if name != "head")


def _target(
    command: of.FineTune, pretrained: Pretrained | None, task: str, classes: int, shape: tuple[int, int, int]
) -> Target:
    width = command.width or (32 if pretrained is None else int(pretrained.network["width"]))
    up = command.up or ("nearest" if pretrained is None else str(pretrained.network["up"]))
    moved = "none"
    name = "random"
    if pretrained is not None:
        moved = "encoder" if task == "classification" else command.transfer
        if moved == "encoder-decoder" and not pretrained.restores:
            raise SettingError(
                f"the decoder of a run of step {pretrained.step} is untrained", where=command.init,
                remedy="give --transfer encoder",
            )  # fmt: skip
        for flag, given, there in (("width", width, pretrained.network["width"]), ("up", up, pretrained.network["up"])):
            if given != there and not (flag == "up" and moved == "encoder"):
                raise SettingError(
                    f"--{flag} is {given}, that of the pretrained network {there}", where=command.init,
                    remedy="leave it out",
                )  # fmt: skip
        name = pretrained.name
        if task == "segmentation":
            name += ", encoder only" if moved == "encoder" else ", encoder and decoder"
    return Target(
        task, classes, width, up, shape, command.name or name, moved, command.fraction, command.run.seed
    )  # fmt: skip


def _train(
    run: Run,
    command: of.FineTune,
    network: nn.Module,
    parts: dict[str, Cubes],
    labels: dict[str, NDArray[np.int64]],
    task: str,
) -> tuple[tuple[int, float | None], dict[str, float]]:
    prepared = run.prepare(network)
    optimizer = torch.optim.Adam(prepared.parameters(), command.learning_rate, foreach=True)
    plateau = Plateau(command.learning_rate, command.plateau)
    segment = task == "segmentation"
    extra = {"label": labels["train"].astype(np.float32)} if labels else {}
    load = load_cube(parts["train"], extra, masks=segment)
    batches = Batches(load, len(parts["train"]), command.batch_size, command.run.seed)

    def loss(net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        logits = net(batch["cube"])
        if segment:
            return dice_loss(logits, batch["mask"])
        return F.binary_cross_entropy_with_logits(logits[:, 0], batch["label"])

    def validate(net: nn.Module) -> dict[str, float]:
        with run.autocast():
            return scores(net, parts["val"], command.batch_size, run.device, labels.get("val"))

    recipe = FineTuning(command.max_epochs, bad_epochs_allowed(command.patience), log_every=command.log_every)
    best = fine_tune(
        run, prepared, optimizer, batches, recipe, loss=loss, learning_rate=plateau, validate=validate,
        views=flipped if command.flips else None, stateful={"plateau": plateau},
    )  # fmt: skip
    network.eval()
    return (best.epoch, best.value), dict(best.numbers)


def flipped(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Cubes, and their masks, mirrored along each axis with probability 1/2."""
    batch = dict(batch)
    n = len(batch["cube"])
    for axis in (-3, -2, -1):
        chosen = torch.rand(n, generator=generator, device=batch["cube"].device) < 0.5
        for name in ("cube", "mask"):
            if name in batch:
                where = chosen.reshape(n, *[1] * (batch[name].dim() - 1))
                batch[name] = torch.where(where, batch[name].flip(axis), batch[name])
    return batch


@torch.no_grad()
def apply(network: nn.Module, cubes: Cubes, batch_size: int, device: torch.device) -> list[Tensor]:
    """Logits of all cubes, on the CPU, batch by batch."""
    found = []
    for start in range(0, len(cubes), batch_size):
        x = cubes.stack(range(start, min(start + batch_size, len(cubes)))).to(device)
        found.append(network(x).float().cpu())
    return found


def predicted_labels(logits: Tensor) -> Tensor:
    """Labels (N, H, W, D) uint8 of logits (N, K, H, W, D): the likeliest class, background where none is above 0.5."""
    highest, index = torch.sigmoid(logits).max(1)
    return torch.where(highest > THRESHOLD, index + 1, 0).to(torch.uint8)


def overlaps(predicted: NDArray[np.uint8], truth: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Voxels in both masks and in either (classes, 2) of one cube."""
    rows = []
    for k in range(1, classes + 1):
        a, b = predicted == k, truth == k
        rows.append((np.count_nonzero(a & b), np.count_nonzero(a | b)))
    return np.array(rows, dtype=np.int64)


def scores(
    network: nn.Module, cubes: Cubes, batch_size: int, device: torch.device, labels: NDArray[np.int64] | None
) -> dict[str, float]:
    """Validation: loss, and AUC or IoU.

    Args:
        network: in evaluation mode.
        cubes: n of them.
        batch_size: cubes per forward pass.
        device: of the network.
        labels: (n,) for classification; None: the cubes have masks.
    """
    logits = apply(network, cubes, batch_size, device)
    if labels is not None:
        values = torch.cat(logits)[:, 0]
        loss = F.binary_cross_entropy_with_logits(values, torch.from_numpy(labels).float())
        if not bool(loss.isfinite()):
            return {"validation_loss": float(loss)}  # which ends the training: there are no scores to measure
        auc = metrics.roc_auc(labels[:, None], values.numpy()[:, None])[0]
        return {"validation_loss": float(loss), "validation_auc": float(auc)}
    classes = logits[0].shape[1]
    losses, found, start = 0.0, [], 0
    for part in logits:
        truth = np.stack([cubes.mask(start + i) for i in range(len(part))])
        losses += float(dice_loss(part, torch.from_numpy(truth))) * len(part)
        predicted = predicted_labels(part).numpy()
        found += [overlaps(p, t, classes) for p, t in zip(predicted, truth, strict=True)]
        start += len(part)
    counts = np.stack(found)
    pooled = np.mean([pooled_iou(counts[:, k, 0], counts[:, k, 1]) for k in range(classes)])
    per_case = case_iou(counts[..., 0], counts[..., 1]).mean()
    return {
        "validation_loss": losses / len(cubes),
        "validation_iou": float(pooled),
        "validation_case_iou": float(per_case),
    }


def _report(
    run: Run, command: of.FineTune, network: nn.Module, parts: dict[str, Cubes], model: Target, found: dict[str, float]
) -> None:
    report = Report(
        f"Fine-tuning: {model.name}", f"{model.task}; {len(parts['train'])} training cubes", package=PACKAGE
    )
    measure = "validation_auc" if model.task == "classification" else "validation_iou"
    report.text(
        f"Training ended after {run.step} steps. The weights are those of epoch {model.epoch}, whose validation loss "
        f"{model.validation_loss:.4f} was the lowest; {measure.replace('_', ' ')} {found[measure]:.4f}."
    )
    figures.training_curves(report, run.out, {"loss": "training batch"}, "loss", "Loss during training")
    figures.training_curves(report, run.out, {"validation_loss": "validation cubes"}, "loss", "Validation loss")
    name = "AUC" if model.task == "classification" else "IoU"
    figures.training_curves(
        report, run.out, {measure: "validation cubes"}, name, f"{name} of the validation cubes after each epoch"
    )
    figures.training_curves(report, run.out, {"learning_rate": "learning rate"}, "learning rate", "Learning rate")
    if model.task == "segmentation":
        shown = parts["val"].take(range(min(SHOWN, len(parts["val"]))))
        predicted = predicted_labels(torch.cat(apply(network, shown, len(shown), run.device))).numpy()
        truth = np.stack([shown.mask(i) for i in range(len(shown))])
        picture = masks_figure(shown.stack(range(len(shown))).numpy(), truth, predicted)
        report.section("Validation cubes")
        report.picture(picture, "True outline green, predicted one red; all classes together", "slices with outlines")
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")
