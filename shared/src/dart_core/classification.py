"""Classifications with two classes as files, and their scores: per group, over seeds, as ROC and calibration curves.

A command `predict` writes predictions.csv with one row per picture (and label), a command `evaluate` reads one or more
of them.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart_core import metrics
from dart_core.errors import InputError
from dart_core.files import relative, write_csv
from dart_core.metrics import to_numpy
from dart_core.report import COLOURS, DASHES, Report

PREDICTIONS = "predictions.csv"
COLUMNS = ("image", "subject", "site", "label", "score")
"""Columns of predictions.csv; further ones stand behind them and are text."""
MEASURES = ("auc", "auc_error", "accuracy", "sensitivity", "specificity", "f1")
BINS = 10

Scored: TypeAlias = Mapping[str, tuple[Any, Any]]
"""Name -> labels (n,) of 0 and 1 (nan = unknown) and scores (n,), as the pictures take them."""


# --- Predictions as files --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Predictions:
    """The content of one predictions.csv."""

    rows: tuple[dict[str, str], ...]
    """Column -> text; `image` is found from the folder."""
    labels: NDArray[np.float64]
    """(n,) 0 or 1; nan = unknown."""
    scores: NDArray[np.float64]
    """(n,) chance of class 1, or any number that rises with it."""
    columns: tuple[str, ...]
    source: Path = field(default_factory=Path)
    """The file."""

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[str]:
        """The cells of one column.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.columns:
            raise InputError(
                f"has no column {name!r}", where=self.source, remedy=f"there are: {', '.join(self.columns)}"
            )
        return [row[name] for row in self.rows]


def write_predictions(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write predictions.csv.

    Args:
        folder: the output folder; image paths in the file are relative to it.
        rows: image (a path), subject, site, label (0, 1; None or nan = unknown), score, and anything else.

    Raises:
        InputError: a score that is not finite, or a label that is neither 0 nor 1.
        OutputError: the file cannot be written.
    """
    rows = list(rows)
    columns = tuple(dict.fromkeys((*COLUMNS, *(name for row in rows for name in row))))
    lines = []
    for row in rows:
        label, score = row.get("label"), float(row["score"])
        label = math.nan if label is None or label == "" else float(label)
        if not math.isfinite(score):
            raise InputError(f"the score is {score}", where=row["image"], remedy="train with a lower learning rate")
        if label not in (0, 1) and not math.isnan(label):
            raise InputError(f"the label is {label:g}", where=row["image"], remedy="give 0 or 1")
        cells = {
            **row,
            "image": Path(relative(Path(row["image"]), folder)).as_posix(),
            "label": "" if math.isnan(label) else f"{label:.0f}",
            "score": f"{score:.9g}",  # as many digits as a float32 has, so that reading gives the same order
        }
        lines.append([cells.get(name, "") for name in columns])
    write_csv(folder / PREDICTIONS, columns, lines)
    return folder / PREDICTIONS


def read_predictions(folder: Path, command: str) -> Predictions:
    """Read predictions.csv of a folder.

    Args:
        folder: what a command `predict` wrote.
        command: the program that wrote it, for messages.

    Raises:
        InputError: no such file, a column that is missing, no row, or a damaged one.
    """
    file = folder / PREDICTIONS
    again = f"run `{command} predict` again"
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            rows = list(reader)
            columns = tuple(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"cannot be read ({reason})", where=file, remedy=f"give a folder that `{command} predict` wrote"
        ) from error
    if missing := [name for name in COLUMNS if name not in columns]:
        raise InputError(f"has no column {missing[0]}", where=file, remedy=again)
    if not rows:
        raise InputError("lists no prediction", where=file, remedy=again)
    labels, scores = np.full(len(rows), np.nan), np.empty(len(rows))
    for i, row in enumerate(rows):
        try:
            if None in row or None in row.values() or not row["image"]:
                raise ValueError
            scores[i] = float(row["score"])
            if row["label"]:
                labels[i] = {"0": 0.0, "1": 1.0}[row["label"]]
            if not math.isfinite(scores[i]):
                raise ValueError
        except (ValueError, KeyError) as error:
            raise InputError("the row is damaged", where=f"{file}, row {i + 2}", remedy=again) from error
        row["image"] = str((folder / row["image"]).resolve())
    return Predictions(tuple(rows), labels, scores, columns, file)


# --- Scores ----------------------------------------------------------------------------------------------------------


def binary_scores(labels: Any, scores: Any, threshold: float = 0.5) -> dict[str, Any]:
    """What a classifier with two classes gets right.

    Args:
        labels: (n,) array or tensor of 0 and 1; nan = unknown, left out.
        scores: (n,) higher = more likely class 1.
        threshold: a score above it counts as class 1, one that equals it as class 0.

    Returns:
        auc (ties half), auc_error (Hanley and McNeil), accuracy, sensitivity, specificity, f1: floats, None where
        undefined (an AUC without both classes, a sensitivity without positives, ...); positives and negatives: counts.
        An AUC of 1 or 0 has no error: the formula gives 0, however few the samples are.

    Raises:
        ValueError: other shapes, labels that are not 0, 1 or nan, or a score that is nan where the label is known.
    """
    truth, values = _known(labels, scores)
    auc = float(metrics.roc_auc(truth[:, None], values[:, None])[0])
    positive, called = truth == 1, values > threshold
    hits, n_positive, n_called = int((positive & called).sum()), int(positive.sum()), int(called.sum())
    n_negative = len(truth) - n_positive
    rejected = n_negative - (n_called - hits)
    return {
        "auc": None if math.isnan(auc) else auc,
        "auc_error": metrics.auc_standard_error(auc, n_positive, n_negative) if 0 < auc < 1 else None,
        "accuracy": _ratio(hits + rejected, len(truth)),
        "sensitivity": _ratio(hits, n_positive),
        "specificity": _ratio(rejected, n_negative),
        "f1": _ratio(2 * hits, n_positive + n_called),
        "positives": n_positive,
        "negatives": n_negative,
    }


def auc_text(row: Mapping[str, Any]) -> str:
    """One row of `binary_scores` in words: the AUC with its standard error, or why one of them is missing."""
    if row["auc"] is None:
        return "no AUC: one class only"
    if row["auc_error"] is None:
        return (
            f"AUC {row['auc']:.3f} (no error: no pair is out of order)"
            if row["auc"]
            else "AUC 0.000 (no error: no pair is in order)"
        )
    return f"AUC {row['auc']:.3f} ± {row['auc_error']:.3f}"


def group_table(labels: Any, scores: Any, groups: Sequence[Any], threshold: float = 0.5) -> list[dict[str, Any]]:
    """`binary_scores` of each group, such as skin types or laboratories.

    Args:
        labels: (n,), see `binary_scores`.
        scores: (n,).
        groups: n names.
        threshold: see `binary_scores`.

    Returns:
        One row per group with "group", "images" (those with a label) and the scores; groups are sorted, numbers by their
        size.

    Raises:
        ValueError: as many groups as samples are needed; and see `binary_scores`.
    """
    truth, values = to_numpy(labels).astype(np.float64), to_numpy(scores).astype(np.float64)
    names = np.asarray([str(name) for name in groups], dtype=object)
    if names.shape != truth.shape:
        raise ValueError(f"there are {len(names)} groups for labels of shape {truth.shape}; each sample needs one")
    rows = []
    for name in sorted(set(names), key=_natural):
        found = binary_scores(truth[names == name], values[names == name], threshold)
        rows.append({"group": name, "images": found["positives"] + found["negatives"], **found})
    return rows


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Key that sorts "9" before "10"."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _known(labels: Any, scores: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    truth, values = to_numpy(labels).astype(np.float64), to_numpy(scores).astype(np.float64)
    if truth.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"labels have shape {truth.shape}, scores {values.shape}; both must be (samples,)")
    known = ~np.isnan(truth)
    return truth[known], values[known]


def _ratio(count: int, total: int) -> float | None:
    return count / total if total else None


# --- Over seeds ------------------------------------------------------------------------------------------------------


def seed_table(results: Iterable[Mapping[str, Any]], by: Sequence[str], of: str = "auc") -> list[dict[str, Any]]:
    """Mean and spread over seeds.

    Args:
        results: one per trained network: what `by` names, "seed", and the measure (None or nan where undefined).
        by: what tells the groups apart, such as ("method", "site").
        of: the measure.

    Returns:
        One row per group, in the order of their first result: what `by` names, "mean" (None without any value), "std"
        (sample standard deviation, None with fewer than two values) and "seeds" (number of values).

    Raises:
        InputError: two results of one seed in a group.
    """
    rows = []
    for key, values in _by_seed(results, by, of).items():
        found = np.array(list(values.values()))
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "mean": float(found.mean()) if len(found) else None,
                "std": float(found.std(ddof=1)) if len(found) > 1 else None,
                "seeds": len(found),
            }
        )
    return rows


def compare_seeds(
    results: Iterable[Mapping[str, Any]], baseline: str, by: Sequence[str] = (), of: str = "auc", method: str = "method"
) -> list[dict[str, Any]]:
    """Every method against one of them, over seeds.

    Args:
        results: one per trained network: "seed", the method, what `by` names, and the measure.
        baseline: the method that the others are compared with.
        by: comparisons are made within each of these, such as ("site",).
        of: the measure.
        method: key of the method in the results.

    Returns:
        One row per method that is not the baseline and has values beside it: what `by` names, the method, "baseline",
        "difference" of the means, "p_t" (Student's two-sample t-test over the seeds of both, two-sided; None with fewer
        than two seeds of one, or no spread at all) and "p_wilcoxon" (Wilcoxon's signed-rank test over the seeds that both
        have, two-sided; None with fewer than two) with "pairs", the number of those seeds.

    Raises:
        InputError: two results of one seed in a group.
    """
    groups = _by_seed(results, (*by, method), of)
    rows = []
    for (*place, name), ours in groups.items():
        theirs = groups.get((*place, baseline), {})
        if name == baseline or not ours or not theirs:
            continue
        a, b = list(ours.values()), list(theirs.values())
        shared = [seed for seed in ours if seed in theirs]
        p_t = metrics.two_sample_t_test(a, b)[1] if min(len(a), len(b)) > 1 else math.nan
        p_wilcoxon = math.nan
        if len(shared) > 1:
            p_wilcoxon = metrics.wilcoxon_signed_rank([ours[s] for s in shared], [theirs[s] for s in shared])[1]
        rows.append(
            {
                **dict(zip(by, place, strict=True)),
                method: name,
                "baseline": baseline,
                "difference": float(np.mean(a) - np.mean(b)),
                "p_t": None if math.isnan(p_t) else p_t,
                "p_wilcoxon": None if math.isnan(p_wilcoxon) else p_wilcoxon,
                "pairs": len(shared),
            }
        )
    return rows


def _by_seed(
    results: Iterable[Mapping[str, Any]], by: Sequence[str], of: str
) -> dict[tuple[Any, ...], dict[Any, float]]:
    """Group -> seed -> value, where there is one; a group without any value is there all the same."""
    groups: dict[tuple[Any, ...], dict[Any, float]] = {}
    seen: set[tuple[Any, ...]] = set()
    for result in results:
        key = tuple(result[name] for name in by)
        values = groups.setdefault(key, {})
        if (key, result["seed"]) in seen:
            named = ", ".join(map(str, key))
            raise InputError(
                f"there are two results of seed {result['seed']} for {named}", remedy="give each network once"
            )
        seen.add((key, result["seed"]))
        value = result[of]
        if value is not None and not math.isnan(value):
            values[result["seed"]] = float(value)
    return groups


# --- Tables and pictures ---------------------------------------------------------------------------------------------


def scores_section(report: Report, rows: Sequence[Mapping[str, Any]], names: Mapping[str, str], caption: str) -> None:
    """Add a table of `binary_scores` to a report.

    Args:
        report: where to.
        rows: of `group_table`, or the like.
        names: what stands before the scores: key -> heading.
        caption: what the table shows.
    """
    heads = ("positive", "negative", "AUC", "its error", "accuracy", "sensitivity", "specificity", "F1")
    keys = ("positives", "negatives", *MEASURES)
    report.table(
        (*names.values(), *heads),
        [[row[key] for key in (*names, *keys)] for row in rows],
        f"{caption}. The error is Hanley and McNeil's standard error; a dash stands where there is no such number, as for "
        "the AUC of pictures of one class, and for the error of an AUC of 1 (the formula gives 0, which would be wrong for few "
        "pictures)",
    )


def roc_figure(curves: Scored, points: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """ROC curves with their areas and standard errors.

    Args:
        curves: name -> (labels, scores); one without both classes has no curve, which the legend says.
        points: name -> (1 - specificity, sensitivity) of single operating points, such as those of readers.
    """
    from sklearn.metrics import roc_curve

    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    for name, (labels, scores), line in _drawn(curves):
        found = binary_scores(labels, scores)
        if found["auc"] is None:
            axes.plot([], [], **line, label=f"{name}: one class only, no curve")
            continue
        false, true, _ = roc_curve(*_known(labels, scores), drop_intermediate=True)
        axes.plot(false, true, **line, label=f"{name}: {auc_text(found).removeprefix('AUC ')}")
    for marker, (name, (x, y)) in zip("DPX*^s" * len(points or ()), (points or {}).items(), strict=False):
        axes.plot([x], [y], marker, color="0.2", markersize=7, label=name)
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.set_aspect("equal")
    _finish(axes, "lower right")
    return figure


def calibration_figure(curves: Scored) -> Figure:
    """Calibration curves: how often a score comes true, in ten bins of equal width, above the number of pictures in each.

    The dots have an area by that number.

    Args:
        curves: name -> (labels, probabilities in [0, 1]).

    Raises:
        ValueError: a score outside [0, 1].
    """
    from sklearn.calibration import calibration_curve

    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    edges = np.linspace(0, 1, BINS + 1)
    for name, (labels, scores), line in _drawn(curves):
        truth, values = _known(labels, scores)
        if not len(truth):
            axes.plot([], [], **line, label=f"{name}: no labels")
            continue
        share, mean = calibration_curve(truth == 1, values, n_bins=BINS, strategy="uniform")
        # Bins as scikit-learn's: a score on an edge belongs to the lower one.
        found = np.bincount(np.searchsorted(edges[1:-1], values), minlength=BINS)
        axes.plot(mean, share, **line, label=name)
        # A bin of few pictures says little, and shows it.
        axes.scatter(mean, share, s=4 + 56 * found[found > 0] / found.max(), color=line["color"], linewidths=0)
        counts.stairs(found, edges, color=line["color"], linestyle=line["linestyle"])
    axes.set_ylabel("share of class 1")
    counts.set_xlabel("score")
    counts.set_ylabel("pictures")
    counts.set_yscale("symlog", linthresh=1)
    counts.spines[["top", "right"]].set_visible(False)
    _finish(axes, "upper left")
    return figure


def _drawn(curves: Scored) -> Iterable[tuple[str, tuple[Any, Any], dict[str, Any]]]:
    for i, (name, pair) in enumerate(curves.items()):
        dash = DASHES[i // len(COLOURS) % len(DASHES)]
        yield name, pair, {"color": COLOURS[i % len(COLOURS)], "linestyle": dash, "linewidth": 1.6}


def _finish(axes: Any, place: str) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.grid(visible=True, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    if handles:
        legend = axes.legend(handles, names, fontsize=7, loc=place, framealpha=0.8)
        for text in legend.get_texts():
            text.set_parse_math(False)
