"""The command `evaluate` for segmentation: target, forgetting on the source, spread over seeds (paper Tables 2 to 4)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dart_core import figures
from dart_core.data.catalog import cc359
from dart_core.data.volumes import read_mask, read_volume
from dart_core.errors import InputError
from dart_core.evaluation import Result, evaluate_command, score_folders, write_scores
from dart_core.files import write_csv
from dart_core.report import Report
from dart_core.run import METRICS
from mmtl_octl import settings as of
from mmtl_octl.features import load_snapshots
from mmtl_octl.models import Model
from mmtl_octl.reports import PACKAGE, features_section
from mmtl_octl.tables import Cell, Entry, amount_text, pair_of, per_cent, printed_rows, seed_table

TABLES = "tables.csv"
FORGETTING = "forgetting.csv"
METHODS = ("none", "fta", "fta_mu099", "ftf", "l2sp", "spottune", "octl", "mmtl", "target")
"""Their order in tables and pictures."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """The predictions of one network on one site."""

    model: Model
    site: str
    results: Sequence[Result]
    folder: Path = Path()

    @property
    def forgetting(self) -> bool:
        """The site is one that the network's source training saw."""
        return self.site in self.model.source

    @property
    def tested_on(self) -> str:
        """ "target", "source" or, where the network knows the site as neither, "elsewhere"."""
        if self.forgetting:
            return "source"
        return "target" if self.site == (self.model.target or self.site) else "elsewhere"

    def entry(self, metric: str) -> Entry:
        """Its mean over patients, for the tables."""
        model = self.model
        values = np.array([getattr(result, metric) for result in self.results])
        finite = values[np.isfinite(values)]
        return Entry(
            _method(model),
            model.optimizer,
            model.seed,
            pair_of(model.source_site, model.target, self.site),
            (model.patients, model.interval),
            model.slices,
            float(finite.mean()) if len(finite) else float("nan"),
            str(self.folder),
        )


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of one or more networks and write the tables."""
    scored = score_networks(command)
    metric, tables = paper_tables(scored)
    for folder in command.features:
        load_snapshots(folder)
    adapted, remembered = (results_of([s for s in scored if s.forgetting is where]) for where in (False, True))
    evaluate_command(
        adapted or remembered, command.output, command, PACKAGE, tolerance=command.tolerance, surface=command.surface,
        baseline=command.baseline, ddof=1, sections=lambda report, _: network_sections(report, scored, command),
    )  # fmt: skip
    columns = ("tested_on", *(field.name for field in dataclasses.fields(Cell)), "metric")
    rows = [
        (name, *(_plain(value) for value in dataclasses.astuple(cell)), metric)
        for name, cells in tables.items()
        for cell in cells
    ]
    write_csv(command.output.out / TABLES, columns, rows)
    if adapted and remembered:
        write_scores(command.output.out / FORGETTING, remembered)


def score_networks(command: of.Evaluate) -> list[Scored]:
    """Score the folders, each the predictions of one network on one site.

    Raises:
        InputError: a folder that `predict` did not write, a scan without mask, or a file that cannot be used.
    """
    # In one call, so that all of them are scored on one grid.
    results = score_folders(
        dict.fromkeys(command.predictions), command.datalist, command.tolerance, command.surface, command=PACKAGE, grid=command.grid,
    )  # fmt: skip
    return _labelled(
        [_of_folder(folder, [r for r in results if r.prediction.parent == folder]) for folder in command.predictions]
    )


def paper_tables(scored: Sequence[Scored]) -> tuple[str, dict[str, list[Cell]]]:
    """The paper's metric (Dice for prostates, else surface Dice) and its tables: on "target", "source" and "elsewhere".

    Raises:
        InputError: two folders of the same method, optimiser, amount, seed and sites.
    """
    metric = "dice" if all(s.model.preprocessing == "prostate" for s in scored) else "surface_dice"
    return metric, {
        where: seed_table(s.entry(metric) for s in scored if s.tested_on == where)
        for where in ("target", "source", "elsewhere")
    }


def network_sections(report: Report, scored: Sequence[Scored], command: of.Evaluate) -> None:
    """Add the paper's tables and Figs 1 and 2 from these networks, and what the paper prints where the data are its own."""
    metric, tables = paper_tables(scored)
    _table_sections(report, tables, metric, command)
    report.section("Examples")
    report.picture(
        examples_figure(results_of([s for s in scored if not s.forgetting] or scored)),
        "The middle slice of two scans: mask green, prediction red, Dice of the scan (after Fig. 2 of the paper)",
        "two scans with the outlines of every method",
    )
    _printed_section(report, scored)
    if command.features:
        features_section(report, {folder.name: folder for folder in command.features})


def _plain(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _of_folder(folder: Path, results: list[Result]) -> Scored:
    file = folder / METRICS
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Scored(Model(**content["model"]), str(content["site"]), results, folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"does not say which network made the predictions ({error})",
            where=file,
            remedy=f"run `{PACKAGE} predict` again",
        ) from error


def _method(model: Model) -> str:
    return "none" if model.method == "source" else model.method


def _labelled(scored: Sequence[Scored]) -> list[Scored]:
    """In the order of METHODS, with names that tell optimisers and amounts of data apart where there are several."""
    optimizers = {s.model.optimizer for s in scored}
    amounts = {(s.model.patients, s.model.interval) for s in scored if s.model.patients and s.model.source}

    def label(model: Model) -> str:
        words = [_method(model)]
        words += [model.optimizer] if len(optimizers) > 1 else []
        if len(amounts) > 1 and model.patients:
            words.append(amount_text((model.patients, model.interval)))
        return " ".join(words)

    return [
        dataclasses.replace(s, results=[dataclasses.replace(r, method=label(s.model)) for r in s.results])
        for s in sorted(scored, key=lambda s: place_of(_method(s.model)))
    ]


def place_of(method: str) -> int:
    """Place of a method in tables and pictures; one with options of its own stands behind the plain one."""
    plain = method if method in METHODS else method.partition("_")[0]
    return METHODS.index(plain if plain in METHODS else "fta")


def results_of(scored: Sequence[Scored]) -> list[Result]:
    """All results; a network of the target alone stands beside those that came to this target from each source."""
    sources: dict[str, dict[str, None]] = {}
    for s in scored:
        if s.model.source:
            sources.setdefault(s.site, {})[s.model.source_site] = None
    results = []
    for s in scored:
        names = [s.model.source_site] if s.model.source else list(sources.get(s.site, ("–",)))
        results += [dataclasses.replace(r, pair=(name, r.pair[1])) for name in names for r in s.results]
    return results


def _table_sections(report: Report, tables: dict[str, list[Cell]], metric: str, command: of.Evaluate) -> None:
    what = "Dice" if metric == "dice" else f"surface Dice at {command.tolerance:g} mm"
    titles = {"target": "Methods", "source": "Forgetting", "elsewhere": "Other sites"}
    texts = {
        "target": f"{what} in per cent on the target site: mean over pairs for each seed, then mean ± sample standard "
        "deviation over seeds (where there are several).",
        "source": f"{what} in per cent of the fine-tuned networks on their own source site (as Table 3 of the paper).",
        "elsewhere": f"{what} in per cent on sites that are neither the target nor a source: mean over pairs and sites.",
    }
    for name, cells in tables.items():
        if not cells:
            continue
        report.section(titles[name])
        for optimizer in dict.fromkeys(cell.optimizer for cell in cells):
            chosen = [cell for cell in cells if cell.optimizer == optimizer]
            _pivot(report, chosen, f"{optimizer}: {texts[name]}")
        if not all(cell.complete for cell in cells):
            report.text("Not every seed has every pair: some means are over fewer pairs than others.")


def _pivot(report: Report, cells: Sequence[Cell], caption: str) -> None:
    """Methods in rows, amounts of target data in columns."""
    amounts = sorted({cell.amount for cell in cells}, key=lambda amount: (amount[0], -amount[1]))
    slices = {a: np.mean([cell.slices for cell in cells if cell.amount == a]) for a in amounts}
    heads = [f"{amount_text(a)} ({slices[a]:.0f} slices)" if a[0] else "no target data" for a in amounts]
    rows: list[tuple[str | int, ...]] = []
    for method in dict.fromkeys(cell.method for cell in cells):
        found = {cell.amount: cell for cell in cells if cell.method == method}
        texts = [per_cent(found[a].mean, found[a].std) if a in found else "" for a in amounts]
        rows.append((method, *texts, max(c.pairs for c in found.values()), max(c.seeds for c in found.values())))
    report.table(("method", *heads, "pairs", "seeds"), rows, caption)


def _printed_section(report: Report, scored: Sequence[Scored]) -> None:
    """The paper's own numbers, where the data are the paper's."""
    shown = printed_for(scored)
    if not shown:
        return
    report.section("Printed in the paper")
    report.text(
        "Numbers printed in the paper (Goodman et al. 2022), in per cent. Its MMTL was most likely run with a fault in the "
        "sampler (one of the two patients that it took for the target's was a source patient), so that a correct MMTL may "
        "differ at all amounts but two patients."
    )
    for name, caption in shown.items():
        columns, rows = printed_rows(name)
        report.table(columns, rows, caption)


def printed_for(scored: Sequence[Scored]) -> dict[str, str]:
    """Names and captions of the printed tables that belong to the data."""
    sites = {site for s in scored for site in (*s.model.source, s.site)}
    patients = [result.scan for s in scored for result in s.results]
    if sites <= set(cc359.SITES) and all(name.startswith("CC") for name in patients):
        return {
            "table2": "Table 2: surface Dice at 1 mm on CC359 by number of target slices",
            "table3": "Table 3: the same on the source site",
            "text_numbers": "From the text",
        }
    if all(s.model.preprocessing == "prostate" for s in scored) and len(sites) == 6:
        return {"table4": "Table 4: Dice on the prostate collection by number of target slices"}
    return {}


def examples_figure(results: Sequence[Result]) -> Figure:
    """Fig. 2 of the paper: two scans, one panel per method, the middle slice of the mask."""
    methods = list(dict.fromkeys(r.method for r in results))
    scans = list(dict.fromkeys((r.pair, r.scan) for r in results))[:2]
    rows = []
    for pair, name in scans:
        found = {r.method: r for r in reversed(results) if (r.pair, r.scan) == (pair, name)}
        first = next(iter(found.values()))
        volume = read_volume(first.image)
        truth = read_mask(first.mask, volume)
        filled = np.flatnonzero(truth.any((0, 1)))
        z = int(filled[len(filled) // 2]) if len(filled) else truth.shape[-1] // 2
        image = volume.array[..., z]
        low, high = np.percentile(image, (1, 99))
        shown = np.clip((image - low) / max(high - low, 1e-9), 0, 1)
        panels = [
            figures.Panel(f"{method}\n{found[method].dice:.2f}", shown, truth[..., z],
                          read_mask(found[method].prediction, volume)[..., z])
            for method in methods if method in found
        ]  # fmt: skip
        rows.append((f"{pair[0]} → {pair[1]}\n{name}", panels))
    return figures.comparison(rows)
