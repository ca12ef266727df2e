"""Scores of predictions: per scan, per source-target pair, and as a transfer matrix (paper sections 4.2 and 4.4)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dart_core import evaluation
from dart_core.evaluation import Result
from dart_core.report import Report
from fda_mri import settings as of
from fda_mri.baselines import CYCLEGAN_NOTE, printed_table
from fda_mri.method import select_pairs

CC359_SITES = ("sm15", "sm3", "ge15", "ge3", "ph15", "ph3")
COLUMNS = ("image", "mask", "prediction", "subject", "site", "source_site", "mode", "n", "beta")
"""Columns of predictions.csv that must be there."""
SETTINGS = ("output", "average", "neighbours", "crop", "donor_seed", "generator", "keep_slices")
"""Its further columns; where one is missing, the setting had its default."""


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of one or more runs and write the tables."""
    results = score_predictions(command)
    evaluation.evaluate_command(results, command.output, command, "fda-mri", **_options(command))


def score_predictions(command: of.Evaluate) -> list[Result]:
    """Score every prediction of the folders.

    Raises:
        InputError: a folder without predictions.csv, a scan without mask, or a file that cannot be used.
    """
    results = evaluation.score_folders(
        command.predictions,
        command.datalist,
        command.tolerance,
        command.surface,
        command="fda-mri",
        columns=COLUMNS,
        method=_method,
    )
    return _with_short_names(results)


def evaluation_sections(report: Report, results: Sequence[Result], command: of.Evaluate) -> None:
    """Tables and pictures of an evaluation."""
    evaluation.evaluation_sections(report, results, **_options(command))


def _options(command: of.Evaluate) -> dict[str, Any]:
    def sections(report: Report, results: Sequence[Result]) -> None:
        if any(r.method.partition(" ")[0] == "cyclegan" for r in results):
            report.text(CYCLEGAN_NOTE)
        _matrix_section(report, results, command)
        sites = {site for r in results for site in r.pair}
        if sites <= set(CC359_SITES) and all(r.scan.startswith("CC") for r in results):
            _printed_section(report)

    return {"tolerance": command.tolerance, "surface": command.surface, "sections": sections}


def transfer_matrix(results: Sequence[Result]) -> tuple[tuple[str, ...], np.ndarray]:
    """Mean surface Dice over patients without adaptation, `[target][source]`; nan where there is no run."""
    plain = [r for r in results if r.method == "none"]
    sites = tuple(dict.fromkeys(site for r in plain for site in r.pair))
    matrix = np.full((len(sites), len(sites)), np.nan)
    for row in evaluation.summarise(plain):
        if row["surface_dice"] is not None:
            matrix[sites.index(row["target"]), sites.index(row["source"])] = row["surface_dice"]
    return sites, matrix


def _matrix_section(report: Report, results: Sequence[Result], command: of.Evaluate) -> None:
    sites, matrix = transfer_matrix(results)
    if len(sites) < 2:
        return
    report.section("Transfer matrix")
    report.table(
        ("target", *(f"source {site}" for site in sites)),
        [(site, *row) for site, row in zip(sites, matrix.tolist(), strict=True)],
        "No adaptation: mean surface Dice of each source network (column) on each target site (row)",
    )
    needed = ~np.eye(len(sites), dtype=bool) if command.severity == "score" else np.ones_like(matrix, dtype=bool)
    if np.isfinite(matrix[needed]).all() and len(sites) * (len(sites) - 1) >= 3 * command.per_cluster:
        pairs = select_pairs(matrix, command.per_cluster, command.severity)
        names = [name for name in ("severe", "medium", "subtle") for _ in range(command.per_cluster)]
        report.table(
            ("shift", "source", "target", "surface Dice"),
            [(name, sites[s], sites[t], matrix[t, s]) for name, (s, t) in zip(names, pairs, strict=True)],
            f"Pairs by severity of the shift ({command.severity})",
        )


def _printed_section(report: Report) -> None:
    report.section("Printed in the paper")
    report.text(
        "Numbers printed in the paper for CC359 (Zakazov et al. 2022, Table 2). StyleSegor, StyleGAN and Fast were not run "
        "here; CycleGAN there is a StyleGAN2-type network, here a standard one."
    )
    table = printed_table("table2")
    columns = tuple(table[0])
    report.table(columns, [tuple(row[column] for column in columns) for row in table], "Paper, Table 2 (surface Dice)")


def _method(row: Mapping[str, str]) -> str:
    """A name for the method, the same in all tables and pictures: what has one name is averaged as repeats."""
    mode, beta = row["mode"], float(row["beta"])
    if not beta >= 0:
        raise ValueError
    kept = f" keep-slices={row['keep_slices']}" if row.get("keep_slices") else ""
    if mode == "none":
        return mode + kept
    if mode == "cyclegan":
        return f"{mode} {row.get('generator') or ''}".rstrip() + kept
    name = f"{mode} n={row['n']} beta={beta:g}"
    for setting in of.DECIDING.get(mode, ()):
        default = str(getattr(of.Transfer, setting))
        if (value := row.get(setting) or default) != default:
            name += f" {setting.replace('_', '-')}={value}"
    return name + kept


def _with_short_names(results: Sequence[Result]) -> list[Result]:
    """The generator's folder only in the names of pairs that have several."""
    generators: dict[tuple[str, str], set[str]] = {}
    for r in results:
        mode, _, generator = r.method.partition(" ")
        if mode == "cyclegan":
            generators.setdefault(r.pair, set()).add(generator)

    def short(r: Result) -> str:
        mode, _, generator = r.method.partition(" ")
        if mode != "cyclegan":
            return r.method
        if len(generators[r.pair]) == 1:
            return mode
        folders = [Path(other).name for other in generators[r.pair]]
        folder = Path(generator).name
        return f"{mode} {folder if folders.count(folder) == 1 else generator}".rstrip()

    return [dataclasses.replace(r, method=short(r)) for r in results]
