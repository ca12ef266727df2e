"""The command `evaluate`: IoU by method and target as in Tables 1 and 2, pictures as in Fig. 2 (specification 6, 7)."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dart_core import metrics
from dart_core.cli import say
from dart_core.errors import InputError, SettingError
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from metamedseg import settings as of
from metamedseg.baselines import printed_table
from metamedseg.datasets import find_set, read_slices
from metamedseg.figures import overlay_figure
from metamedseg.models import PACKAGE, load_model
from metamedseg.tuning import SCORES, read_summary, segment_slices

PRINTED_TARGETS = {
    "heart": "Cardiac",
    "spleen": "Spleen",
    "prostate_peripheral_T2": "Prostate Peripheral",
    "prostate_transitional_T2": "Prostate Transitional",
}
LEAST_VOLUMES = 6
"""Of a test: with fewer no difference can have p below 0.05."""
COLUMNS = ("method", "target", "setting", "mean", "std", "selections", "volume_mean", "difference", "p")


def evaluate(command: of.Evaluate) -> None:
    """Write results.csv and report.html."""
    runs = {folder: read_summary(folder) for folder in command.runs}
    keys = [(one["name"], one["target"], one["shots"]) for one in runs.values()]
    for folder, key in zip(runs, keys, strict=True):
        if keys.count(key) > 1:
            raise InputError(
                f"{key[0]} on {key[1]} is there twice", where=folder, remedy="leave one out, or fine-tune with --name"
            )
    methods = list(dict.fromkeys(key[0] for key in keys))
    baseline = command.baseline or methods[0]
    if baseline not in methods:
        raise SettingError(f"--baseline {baseline} is none of the methods", remedy=f"give one of {', '.join(methods)}")
    rows = compare(runs, baseline)
    pictures = [] if command.slices is None else pictures_of(runs, command.slices)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    write_csv(out / "results.csv", COLUMNS, [[row.get(name) for name in COLUMNS] for row in rows])
    write_atomic(out / METRICS, json.dumps({"baseline": baseline, "results": rows}, indent=2) + "\n")
    report = Report("Few-shot segmentation", f"{len(runs)} fine-tuned networks", package=PACKAGE)
    sections(report, rows, baseline, pictures)
    _printed(report, list(dict.fromkeys(one["target"] for one in runs.values())))
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for row in rows:
        spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
        say(f"{row['method']}, {row['target']}, {row['setting']}: IoU {row['mean']:.2f}{spread} %")
    say(f"results: {out / 'results.csv'}   report: {out / 'report.html'}")


def compare(runs: Mapping[Path, Mapping[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """One row per run, IoU in per cent; where the baseline has the same target and setting, the difference to it.

    p is that of Wilcoxon's signed-rank test over test volumes, whose IoU is averaged over slices and selections first.

    Raises:
        InputError: runs on one target that were tested on different slices.
    """
    scores = {folder: _scores(folder, one) for folder, one in runs.items()}
    for folder, one in runs.items():
        first = next(other for other, theirs in runs.items() if theirs["target"] == one["target"])
        if scores[folder].keys() != scores[first].keys():
            raise InputError(
                f"its test slices of {one['target']} are not those of {first}", where=folder,
                remedy="compare runs on one folder of slices",
            )  # fmt: skip
    rows = []
    for folder, one in runs.items():
        row: dict[str, Any] = {
            "method": one["name"],
            "target": one["target"],
            "setting": f"{one['shots']} shots" if one["shots"] else "full",
            "mean": 100 * one["mean"],
            "std": None if one["std"] is None else 100 * one["std"],
            "selections": len(one["selections"]),
            "volume_mean": 100 * one["volume_mean"],
        }
        for other, theirs in runs.items():
            same = (theirs["target"], theirs["shots"]) == (one["target"], one["shots"])
            if same and theirs["name"] == baseline != one["name"]:
                row["difference"] = 100 * (one["mean"] - theirs["mean"])
                ours, found = _by_volume(scores[folder]), _by_volume(scores[other])
                if len(ours) >= LEAST_VOLUMES:
                    row["p"] = metrics.wilcoxon_signed_rank(list(ours.values()), [found[v] for v in ours])[1]
        rows.append(row)
    return rows


def _scores(folder: Path, one: Mapping[str, Any]) -> dict[tuple[str, str], list[float]]:
    """(volume, slice) -> IoU in each selection."""
    values: dict[tuple[str, str], list[float]] = {}
    for selection in one["selections"]:
        path = folder / f"selection-{selection}" / SCORES
        try:
            for line in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
                values.setdefault((line["volume"], line["slice"]), []).append(float(line["iou"]))
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"cannot be read ({error})", where=path, remedy="fine-tune again") from error
    return values


def _by_volume(scores: Mapping[tuple[str, str], Sequence[float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for (volume, _), found in sorted(scores.items()):
        values.setdefault(volume, []).extend(found)
    return {volume: float(np.mean(found)) for volume, found in values.items()}


def sections(
    report: Report, rows: Sequence[Mapping[str, Any]], baseline: str, pictures: Sequence[tuple[Any, ...]]
) -> None:
    """Tables of all settings, and pictures."""
    report.section("IoU")
    for setting in dict.fromkeys(row["setting"] for row in rows):
        targets = list(dict.fromkeys(row["target"] for row in rows if row["setting"] == setting))
        tested = any("p" in row for row in rows if row["setting"] == setting)
        cells = []
        for method in dict.fromkeys(row["method"] for row in rows):
            line: list[Any] = [method]
            for target in targets:
                found = [r for r in rows if (r["method"], r["target"], r["setting"]) == (method, target, setting)]
                line += [_cell(found[0]) if found else None, found[0]["volume_mean"] if found else None]
                line += [found[0].get("p") if found else None] * tested
            cells.append(line)
        heads = [head for target in targets for head in (target, "by volume", *["p"] * tested)]
        test = f", and p of the difference to {baseline} (Wilcoxon's test over volumes, two-sided)" if tested else ""
        report.table(
            ("method", *heads),
            cells,
            f"IoU of test slices in per cent, {setting}: mean ± standard deviation over selections of training slices, and the "
            f"mean over volumes{test}",
        )
    if pictures:
        report.section("Pictures (Fig. 2)")
        report.picture(
            overlay_figure(pictures),
            "Test slices: found green, missed red, wrong yellow; first selection of each network",
            "slices with predictions",
        )


def _printed(report: Report, targets: Sequence[str]) -> None:
    """The paper's tables, as far as they are about these targets."""
    names = [PRINTED_TARGETS[target] for target in targets if target in PRINTED_TARGETS]
    if not names:
        return
    report.section("Printed in the paper")
    rows = [row for row in printed_table("table1") if row["target_organ"] in names]
    report.table(
        ("method", "target", "15 shots", "15 shots, vol.", "full", "full, vol."),
        [[value if value != "" else None for value in row.values()] for row in rows],
        "Table 1 of the paper (Farshad et al. 2022), IoU in per cent; vol. = volumetric tasks",
    )
    if "Cardiac" in names:
        report.table(
            ("update", "loss of meta-training", "standard", "vol."),
            [list(row.values()) for row in printed_table("table2")],
            "Table 2 of the paper: cardiac, 15 shots, IoU in per cent",
        )


def _cell(row: Mapping[str, Any]) -> str:
    spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
    return f"{row['mean']:.2f}{spread}"


def pictures_of(runs: Mapping[Path, Mapping[str, Any]], folder: Path) -> list[tuple[Any, ...]]:
    """For each target the test slice whose region is of middle size, as every network of the richest setting sees it.

    Raises:
        InputError: the folder has no test slice of a target.
    """
    sets, rows = read_slices(folder), []
    for target in dict.fromkeys(one["target"] for one in runs.values()):
        test = find_set(sets, target, folder).split("test")
        if not len(test):
            raise InputError(
                f"{target} has no test slice to show",
                where=folder,
                remedy="give the slices of the runs, or no --slices",
            )
        order = sorted(range(len(test)), key=lambda place: test.rows[place].pixels)
        place = order[len(order) // 2]
        part = type(test)(test.name, test.organ, (test.rows[place],), test.folder)
        shots = {one["shots"] for one in runs.values() if one["target"] == target}
        richest = 0 if 0 in shots else max(shots)  # 0 = full data, as in the paper's Fig. 2
        found = []
        for run, one in runs.items():
            if (one["target"], one["shots"]) == (target, richest):
                network, _ = load_model(run / f"selection-{next(iter(one['selections']))}", "target")
                masks, values = segment_slices(network, part)
                found.append((f"{one['name']}: {100 * values[0]:.0f} %", masks[0]))
        rows.append((target, part.image(0)[0], part.mask(0)[0] > 0, found))
    return rows
