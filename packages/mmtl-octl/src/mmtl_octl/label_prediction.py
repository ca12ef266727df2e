"""The command `predict` for classification: scores of all labels, and the AUC where the labels are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from dart_core.cli import say
from dart_core.errors import SettingError
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from mmtl_octl import settings as of
from mmtl_octl.aucs import auc_rows, report_undefined, write_scores
from mmtl_octl.classifiers import Classifier, Network, load_classifier, outputs_for, predict_classifier
from mmtl_octl.label_reports import auc_section, mean_of
from mmtl_octl.pictures import Pictures, filled, load_picture, open_pictures, read_pictures, sites_of, split_pictures
from mmtl_octl.reports import PACKAGE


def predict(command: of.Predict) -> None:
    """Classify the pictures of a data set."""
    network, model = load_classifier(command.model, find_device(command.device))
    check_pictures(command.pictures, model, command.model)
    datalist = open_pictures(command.scans.datalist)
    site = command.site or model.target
    if not site and len(sites_of(datalist)) > 1:
        raise SettingError("a source network has no target", remedy=f"name a data set: --site {sites_of(datalist)[0]}")
    pictures = read_pictures(datalist, site or sites_of(datalist)[0], command.pictures.labels, labelled=False)
    if command.split != "all":
        pictures = filled(split_pictures(pictures, model.split_by)[command.split], command.split, datalist)
    for row in pictures.rows:  # a broken last file must not waste the work on the others
        load_picture(row)
    outputs_for(model.label_sets, pictures.name, pictures.labels)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    pictures, scores = score_pictures(network, model, pictures, command.batch_size)
    write_scores(out, pictures, scores)
    table = auc_rows(pictures.labels, pictures.truth, scores)
    content = {
        "site": pictures.name,
        "images": len(pictures),
        "mean_auc": mean_of(table),
        "auc": {row["label"]: row["auc"] for row in table},
        "model": dataclasses.asdict(model),
    }
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    method = "none" if model.method == "source" else model.method
    report = Report("Predictions", f"{len(pictures)} images of {pictures.name}, {method}", package=PACKAGE)
    auc_section(report, table, "these images")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    report_undefined(table)
    say(f"scores: {out}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --task classification --predictions {out} --out ...")  # fmt: skip


def score_pictures(
    network: Network, model: Classifier, pictures: Pictures, batch_size: int = 32
) -> tuple[Pictures, Any]:
    """The pictures with the labels that the network answers, and its scores (n, labels)."""
    places = outputs_for(model.label_sets, pictures.name, pictures.labels)
    if left := [name for name in pictures.labels if name not in places]:
        say(f"no output of this network answers {', '.join(left)}: left out")
    scores = predict_classifier(network, pictures, model.image_size, batch_size)[:, list(places.values())]
    truth = np.full((len(pictures), len(places)), np.nan, dtype=np.float32)
    for column, name in enumerate(places):
        if name in pictures.labels:
            truth[:, column] = pictures.truth[:, pictures.labels.index(name)]
    return dataclasses.replace(pictures, labels=tuple(places), truth=truth), scores


def check_pictures(pictures: of.PictureSettings, model: Classifier, where: Path) -> None:
    """Pictures must reach a network as those it was trained on did, and be split alike."""
    for flag, was, now in (
        ("--image-size", model.image_size, pictures.image_size),
        ("--split-by", model.split_by, pictures.split_by),
    ):
        if now is not None and now != was:
            raise SettingError(
                f"{flag} was {was} when this network was trained and is {now} now",
                where=where,
                remedy="leave it out, or give the settings it was trained with",
            )
