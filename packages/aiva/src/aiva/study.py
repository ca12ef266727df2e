"""The command `clusters`: pictures of clusters, and the score against their number (paper Figs. 2 to 5)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from aiva import figures
from aiva import settings as of
from aiva.epoch import clusterings
from aiva.models import LEFT_OUT, PACKAGE, Model, load_model, mask_of, probabilities
from dart_core.cli import say
from dart_core.data.datalist import Row
from dart_core.data.scans import load_scan, load_scans, open_datalist, rows_of
from dart_core.errors import InputError
from dart_core.evaluation import score
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import CONFIG, METRICS, claim_folder, find_device, flat_settings
from dart_core.settings import ScanSettings

SCORES = "scores.csv"


@dataclass(frozen=True)
class Adapted:
    """One AIVA run."""

    folder: Path
    model: Model
    scans: ScanSettings
    clusterings: list[dict[str, np.ndarray[Any, Any]]]

    @property
    def pair(self) -> str:
        """Source and target site."""
        return f"{self.model.source_site} → {self.model.target}"

    def rows(self, sites: list[str], split: str) -> list[Row]:
        """Rows of its datalist."""
        return rows_of(open_datalist(self.scans.datalist), sites, split)


def clusters(command: of.Clusters) -> None:
    """Draw the clusters of AIVA runs and score their networks on the target's test scans."""
    device = find_device(command.device)
    runs = [_read(folder) for folder in command.runs]
    tests: dict[Path, list[Row]] = {}
    for run in runs:  # a broken scan must not waste the work on the others
        tests[run.folder] = run.rows([run.model.target], "test") if command.score else []
        for row in tests[run.folder]:
            load_scan(row, run.scans, need_mask=True)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    report = Report("Clusters", f"{len(runs)} runs of AIVA", package=PACKAGE)
    table: list[tuple[Any, ...]] = []
    for run in runs:
        table += _scores(run, tests[run.folder], command, device)
    summary = [
        {
            "run": str(run.folder),
            "pair": run.pair,
            "clusters": run.model.clusters,
            "matched_distance": [float(found["matched_distance"]) for found in run.clusterings],
            **_means(table, run.folder),
        }
        for run in runs
    ]
    if command.score:
        columns = ("run", "source", "target", "clusters", "scan", "surface_dice", "dice")
        write_csv(out / SCORES, columns, [(str(row[0]), *row[1:]) for row in table])
        _study_section(report, summary, command)
    for run in runs:
        scans = {
            "source": load_scans(run.rows(run.model.source, "train"), run.scans),
            "target": load_scans(run.rows([run.model.target], "train"), run.scans),
        }
        name = f"{run.pair}, {run.model.clusters} clusters ({run.folder.name})"
        figures.cluster_sections(report, run.clusterings, scans, command.columns, name)
    write_atomic(out / METRICS, json.dumps({"tolerance": command.tolerance, "runs": summary}, indent=2) + "\n")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for entry in summary:
        found = entry.get("surface_dice")
        shown = "" if found is None else f"  surface Dice {found:.3f}"
        print(f"{entry['pair']}  {entry['clusters']} clusters{shown}")
    say(f"report: {out / 'report.html'}")


def _read(folder: Path) -> Adapted:
    """A finished AIVA run: its network's description, its settings of scans, and its clusterings."""
    _, model = load_model(folder)
    if model.method != "aiva":
        raise InputError(
            f"is a run of method {model.method}", where=folder, remedy="give runs of `aiva adapt --method aiva`"
        )
    file = folder / CONFIG
    try:
        settings: Mapping[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        spacing = settings["spacing"]
        scans = ScanSettings(
            datalist=Path(settings["datalist"]),
            preprocessing=settings["preprocessing"],
            spacing=None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
            cache=None if settings["cache"] is None else Path(settings["cache"]),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, IndexError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=file, remedy="run the adaptation again") from error
    return Adapted(folder, model, scans, list(clusterings(folder)))


def _scores(run: Adapted, rows: list[Row], command: of.Clusters, device: torch.device) -> list[tuple[Any, ...]]:
    network, model = load_model(run.folder, device)
    is_prostate = run.scans.preprocessing == "prostate"
    scored = []
    for row in rows:
        scan = load_scan(row, run.scans, need_mask=True)
        mask = mask_of(probabilities(network, scan, run.scans.channels), is_prostate, is_prostate)
        inside = slice(LEFT_OUT[0], mask.shape[-1] - LEFT_OUT[1]) if is_prostate else slice(None)
        values = score(mask[..., inside], scan.truth[..., inside], scan.spacing, command.tolerance, command.surface)
        start = (run.folder, model.source_site, model.target, model.clusters, scan.subject)
        scored.append((*start, values["surface_dice"], values["dice"]))
    return scored


def _means(table: list[tuple[Any, ...]], folder: Path) -> dict[str, float | None]:
    """Mean scores of one run; nothing where none was scored."""
    rows = [row for row in table if row[0] == folder]
    means: dict[str, float | None] = {}
    for place, name in ((5, "surface_dice"), (6, "dice")) if rows else ():
        finite = [row[place] for row in rows if np.isfinite(row[place])]
        means[name] = float(np.mean(finite)) if finite else None
    return means


def _study_section(report: Report, summary: list[dict[str, Any]], command: of.Clusters) -> None:
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in summary:
        if entry.get("surface_dice") is not None:
            curves.setdefault(entry["pair"], []).append((entry["clusters"], entry["surface_dice"]))
    report.section("Number of clusters")
    if any(len(points) > 1 for points in curves.values()):
        report.picture(
            figures.study_figure(curves),
            f"Mean surface Dice at {command.tolerance:g} mm of the target's test scans (after Fig. 5 of the paper)",
            "surface Dice against the number of clusters",
        )
    report.table(
        ("pair", "clusters", "surface Dice", "Dice", "matched distance, first", "last"),
        [
            (
                e["pair"],
                e["clusters"],
                e.get("surface_dice"),
                e.get("dice"),
                e["matched_distance"][0],
                e["matched_distance"][-1],
            )
            for e in summary
        ],
        "Test scans of the target sites",
    )
