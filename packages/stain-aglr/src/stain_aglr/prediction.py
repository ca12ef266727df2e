"""The command `predict`: the probability of class 1 for each patch, and the AUC of each laboratory."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.classification import group_table, roc_figure, scores_section, write_predictions
from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row
from dart_core.data.pictures import read_pictures, sites_of
from dart_core.errors import InputError, SettingError
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from stain_aglr import settings as of
from stain_aglr.commands import normaliser_of
from stain_aglr.datasets import LABEL, PatchFiles, classify, exists, labels_of, open_patches, own_splits
from stain_aglr.models import PACKAGE, Model, load_model

FEATURES = "features.npy"
MARGIN = "margin"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A patch to be scored."""

    row: Row
    site: str
    split: str
    """test or val; train with --split all."""
    label: int
    """-1 = unknown."""


def predict(command: of.Predict) -> None:
    """Score the patches of a datalist."""
    device = find_device(command.device)
    network, model = load_model(command.model, device)
    normalise = normaliser_of(command.model, model.method, device)
    size = _size(command, model)
    chosen = list(choose(open_patches(command.patches.datalist), model, command.sites, command.split))
    if not chosen:
        raise InputError(
            f"no patch with split {command.split}", where=command.patches.datalist, remedy="give --split all"
        )
    if command.drop_last:
        chosen = _whole_batches(chosen, command.batch_size, command.patches.datalist)
    for patch in chosen:
        exists(patch.row)
    patches = PatchFiles([patch.row for patch in chosen], size)
    if size is None and patches.shape != model.sides:
        height, width = model.sides
        remedy = f"; give --image-size {height} if they show the same field" if height == width else ""
        say(
            f"warning: the patches have {patches.shape[0]} x {patches.shape[1]} pixels, those of the training had "
            f"{height} x {width}{remedy}"
        )
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    logits, features = classify(network, patches, command.batch_size, device, normalise)
    scores = logits.double().softmax(1)[:, 1].numpy()
    margins = (logits[:, 1].double() - logits[:, 0].double()).numpy()
    write_predictions(out, _rows(chosen, scores, margins))
    if command.features:
        _write_features(command, features.numpy())
    labels = np.array([patch.label if patch.label >= 0 else np.nan for patch in chosen])
    table = group_table(labels, scores, [group_name(patch.site, patch.split, model) for patch in chosen])
    told = dataclasses.replace(model, validation=None)  # may be long, and predictions.csv has the splits
    content = {"model": dataclasses.asdict(told), "patches": len(chosen), "auc": {r["group"]: r["auc"] for r in table}}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    _report(command, model, table, chosen, labels, scores)
    report_undefined(table)
    say(f"scores: {out}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --predictions {out} --out ...")


def choose(datalist: Datalist, model: Model, sites: Sequence[str], split: str = "test") -> Iterator[Chosen]:
    """The patches that `predict` scores.

    The training laboratory's validation and test patches are those of the training. Any other laboratory was never seen, so
    that all of its patches are for testing, whatever their rows say.
    """
    there = sites_of(datalist)
    for site in sites:
        if site not in there:
            raise InputError(f"no site {site!r}", where=datalist.source, remedy=f"there are: {', '.join(there)}")
    has_label = any(LABEL in row.labels for row in datalist)
    for site in sites or there:
        pictures = read_pictures(datalist, site, (LABEL,) if has_label and _labelled(datalist, site) else (), False)
        if not has_label or LABEL not in pictures.labels:
            pictures = dataclasses.replace(pictures, labels=(), truth=np.zeros((len(pictures), 0), np.float32))
        parts = own_splits(pictures, model.split_by, model.validation) if site == model.site else {"test": pictures}
        for name in ("train", "val", "test"):
            own_validation = site == model.site and name == "val"
            wanted = split == "all" or own_validation or (split == "test" and name == "test")
            if wanted and name in parts:
                part = parts[name]
                for row, label in zip(part.rows, labels_of(part), strict=True):
                    yield Chosen(row, site, name, int(label))


def _whole_batches(chosen: Sequence[Chosen], batch_size: int, datalist: Path) -> list[Chosen]:
    """The patches without those of each laboratory's last, incomplete batch of test patches (specification 5)."""
    kept = []
    for site in dict.fromkeys(patch.site for patch in chosen):
        own = [patch for patch in chosen if patch.site == site]
        tests = [patch for patch in own if patch.split == "test"]
        whole = len(tests) // batch_size * batch_size
        if tests and not whole:
            raise InputError(
                f"--drop-last leaves none of the {len(tests)} test patches of {site} in batches of {batch_size}",
                where=datalist,
                remedy="leave it out, or lower --batch-size",
            )
        kept += [patch for patch in own if patch.split != "test"] + tests[:whole]
    return kept


def _labelled(datalist: Datalist, site: str) -> bool:
    return any(LABEL in row.labels for row in datalist if (row.site or site) == site)


def group_name(site: str, split: str, model: Model) -> str:
    """What tables call the patches of a laboratory: its name; for the training laboratory with the split."""
    return f"{site} ({split})" if site == model.site else site


def report_undefined(table: Sequence[dict[str, Any]]) -> None:
    """Say which laboratories have no AUC."""
    for row in table:
        if row["auc"] is None and row["images"]:
            say(
                f"no AUC for {row['group']}: all {row['images']} labelled patches are of class {int(row['positives'] > 0)}"
            )


def _size(command: of.Predict, model: Model) -> int | None:
    given = command.patches.image_size
    if given is not None and model.resized and given != model.image_size:
        raise SettingError(
            f"--image-size was {model.image_size} when this network was trained and is {given} now",
            where=command.model,
            remedy="leave it out, or give the size it was trained with",
        )
    return given if given is not None or not model.resized else model.image_size


def _rows(
    chosen: Sequence[Chosen], scores: NDArray[np.float64], margins: NDArray[np.float64]
) -> Iterator[dict[str, Any]]:
    """`margin`, the difference of the logits, ranks patches also where the score has come to 1."""
    for patch, score, margin in zip(chosen, scores, margins, strict=True):
        yield {
            "image": patch.row.image, "subject": patch.row.subject, "site": patch.site,
            "label": None if patch.label < 0 else patch.label, "score": float(score), "split": patch.split, MARGIN: f"{margin:.9g}",
        }  # fmt: skip


def _write_features(command: of.Predict, features: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, features)
    write_atomic(command.output.out / FEATURES, buffer.getvalue())


def _report(
    command: of.Predict, model: Model, table: Sequence[dict[str, Any]], chosen: Sequence[Chosen],
    labels: NDArray[np.float64], scores: NDArray[np.float64],
) -> None:  # fmt: skip
    report = Report("Predictions", f"{len(chosen)} patches; {model.name}, trained on {model.site}", package=PACKAGE)
    report.section("Scores")
    scores_section(report, table, {"group": "laboratory"}, "Each laboratory")
    groups = np.array([group_name(patch.site, patch.split, model) for patch in chosen], dtype=object)
    curves = {row["group"]: (labels[groups == row["group"]], scores[groups == row["group"]]) for row in table}
    report.picture(roc_figure(curves), "ROC curve of each laboratory, with AUC and standard error", "ROC curves")
    report.section("Settings")
    report.settings(command)
    report.write(command.output.out / "report.html")
