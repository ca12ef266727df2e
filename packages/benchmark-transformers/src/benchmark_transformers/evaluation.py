"""The command `evaluate`: what the trials of a fine-tuning get right, as mean and spread (specification 6)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark_transformers import settings as of
from benchmark_transformers.cases import counted_labels
from benchmark_transformers.method import measure
from benchmark_transformers.networks import PACKAGE
from benchmark_transformers.prediction import LABEL_COLUMN, read_trials
from benchmark_transformers.tables import in_percent, mean_and_spread
from dart_core import metrics
from dart_core.classification import read_predictions, roc_figure
from dart_core.cli import say
from dart_core.errors import InputError
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings

SCORES = "scores.csv"
_PARTS = {"val": "validation pictures", "train": "training pictures", "all": "all pictures"}
"""What was predicted where it was not the test."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Predictions of one training."""

    seed: int
    known: NDArray[np.float64]
    """(pictures, labels) 0 or 1; nan = unknown."""
    scores: NDArray[np.float64]
    """(pictures, labels)."""
    value: float
    """Mean AUC or accuracy; nan where undefined."""
    defined: int
    """Labels with an AUC."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One folder of `predict`."""

    folder: Path
    model: Mapping[str, Any]
    site: str
    """The data set that was predicted, which need not be that of the training."""
    split: str
    """Which of its pictures: test, val, train or all."""
    crops: int
    trials: tuple[Trial, ...]
    counted: tuple[str, ...]
    """Labels whose mean counts."""

    @property
    def dataset(self) -> str:
        """What tables call what was predicted; pictures of different splits are not one data set."""
        return self.site + (f", {_PARTS[self.split]}" if self.split in _PARTS else "")

    @property
    def name(self) -> str:
        """What tables call it; what is not the protocol's is said: a fraction of the annotations, another training set, one crop."""
        share = float(self.model["fraction"])
        notes = [f"{share:g} % of the annotations"] * (share < 100)
        notes += [f"trained on {self.model['dataset']}"] * (self.site != self.model["dataset"])
        notes += ["1 crop"] * (self.crops == 1)
        return str(self.model["name"]) + (f" ({', '.join(notes)})" if notes else "")

    @property
    def exclusive(self) -> bool:
        """Whether accuracy counts."""
        return bool(self.model["exclusive"])

    def values(self) -> list[float]:
        """One per trial that has one."""
        return [trial.value for trial in self.trials if not math.isnan(trial.value)]


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of one or more fine-tunings."""
    scored = [read_scored(folder, command.test_labels) for folder in command.predictions]
    check_names(scored)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    rows = [
        (one.name, one.dataset, trial.seed, "accuracy" if one.exclusive else "auc", trial.value, trial.defined, one.folder)
        for one in scored for trial in one.trials
    ]  # fmt: skip
    columns = ("name", "dataset", "seed", "measure", "value", "defined_labels", "folder")
    write_csv(out / SCORES, columns, [[None if cell != cell else cell for cell in row] for row in rows])
    summary = [
        {"name": one.name, "dataset": one.dataset, "trials": len(one.trials), **mean_and_spread(one.values())}
        for one in scored
    ]
    write_atomic(out / METRICS, json.dumps({"results": summary}, indent=2) + "\n")
    report = Report("Evaluation", f"{len(scored)} fine-tunings", package=PACKAGE)
    score_sections(report, scored)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for one in scored:
        kind = "accuracy" if one.exclusive else "mean AUC"
        print(f"{one.name}, {one.dataset}: {kind} {in_percent(one.values())} % ({len(one.values())} trials)")
    say(f"scores: {out / SCORES}   report: {out / 'report.html'}")


def read_scored(folder: Path, test_labels: Sequence[str] = ()) -> Scored:
    """What `predict` wrote.

    Args:
        folder: of one fine-tuning.
        test_labels: labels whose mean counts; empty: all, on CheXpert its five.

    Raises:
        InputError: something is missing, or does not fit together.
    """
    remedy = f"give a folder that `{PACKAGE} predict` wrote"
    try:
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        model, split, crops = content["model"], str(content["split"]), int(content["crops"])
        labels, exclusive = list(model["labels"]), bool(model["exclusive"])
        _ = (
            float(model["fraction"]),
            *(model[key] for key in ("name", "initialisation", "backbone", "dataset", "schedule")),
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"cannot be read as scores of {PACKAGE} ({error})", where=folder, remedy=remedy) from error
    read = [(place, read_predictions(place, PACKAGE)) for place in read_trials(folder)]
    site = read[0][1].column("site")[0]
    counted = tuple(test_labels) or counted_labels(site, labels)
    for name in counted:
        if name not in labels:
            raise InputError(f"no label {name!r}", where=folder, remedy=f"there are: {', '.join(labels)}")
    places = [labels.index(name) for name in counted]
    trials = []
    for place, found in read:
        if len(found) % len(labels) or found.column(LABEL_COLUMN) != labels * (len(found) // len(labels)):
            raise InputError("its rows are not those of the labels", where=found.source, remedy="predict again")
        known, scores = (values.reshape(-1, len(labels)) for values in (found.labels, found.scores))
        value, defined = measure(known, scores, exclusive, places)
        trials.append(Trial(int(place.name.split("-")[1]), known, scores, value, defined))
    return Scored(folder, model, site, split, crops, tuple(trials), counted)


def check_names(scored: Sequence[Scored]) -> None:
    """Two fine-tunings must not have one name on the same data set.

    Raises:
        InputError: they do.
    """
    seen: dict[tuple[str, str, str], Path] = {}
    for one in scored:
        key = (one.name, one.dataset, str(one.model["backbone"]))
        if key in seen:
            raise InputError(
                f"{one.name} on {one.dataset} is in {seen[key]} too", where=one.folder,
                remedy="give each once, or another --name in `fine-tune`",
            )  # fmt: skip
        seen[key] = one.folder


def score_sections(report: Report, scored: Sequence[Scored]) -> None:
    """Means and spreads, each label's AUC, ROC curves."""
    report.section("Scores")
    lines = []
    for one in scored:
        found = mean_and_spread(one.values())
        kind = "accuracy" if one.exclusive else f"mean AUC of {len(one.counted)} labels"
        undefined = sum(trial.defined < len(one.counted) for trial in one.trials)
        note = f"{undefined} trials with an undefined label" if undefined and not one.exclusive else ""
        lines.append((one.name, one.dataset, kind, len(one.values()), *map(_digits, found.values()), note))
    report.table(
        ("name", "data set", "measure", "trials", "mean", "sd, divisor n", "sd, divisor n - 1", "note"), lines,
        "Mean and standard deviation over the trials. The authors print the deviation with divisor n; a t-test needs the "
        "other. A label without both classes has no AUC and is left out of the mean",
    )  # fmt: skip
    for one in scored:
        areas = np.array([metrics.roc_auc(trial.known, trial.scores) for trial in one.trials])
        labels = list(one.model["labels"])
        rows = []
        for column, label in enumerate(labels):
            defined = areas[:, column][~np.isnan(areas[:, column])]
            positives = int(np.nansum(one.trials[0].known[:, column]))
            rows.append((label, positives, *map(_digits, mean_and_spread(list(defined)).values())))
        report.table(
            ("label", "positive pictures", "AUC", "sd, divisor n", "sd, divisor n - 1"), rows,
            f"AUC of each label: {one.name}, {one.dataset}",
        )  # fmt: skip
    datasets = dict.fromkeys(one.dataset for one in scored)
    report.section("ROC curves")
    for dataset in datasets:
        curves = {}
        for one in scored:
            if one.dataset == dataset:
                places = [list(one.model["labels"]).index(name) for name in one.counted]
                trial = one.trials[0]
                curves[f"{one.name} ({one.model['backbone']})"] = (
                    trial.known[:, places].ravel(),
                    trial.scores[:, places].ravel(),
                )
        if any(np.isfinite(labels).any() for labels, _ in curves.values()):
            report.picture(
                roc_figure(curves), f"{dataset}: all labels together (micro-average), first trial of each fine-tuning",
                f"ROC curves on {dataset}",
            )  # fmt: skip


def _digits(value: float | None) -> str | None:
    """Four digits for all cells of a table; None shows a dash."""
    return None if value is None else f"{value:.4f}"
