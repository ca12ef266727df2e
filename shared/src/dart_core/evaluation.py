"""Predictions of masks as files, and their scores: per scan, per pair of sites, and over pairs (spottunet 6).

A command `predict` writes the masks and a table predictions.csv that says which image, mask, sites and method each
belongs to; a command `evaluate` scores one or more such folders together.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dart_core import metrics
from dart_core.cli import say
from dart_core.data.datalist import Datalist
from dart_core.data.volumes import Volume, read_grid, read_labels, read_mask, read_volume
from dart_core.errors import InputError
from dart_core.files import relative as relative
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from dart_core.settings import EvaluationSettings, OutputSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dart_core.data.scans import Scan

PREDICTIONS = "predictions.csv"
SCORES = "scores.csv"
COLUMNS = ("image", "mask", "prediction", "subject", "site", "source_site", "method")
"""Columns of predictions.csv. Optional ones: `frame` of a 4-D image; `preprocessed_prediction`, `preprocessed_mask`
(the same on the grid the network worked on) and `preprocessed_spacing` (mm, three numbers)."""

FIGURE_PAIRS = 6

Surface = Literal["3d", "2d"]
Method = Callable[[Mapping[str, str]], str]


# --- Predictions as files --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """One row of predictions.csv, with the paths found from its folder."""

    image: Path
    mask: Path | None
    prediction: Path
    subject: str
    pair: tuple[str, str]
    """(source site, target site)."""
    method: str
    frame: int | None
    preprocessed: tuple[Path, Path, tuple[float, ...]] | None
    """Prediction and mask on the grid the network worked on, and the voxel size there in mm."""
    where: str
    """File and row, for messages."""


def write_prediction(
    folder: Path, scan: Scan, name: str, values: NDArray[Any], *, source_site: str, method: str
) -> dict[str, str]:
    """Write the mask of one scan on the grid of its own file, and give its row for `write_predictions`.

    Where the scan was resampled, the mask and the true one are written on the grid the network worked on too, since the
    papers score there.

    Args:
        folder: output folder of the command.
        scan: what was segmented.
        name: stem of the files, see `scans.unique_names`.
        values: (H, W, Z) on the grid of `scan.volume`: probabilities (cut at 0.5, exclusive), a bool mask, or labels
            (whole numbers, on the file's grid only).
        source_site: where the network was trained.
        method: name in tables and pictures.
    """
    is_real = values.dtype.kind == "f"
    file = scan.write(folder / f"{name}_mask.nii.gz", values, threshold=0.5 if is_real else None)
    row = {
        "image": relative(scan.row.image, folder),
        "mask": "" if scan.row.mask is None else relative(scan.row.mask, folder),
        "prediction": file.name,
        "subject": scan.row.subject or name,
        "site": scan.site,
        "source_site": source_site,
        "method": method,
    }
    if frame := scan.row.labels.get("frame"):
        row["frame"] = frame
    if scan.mask is not None and scan.grid is not scan.file and values.dtype.kind in "fb":
        mask = values > 0.5 if is_real else values
        predicted = scan.write_preprocessed(folder / f"{name}_preprocessed_mask.nii.gz", mask)
        truth = scan.write_preprocessed(folder / f"{name}_preprocessed_truth.nii.gz", scan.mask)
        row["preprocessed_prediction"], row["preprocessed_mask"] = predicted.name, truth.name
        row["preprocessed_spacing"] = " ".join(f"{side:.9g}" for side in scan.spacing)
    return row


def write_predictions(folder: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Write predictions.csv; paths in it are relative to the folder. Columns beyond `COLUMNS` stand behind them."""
    columns = tuple(dict.fromkeys((*COLUMNS, *(name for row in rows for name in row))))
    write_csv(folder / PREDICTIONS, columns, [[row.get(column, "") for column in columns] for row in rows])
    return folder / PREDICTIONS


def read_predictions(
    folder: Path, command: str, columns: Sequence[str] = COLUMNS, method: Method | None = None
) -> list[Prediction]:
    """Read predictions.csv of a folder.

    Args:
        folder: what a command `predict` wrote.
        command: the program that wrote it, for messages.
        columns: which there must be.
        method: names the method of a row; None takes its column `method`. It raises ValueError for a damaged row.

    Raises:
        InputError: no such file, a column that is missing, no row, or a damaged one.
    """
    file = folder / PREDICTIONS
    again = f"run `{command} predict` again"
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"cannot be read ({reason})", where=file, remedy=f"give a folder that `{command} predict` wrote"
        ) from error
    if not rows:
        raise InputError("lists no prediction", where=file, remedy=again)
    predictions = []
    for line, row in enumerate(rows, 2):
        where = f"{file}, row {line}"
        if missing := set(columns) - row.keys():
            raise InputError(f"has no column {min(missing)}", where=file, remedy=again)
        try:
            if None in row.values() or None in row:
                raise ValueError
            predictions.append(_prediction(folder, row, row["method"] if method is None else method(row), where))
        except ValueError as error:
            raise InputError("the row is damaged", where=where, remedy=again) from error
    return predictions


def _prediction(folder: Path, row: Mapping[str, str], method: str, where: str) -> Prediction:
    preprocessed = None
    if row.get("preprocessed_prediction") and row.get("preprocessed_mask"):
        spacing = tuple(float(side) for side in row.get("preprocessed_spacing", "").split())
        if len(spacing) != 3 or not all(0 < side < np.inf for side in spacing):
            raise ValueError
        preprocessed = (folder / row["preprocessed_prediction"], folder / row["preprocessed_mask"], spacing)
    if not row["image"] or not row["prediction"] or not method:
        raise ValueError
    return Prediction(
        image=(folder / row["image"]).resolve(),
        mask=folder / row["mask"] if row["mask"] else None,
        prediction=folder / row["prediction"],
        subject=row["subject"],
        pair=(row["source_site"] or "source", row["site"] or "target"),
        method=method,
        frame=int(row["frame"]) if row.get("frame") else None,
        preprocessed=preprocessed,
        where=where,
    )


# --- Scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One scored prediction."""

    pair: tuple[str, str]
    """(source site, target site)."""
    method: str
    scan: str
    """The subject: several results of one subject (two phases of a heart beat, three seeds) are averaged first."""
    surface_dice: float
    """nan where prediction and mask are both empty."""
    dice: float
    image: Path
    mask: Path
    prediction: Path
    structure: str = ""
    """Name of the label, where a scan has several."""
    frame: int | None = None


def score(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing: Sequence[float],
    tolerance: float = 1.0,
    surface: Surface | str = "3d",
) -> dict[str, float]:
    """Surface Dice and Dice of one scan (spottunet 6).

    Args:
        prediction: (H, W, Z) bool.
        truth: (H, W, Z) bool.
        spacing: mm per axis.
        tolerance: of the surface Dice, in mm.
        surface: "3d" for the volume; "2d" for the mean over the slices in which there is anything (stacks with gaps).

    Returns:
        surface_dice (nan where both masks are empty, 0 where one is) and dice (1 and 0).
    """
    if surface == "3d":
        value = metrics.surface_dice(prediction, truth, spacing, tolerance)
    else:
        filled = np.flatnonzero((prediction | truth).any((0, 1)))
        values = [metrics.surface_dice(prediction[..., z], truth[..., z], spacing[:2], tolerance) for z in filled]
        value = float(np.mean(values)) if values else float("nan")
    return {"surface_dice": value, "dice": metrics.dice(prediction, truth)}


def score_folders(
    folders: Iterable[Path],
    datalist: Path | None = None,
    tolerance: float = 1.0,
    surface: Surface = "3d",
    *,
    command: str = "the package's",
    grid: Literal["file", "preprocessed"] = "file",
    leave_out: tuple[int, int] = (0, 0),
    labels: Mapping[str, int] | None = None,
    columns: Sequence[str] = COLUMNS,
    method: Method | None = None,
) -> list[Result]:
    """Score every prediction that the predictions.csv of some folders list.

    Args:
        folders: what commands `predict` wrote.
        datalist: where to look for masks first.
        tolerance: of the surface Dice, in mm.
        surface: "3d" or "2d", see `score`.
        command: the program, for messages.
        grid: "preprocessed" scores on the grid the network worked on, where a folder has its masks there (as the papers
            do; all of them or none); "file" on that of the image file.
        leave_out: slices at the bottom and at the top (RAS) that are not looked at.
        labels: name -> value in the mask files, each scored for itself; None takes every value above 0 as one mask.
        columns: see `read_predictions`.
        method: see `read_predictions`.

    Raises:
        InputError: a folder without predictions.csv, a scan without mask, a file that cannot be used, or masks on the
            network's grid for some predictions only.
    """
    truths: dict[tuple[Path, int | None], Path] = {}
    if datalist is not None:
        from dart_core.data.scans import frame_of

        listed = Datalist.read(datalist, ("image", "mask"))
        truths = {(row.image.resolve(), frame_of(row)): row.mask for row in listed if row.mask is not None}
    found: list[tuple[Prediction, Path]] = []
    for folder in folders:
        for prediction in read_predictions(folder, command, columns, method):
            mask = truths.get((prediction.image, prediction.frame)) or prediction.mask
            if mask is None:
                raise InputError(
                    "no mask to score against", where=prediction.where, remedy="give --datalist with a mask column"
                )
            found.append((prediction, mask))
    if grid == "preprocessed":
        _check_one_grid(found)
    results = []
    for prediction, mask in found:
        predicted, truth, spacing = _masks(prediction, mask, grid, labels is not None)
        inside = slice(leave_out[0], max(truth.shape[-1] - leave_out[1], leave_out[0]))
        for structure, value in ({"": None} if labels is None else dict(labels)).items():
            pair = [part[..., inside] if value is None else part[..., inside] == value for part in (predicted, truth)]
            results.append(
                Result(
                    pair=prediction.pair,
                    method=prediction.method,
                    scan=prediction.subject,
                    image=prediction.image,
                    mask=mask,
                    prediction=prediction.prediction,
                    structure=structure,
                    frame=prediction.frame,
                    **score(pair[0], pair[1], spacing, tolerance, surface),
                )
            )
    return results


def _check_one_grid(found: Sequence[tuple[Prediction, Path]]) -> None:
    """Refuse predictions of which only some have the masks that they are scored against on the network's grid."""
    if all(prediction.preprocessed is None for prediction, _ in found):
        return
    for prediction, mask in found:
        own = prediction.mask
        if prediction.preprocessed is None or own is None or mask.resolve() != own.resolve():
            raise InputError(
                f"the mask {mask.name} is not there on the network's grid, on which other predictions are scored",
                where=prediction.where,
                remedy="predict again from a datalist with these masks, or score on the files' grid (--grid file, where the command has it)",
            )


def _masks(
    prediction: Prediction, mask: Path, grid: str, labelled: bool
) -> tuple[NDArray[Any], NDArray[Any], tuple[float, ...]]:
    """Prediction, truth and voxel size, on one grid."""
    read: Callable[..., NDArray[Any]] = read_labels if labelled else read_mask
    if grid == "preprocessed" and prediction.preprocessed is not None:
        predicted, truth, spacing = prediction.preprocessed
        like = read_grid(truth)
        return read(predicted, like), read(truth, like), spacing
    like = read_grid(prediction.image, frame=prediction.frame)
    # Headers and rotations leave an error of a few parts in 10 million, which must not decide what lies within 1 mm.
    spacing = tuple(round(side, 5) for side in like.spacing)
    return read(prediction.prediction, like), read(mask, like, frame=prediction.frame), spacing


def summarise(results: Sequence[Result], baseline: str = "none", ddof: int = 0) -> list[dict[str, Any]]:
    """One row per pair, method (and structure): means over patients, and the difference to a baseline method.

    Several results of a patient are averaged first. Patients whose surface Dice is undefined (both masks empty) are
    counted in `both_empty` and left out of its mean.

    Args:
        results: of `score_folders`.
        baseline: method that the others are compared with, patient by patient.
        ddof: divisor of the standard deviations is n - ddof: 0 population, 1 sample.

    Returns:
        rows with source, target, method, structure (where there are several), scans (number of patients), surface_dice,
        surface_dice_std, both_empty, dice, dice_std; and, where at least two patients have both methods,
        difference_to_<baseline> and p_wilcoxon (two-sided, surface Dice), dice_difference_to_<baseline> and
        dice_p_wilcoxon.
    """
    groups: dict[tuple[tuple[str, str], str, str], dict[str, list[Result]]] = {}
    for r in results:
        groups.setdefault((r.pair, r.method, r.structure), {}).setdefault(r.scan, []).append(r)
    patients = {
        key: {
            name: {scan: _mean([getattr(r, name) for r in found]) for scan, found in scans.items()}
            for name in ("surface_dice", "dice")
        }
        for key, scans in groups.items()
    }
    rows = []
    pairs = list(dict.fromkeys(pair for pair, _, _ in patients))
    for (pair, method, structure), values in sorted(patients.items(), key=lambda item: pairs.index(item[0][0])):
        surface = _finite(values["surface_dice"].values())
        row: dict[str, Any] = {"source": pair[0], "target": pair[1], "method": method}
        if structure:
            row["structure"] = structure
        row |= {
            "scans": len(values["dice"]),
            "surface_dice": _mean(surface) if len(surface) else None,
            "surface_dice_std": _std(surface, ddof),
            "both_empty": len(values["dice"]) - len(surface),
            "dice": _mean(values["dice"].values()),
            "dice_std": _std(_finite(values["dice"].values()), ddof),
        }
        other = patients.get((pair, baseline, structure))
        if other is not None and method != baseline:
            for name, prefix in (("surface_dice", ""), ("dice", "dice_")):
                row |= _compared(values[name], other[name], baseline, prefix)
        rows.append(row)
    return rows


def summarise_pairs(results: Sequence[Result], baseline: str = "none", ddof: int = 0) -> list[dict[str, Any]]:
    """One row per method (and structure): mean and standard deviation of the pairs' means, compared with the baseline.

    Args:
        results: of `score_folders`.
        baseline: method that the others are compared with, pair by pair.
        ddof: divisor of the standard deviations over pairs is n - ddof.

    Returns:
        rows with method, structure (where there are several), pairs, surface_dice, surface_dice_std, dice, dice_std,
        and the comparisons of `summarise`, over the pairs that both methods have.
    """
    means: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for row in summarise(results, baseline):
        group = means.setdefault((row["method"], row.get("structure", "")), {"surface_dice": {}, "dice": {}})
        for name in ("surface_dice", "dice"):
            group[name][f"{row['source']} > {row['target']}"] = np.nan if row[name] is None else row[name]
    rows = []
    for (method, structure), values in means.items():
        row = {"method": method, **({"structure": structure} if structure else {}), "pairs": len(values["dice"])}
        for name in ("surface_dice", "dice"):
            finite = _finite(values[name].values())
            row |= {name: _mean(finite) if len(finite) else None, f"{name}_std": _std(finite, ddof)}
        other = means.get((baseline, structure))
        if other is not None and method != baseline:
            for name, prefix in (("surface_dice", ""), ("dice", "dice_")):
                row |= _compared(values[name], other[name], baseline, prefix)
        rows.append(row)
    return rows


def _compared(ours: Mapping[str, float], theirs: Mapping[str, float], baseline: str, prefix: str) -> dict[str, float]:
    """Mean difference and Wilcoxon's p over what both have; nothing where that is fewer than two."""
    shared = [key for key in ours if key in theirs and np.isfinite(ours[key] + theirs[key])]
    if len(shared) < 2:
        return {}
    a, b = [ours[key] for key in shared], [theirs[key] for key in shared]
    return {
        f"{prefix}difference_to_{baseline}": float(np.mean(a) - np.mean(b)),
        f"{prefix}p_wilcoxon": float(metrics.wilcoxon_signed_rank(a, b)[1]),
    }


def _finite(values: Iterable[float]) -> NDArray[np.float64]:
    array = np.asarray(list(values), dtype=np.float64)
    return array[np.isfinite(array)]


def _mean(values: Iterable[float]) -> float:
    """Mean of what is defined; nan where nothing is."""
    finite = _finite(values)
    return float(finite.mean()) if len(finite) else float("nan")


def _std(values: NDArray[np.float64], ddof: int) -> float | None:
    return float(values.std(ddof=ddof)) if len(values) > ddof else None


# --- The command and its report --------------------------------------------------------------------------------------


def evaluate(
    command: EvaluationSettings,
    package: str,
    *,
    leave_out: tuple[int, int] = (0, 0),
    sections: Callable[[Report, Sequence[Result]], None] | None = None,
) -> None:
    """The whole command `evaluate` of a package that needs nothing of its own: score the folders, write the tables.

    Args:
        command: settings.
        package: distribution, which is the program's name too.
        leave_out: see `score_folders`.
        sections: adds what the package has to show to the report, such as the paper's table.
    """
    results = score_folders(
        command.predictions, command.datalist, command.tolerance, command.surface,
        command=package, grid=command.grid, leave_out=leave_out,
    )  # fmt: skip
    evaluate_command(
        results, command.output, command, package, tolerance=command.tolerance, surface=command.surface,
        baseline=command.baseline, sections=sections,
    )  # fmt: skip


def evaluate_command(
    results: Sequence[Result],
    out: OutputSettings,
    command: Any,
    package: str,
    *,
    tolerance: float = 1.0,
    surface: Surface = "3d",
    baseline: str = "none",
    ddof: int = 0,
    sections: Callable[[Report, Sequence[Result]], None] | None = None,
) -> None:
    """Claim the output folder and write scores.csv, metrics.json and report.html; print one line per pair and method.

    Args:
        results: of `score_folders`: everything that can fail has been read.
        out: where.
        command: the command's settings, for config.yaml and the report.
        package: distribution.
        tolerance: of the surface Dice, in mm.
        surface: "3d" or "2d".
        baseline: method to compare with.
        ddof: divisor of the standard deviations is n - ddof.
        sections: adds to the report, between the pairs and the single scans.
    """
    claim_folder(out.out, flat_settings(command), overwrite=out.overwrite)
    summary = summarise(results, baseline, ddof)
    write_scores(out.out / SCORES, results)
    content: dict[str, Any] = {"tolerance": tolerance, "surface": surface, "baseline": baseline, "results": summary}
    if len({r.pair for r in results}) > 1:
        content["over_pairs"] = summarise_pairs(results, baseline, ddof)
    write_atomic(out.out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Evaluation", f"{len(results)} predictions", package=package)
    evaluation_sections(
        report, results, tolerance=tolerance, surface=surface, baseline=baseline, ddof=ddof, sections=sections
    )
    report.section("Settings")
    report.settings(command)
    report.write(out.out / "report.html")
    for row in summary:
        print(summary_line(row))
    say(f"report: {out.out / 'report.html'}")


def write_scores(path: Path, results: Sequence[Result]) -> None:
    """Write every scan's scores as CSV; columns structure and frame only where there are any."""
    extra = [name for name in ("structure", "frame") if any(getattr(r, name) not in ("", None) for r in results)]
    columns = ("source", "target", "method", "scan", *extra, "surface_dice", "dice")
    rows = [
        (*r.pair, r.method, r.scan, *(getattr(r, name) for name in extra), f"{r.surface_dice:.6f}", f"{r.dice:.6f}")
        for r in results
    ]
    write_csv(path, columns, rows)


def summary_line(row: Mapping[str, Any]) -> str:
    """One row of `summarise` as a line for the terminal."""

    def with_std(name: str) -> str:
        if row[name] is None:
            return "–"
        return f"{row[name]:.3f}" + ("" if row[f"{name}_std"] is None else f" ± {row[f'{name}_std']:.3f}")

    name = f"{row['method']} {row['structure']}" if row.get("structure") else row["method"]
    return (
        f"{row['source']} -> {row['target']}  {name:<24} surface Dice {with_std('surface_dice')}  "
        f"Dice {with_std('dice')}  ({row['scans']} scans)"
    )


def evaluation_sections(
    report: Report,
    results: Sequence[Result],
    *,
    tolerance: float = 1.0,
    surface: Surface = "3d",
    baseline: str = "none",
    ddof: int = 0,
    sections: Callable[[Report, Sequence[Result]], None] | None = None,
) -> None:
    """Tables and pictures of an evaluation; for the arguments see `evaluate_command`."""
    what = f"surface Dice at {tolerance:g} mm" + (", mean over slices" if surface == "2d" else "")
    kind = "population" if ddof == 0 else "sample"
    structured = any(r.structure for r in results)
    values = {
        "surface Dice": "surface_dice",
        "its std": "surface_dice_std",
        "Dice": "dice",
        "Dice std": "dice_std",
        f"difference to {baseline}": f"difference_to_{baseline}",
        "p": "p_wilcoxon",
        "Dice difference": f"dice_difference_to_{baseline}",
        "its p": "dice_p_wilcoxon",
    }
    names = {"method": "method", **({"structure": "structure"} if structured else {})}
    report.section("Pairs")
    columns = {"source": "source", "target": "target", **names, "scans": "scans", "both empty": "both_empty", **values}
    _table(
        report, columns, summarise(results, baseline, ddof),
        f"{what}: mean and {kind} standard deviation over patients. Patients where prediction and mask are both empty have "
        f"no surface Dice; they are counted, not averaged. p: two-sided Wilcoxon signed-rank test against {baseline}, "
        "patient by patient.",
    )  # fmt: skip
    if len({r.pair for r in results}) > 1:
        _table(
            report, {**names, "pairs": "pairs", **values}, summarise_pairs(results, baseline, ddof),
            f"Over pairs: mean and {kind} standard deviation of the pairs' means; p: two-sided Wilcoxon signed-rank test "
            f"against {baseline}, pair by pair.",
        )  # fmt: skip
    report.picture(
        comparison_figure(results),
        "The slice with the largest mask of one scan per pair: prediction red, mask green, surface Dice of the scan",
        "comparison of the methods' masks on one slice per pair",
    )
    if sections is not None:
        sections(report, results)
    report.section("Scans")
    report.table(
        ("source", "target", *names, "scan", "surface Dice", "Dice"),
        [
            (*r.pair, r.method, *((r.structure,) if structured else ()), _scan_text(r), r.surface_dice, r.dice)
            for r in results
        ],
        "Every scan",
    )


def _table(report: Report, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], caption: str) -> None:
    """A table of the columns that hold anything, so that there is no column of p where nothing is compared."""
    nothing = {"both_empty": (None, 0)}
    filled = {
        title: key
        for title, key in columns.items()
        if any(row.get(key) not in nothing.get(key, (None,)) for row in rows)
    }
    report.table(list(filled), [[row.get(key) for key in filled.values()] for row in rows], caption)


def _scan_text(result: Result) -> str:
    return result.scan if result.frame is None else f"{result.scan}, frame {result.frame}"


def comparison_figure(results: Sequence[Result]) -> Figure:
    """One row per pair of sites (at most six): a source slice if there is one, the target with mask, and each method."""
    from dart_core import figures

    methods = tuple(dict.fromkeys(r.method for r in results))
    rows = []
    for pair in list(dict.fromkeys(r.pair for r in results))[:FIGURE_PAIRS]:
        first = next(r for r in results if r.pair == pair)
        panels = []
        example = next((r for r in results if r.pair[1] == pair[0]), None)
        if example is not None and pair[0] != pair[1]:
            volume = read_volume(example.image, frame=example.frame)
            z = _shown_slice(read_mask(example.mask, volume, frame=example.frame))
            panels.append(figures.Panel(f"source {pair[0]}", _scaled(volume)[..., z]))
        volume = read_volume(first.image, frame=first.frame)
        image, truth = _scaled(volume), read_mask(first.mask, volume, frame=first.frame)
        z = _shown_slice(truth)
        panels.append(figures.Panel("target, mask", image[..., z], truth[..., z]))
        for method in methods:
            found = [
                r for r in results if (r.pair, r.method, r.scan, r.frame) == (pair, method, first.scan, first.frame)
            ]
            if found:
                mask = read_mask(found[0].prediction, volume)
                value = _mean([r.surface_dice for r in found])
                panels.append(figures.Panel(f"{method}\n{value:.2f}", image[..., z], truth[..., z], mask[..., z]))
        rows.append((f"{pair[0]} → {pair[1]}\n{_scan_text(first)}", panels))
    return figures.comparison(rows)


def _shown_slice(mask: NDArray[np.bool_]) -> int:
    """The slice with the largest mask; the middle one of an empty mask."""
    areas = mask.sum((0, 1))
    return int(areas.argmax()) if areas.any() else mask.shape[-1] // 2


def _scaled(volume: Volume) -> NDArray[np.float32]:
    low, high = np.percentile(volume.array, (1, 99))
    return np.asarray(np.clip((volume.array - low) / max(high - low, 1e-9), 0, 1), dtype=np.float32)
