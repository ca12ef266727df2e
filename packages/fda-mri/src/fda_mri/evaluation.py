"""Scores of predictions: per scan, per source-target pair, and as a transfer matrix (paper sections 4.2 and 4.4)."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dart_core import metrics
from dart_core.data.datalist import Datalist
from dart_core.data.volumes import read_mask, read_volume
from dart_core.errors import InputError
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from fda_mri import figures
from fda_mri import settings as of
from fda_mri.baselines import printed_table
from fda_mri.method import select_pairs

CC359_SITES = ("sm15", "sm3", "ge15", "ge3", "ph15", "ph3")
FIGURE_PAIRS = 6


@dataclass(frozen=True)
class Result:
    """One scored prediction."""

    pair: tuple[str, str]
    """(source site, target site)."""
    method: str
    scan: str
    surface_dice: float
    """nan where prediction and mask are both empty."""
    dice: float
    image: Path
    mask: Path
    prediction: Path


def score(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float = 1.0, surface: str = "3d"
) -> dict[str, float]:
    """Surface Dice and Dice of one scan (specification 6).

    Args:
        prediction: (H, W, Z) bool.
        truth: (H, W, Z) bool.
        spacing: mm per axis.
        tolerance: of the surface Dice, in mm.
        surface: "3d" for the volume; "2d" for the mean over the slices in which there is anything.

    Returns:
        surface_dice (nan where both masks are empty) and dice.
    """
    if surface == "3d":
        value = metrics.surface_dice(prediction, truth, spacing, tolerance)
    else:
        filled = np.flatnonzero((prediction | truth).any((0, 1)))
        values = [metrics.surface_dice(prediction[..., z], truth[..., z], spacing[:2], tolerance) for z in filled]
        value = float(np.mean(values)) if values else float("nan")
    return {"surface_dice": value, "dice": metrics.dice(prediction, truth)}


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of one or more runs and write the tables."""
    results = score_predictions(command)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    summary = summarise(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("source", "target", "method", "scan", "surface_dice", "dice"))
    writer.writerows((*r.pair, r.method, r.scan, f"{r.surface_dice:.6f}", f"{r.dice:.6f}") for r in results)
    write_atomic(out / "scores.csv", text.getvalue())
    write_atomic(out / METRICS, json.dumps({"tolerance": command.tolerance, "results": summary}, indent=2) + "\n")
    report = Report("Evaluation", f"{len(results)} predictions", package="fda-mri")
    evaluation_sections(report, results, command)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for row in summary:
        defined = row["surface_dice"] is not None
        surface = f"{row['surface_dice']:.3f} ± {row['surface_dice_std']:.3f}" if defined else "–"
        print(
            f"{row['source']} -> {row['target']}  {row['method']:<24} surface Dice {surface}  "
            f"Dice {row['dice']:.3f} ± {row['dice_std']:.3f}  ({row['scans']} scans)"
        )
    print(f"report: {out / 'report.html'}", file=sys.stderr)


def score_predictions(command: of.Evaluate) -> list[Result]:
    """Score every prediction of the folders.

    Raises:
        InputError: a folder without predictions.csv, a scan without mask, or a file that cannot be used.
    """
    truths = _truths(command.datalist)
    return [result for folder in command.predictions for result in _score_folder(folder, truths, command)]


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Mean and population standard deviation over scans for each pair and method, with Wilcoxon's test against none."""
    rows = []
    for pair, method in dict.fromkeys((r.pair, r.method) for r in results):
        chosen = {r.scan: r for r in results if r.pair == pair and r.method == method}
        surface = np.array([r.surface_dice for r in chosen.values()])
        dice = np.array([r.dice for r in chosen.values()])
        defined = surface[np.isfinite(surface)]
        row = {
            "source": pair[0],
            "target": pair[1],
            "method": method,
            "scans": len(chosen),
            "surface_dice": float(defined.mean()) if len(defined) else None,
            "surface_dice_std": float(defined.std()) if len(defined) else None,
            "both_empty": int(len(surface) - len(defined)),
            "dice": float(dice.mean()),
            "dice_std": float(dice.std()),
        }
        baseline = {r.scan: r.surface_dice for r in results if r.pair == pair and r.method == "none"}
        shared = [s for s in chosen if s in baseline and np.isfinite(chosen[s].surface_dice + baseline[s])]
        if method != "none" and len(shared) >= 2:
            ours, theirs = [chosen[s].surface_dice for s in shared], [baseline[s] for s in shared]
            row["difference_to_none"] = float(np.mean(ours) - np.mean(theirs))
            row["p_wilcoxon"] = float(metrics.wilcoxon_signed_rank(ours, theirs)[1])
        rows.append(row)
    return rows


def evaluation_sections(report: Report, results: Sequence[Result], command: of.Evaluate) -> None:
    """Tables and pictures of an evaluation."""
    what = f"surface Dice at {command.tolerance:g} mm" + (", mean over slices" if command.surface == "2d" else "")
    report.section("Pairs")
    columns = {
        "source": "source",
        "target": "target",
        "method": "method",
        "scans": "scans",
        "surface Dice": "surface_dice",
        "its std": "surface_dice_std",
        "both empty": "both_empty",
        "Dice": "dice",
        "Dice std": "dice_std",
        "difference to none": "difference_to_none",
        "p": "p_wilcoxon",
    }
    report.table(
        list(columns),
        [[row.get(key) for key in columns.values()] for row in summarise(results)],
        f"{what}: mean and population standard deviation over scans. Scans where prediction and mask are both empty have "
        "no surface Dice; they are counted, not averaged. p: two-sided Wilcoxon signed-rank test against no adaptation, "
        "scan by scan.",
    )
    report.picture(
        _figure(results), "Middle slices: prediction red, mask green, surface Dice of the scan", "comparison"
    )
    _matrix_section(report, results, command)
    sites = {site for r in results for site in r.pair}
    if sites <= set(CC359_SITES) and all(r.scan.startswith("CC") for r in results):
        _printed_section(report)
    report.section("Scans")
    report.table(
        ("source", "target", "method", "scan", "surface Dice", "Dice"),
        [(*r.pair, r.method, r.scan, r.surface_dice, r.dice) for r in results],
        "Every scan",
    )


def transfer_matrix(results: Sequence[Result]) -> tuple[tuple[str, ...], np.ndarray]:
    """Mean surface Dice without adaptation, `[target][source]`; nan where there is no run."""
    sites = tuple(dict.fromkeys(site for r in results if r.method == "none" for site in r.pair))
    matrix = np.full((len(sites), len(sites)), np.nan)
    for i, target in enumerate(sites):
        for j, source in enumerate(sites):
            values = [r.surface_dice for r in results if r.method == "none" and r.pair == (source, target)]
            if np.isfinite(values).any():
                matrix[i, j] = np.nanmean(values)
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


def _figure(results: Sequence[Result]):  # type: ignore[no-untyped-def]
    methods = tuple(dict.fromkeys(r.method for r in results))
    rows = []
    for pair in list(dict.fromkeys(r.pair for r in results))[:FIGURE_PAIRS]:
        first = next(r for r in results if r.pair == pair)
        panels = []
        example = next((r.image for r in results if r.pair[1] == pair[0]), None)
        if example is not None:
            panels.append(figures.Panel(f"source {pair[0]}", _middle(read_volume(example).array)))
        volume = read_volume(first.image)
        image = _middle(volume.array)
        truth = _middle_mask(first.mask, volume)
        panels.append(figures.Panel("target, mask", image, truth))
        for method in methods:
            found = next((r for r in results if (r.pair, r.method, r.scan) == (pair, method, first.scan)), None)
            if found is not None:
                title = f"{method}\n{found.surface_dice:.2f}"
                panels.append(figures.Panel(title, image, truth, _middle_mask(found.prediction, volume)))
        rows.append((f"{pair[0]} → {pair[1]}\n{first.scan}", panels))
    return figures.comparison(rows)


def _middle(array: np.ndarray) -> np.ndarray:
    image = array[..., array.shape[-1] // 2]
    low, high = np.percentile(array, (1, 99))
    return np.asarray(np.clip((image - low) / max(high - low, 1e-9), 0, 1))


def _middle_mask(path: Path, like) -> np.ndarray:  # type: ignore[no-untyped-def]
    mask = read_mask(path, like)
    return mask[..., mask.shape[-1] // 2]


def _truths(datalist: Path | None) -> Mapping[Path, Path]:
    if datalist is None:
        return {}
    return {row.image.resolve(): row.mask for row in Datalist.read(datalist, ("image", "mask")) if row.mask is not None}


def _score_folder(folder: Path, truths: Mapping[Path, Path], command: of.Evaluate) -> list[Result]:
    """Score the predictions that a folder's predictions.csv lists."""
    file = folder / "predictions.csv"
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"cannot be read ({reason})", where=file, remedy="give a folder that `fda-mri predict` wrote"
        ) from error
    if not rows:
        raise InputError("lists no prediction", where=file, remedy="run `fda-mri predict` again")
    results = []
    for line, row in enumerate(rows, 2):
        where = f"{file}, row {line}"
        missing = {"image", "mask", "prediction", "subject", "site", "source_site", "mode", "n", "beta"} - row.keys()
        if missing:
            raise InputError(f"has no column {min(missing)}", where=file, remedy="run `fda-mri predict` again")
        if None in row.values() or None in row or not _is_number(row["beta"]):
            raise InputError("the row is damaged", where=where, remedy="run `fda-mri predict` again")
        image = (folder / row["image"]).resolve()
        mask = truths.get(image) or (folder / row["mask"] if row["mask"] else None)
        if mask is None:
            raise InputError("no mask to score against", where=where, remedy="give --datalist with a mask column")
        volume = read_volume(image)
        truth, prediction = read_mask(mask, volume), read_mask(folder / row["prediction"], volume)
        values = score(prediction, truth, volume.spacing, command.tolerance, command.surface)
        results.append(
            Result(
                pair=(row["source_site"] or "source", row["site"] or "target"),
                method=_method(row),
                scan=row["subject"],
                image=image,
                mask=mask,
                prediction=folder / row["prediction"],
                **values,
            )
        )
    return results


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


def _method(row: Mapping[str, str]) -> str:
    """A name for the method; the same in all tables and pictures."""
    if row["mode"] in ("none", "cyclegan"):
        return row["mode"]
    return f"{row['mode']} n={row['n']} beta={float(row['beta']):g}"
