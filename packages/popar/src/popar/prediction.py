"""The command `predict`: the probabilities of all labels for each picture, and their scores where the labels are known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dart_core.classification import group_table, roc_figure, scores_section, write_predictions
from dart_core.cli import say
from dart_core.data.catalog import radiographs
from dart_core.data.datalist import Datalist
from dart_core.data.pictures import Pictures, sites_of
from dart_core.errors import InputError, SettingError
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from popar import settings as of
from popar.models import PACKAGE, Tuned, load_tuned
from popar.radiographs import Radiographs, in_lists, listed_names, open_datalist
from popar.recipes import RECIPES, labelled_parts, read_labels, scores_of
from popar.transfer import predict_pictures

NAME = "name"
"""Column of predictions.csv: which label a row is about."""


def predict(command: of.Predict) -> None:
    """Score the pictures of a datalist."""
    device = find_device(command.device)
    network, about = load_tuned(command.model, device)
    pictures = choose(command, about)
    if not len(pictures):
        raise InputError(
            f"no picture with split {command.split}", where=command.data.datalist, remedy="give --split all"
        )
    files = Radiographs(pictures.rows, None, about.colour)
    files[0]
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    scores = predict_pictures(network, about, files, device, command.crops, command.batch_size)
    write_predictions(out, _rows(pictures, scores))
    found = scores_of(pictures.truth, scores, about.labels, about.multi_label, about.reported)
    told = dataclasses.asdict(dataclasses.replace(about, lists=None))  # a hundred thousand names stay with the weights
    content = {"model": told, "split": command.split, "pictures": len(pictures), **found}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    _report(command, about, pictures, scores, found["mean_auc"], found.get("accuracy"))
    if found["undefined"]:
        say(f"without both classes and therefore without AUC: {', '.join(found['undefined'])}")
    say(f"scores: {out}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --predictions {out} --out ...")


def choose(command: of.Predict, about: Tuned) -> Pictures:
    """The pictures to score, with the labels of the network; unknown ones are nan.

    Splits that the data name are kept; where none is named they are drawn as for the training. Lists are those of the training.

    Raises:
        InputError: no such site, or a cell that is no label.
        SettingError: other lists than those of the training.
    """
    label = of.LabelSettings(
        target=about.target,  # type: ignore[arg-type]
        labels=about.labels, site=command.site, split_seed=about.split_seed, frontal=about.frontal,
        test=about.test,  # type: ignore[arg-type]
    )  # fmt: skip
    datalist = _open(command, about, label)
    if not command.site and len(sites_of(datalist)) > 1 and about.site in sites_of(datalist):
        datalist = datalist.select(site=about.site)
    there = {name for row in datalist for name in row.labels}
    known = tuple(name for name in about.labels if name in there)
    recipe = dataclasses.replace(RECIPES[label.target], labels=known)
    if command.split == "all" or not known:
        # Without labels there is nothing that a split would be for.
        pictures = read_labels(datalist, label, recipe, labelled=False)[0] if known else _unlabelled(datalist)
        if command.split != "all" and any(row.split for row in datalist):
            pictures = pictures.take(i for i, row in enumerate(pictures.rows) if row.split == command.split)
    else:
        pictures = labelled_parts(datalist, label, recipe)[command.split].pictures
    truth = np.full((len(pictures), len(about.labels)), np.nan, np.float32)
    for place, name in enumerate(known):
        truth[:, about.labels.index(name)] = pictures.truth[:, place]
    return dataclasses.replace(pictures, labels=about.labels, truth=truth)


def _open(command: of.Predict, about: Tuned, label: of.LabelSettings) -> Datalist:
    """The data, in the lists of the training if they are the folder that it was on."""
    datalist, data = open_datalist(command.data, label), command.data
    if radiographs.recognise(data.datalist) != about.site:
        return datalist
    if about.lists is None:
        say(
            f"warning: {command.model} does not say which lists it was trained with; if any, give the same, or this may score "
            "pictures that it was trained on"
        )
        return datalist
    for split, names in listed_names(data.lists).items():
        if about.lists.get(split) != names:
            other = "with another" if split in about.lists else "without"
            raise SettingError(f"was trained {other} --{split}-list", where=command.model, remedy="leave it out")
    if not about.lists:
        return datalist
    whole = dataclasses.replace(data, train_list=None, val_list=None, test_list=None)
    return in_lists(open_datalist(whole, label), about.lists)


def _unlabelled(datalist: Datalist) -> Pictures:
    return Pictures(sites_of(datalist)[0], (), datalist.rows, np.zeros((len(datalist), 0), np.float32))


def _rows(pictures: Pictures, scores: NDArray[np.float64]) -> Iterator[dict[str, object]]:
    """One row per picture and label."""
    for row, truth, values in zip(pictures.rows, pictures.truth, scores, strict=True):
        for name, label, score in zip(pictures.labels, truth, values, strict=True):
            yield {
                "image": row.image, "subject": row.subject, "site": pictures.name, "label": float(label),
                "score": float(score), NAME: name, "split": row.split,
            }  # fmt: skip


def _report(
    command: of.Predict, about: Tuned, pictures: Pictures, scores: NDArray[np.float64], mean: float | None,
    accuracy: float | None,
) -> None:  # fmt: skip
    report = Report("Predictions", f"{len(pictures)} pictures of {pictures.name}; {about.name}", package=PACKAGE)
    report.section("Scores")
    if accuracy is not None:
        report.text(f"Accuracy of the largest probability: {accuracy:.4f}.")
    if mean is not None:
        over = f" over {', '.join(about.reported)}" if about.reported else ""
        report.text(f"Mean AUC{over}: {mean:.4f}.")
    groups = np.tile(np.array(about.labels, dtype=object), len(pictures))
    table = group_table(pictures.truth.ravel(), scores.ravel(), list(groups))
    scores_section(report, table, {"group": "label"}, "Each label, a probability above 0.5 counting as positive")
    curves = {name: (pictures.truth[:, i], scores[:, i]) for i, name in enumerate(about.labels)}
    report.picture(roc_figure(curves), "ROC curve of each label, with AUC and standard error", "ROC curves")
    report.section("Settings")
    report.settings(command)
    report.write(command.output.out / "report.html")
