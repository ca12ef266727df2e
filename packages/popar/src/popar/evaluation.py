"""The command `evaluate`: several runs as mean and both standard deviations, t-tests, and the printed tables (section 4.2)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core import figures
from dart_core.classification import Predictions, compare_seeds, read_predictions, seed_table
from dart_core.cli import say
from dart_core.errors import InputError
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from popar import settings as of
from popar.models import PACKAGE, Tuned, network_name, tuned_of
from popar.prediction import NAME
from popar.recipes import scores_of
from popar.tables import PRINTED_TABLES, TARGETS, TITLES, printed_rows
from popar.transfer import RANDOM

SCORES = "scores.csv"


@dataclass(frozen=True, eq=False)
class Scored:
    """One folder of `predict`."""

    folder: Path
    about: Tuned
    truth: NDArray[np.float64]
    """(n, K), nan = unknown."""
    scores: NDArray[np.float64]
    """(n, K) probabilities."""
    site: str
    """Where the pictures are from."""


def evaluate(command: of.Evaluate) -> None:
    """Compare the predictions of one or more networks."""
    scored = [read_scored(folder) for folder in command.predictions]
    results = result_rows(scored)
    summary = over_seeds(results)
    there = list(dict.fromkeys(row["init"] for row in results))
    if command.baseline is not None and command.baseline not in there:
        raise InputError(
            f"no network here starts from {command.baseline!r}", remedy=f"give one of {', '.join(map(repr, there))}"
        )
    compared = comparisons(results, command.baseline or RANDOM)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    columns = ("site", "method", "init", "backbone", "image_size", "seed", "measure", "score", "labels_without_auc", "pictures", "folder")  # fmt: skip
    write_csv(out / SCORES, columns, [[row[name] for name in columns] for row in results])
    write_atomic(out / METRICS, json.dumps({"scores": summary, "compared": compared}, indent=2) + "\n")
    report = Report("Evaluation", f"{len(scored)} predictions, {len(summary)} networks", package=PACKAGE)
    score_sections(report, results, summary, compared)
    if any(one.about.target in TARGETS for one in scored):
        printed_section(report)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for row in results:
        if row["labels_without_auc"]:
            say(f"{row['folder']}: without both classes and therefore without AUC: {row['labels_without_auc']}")
    for row in summary:
        print(f"{row['site']}, {row['method']}: {row['measure']} {spread(row)} ({row['seeds']} seeds)")
    say(f"scores: {out / SCORES}   report: {out / 'report.html'}")


def read_scored(folder: Path) -> Scored:
    """What `predict` wrote.

    Raises:
        InputError: something is missing or does not fit together.
    """
    predictions = read_predictions(folder, PACKAGE)
    try:
        about = tuned_of(json.loads((folder / METRICS).read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"cannot be read as scores of {PACKAGE} ({error})",
            where=folder,
            remedy=f"give a folder of `{PACKAGE} predict`",
        ) from error
    names = predictions.column(NAME)
    count = len(about.labels)
    if len(names) % count or names != list(about.labels) * (len(names) // count):
        raise InputError(
            "does not have a row for every picture and label", where=predictions.source, remedy="predict again"
        )
    truth, scores = (values.reshape(-1, count) for values in (predictions.labels, predictions.scores))
    return Scored(folder, about, truth, scores, _site(predictions))


def _site(predictions: Predictions) -> str:
    return predictions.column("site")[0]


def result_rows(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The score of each network: mean AUC, of classes the accuracy (specification 6).

    Raises:
        InputError: no label of any is known.
    """
    rows = []
    for one in scored:
        about = one.about
        elsewhere = f"trained on {about.site}" if about.site != one.site else ""
        variant = ", ".join(part for part in (about.variant, elsewhere) if part)
        found = scores_of(one.truth, one.scores, about.labels, about.multi_label, about.reported)
        rows.append({
            "site": one.site, "method": network_name(about.init, about.backbone, about.image_size, variant),
            "init": about.init, "backbone": about.backbone, "image_size": about.image_size, "variant": variant,
            "seed": about.seed, "measure": "mean AUC" if about.multi_label else "accuracy",
            "score": found["mean_auc"] if about.multi_label else found["accuracy"], "auc": found["auc"],
            "labels_without_auc": ", ".join(found["undefined"]), "pictures": len(one.truth), "folder": str(one.folder),
        })  # fmt: skip
    if all(row["score"] is None for row in rows):
        raise InputError(
            "no picture has a label", where=scored[0].folder, remedy="predict with a datalist that has label columns"
        )
    return rows


def over_seeds(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean, sample and population standard deviation (divisors n - 1 and n) of each network on each data set."""
    rows = seed_table(results, ("site", "method", "measure"), "score")
    for row in rows:
        n = row["seeds"]
        row["std_population"] = None if row["std"] is None else row["std"] * math.sqrt((n - 1) / n)
    return rows


def comparisons(results: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """Each network against the one that differs from it in nothing but its initial weights, which are the baseline."""
    network = ("backbone", "image_size", "variant")
    rows = compare_seeds(results, baseline, ("site", "measure", *network), "score", "init")
    return [{**row, "method": network_name(row["init"], *(row[name] for name in network))} for row in rows]


def spread(row: dict[str, Any]) -> str:
    """Mean ± sample standard deviation in per cent, as the paper prints it; a dash where it is undefined."""
    if row["mean"] is None:
        return "–"
    return f"{100 * row['mean']:.2f}" + ("" if row["std"] is None else f" ± {100 * row['std']:.2f}")


def score_sections(
    report: Report,
    results: Sequence[dict[str, Any]],
    summary: Sequence[dict[str, Any]],
    compared: Sequence[dict[str, Any]],
) -> None:
    """Tables and pictures of some networks."""
    report.section("Scores")
    report.table(
        ("data set", "network", "measure", "mean", "sd (n - 1)", "sd (n)", "seeds"),
        [
            (
                row["site"], row["method"], row["measure"],
                *(None if row[key] is None else round(100 * row[key], 2) for key in ("mean", "std", "std_population")),
                row["seeds"],
            )
            for row in summary
        ],
        "In per cent, over seeds: mean AUC over the labels with both classes, or accuracy of the largest probability. The lab's "
        "benchmark code prints the standard deviation with divisor n",
    )  # fmt: skip
    if compared:
        report.table(
            ("data set", "network", "against", "difference", "t-test p", "Wilcoxon p", "seeds in pairs"),
            [
                (r["site"], r["method"], r["baseline"], 100 * r["difference"], r["p_t"], r["p_wilcoxon"], r["pairs"])
                for r in compared
            ],
            "Initial weights compared over seeds, all else alike: difference in points, Student's two-sample t-test, "
            "Wilcoxon's signed-rank test over shared seeds",
        )
    for site in dict.fromkeys(row["site"] for row in results):
        here = [row for row in results if row["site"] == site and row["score"] is not None]
        groups = {name: [100 * row["score"] for row in here if row["method"] == name] for name in dict.fromkeys(row["method"] for row in here)}  # fmt: skip
        if groups:
            report.picture(
                figures.violins(
                    {_wrapped(name): values for name, values in groups.items()}, here[0]["measure"] + " (%)"
                ),
                f"{site}: every seed of each network",
                "scores of the networks",
            )
        labels = list(dict.fromkeys(label for row in here for label in row["auc"]))
        if len(labels) > 1:
            report.table(
                ("label", *groups),
                [(label, *(_label_mean(here, name, label) for name in groups)) for label in labels],
                f"{site}: AUC of each label, mean over seeds; a dash where the test pictures have one class only",
            )


def _wrapped(name: str) -> str:
    return name.replace(", ", "\n")


def _label_mean(rows: Sequence[dict[str, Any]], method: str, label: str) -> float | None:
    values = [row["auc"][label] for row in rows if row["method"] == method and row["auc"].get(label) is not None]
    return float(np.mean(values)) if values else None


def printed_section(report: Report) -> None:
    """The paper's tables."""
    report.section("Printed in the paper")
    for name in PRINTED_TABLES:
        columns, rows = printed_rows(name)
        report.table(
            columns, rows, f"{TITLES[name]}, as printed and not measured here: mean AUC, for RSNA Pneumonia accuracy, in per "
            "cent; ten runs",
        )  # fmt: skip
