"""The command `fine-tune`: a pretrained backbone under a fresh head, trained on labels (section 4.1; specification 4)."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dart_core import figures
from dart_core import fine_tuning as core
from dart_core.batches import Batches
from dart_core.cli import say
from dart_core.data.picture_views import (
    crop_view,
    draw_view,
    middle_view,
    normalise,
    ten_crop,
    ten_crop_scores,
    turn_views,
)
from dart_core.data.picture_views import resize_to as resize
from dart_core.errors import SettingError
from dart_core.nets import Conversion
from dart_core.report import Report
from dart_core.run import Run
from dart_core.settings import UncertainLabels
from popar import settings as of
from popar.method import fine_tune_lr
from popar.models import PACKAGE, Pretrained, Tuned, describe, save_tuned, version_of
from popar.networks import Classifier, parse_options
from popar.radiographs import STATISTICS, Radiographs, listed_names, open_datalist, three_channels
from popar.recipes import Labelled, Recipe, label_loss, labelled_parts, optimizer_of, part_of, recipe_of, scores_of
from popar.weights import is_of_the_authors, load_popar_weights

CROPS_AT_ONCE = 160
RANDOM = "random"


def fine_tune(command: of.FineTune) -> None:
    """Fine-tune a backbone; write the weights of the epoch with the lowest validation loss, and report.html."""
    about, origin = _plan(command)
    recipe = recipe_of(command.label, command.fine_tuning)
    datalist = open_datalist(command.data, command.label)
    parts = labelled_parts(datalist, command.label, recipe)
    train, val = (part_of(parts, name, datalist) for name in ("train", "val"))
    pictures = {
        name: Radiographs(part.pictures.rows, None, command.data.colour, command.data.memory)
        for name, part in (("train", train), ("val", val))
    }
    about = dataclasses.replace(
        about, labels=train.pictures.labels, multi_label=recipe.multi_label, site=train.pictures.name,
        reported=recipe.reported, lists=listed_names(command.data.lists),
    )  # fmt: skip
    batches = training_batches(pictures["train"], train, recipe, about.image_size, command)
    if about.head == "mlp":
        _check_parts(batches, command.run.accumulate)
    for some in pictures.values():
        some.read_all()
    drop_path = command.fine_tuning.drop_path

    def build() -> Classifier:
        return Classifier(
            about.backbone, len(about.labels), about.image_size, about.head, drop_path, **about.network
        )  # fmt: skip

    if command.init is not None:
        load_popar_weights(command.init, build())  # weights that do not fit must not cost the output folder
    theirs = _normalisation(command, origin)
    with Run(command.run, command) as run:
        network = build()
        found = None if command.init is None else load_popar_weights(command.init, network)
        _say_start(run, command, about, theirs, found)
        statistics = STATISTICS[about.normalisation]
        prepared = run.prepare(network)
        validation = _validation(run, pictures["val"], val, about, command.label.uncertain, recipe)
        best = core.fine_tune(
            run, prepared, optimizer_of(recipe, prepared), batches,
            core.FineTuning(command.fine_tuning.epochs, command.fine_tuning.patience, log_every=command.fine_tuning.log_every),
            loss=lambda net, batch: label_loss(net(batch["image"]), batch["label"], recipe.multi_label),
            learning_rate=lambda epoch, _: fine_tune_lr(epoch + 1, command.fine_tuning.epochs, recipe.learning_rate),
            validate=validation,
            views=lambda batch, _: {
                "image": normalise(three_channels(turn_views(batch["image"], batch["view"])), statistics),
                "label": batch["label"],
            },
        )  # fmt: skip
        if not run.is_main:
            return
        network.eval()
        about = dataclasses.replace(about, epoch=best.epoch)
        save_tuned(run.out, network, about)
        content = {
            "target": command.label.target, "init": about.init, "labels": list(about.labels), "steps": run.step,
            "training_pictures": len(train), "validation_pictures": len(val), "test_pictures": len(parts["test"]),
            "best_epoch": best.epoch, **best.numbers,
        }  # fmt: skip
        if found is not None:
            content |= {
                "loaded": len(found.loaded),
                "missing": list(found.missing),
                "other_shape": list(found.shape_mismatch),
            }
        run.finish(content)
        _report(run, command, about, content)
    say(f"network: {run.out}   report: {run.out / 'report.html'}   next: {PACKAGE} predict --model {run.out} ...")


def _plan(command: of.FineTune) -> tuple[Tuned, Pretrained | Tuned | None]:
    """What is to be fine-tuned; backbone, size and architecture are those of the pretraining unless the command names others.

    Raises:
        SettingError: it cannot be built.
        CheckpointError: there are no initial weights.
    """
    given = command.networks
    origin = None if command.init is None else describe(command.init)
    options = parse_options(given.network)
    backbone, side = given.name, given.image_size
    if origin is not None:
        if given.backbone not in (None, origin.backbone):
            raise SettingError(
                f"--backbone is {given.backbone}, the pretraining's was {origin.backbone}",
                where=command.init, remedy="leave it out",
            )  # fmt: skip
        backbone, options = origin.backbone, {**origin.network, **options}
        side = origin.image_size if side is None else side
    with torch.device("meta"):
        network = Classifier(backbone, 2, side, command.fine_tuning.head, **options)
    init = RANDOM
    if command.init is not None:
        init = command.init.stem if origin is None else version_of(origin, network.image_size)
    about = Tuned(
        backbone, network.image_size, options, command.fine_tuning.head, (), True, command.fine_tuning.normalisation,
        command.data.colour, command.label.target, "", init, command.run.seed, command.label.split_seed, command.label.test,
        command.label.frontal,
    )  # fmt: skip
    return about, origin


def _check_parts(batches: Batches, accumulate: int) -> None:
    """Batch norm has no statistics of a single picture.

    Raises:
        SettingError: a part of a batch holds one.
    """
    share = batches.share(int(os.environ.get("WORLD_SIZE", "1")))
    if share // min(accumulate, share) < 2:
        raise SettingError(
            f"--head mlp has batch norm, and a batch of {batches.batch_size} leaves parts of one picture",
            remedy="give a larger --batch-size, or a smaller --accumulate",
        )


def _normalisation(command: of.FineTune, origin: Pretrained | Tuned | None) -> of.Normalisation | None:
    """That of the initial weights, as far as their file tells."""
    if origin is not None:
        return origin.normalisation
    return "chestxray14" if command.init is not None and is_of_the_authors(command.init) else None


def _say_start(
    run: Run, command: of.FineTune, about: Tuned, theirs: of.Normalisation | None, found: Conversion | None
) -> None:
    if not run.is_main:
        return
    if found is not None:
        kept = len(found.missing) + len(found.shape_mismatch)
        say(f"{command.init}: {len(found.loaded)} tensors loaded, {kept} of the backbone's left as they were")
    if theirs is not None and theirs != about.normalisation:
        say(
            f"warning: the pretraining normalised with {theirs}, this fine-tuning with {about.normalisation} (as in the "
            f"authors' code); --normalisation {theirs} makes them equal"
        )


# --- Data ------------------------------------------------------------------------------------------------------------


def training_batches(
    pictures: Radiographs, labelled: Labelled, recipe: Recipe, size: int, command: of.FineTune
) -> Batches:
    """Batches of "image" uint8 (B, C, size, size) not yet turned, "view" (B, 6) and "label" (B, K).

    Raises:
        SettingError: see `Batches`.
    """

    def load(index: int, generator: np.random.Generator) -> Mapping[str, Any]:
        image = pictures[index]
        view = draw_view(generator, image.shape[-2], image.shape[-1])
        label = labelled.targets(index, generator, command.label.uncertain)
        return {"image": crop_view(image, view, size), "view": view, "label": label}

    return Batches(load, len(pictures), recipe.batch_size, command.run.seed)


def _validation(
    run: Run, pictures: Radiographs, labelled: Labelled, about: Tuned, policy: UncertainLabels, recipe: Recipe
) -> Callable[[nn.Module], Mapping[str, float]]:
    """Validation loss and score of a network; the views are made once."""
    truth = labelled.pictures.truth
    generator = np.random.default_rng([run.settings.seed, 2])
    targets = torch.from_numpy(np.stack([labelled.targets(i, generator, policy) for i in range(len(labelled))]))
    size = about.image_size
    views = torch.stack(
        [middle_view(pictures[i], of.resized_side(size), size, keep_aspect=True) for i in range(len(pictures))]
    )

    def validate(network: nn.Module) -> dict[str, float]:
        logits = torch.cat([_logits(network, part, about, run.device) for part in views.split(CROPS_AT_ONCE)])
        loss = float(label_loss(logits, targets, recipe.multi_label))
        if not math.isfinite(loss):
            return {"validation_loss": loss}  # which ends the training: there are no scores to measure
        scores = probabilities(logits, recipe.multi_label).numpy()
        found = scores_of(truth, scores, about.labels, recipe.multi_label, about.reported)
        numbers = {"validation_loss": loss}
        if found["mean_auc"] is not None:
            numbers["validation_auc"] = found["mean_auc"]
        if not recipe.multi_label:
            numbers["validation_accuracy"] = found["accuracy"]
        return numbers

    return validate


# --- Prediction ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict_pictures(
    network: Classifier,
    about: Tuned,
    pictures: Radiographs,
    device: torch.device,
    crops: str = "ten",
    at_once: int = 16,
) -> NDArray[np.float64]:
    """(n, K) probabilities: the mean over ten crops, or those of the middle.

    Args:
        network: in evaluation mode on `device`.
        about: what it is.
        pictures: of any size.
        device: where to compute.
        crops: "ten" or "middle".
        at_once: pictures.
    """
    size, found = about.image_size, []
    for start in range(0, len(pictures), at_once):
        views = []
        for place in range(start, min(start + at_once, len(pictures))):
            if crops == "ten":
                views.append(ten_crop(resize(pictures[place], of.resized_side(size), keep_aspect=True), size))
            else:
                views.append(middle_view(pictures[place], of.resized_side(size), size, keep_aspect=True)[None])
        stacked = torch.stack(views)
        logits = _logits(network, stacked.flatten(0, 1), about, device).double()
        found.append(ten_crop_scores(logits.unflatten(0, stacked.shape[:2]), about.multi_label).numpy())
    return cast(NDArray[np.float64], np.concatenate(found))


def probabilities(logits: Tensor, multi_label: bool) -> Tensor:
    """Sigmoid of labels, softmax of classes."""
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def _logits(network: nn.Module, images: Tensor, about: Tuned, device: torch.device) -> Tensor:
    values = normalise(three_channels(images.to(device)), STATISTICS[about.normalisation])
    logits: Tensor = network(values)
    return logits.float().cpu()


# --- Report ----------------------------------------------------------------------------------------------------------


def _report(run: Run, command: of.FineTune, about: Tuned, content: Mapping[str, Any]) -> None:
    report = Report(
        f"Fine-tuning: {about.name}", f"{about.site}; {content['training_pictures']} training pictures", package=PACKAGE
    )
    # No class may have both labels in a small validation part, so that there is no AUC.
    names = {"validation_auc": "mean AUC", "validation_accuracy": "accuracy"}
    score = next(
        (
            f"{text} on the validation pictures {content[key]:.4f}"
            for key, text in names.items()
            if content.get(key) is not None
        ),
        None,
    )
    report.text(
        f"Initial weights: {about.init}. The weights kept are those of epoch {about.epoch}, whose validation loss "
        f"{content['validation_loss']:.4f} was the lowest"
        + ("" if score is None else f"; {score}")
        + f". Labels: {', '.join(about.labels)}."
    )
    figures.training_curves(report, run.out, {"loss": "training batch"}, "loss", "Loss during training")
    figures.training_curves(
        report, run.out, {"validation_loss": "validation pictures"}, "loss", "Validation loss after each epoch"
    )
    figures.training_curves(report, run.out, names, "score", "Validation pictures after each epoch")
    figures.training_curves(report, run.out, {"learning_rate": "learning rate"}, "learning rate", "Learning rate")
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")
