"""The command `evaluate`: scores, the comparison with a baseline, distributions, and the paper's tables (specification 6, 7)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adagrad_unet import settings as of
from adagrad_unet.baselines import printed_table
from adagrad_unet.figures import bars
from dart_core import metrics
from dart_core.errors import InputError, SettingError
from dart_core.evaluation import Result, evaluate_command, score_folders
from dart_core.figures import violins
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS

ALPHA = 0.05


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of one or more runs and write the tables."""
    labels = _labels(command.predictions)
    results = score_folders(
        command.predictions,
        command.datalist,
        command.tolerance,
        command.surface,
        command="adagrad-unet",
        grid="preprocessed",
        labels=labels or None,
    )
    methods = list(dict.fromkeys(result.method for result in results))
    baseline = command.baseline or default_baseline(methods)
    if baseline not in methods:
        raise SettingError(f"--baseline {baseline} is none of the methods", remedy=f"give one of {', '.join(methods)}")
    evaluate_command(
        results,
        command.output,
        command,
        "adagrad-unet",
        tolerance=command.tolerance,
        surface=command.surface,
        baseline=baseline,
        sections=lambda report, scored: _sections(report, scored, baseline, command),
    )
    rows = compare(results, baseline, "surface_dice", command.correction) if not labels else []
    rows += compare(results, baseline, "dice", command.correction)
    file = command.output.out / METRICS
    content = json.loads(file.read_text(encoding="utf-8"))
    write_atomic(file, json.dumps({**content, "comparisons": rows}, indent=2) + "\n")


def default_baseline(methods: Sequence[str]) -> str:
    """SGD with the most epochs, with augmentation where there are both, as the paper compares; else the first method."""
    found = ((method, re.fullmatch(r"S-(\d+)(-noAug)?", method)) for method in methods)
    runs = [(int(match[1]), match[2] is None, method) for method, match in found if match]
    return max(runs)[-1] if runs else methods[0]


def _labels(folders: Sequence[Path]) -> dict[str, int]:
    """The labels that the predictions have, by name; empty for one mask.

    Raises:
        InputError: folders with different labels.
    """
    found: dict[str, int] | None = None
    for folder in folders:
        file = folder / METRICS
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            labels = {str(name): int(number) for name, number in content["labels"].items()}
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            problem = (
                f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "says nothing about labels"
            )
            raise InputError(problem, where=file, remedy="give a folder that `adagrad-unet predict` wrote") from error
        if found is not None and labels != found:
            raise InputError(
                f"has the labels {', '.join(labels) or '(one mask)'}, {folders[0]} {', '.join(found) or '(one mask)'}",
                where=folder,
                remedy="evaluate them one after the other",
            )
        found = labels
    return found or {}


def compare(
    results: Sequence[Result],
    baseline: str,
    metric: Literal["surface_dice", "dice"],
    correction: Literal["row", "table"] = "row",
) -> list[dict[str, Any]]:
    """Every method against the baseline, subject by subject: two-sided Wilcoxon test with Bonferroni's correction.

    Several results of a subject (two phases) are averaged first; subjects where the metric is undefined are left out.

    Args:
        results: scores.
        baseline: method to compare with.
        metric: of the results.
        correction: "row": by the number of comparisons of one pair of sites and label (paper's Tables 1 and 2: 7); "table": by all.

    Returns:
        rows with source, target, structure, method, metric, subjects, mean, difference, p, p_corrected, significant.
    """
    subjects: dict[tuple[str, str, str, str], dict[str, float]] = {}
    for key in dict.fromkeys((*r.pair, r.structure, r.method) for r in results):
        own = [r for r in results if (*r.pair, r.structure, r.method) == key]
        values = {
            scan: [getattr(r, metric) for r in own if r.scan == scan] for scan in dict.fromkeys(r.scan for r in own)
        }
        subjects[key] = {scan: float(np.mean(found)) for scan, found in values.items() if np.isfinite(found).all()}
    rows: list[dict[str, Any]] = []
    for (source, target, structure, method), ours in subjects.items():
        theirs = subjects.get((source, target, structure, baseline), {})
        shared = [scan for scan in ours if scan in theirs]
        row: dict[str, Any] = {
            "source": source, "target": target, "structure": structure, "method": method, "metric": metric,
            "subjects": len(ours), "mean": float(np.mean(list(ours.values()))) if ours else None,
        }  # fmt: skip
        if method != baseline and shared:
            a, b = [ours[scan] for scan in shared], [theirs[scan] for scan in shared]
            row |= {"difference": float(np.mean(a) - np.mean(b)), "p": metrics.wilcoxon_signed_rank(a, b)[1]}
        rows.append(row)
    tested = [row for row in rows if "p" in row]
    for row in tested:
        place = (row["source"], row["target"], row["structure"])
        same = [r for r in tested if (r["source"], r["target"], r["structure"]) == place]
        row["p_corrected"] = metrics.bonferroni(row["p"], len(tested if correction == "table" else same))
        row["significant"] = bool(row["p_corrected"] < ALPHA)
    return rows


def _sections(report: Report, results: Sequence[Result], baseline: str, command: of.Evaluate) -> None:
    """The comparison, the distributions over subjects, bars, and the paper's table where it is about the same data."""
    structured = any(result.structure for result in results)
    metric: Literal["surface_dice", "dice"] = "dice" if structured else "surface_dice"
    name = "Dice" if structured else "surface Dice"
    report.section("Comparison as in the paper")
    _table(report, compare(results, baseline, metric, command.correction), baseline, name, command.correction)
    report.section("Distributions")
    for structure in dict.fromkeys(result.structure for result in results):
        groups: dict[str, dict[str, list[float]]] = {}
        for result in results:
            if result.structure == structure:
                groups.setdefault(result.pair[1], {}).setdefault(result.method, []).append(getattr(result, metric))
        report.picture(
            violins(groups, name),
            f"{structure + ': ' if structure else ''}{name} of the images of each site, with quartiles; lines join the means",
            f"violins of {name} per site and method",
        )
        means = {
            place: {
                method: float(np.nanmean(values)) for method, values in methods.items() if np.isfinite(values).any()
            }
            for place, methods in groups.items()
        }
        report.picture(
            bars(means, name),
            f"{structure + ': ' if structure else ''}mean {name} (as Figs 3 and 4 of the paper)",
            "bars",
        )
    if not structured and all(re.fullmatch(r"CC\d{4}", result.scan) for result in results):
        _printed(report, ("table1", "table3"), "surface Dice on CC359")
    if structured and all(re.fullmatch(r"([A-Z]\d){3}", result.scan) for result in results):
        _printed(report, ("table2",), "Dice on M&Ms")


def _table(
    report: Report, rows: Sequence[Mapping[str, Any]], baseline: str, name: str, correction: Literal["row", "table"]
) -> None:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    places = list(dict.fromkeys((row["structure"], row["source"], row["target"]) for row in rows))
    cells = []
    for place in places:
        line: list[Any] = [place[0], place[2]] if any(structure for structure, *_ in places) else [place[2]]
        for method in methods:
            found = [r for r in rows if r["method"] == method and (r["structure"], r["source"], r["target"]) == place]
            value = found[0]["mean"] if found else None
            star = "*" if found and found[0].get("significant") else ""
            line.append(None if value is None else f"{value:.4f}{star}")
        cells.append(line)
    head = ["label", "site"] if len(cells[0]) > 1 + len(methods) else ["site"]
    factor = "of the row" if correction == "row" else "of the whole table"
    report.table(
        [*head, *methods],
        cells,
        f"Mean {name} over subjects. *: differs from {baseline} (two-sided Wilcoxon signed-rank test over subjects, Bonferroni's "
        f"factor is the number of comparisons {factor}, p < {ALPHA}).",
    )


def _printed(report: Report, names: Sequence[str], what: str) -> None:
    report.section("Printed in the paper")
    for name in names:
        table = printed_table(name)
        columns = [column for column in table[0] if not column.endswith("_sig")]
        rows = [
            [
                f"{row[c]:.4f}{'*' if row.get(f'{c}_sig') else ''}" if isinstance(row[c], float) else row[c]
                for c in columns
            ]
            for row in table
        ]
        report.table(columns, rows, f"{what}, {name} of the paper (Sheikh et al. 2022); *: differs from S-1000")
