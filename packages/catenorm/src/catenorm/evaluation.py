"""The command `evaluate`: Dice and average surface distance per organ, by site and method (specification 6, 7)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from catenorm import figures
from catenorm import settings as of
from catenorm.baselines import printed_table
from catenorm.models import PACKAGE
from catenorm.networks import NAMES
from catenorm.prediction import FIRST
from dart_core import metrics
from dart_core.cli import say
from dart_core.data.volumes import Volume, read_grid, read_labels
from dart_core.errors import InputError
from dart_core.evaluation import SCORES, Prediction, read_predictions
from dart_core.files import write_atomic, write_csv
from dart_core.report import Cell, Report
from dart_core.run import METRICS, claim_folder, flat_settings

BASELINES = ("bn", "deeplab bn")
"""Methods that others are compared with, the first that is there."""
Metric = Literal["dice", "asd", "assd"]
TITLES: dict[Metric, str] = {
    "dice": "Dice (%)",
    "asd": "Average surface distance, prediction to truth (mm)",
    "assd": "Average surface distance, both directions (mm)",
}


@dataclass(frozen=True)
class Score:
    """One organ of one case by one method."""

    method: str
    site: str
    case: str
    organ: str
    dice: float
    """Both empty 1, one empty 0."""
    asd: float
    """mm from the prediction's surface to the truth's; nan where one is empty."""
    assd: float
    """mm, both directions pooled."""

    def value(self, metric: Metric) -> float:
        """Dice in per cent, distances in mm."""
        return 100 * self.dice if metric == "dice" else float(getattr(self, metric))


@dataclass(frozen=True)
class Folder:
    """What one `predict` left."""

    labels: dict[str, int]
    predictions: list[Prediction]


# --- Scores -----------------------------------------------------------------------------------------------------------


def score_case(
    prediction: NDArray[Any], truth: NDArray[Any], labels: Mapping[str, int], spacing: Sequence[float]
) -> dict[str, tuple[float, float, float]]:
    """Dice and both average surface distances of every organ.

    Args:
        prediction: (x, y, z) classes.
        truth: (x, y, z) classes.
        labels: organ -> its class.
        spacing: mm per axis.
    """
    found = {}
    for organ, number in labels.items():
        a, b = prediction == number, truth == number
        distances = (metrics.average_surface_distance(a, b, spacing, symmetric) for symmetric in (False, True))
        found[organ] = (metrics.dice(a, b), *distances)
    return {organ: (values[0], values[1], values[2]) for organ, values in found.items()}


def read_folder(folder: Path) -> Folder:
    """What one `predict` left.

    Raises:
        InputError: a folder of something else, or a damaged one.
    """
    file = folder / METRICS
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        labels = {str(name): int(number) for name, number in content["labels"].items()}
        if not labels:
            raise ValueError
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        problem = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "says nothing about labels"
        raise InputError(problem, where=file, remedy=f"give a folder that `{PACKAGE} predict` wrote") from error
    return Folder(labels, read_predictions(folder, PACKAGE))


def score_folder(folder: Folder) -> list[Score]:
    """Every organ of every case, without the first and the last slice.

    Scores are taken on the grid that the network worked on, as in the paper; of a case without labels then there are none.

    Raises:
        InputError: a case without labels, or a file that cannot be used.
    """
    scores = []
    for prediction in folder.predictions:
        if prediction.preprocessed is None:
            raise InputError(
                "the case has no labels to score against", where=prediction.where, remedy="predict cases with masks"
            )
        predicted, truth, spacing = prediction.preprocessed
        like: Volume = read_grid(truth)
        pair = [read_labels(file, like)[..., 1:-1] for file in (predicted, truth)]
        for organ, values in score_case(pair[0], pair[1], folder.labels, spacing).items():
            scores.append(Score(prediction.method, prediction.pair[1], prediction.subject, organ, *values))
    return scores


# --- Means (6) --------------------------------------------------------------------------------------------------------


def mean_of(values: Iterable[float]) -> float:
    """Mean of what is defined; nan where nothing is."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def site_mean(scores: Sequence[Score], method: str, site: str, metric: Metric, organ: str | None = None) -> float:
    """Mean over the cases of a site, of one organ, or of the organs' means."""
    organs = [organ] if organ is not None else unique(s.organ for s in scores)
    return mean_of(
        mean_of(s.value(metric) for s in scores if (s.method, s.site, s.organ) == (method, site, name))
        for name in organs
    )


def organ_mean(scores: Sequence[Score], method: str, organ: str, metric: Metric) -> float:
    """Mean over sites, each counting the same, of the mean over cases."""
    return mean_of(site_mean(scores, method, site, metric, organ) for site in unique(s.site for s in scores))


def average(scores: Sequence[Score], method: str, metric: Metric) -> float:
    """Mean over organs of `organ_mean`: the paper's AVG."""
    return mean_of(organ_mean(scores, method, organ, metric) for organ in unique(s.organ for s in scores))


def case_means(scores: Sequence[Score], method: str, metric: Metric) -> dict[tuple[str, str], float]:
    """(site, case) -> mean over the organs that are defined."""
    cases: dict[tuple[str, str], list[float]] = {}
    for s in scores:
        if s.method == method:
            cases.setdefault((s.site, s.case), []).append(s.value(metric))
    return {case: mean_of(values) for case, values in cases.items()}


def unique(values: Iterable[str]) -> list[str]:
    """Each once, in the order of their first appearance."""
    return list(dict.fromkeys(values))


def summarise(scores: Sequence[Score], baseline: str) -> list[dict[str, Any]]:
    """One row per method: averages, sites, organs, undefined distances, and the paired comparison with a baseline.

    Args:
        scores: of one set of organs.
        baseline: method; p is that of Wilcoxon's two-sided signed-rank test over cases (means over organs).
    """
    rows = []
    for method in unique(s.method for s in scores):
        row: dict[str, Any] = {"method": method}
        for metric in TITLES:
            row[metric] = average(scores, method, metric)
            row[f"{metric}_sites"] = {
                site: site_mean(scores, method, site, metric) for site in unique(s.site for s in scores)
            }
            row[f"{metric}_organs"] = {
                organ: organ_mean(scores, method, organ, metric) for organ in unique(s.organ for s in scores)
            }
        own = [s for s in scores if s.method == method]
        row |= {"cases": len({(s.site, s.case) for s in own}), "undefined_asd": int(sum(np.isnan(s.asd) for s in own))}
        if method != baseline:
            ours, theirs = (case_means(scores, name, "dice") for name in (method, baseline))
            shared = [case for case in ours if case in theirs]
            if len(shared) > 1:
                a, b = [ours[case] for case in shared], [theirs[case] for case in shared]
                row |= {"difference": float(np.mean(a) - np.mean(b)), "p": metrics.wilcoxon_signed_rank(a, b)[1]}
        rows.append(row)
    return rows


# --- The command ------------------------------------------------------------------------------------------------------


def find_baseline(asked: str, methods: Sequence[str]) -> str:
    """The method that the others are compared with: the one that was asked for, else bn, else deeplab bn, else "" for none.

    Raises:
        InputError: the one that was asked for is not there.
    """
    if asked and asked not in methods:
        raise InputError(f"no run is named {asked}", remedy=f"give --baseline one of: {', '.join(methods)}")
    return asked or next((name for name in BASELINES if name in methods), "")


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of one or more runs and write the tables."""
    groups: dict[tuple[str, ...], list[Score]] = {}
    for path in command.predictions:
        folder = read_folder(path)
        own = groups.setdefault(tuple(folder.labels), [])
        there = {(s.method, s.site, s.case, s.organ) for s in own}
        for score in score_folder(folder):
            if (score.method, score.site, score.case, score.organ) in there:
                raise InputError(
                    f"{score.method} has case {score.case} in another folder too",
                    where=path,
                    remedy="give each case once per method (folds do not overlap), or name the runs apart with train --name",
                )
            own.append(score)
    baseline = find_baseline(command.baseline, unique(s.method for scores in groups.values() for s in scores))
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    summaries = {organs: summarise(scores, baseline) for organs, scores in groups.items()}
    columns = ("method", "site", "case", "organ", "dice", "asd", "assd")
    rows = [
        (*(getattr(s, name) for name in columns[:4]), *(f"{getattr(s, name):.6f}" for name in columns[4:]))
        for scores in groups.values()
        for s in scores
    ]
    write_csv(out / SCORES, columns, rows)
    content = [{"organs": list(organs), "methods": rows} for organs, rows in summaries.items()]
    write_atomic(out / METRICS, json.dumps({"baseline": baseline, "results": _plain(content)}, indent=2) + "\n")
    report = Report("Evaluation", f"{len(rows)} organs of cases", package=PACKAGE)
    report_sections(report, groups, summaries, baseline, command.distance)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for summary in summaries.values():
        for row in summary:
            print(
                f"{row['method']:<28} Dice {row['dice']:.2f} %  ASD {row['asd']:.2f} mm  ({row['cases']} cases)"
                + (f"  p {row['p']:.3g} against {baseline}" if "p" in row else "")
            )
    say(f"report: {out / 'report.html'}")


def report_sections(
    report: Report,
    groups: Mapping[tuple[str, ...], Sequence[Score]],
    summaries: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]],
    baseline: str,
    distance: Literal["directed", "symmetric"],
) -> None:
    """Tables and pictures of an evaluation.

    Args:
        report: where to.
        groups: set of organs -> its scores.
        summaries: of `summarise`, by set of organs.
        baseline: method.
        distance: which average surface distance is shown.
    """
    surface: Metric = "asd" if distance == "directed" else "assd"
    for organs, summary in summaries.items():
        suffix = "" if len(summaries) == 1 else f" ({len(organs)} classes)"
        report.section(f"Methods{suffix}")
        for metric in ("dice", surface):
            _tables(report, organs, summary, metric, baseline, groups[organs])
        # Named runs, W-Nets and DeepLabV3+ may have one block too, and are no points of the figure.
        single = {
            int(found[1]): row["dice"] for row in summary if (found := re.fullmatch(r"catenorm (\d+)", row["method"]))
        }
        if len(single) > 1:
            base = next((row["dice"] for row in summary if row["method"] == baseline), None)
            report.picture(
                figures.positions(single, base, NAMES),
                "Average Dice of networks with one categorical block, by its place (after Fig. 5 of the paper)",
                "Dice against the number of the block",
            )
    bars = annotation_gains(summaries, baseline)
    if len(bars) > 1:
        report.section("Partial annotation")
        report.picture(
            figures.gains(bars),
            "Gain in Dice of CateNorm over batch norm with fewer annotated classes (after Fig. 3 of the paper)",
            "bars per organ",
        )
    _printed(report, {s.site for scores in groups.values() for s in scores}, set().union(*groups))


def annotation_gains(
    summaries: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]], baseline: str
) -> dict[str, dict[str, float]]:
    """Per number of annotated classes and organ: Dice of the first CateNorm network minus that of the baseline."""
    bars = {}
    for organs, summary in summaries.items():
        base = next((row for row in summary if row["method"] == baseline), None)
        ours = next(
            (row for row in summary if row["method"].startswith("catenorm") and not row["method"].endswith(FIRST)), None
        )
        if base is not None and ours is not None:
            gain = {organ: ours["dice_organs"][organ] - base["dice_organs"][organ] for organ in organs}
            bars[f"{len(organs)} {'classes' if len(organs) > 1 else 'class'}"] = gain
    return bars


def _tables(
    report: Report,
    organs: Sequence[str],
    summary: Sequence[Mapping[str, Any]],
    metric: Metric,
    baseline: str,
    scores: Sequence[Score],
) -> None:
    sites = unique(s.site for s in scores)
    compared = metric == "dice" and any("p" in row for row in summary)
    lines: list[list[Cell]] = []
    for row in summary:
        known = row[f"{metric}_sites"]
        line: list[Cell] = [row["method"], row["cases"], *(_text(known[site]) for site in sites), _text(row[metric])]
        if compared:
            line += [_text(row.get("difference"), "+.2f"), _text(row.get("p"), ".3g")]
        elif metric != "dice":
            line.append(row["undefined_asd"])
        lines.append(line)
    more = [f"difference to {baseline}", "p"] if compared else (["undefined"] if metric != "dice" else [])
    caption = (
        f"{TITLES[metric]} of each site: mean over organs of the mean over cases; average: mean over organs and sites"
    )
    if compared:
        caption += ". Difference and p (two-sided Wilcoxon signed-rank test) over cases, each the mean of its organs"
    elif metric != "dice":
        caption += ". Undefined: organs of cases where prediction or truth is empty; they are left out of the means"
    report.table(["method", "cases", *sites, "average", *more], lines, caption + ".")
    if len(organs) > 1:
        by_organ = [[organ, *(_text(row[f"{metric}_organs"][organ]) for row in summary)] for organ in organs]
        names = [row["method"] for row in summary]
        report.table(
            ["organ", *names], by_organ, f"{TITLES[metric]} of each organ: mean over sites of the mean over cases."
        )


def _text(value: float | None, form: str = ".2f") -> str | None:
    return None if value is None or not np.isfinite(value) else f"{value:{form}}"


def _printed(report: Report, sites: set[str], organs: set[str]) -> None:
    """The paper's tables where they are about the same data."""
    if sites <= {"RUNMC", "BMC", "I2CVB", "A", "B", "C"} and organs == {"prostate"}:
        names: tuple[str, ...] = ("table1", "table2", "table8", "table3a", "table3b", "table12")
    elif sites == {"BTCV"} and len(organs) == 8:
        names = ("table9",)
    elif sites == {"BTCV", "TCIA"} and len(organs) == 6:
        names = ("table2", "table10", "table7", "table3b")
    else:
        return
    report.section("Printed in the paper")
    for name in names:
        table = printed_table(name)
        rows = [[None if value == "" else value for value in row.values()] for row in table]
        report.table(
            tuple(table[0]), rows, f"{re.sub('table', 'Table ', name)} of the paper (ISBN-R is RUNMC, ISBN-B is BMC)"
        )


def _plain(value: Any) -> Any:
    """nan as null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
