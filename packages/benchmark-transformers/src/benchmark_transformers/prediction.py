"""The command `predict`: the mean probability of ten crops, for every trial of a fine-tuning (specification 2.1.4)."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmark_transformers import settings as of
from benchmark_transformers.cases import CaseFiles, Cases, counted_labels, read_cases
from benchmark_transformers.method import measure
from benchmark_transformers.networks import PACKAGE
from benchmark_transformers.training import Model, load_model, split_as_trained, trial_folders
from dart_core import metrics
from dart_core.classification import write_predictions
from dart_core.cli import say
from dart_core.data.picture_views import middle_view, normalise, resize_to, ten_crop, ten_crop_scores
from dart_core.errors import InputError
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings

LABEL_COLUMN = "finding"
"""Column of predictions.csv with the name of the label; each picture has one row per label."""


def predict(command: of.Predict) -> None:
    """Score the pictures of a data set."""
    device = find_device(command.device)
    folders = trial_folders(command.model)
    _, model = load_model(folders[0])
    parts = read_cases(split_as_trained(command.data, model), model.labels, labelled=False)
    names = ("train", "val", "test") if command.split == "all" else (command.split,)
    chosen = [(name, parts[name]) for name in names if len(parts[name])]
    if not chosen:
        raise InputError(
            f"no picture with split {command.split}", where=command.data.datalist, remedy="give --split all"
        )
    site = chosen[0][1].pictures.name
    counted = counted_labels(site, model.labels)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    rows = []
    for folder in folders:
        network, model = load_model(folder, device)
        known, scores, lines = [], [], []
        for split, cases in chosen:
            found = score(network, model, CaseFiles(cases.rows), command.crops, command.batch_size, device)
            truth = cases.known() if cases.labels == model.labels else np.full(found.shape, np.nan)
            known.append(truth)
            scores.append(found)
            lines += list(_rows(cases, model, truth, found, split))
        place = out / f"trial-{model.seed}"
        write_predictions(place, lines)
        rows.append(_result(model, np.concatenate(known), np.concatenate(scores), counted))
    content = {
        "model": dataclasses.asdict(model), "split": command.split, "crops": command.crops, "counted": counted, "results": rows,
    }  # fmt: skip
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    _report(command, model, rows, f"{sum(len(cases) for _, cases in chosen)} pictures of {site}", counted)
    say(f"scores: {out}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --predictions {out} --out ...")


@torch.no_grad()
def score(
    network: nn.Module, model: Model, files: CaseFiles, crops: int = 10, batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> NDArray[np.float64]:  # fmt: skip
    """Probabilities (n, labels) of pictures.

    Args:
        network: in evaluation mode, on `device`.
        model: how it wants its pictures.
        files: n pictures of any size.
        crops: 10, whose probabilities are averaged, or 1 (the middle).
        batch_size: pictures in a forward pass.
        device: where the network lies.
    """

    def change(image: Tensor) -> Tensor:
        if crops == 1:
            return middle_view(image, model.resize, model.image_size, keep_aspect=model.keep_aspect)[None]
        return ten_crop(resize_to(image, model.resize, keep_aspect=model.keep_aspect), model.image_size)

    found = []
    for views in files.in_batches(batch_size, change):
        images = normalise(views.to(device).flatten(0, 1), model.statistics)
        logits = network(images).double().unflatten(0, views.shape[:2])
        found.append(ten_crop_scores(logits, multi_label=not model.exclusive).cpu())
    return np.asarray(torch.cat(found).numpy())


def _rows(
    cases: Cases, model: Model, truth: NDArray[Any], scores: NDArray[np.float64], split: str
) -> Iterator[dict[str, Any]]:
    for row, known, found in zip(cases.rows, truth, scores, strict=True):
        for name, label, value in zip(model.labels, known, found, strict=True):
            yield {
                "image": row.image, "subject": row.subject, "site": cases.pictures.name,
                "label": None if math.isnan(label) else int(label), "score": float(value), LABEL_COLUMN: name, "split": split,
            }  # fmt: skip


def _result(model: Model, known: NDArray[Any], scores: NDArray[np.float64], counted: Sequence[str]) -> dict[str, Any]:
    """What a trial got right, as far as the labels are known; the mean is over those that count."""
    value, defined = measure(known, scores, model.exclusive, [model.labels.index(name) for name in counted])
    areas = metrics.roc_auc(known, scores)
    return {
        "seed": model.seed, "measure": "accuracy" if model.exclusive else "auc",
        "value": None if math.isnan(value) else value, "defined": defined,
        "auc": {name: None if math.isnan(a) else float(a) for name, a in zip(model.labels, areas, strict=True)},
    }  # fmt: skip


def _report(
    command: of.Predict, model: Model, rows: list[dict[str, Any]], pictures: str, counted: Sequence[str]
) -> None:
    report = Report("Predictions", f"{pictures}; {model.name}", package=PACKAGE)
    over = "" if len(counted) == len(model.labels) else f" of {', '.join(counted)}"
    report.table(
        ("seed", "accuracy" if model.exclusive else "mean AUC", *model.labels),
        [(row["seed"], row["value"], *row["auc"].values()) for row in rows],
        f"Each trial ({command.crops} crop{'s' * (command.crops > 1)}), and the AUC of each label. A dash stands where a label "
        f"has not both classes among these pictures; the mean is over the others{over}",
    )
    report.section("Settings")
    report.settings(command)
    report.write(command.output.out / "report.html")


def read_trials(folder: Path) -> list[Path]:
    """The folders with predictions of one call of `predict`.

    Raises:
        InputError: there are none.
    """
    named = {path: re.fullmatch(r"trial-(\d+)", path.name) for path in folder.glob("trial-*")}
    found = [path for path, number in sorted((p, int(m[1])) for p, m in named.items() if m)]
    if not found:
        raise InputError("holds no predictions", where=folder, remedy=f"give a folder that `{PACKAGE} predict` wrote")
    return found
