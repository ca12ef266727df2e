"""The commands `check-data` and `train`: read and check everything, then claim the output folder, then work and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dart_core import figures, metrics
from dart_core.checkpoint import save_model, save_weights
from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row, check
from dart_core.data.images import read_image
from dart_core.data.pictures import label_problems, site_rows, sites_of
from dart_core.errors import DartError
from dart_core.report import Report
from dart_core.run import CONFIG, METRICS, Run
from stain_aglr import settings as of
from stain_aglr.colours import hsv_histogram, hsv_moments
from stain_aglr.datasets import (
    HALVINGS,
    LABEL,
    Normalise,
    Patches,
    PatchFiles,
    StoredPatches,
    classify,
    labels_of,
    open_patches,
    site_parts,
    training_batches,
    training_site,
    validation_loss,
)
from stain_aglr.figures import regeneration_figure, views_figure
from stain_aglr.method import train_network, weights_of
from stain_aglr.models import GENERATOR, PACKAGE, Model
from stain_aglr.networks import PatchClassifier, StainAgLr

if TYPE_CHECKING:
    from stain_aglr.normalisation import Normaliser

NORMALISER = "normaliser"
"""Folder of a run that holds what normalises its patches."""

# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print what the laboratories' patches are like, and every problem of a datalist; 0 if there is none, else 2."""
    datalist = open_patches(command.patches.datalist)
    sides: dict[tuple[int, ...], int] = {}
    colours: dict[str, NDArray[np.int64]] = {}

    def open_row(row: Row) -> Iterator[tuple[str, DartError]]:
        try:
            image = read_image(row.image)
        except DartError as error:
            yield "image", error
        else:
            sides[image.shape[:2]] = row.line
            site = row.site or datalist.source.stem
            colours[site] = colours.get(site, 0) + hsv_histogram(image)
        yield from label_problems(row, (LABEL,))

    found = [str(problem) for problem in check(datalist, open_row)]
    for site in sites_of(datalist):
        rows = site_rows(datalist, site)
        cells = [row.labels.get(LABEL, "") for row in rows]
        counts = ", ".join(f"{cells.count(k)} of class {k}" for k in ("0", "1"))
        unknown = f", {cells.count('')} without label" if "" in cells else ""
        print(f"site {site}: {len(rows)} patches, {counts}{unknown}")
    found += _size_problems(datalist, sides, command.patches.image_size)
    if command.site:
        found += _split_problems(datalist, command.site, command.split_by)
    if colours:
        print("colours, mean ± standard deviation over all pixels, 0 to 1 (Fig. 1 of the paper):")
    for site, histogram in colours.items():
        values = zip(("hue", "saturation", "value"), *hsv_moments(histogram), strict=True)
        print(f"site {site}: {', '.join(f'{name} {mean:.3f} ± {spread:.3f}' for name, mean, spread in values)}")
    for line in found:
        print(line)
    print(f"{len(datalist)} patches: {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    return 2 if found else 0


def _size_problems(datalist: Datalist, sides: Mapping[tuple[int, ...], int], image_size: int | None) -> list[str]:
    """What is wrong with sizes (height, width) of patches, each with a row that has it, unless they are resized."""
    listed = ", ".join(f"{h} x {w} (row {line})" for (h, w), line in sorted(sides.items()))
    if image_size is None and len(sides) > 1:
        return [f"{datalist.source}: patches of several sizes: {listed}; give --image-size"]
    if image_size is None and any(side % HALVINGS for size in sides for side in size):
        return [
            f"{datalist.source}: patches with sides that are no multiple of {HALVINGS}: {listed}; give --image-size"
        ]
    return []


def _split_problems(datalist: Datalist, site: str, split_by: of.SplitBy) -> list[str]:
    """Why `train` could not train on a laboratory, or not measure an AUC on its validation patches."""
    try:
        parts, _ = site_parts(datalist, training_site(datalist, site), split_by)
    except DartError as error:
        return [str(error)]
    there = labels_of(parts["val"])
    return [
        f"{datalist.source}: no validation patch of {site} has label {k}; both classes are needed for an AUC"
        for k in (0, 1)
        if k not in there
    ]


# --- train -----------------------------------------------------------------------------------------------------------


def train(command: of.Train) -> None:
    """Train a classifier; write its weights, for methods with a generator that one's too, and report.html."""
    datalist = open_patches(command.patches.datalist)
    site = training_site(datalist, command.site)
    parts, drawn = site_parts(datalist, site, command.split_by)
    files = {name: PatchFiles(parts[name].rows, command.patches.image_size) for name in ("train", "val")}
    labels = {name: labels_of(parts[name]) for name in ("train", "val")}
    if command.method == "dscsi-gan":
        _check_backbone(command.gan)
    unmixing = _unmixing(command)
    lambda1, lambda2, _ = weights_of(command.method, command.losses)
    training = command.training
    batches = training_batches(
        files["train"], labels["train"], training.batch_size, command.run.seed, training.balanced
    )
    with Run(command.run, command) as run, ExitStack() as stack:
        patches: dict[str, Patches] = dict(files)
        if command.method in of.NORMALISED:
            normalise = _normaliser(run, command, files["train"], labels["train"], unmixing)
            # Whatever the normaliser drew must not reach the classifier: all methods of a seed start from the same weights.
            torch.manual_seed(command.run.seed)
            for name, raw in files.items():
                stored = run.out / f"normalised-{name}-{run.rank}.npy"
                stack.callback(stored.unlink, missing_ok=True)
                patches[name] = StoredPatches(stored, raw, normalise, training.batch_size, run.device)
            batches = training_batches(
                patches["train"], labels["train"], training.batch_size, command.run.seed, training.balanced
            )
        network = StainAgLr(training.width, lambda1 > 0, training.halving, training.relu_logits, training.upsampling)

        def validate(classifier: PatchClassifier) -> dict[str, float]:
            logits, _ = classify(classifier, patches["val"], training.batch_size, run.device)
            loss = validation_loss(logits, labels["val"])
            scores = logits.softmax(1)[:, 1:].numpy()
            auc = metrics.roc_auc(labels["val"][:, None], scores)[0]
            return {"validation_loss": loss, "validation_auc": float(auc)}

        best = train_network(
            run, network, batches, command.method, training, command.losses, command.augmentation, validate
        )
        if not run.is_main:
            return
        network.load_state_dict(best.weights)
        network.eval()
        classifier = network.patch_classifier
        if network.generator is not None:
            save_weights(run.out / GENERATOR, network.generator, {})
        height, width = files["train"].shape
        model = Model(
            command.method, site, training.width, height, command.patches.image_size is not None, command.run.seed,
            best.epoch, best.loss, lambda1, lambda2, command.split_by, drawn, width, training.halving, training.relu_logits,
            training.upsampling, command.options,
        )  # fmt: skip
        save_model(run.out, classifier, PACKAGE, model)
        found = validate(classifier)
        content = {
            "method": command.method, "site": site, "training_patches": len(files["train"]), "steps": run.step,
            "validation_patches": len(files["val"]), "best_epoch": best.epoch, **found,
        }  # fmt: skip
        run.finish(content)
        _report(run, command, network, patches, model, found["validation_auc"])
    say(f"network: {run.out}   report: {run.out / 'report.html'}")


def _check_backbone(gan: of.GanTraining) -> None:
    """Find out what is wrong with the network that dscsi-gan keeps before the output folder is claimed."""
    from stain_aglr.dscsi import FeatureKeeper

    FeatureKeeper(gan.gan_backbone, gan.gan_weights, gan.gan_size)
    if gan.gan_weights is None:
        say(
            "warning: without --gan-weights the features that dscsi-gan keeps start from random weights, not from ImageNet's"
        )


def _unmixing(command: of.Train) -> Normaliser | None:
    """macenko or vahadane as the command wants it; a reference that will not do is found out before the folder is claimed."""
    if command.method not in of.UNMIXED:
        return None
    from stain_aglr.normalisation import unmixing_of

    return unmixing_of(command.method, command.standardise_luminosity, command.reference)


def _normaliser(
    run: Run, command: of.Train, patches: PatchFiles, labels: NDArray[np.int64], unmixing: Normaliser | None
) -> Normalise:
    """What gives every patch the training laboratory's colours, learnt from its training patches alone.

    A run of its own in the run's folder, so that a GAN resumes where it was stopped.
    """
    from stain_aglr.normalisation import fit_normaliser, load_normaliser, save_normaliser

    folder = run.out / NORMALISER
    # The main process is asked: another one may look when the files are half there.
    done, begun = run.from_main(((folder / METRICS).is_file(), (folder / CONFIG).is_file()))
    if not done:
        settings = dataclasses.replace(command.run, out=folder, resume=begun, overwrite=False)
        with Run(settings, {"method": command.method, "gan": command.gan}) as own:
            normaliser = fit_normaliser(own, command.method, patches, labels, command.gan, command.run.seed, unmixing)
            if own.is_main:
                save_normaliser(folder, normaliser)
                own.finish({"method": command.method, "patches": len(patches)})
        run.from_main(None)  # the others wait until it is written
    # Read back by all processes: what `predict` will use.
    return load_normaliser(folder, run.device)


def _report(
    run: Run, command: of.Train, network: StainAgLr, patches: dict[str, Patches], model: Model, auc: float
) -> None:
    report = Report(
        f"Patch classifier: {model.name}", f"{model.site}; {len(patches['train'])} training patches", package=PACKAGE
    )
    shown = torch.stack([patches["val"][i] for i in range(min(8, len(patches["val"])))])
    report.text(
        f"Training ended after {run.step} steps. The weights are those of epoch {model.epoch}, whose validation loss "
        f"{model.validation_loss:.4f} was the lowest"
        + ("" if np.isnan(auc) else f"; their AUC on the validation patches is {auc:.4f}")
        + "."
    )
    figures.training_curves(report, run.out, {"loss": "training batch"}, "loss", "Loss during training")
    figures.training_curves(
        report, run.out, {"validation_loss": "validation patches"}, "cross-entropy", "Validation loss after each epoch"
    )
    figures.training_curves(
        report, run.out, {"learning_rate": "learning rate"}, "learning rate", "Learning rate, which falls on a plateau"
    )
    if command.method in of.ALTERED:
        report.section("Altered patches")
        report.picture(
            views_figure(shown, command.augmentation, run.settings.seed),
            "Validation patches as they are, turned and deformed as the network sees the raw ones, and altered in stain, "
            "brightness, contrast, noise and sharpness",
            "rows of patches: as read, after the geometry, altered",
        )
    if network.generator is not None:
        report.section("Regenerated patches")
        report.picture(
            regeneration_figure(network, shown, command.augmentation, run.settings.seed, run.device),
            "Altered patches and what the generator made of their features: the raw patch's colours, as far as it has learnt them; "
            "detail that the features do not hold is lost",
            "rows of patches: raw, altered, regenerated",
        )
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")


def normaliser_of(model: Path, method: str, device: torch.device) -> Normalise | None:
    """What a run's patches went through, or None for methods that classify them as they are."""
    if method not in of.NORMALISED:
        return None
    from stain_aglr.normalisation import load_normaliser

    return load_normaliser((model if model.is_dir() else model.parent) / NORMALISER, device)
