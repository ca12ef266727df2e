"""Scores of classifiers: the table that `predict` writes, and the command `evaluate` (specification 6.3, paper Table 5)."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart_core import metrics
from dart_core.cli import say
from dart_core.errors import InputError, SettingError
from dart_core.files import write_atomic, write_csv
from dart_core.report import COLOURS, Report
from dart_core.run import METRICS, claim_folder, flat_settings
from mmtl_octl import settings as of
from mmtl_octl.classifiers import Classifier
from mmtl_octl.evaluation import place_of
from mmtl_octl.pictures import Pictures
from mmtl_octl.reports import PACKAGE
from mmtl_octl.tables import Cell, Entry, pair_of, pair_text, per_cent, printed_rows, seed_table

PREDICTIONS, SCORES, TABLES = "predictions.csv", "scores.csv", "tables.csv"
_PUBLISHED = re.compile(r"patient\d{5,}|\d{1,5}")
_LABEL, _SCORE = "label:", "score:"


def auc_rows(labels: Sequence[str], truth: NDArray[Any], scores: NDArray[Any]) -> list[dict[str, Any]]:
    """For each label its positive and negative images and its AUC, None where it has not both."""
    areas = metrics.roc_auc(truth, scores)
    return [
        {
            "label": label,
            "positive": int((truth[:, column] == 1).sum()),
            "negative": int((truth[:, column] == 0).sum()),
            "auc": None if np.isnan(areas[column]) else float(areas[column]),
        }
        for column, label in enumerate(labels)
    ]


def report_undefined(table: Sequence[Mapping[str, Any]]) -> None:
    """Say which labels have no AUC."""
    if left := [row["label"] for row in table if row["auc"] is None]:
        say(f"without both classes and therefore without AUC: {', '.join(left)}")


def write_scores(folder: Path, pictures: Pictures, scores: NDArray[Any]) -> Path:
    """Write predictions.csv: for each image its labels (empty where unknown) and its scores.

    Args:
        folder: the output folder; image paths are relative to it.
        pictures: n of them with their labels.
        scores: (n, labels) probabilities.
    """
    names = (*(f"{_LABEL}{name}" for name in pictures.labels), *(f"{_SCORE}{name}" for name in pictures.labels))
    rows = [
        (
            Path(os.path.relpath(row.image.resolve(), folder.resolve())).as_posix(), row.subject, pictures.name,
            *("" if np.isnan(value) else f"{value:.0f}" for value in pictures.truth[i]),
            *(f"{score:.7g}" for score in scores[i]),
        )
        for i, row in enumerate(pictures.rows)
    ]  # fmt: skip
    write_csv(folder / PREDICTIONS, ("image", "subject", "site", *names), rows)
    return folder / PREDICTIONS


# --- evaluate --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """The predictions of one network on one data set."""

    model: Classifier
    site: str
    table: Sequence[Mapping[str, Any]]
    """Of `auc_rows`."""
    published: bool = False
    """The patients bear names as CheXpert and ChestX-ray14 give them."""
    origin: str = ""
    """Source data sets as one name; of a network of the target alone, those of the networks it stands beside."""
    folder: Path = Path()

    @property
    def forgetting(self) -> bool:
        """The data set is one that the network's source training saw."""
        return self.site in self.model.source

    @property
    def tested_on(self) -> str:
        """ "target", "source" or, where the network knows the data set as neither, "elsewhere"."""
        if self.forgetting:
            return "source"
        return "target" if self.site == (self.model.target or self.site) else "elsewhere"

    @property
    def method(self) -> str:
        """Name of the method."""
        return "none" if self.model.method == "source" else self.model.method

    @property
    def amount(self) -> tuple[int, int]:
        """Target images, in the form of `tables.Entry`."""
        return (self.model.images, 1)

    @property
    def pair(self) -> tuple[str, ...]:
        """Source and target data set, and the one it was tested on where that is neither."""
        return pair_of(self.origin, self.model.target, self.site)

    @property
    def mean_auc(self) -> float:
        """Mean over the labels that have an AUC; nan if none has."""
        values = [row["auc"] for row in self.table if row["auc"] is not None]
        return float(np.mean(values)) if values else math.nan

    def entry(self) -> Entry:
        """For `seed_table`."""
        model = self.model
        return Entry(
            self.method,
            model.optimizer,
            model.seed,
            self.pair,
            self.amount,
            model.images,
            self.mean_auc,
            str(self.folder),
        )


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of one or more networks and write the tables."""
    if command.datalist is not None:
        raise SettingError(
            "--datalist has no meaning for --task classification",
            remedy="leave it out: `predict` wrote the labels down",
        )
    scored = paired(sorted((_read(folder) for folder in command.predictions), key=lambda s: place_of(s.method)))
    found = tables(scored)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    write_csv(
        out / SCORES,
        ("source", "target", "tested_on", "method", "optimizer", "seed", "images", "label", "positive", "negative", "auc"),
        [
            (*s.pair[:2], s.site, s.method, s.model.optimizer, s.model.seed, s.model.images, row["label"], row["positive"],
             row["negative"], "" if row["auc"] is None else f"{row['auc']:.6f}")
            for s in scored for row in s.table
        ],
    )  # fmt: skip
    columns = ("tested_on", "source", "target", *(f.name for f in dataclasses.fields(Cell)))
    rows = [
        ((*pair, name)[2], *pair[:2], *(" ".join(map(str, v)) if isinstance(v, tuple) else v for v in dataclasses.astuple(cell)))
        for name, pairs in found.items() for pair, cells in pairs.items() for cell in cells
    ]  # fmt: skip
    write_csv(out / TABLES, columns, rows)
    compared = comparisons([s for s in scored if s.tested_on == "target"], command.baseline)
    results = [
        {"source": s.pair[0], "target": s.pair[1], "tested_on": s.site, "method": s.method, "seed": s.model.seed,
         "images": s.model.images, "mean_auc": None if math.isnan(s.mean_auc) else s.mean_auc}
        for s in scored
    ]  # fmt: skip
    content = {"results": results, "baseline": command.baseline, "comparisons": compared}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Evaluation", f"{len(scored)} classifiers", package=PACKAGE)
    classifier_sections(report, scored, found, compared, command.baseline)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for s in scored:
        auc = "–" if math.isnan(s.mean_auc) else f"{s.mean_auc:.3f}"
        print(f"{s.pair[0]} -> {s.pair[1]} on {s.site}  {s.method:<10} {s.model.images} images  mean AUC {auc}")
    say(f"report: {out / 'report.html'}")


def _read(folder: Path) -> Scored:
    """One folder of `predict`.

    Raises:
        InputError: not such a folder, or a damaged one.
    """
    again = f"run `{PACKAGE} predict --task classification` again"
    file = folder / PREDICTIONS
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            header, *rows = list(csv.reader(stream))
        labels = [name.removeprefix(_LABEL) for name in header if name.startswith(_LABEL)]
        columns = [[header.index(f"{kind}{name}") for name in labels] for kind in (_LABEL, _SCORE)]
        if not labels or not rows:
            raise ValueError("it lists nothing")
        table = np.array([[[float(row[c] or "nan") for c in kind] for kind in columns] for row in rows])
        areas = auc_rows(labels, table[:, 0], table[:, 1])
        subjects = [row[header.index("subject")] for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, IndexError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot be read ({reason})", where=file, remedy=again) from error
    file = folder / METRICS
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model = Classifier(**content["model"])
        published = all(_PUBLISHED.fullmatch(subject) for subject in subjects)
        return Scored(model, str(content["site"]), areas, published, model.source_site, folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"does not say which network made the predictions ({error})", where=file, remedy=again
        ) from error


def paired(scored: Sequence[Scored]) -> list[Scored]:
    """Let a network of the target alone stand beside those that came to this target, once for each of their sources."""
    origins: dict[str, dict[str, None]] = {}
    for s in scored:
        if s.origin:
            origins.setdefault(s.pair[1], {})[s.origin] = None
    return [
        dataclasses.replace(s, origin=origin)
        for s in scored
        for origin in ([s.origin] if s.origin else origins.get(s.pair[1], ["–"]))
    ]


def tables(scored: Sequence[Scored]) -> dict[str, dict[tuple[str, ...], list[Cell]]]:
    """Mean AUC on "target", "source" and "elsewhere", for each pair of data sets: mean and spread over seeds.

    Raises:
        InputError: two folders of the same method, optimiser, number of images, seed and data sets.
    """
    found: dict[str, dict[tuple[str, ...], list[Cell]]] = {}
    for name in ("target", "source", "elsewhere"):
        chosen = [s for s in scored if s.tested_on == name and not math.isnan(s.mean_auc)]
        pairs = dict.fromkeys(s.pair for s in chosen)
        found[name] = {pair: seed_table(s.entry() for s in chosen if s.pair == pair) for pair in pairs}
    return found


def label_means(scored: Sequence[Scored]) -> dict[str, float]:
    """Label -> its AUC, mean over the networks (seeds) for which it has one."""
    values: dict[str, list[float]] = {}
    for s in scored:
        for row in s.table:
            if row["auc"] is not None:
                values.setdefault(row["label"], []).append(row["auc"])
    return {label: float(np.mean(found)) for label, found in values.items()}


def comparisons(scored: Sequence[Scored], baseline: str) -> list[dict[str, Any]]:
    """Every method against the baseline: Wilcoxon's signed-rank test over labels, each label's AUC averaged over seeds.

    Args:
        scored: on the target.
        baseline: method, of the same pair, optimiser and number of images ("none" has none, "target" any).
    """
    groups: dict[tuple[tuple[str, ...], str, str, int], list[Scored]] = {}
    for s in scored:
        groups.setdefault((s.pair, s.method, s.model.optimizer, s.amount[0]), []).append(s)
    rows = []
    for (pair, method, optimizer, images), ours in groups.items():
        others = [
            group
            for key, group in groups.items()
            if key[:3] == (pair, baseline, optimizer) and (key[3] == images or baseline in ("none", "target"))
        ]
        if method == baseline or not others:
            continue
        mine, theirs = label_means(ours), label_means(others[0])
        shared = [label for label in mine if label in theirs]
        if not shared:
            continue
        a, b = [mine[label] for label in shared], [theirs[label] for label in shared]
        rows.append(
            {
                "source": pair[0], "target": pair[1], "method": method, "optimizer": optimizer, "images": images,
                "labels": len(shared), "difference": float(np.mean(a) - np.mean(b)),
                "p_wilcoxon": float(metrics.wilcoxon_signed_rank(a, b)[1]) if len(shared) > 1 else None,
            }
        )  # fmt: skip
    return rows


# --- The report ------------------------------------------------------------------------------------------------------


def classifier_sections(
    report: Report,
    scored: Sequence[Scored],
    found: Mapping[str, Mapping[tuple[str, ...], Sequence[Cell]]],
    compared: Sequence[Mapping[str, Any]],
    baseline: str,
) -> None:
    """Add the tables and the picture of an evaluation, and what the paper prints where the data are its own."""
    here = [s for s in scored if s.tested_on == "target"]
    report.section("Methods")
    _pivots(report, found["target"], here, "on the target's test images")
    if compared:
        report.table(
            ("source", "target", "method", "images", "labels", f"difference to {baseline}", "p"),
            [
                (row["source"], row["target"], row["method"], row["images"] or None, row["labels"], row["difference"],
                 row["p_wilcoxon"])
                for row in compared
            ],
            f"Against {baseline}: mean difference of the AUC over the labels that both have; p: two-sided Wilcoxon "
            "signed-rank test over these labels, each averaged over seeds",
        )  # fmt: skip
    if found["source"]:
        report.section("Forgetting")
        _pivots(report, found["source"], [s for s in scored if s.forgetting], "on the test images of the source")
    if found["elsewhere"]:
        report.section("Other data sets")
        others = [s for s in scored if s.tested_on == "elsewhere"]
        _pivots(report, found["elsewhere"], others, "on the test images of a data set that it was not trained on")
    _label_section(report, here or scored)
    if all(s.published for s in scored) and {name for s in scored for name in s.pair} <= {"chexpert", "chestxray14"}:
        report.section("Printed in the paper")
        columns, rows = printed_rows("table5")
        report.table(columns, rows, "Table 5: mean AUC in per cent by number of target images (Goodman et al. 2022)")


def _pivots(
    report: Report, pairs: Mapping[tuple[str, ...], Sequence[Cell]], scored: Sequence[Scored], where: str
) -> None:
    """For each pair and optimiser a table with methods in rows and numbers of target images in columns."""
    for pair, cells in pairs.items():
        for optimizer in dict.fromkeys(cell.optimizer for cell in cells):
            chosen = [cell for cell in cells if cell.optimizer == optimizer]
            amounts = sorted({cell.amount for cell in chosen})
            rows: list[tuple[str | int, ...]] = []
            for method in dict.fromkeys(cell.method for cell in chosen):
                of_method = {cell.amount: cell for cell in chosen if cell.method == method}
                texts = [per_cent(of_method[a].mean, of_method[a].std) if a in of_method else "" for a in amounts]
                labels = len(label_means([s for s in scored if (s.pair, s.method) == (pair, method)]))
                rows.append((method, *texts, labels, max(cell.seeds for cell in of_method.values())))
            heads = [f"{images} images" if images else "no target images" for images, _ in amounts]
            report.table(
                ("method", *heads, "labels", "seeds"),
                rows,
                f"{pair_text(pair)}, {optimizer}: mean AUC in per cent {where}; mean over labels for each seed, then "
                "mean ± sample standard deviation over seeds (where there are several)",
            )


def _label_section(report: Report, scored: Sequence[Scored]) -> None:
    """AUC of every label, as a table and as a picture, for each pair and number of images."""
    report.section("Labels")
    groups: dict[tuple[tuple[str, ...], str], list[Scored]] = {}
    for s in scored:
        groups.setdefault((s.pair, s.site), []).append(s)
    for (pair, site), members in groups.items():
        names = {s.method + (f" {s.amount[0]}" if s.amount[0] else ""): (s.method, s.amount) for s in members}
        means = {name: label_means([s for s in members if (s.method, s.amount) == key]) for name, key in names.items()}
        counts = {row["label"]: row for s in members for row in s.table}
        rows: list[tuple[Any, ...]] = [
            (label, row["positive"], row["negative"], *(column.get(label) for column in means.values()))
            for label, row in counts.items()
        ]
        report.table(
            ("label", "positive", "negative", *means),
            rows,
            f"{pair[0]} → {pair[1]}: AUC of each label on {site}, mean over seeds; a label without both classes has none",
        )
        if any(means.values()):
            report.picture(
                label_figure([label for label in counts if any(label in m for m in means.values())], means),
                f"{pair[0]} → {pair[1]}: AUC of each label on {site}; 0.5 is chance",
                "dots of the AUC of each label by method",
            )


def label_figure(labels: Sequence[str], means: Mapping[str, Mapping[str, float]]) -> Figure:
    """One line per label, one dot per method.

    Args:
        labels: from top to bottom.
        means: method -> label -> AUC.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.28 * len(labels)), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, column) in enumerate(means.items()):
        # A little above or below the line, so that equal ones do not hide each other.
        shift = 0.5 * (number + 0.5) / len(means) - 0.25
        shown = [(column[label], place + shift) for place, label in enumerate(labels) if label in column]
        marker = "os^D"[number // len(COLOURS) % 4]
        x, y = np.array(shown, dtype=float).reshape(-1, 2).T
        axes.scatter(x, y, s=16, color=COLOURS[number % len(COLOURS)], marker=marker, label=name)
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("AUC")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
