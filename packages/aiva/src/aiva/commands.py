"""The commands `check-data`, `pretrain`, `predict` and `evaluate`: read and check everything, claim the output, then work."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from aiva import settings as of
from aiva.baselines import printed_table
from aiva.models import CLASSES, JOINT, PACKAGE, Model, load_model, mask_of, probabilities, source_judge
from aiva.slices import Slices, patch_size_of
from aiva.training import Selection, train_supervised
from dart_core import evaluation, figures, scan_commands
from dart_core.checkpoint import save_model
from dart_core.cli import say
from dart_core.data.catalog import cc359, prostate
from dart_core.data.datalist import Datalist, Row
from dart_core.data.scans import (
    Scan,
    load_scan,
    load_scans,
    open_datalist,
    require_subjects,
    rows_of,
    unique_names,
)
from dart_core.evaluation import Result, write_prediction, write_predictions
from dart_core.files import write_atomic
from dart_core.nets import ResidualUNet2d
from dart_core.report import Cell, Report
from dart_core.run import METRICS, Run, claim_folder, find_device, flat_settings
from dart_core.scan_commands import check_settings, panel, rows_to_predict, source_sites, spacing_of
from dart_core.settings import ScanSettings

# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem of a datalist; 0 if there is none, else 2."""
    return scan_commands.check_data(command.scans, command.require_mask)


# --- pretrain --------------------------------------------------------------------------------------------------------


def pretrain(command: of.Pretrain) -> None:
    """Train the source network."""
    datalist, scans = open_datalist(command.scans.datalist), command.scans
    sources = source_sites(datalist, command.source, command.target)
    command = dataclasses.replace(command, training=command.training.resolved("pretrain"))
    train_labelled(command, datalist, sources, new_model(scans, command.training, sources))


def training_rows(datalist: Datalist, sites: Sequence[str]) -> list[Row]:
    """The training rows of some sites; each must have two patients, as one has no variability to align.

    Raises:
        InputError: a site without training rows, or with one patient only.
    """
    rows: list[Row] = []
    for site in sites or ("",):
        found = rows_of(datalist, [site] if site else [], "train")
        require_subjects(found, 2, f"site {site}, split train" if site else "split train")
        rows += found
    return rows


def selection_scans(datalist: Datalist, sites: Sequence[str], training: of.Training, scans: ScanSettings) -> list[Scan]:
    """The labelled source scans that choose the network. Where the last one is kept, those that there are.

    Raises:
        InputError: none there, and the rule needs them.
    """
    if training.checkpoint == "last":
        rows = [
            row for row in datalist
            if row.split == training.selection_split and row.mask is not None and (not sites or row.site in sites)
        ]  # fmt: skip
        return load_scans(rows, scans, need_mask=True)
    return load_scans(rows_of(datalist, sites, training.selection_split), scans, need_mask=True)


def new_model(scans: ScanSettings, training: of.Training, sites: Sequence[str], target: str = "") -> Model:
    """What the file of a network that is trained anew says of it."""
    return Model(
        width=training.width,
        channels=scans.channels,
        preprocessing=scans.preprocessing,
        spacing=spacing_of(scans),
        source=list(sites),
        target=target,
        method="target" if target else "none",
    )


def train_labelled(command: of.Pretrain | of.Adapt, datalist: Datalist, sites: Sequence[str], model: Model) -> None:
    """Train on the labelled training scans of some sites: the source network, or the upper bound on the target."""
    training, scans = command.training, command.scans
    training_scans = load_scans(training_rows(datalist, sites), scans, need_mask=True)
    judged = selection_scans(datalist, sites, training, scans)
    size = patch_size_of(training, scans, training_scans)
    slices = Slices(training_scans, scans, size, training.random_patches, seed=command.run.seed)
    judge = source_judge(judged, scans) if judged else None
    with Run(command.run, command) as run:
        network = ResidualUNet2d(scans.channels, CLASSES, training.width)
        selection = Selection(training.checkpoint, judge, training.evaluate_every, training.steps or 0)
        train_supervised(run, network, slices, training, selection)
        if not run.is_main:
            return
        chosen = selection.take(network)
        save_model(run.out, network, PACKAGE, dataclasses.replace(model, chosen=chosen))
        title = "Source network" if isinstance(command, of.Pretrain) else "Adaptation: target (upper bound)"
        report = Report(
            title, f"Sites {', '.join(sites)}: {len(training_scans)} scans, {len(slices)} slices", package=PACKAGE
        )
        finish(run, report, command, network, judged, chosen, {"scans": len(training_scans), "slices": len(slices)})


def finish(
    run: Run,
    report: Report,
    command: of.Pretrain | of.Adapt,
    network: ResidualUNet2d,
    judged: Sequence[Scan],
    chosen: str,
    content: Mapping[str, object],
) -> None:
    """Curves, scores of the scans that chose the network, metrics.json, report.html, and a line that says what was kept."""
    scans, training = command.scans, command.training
    is_prostate = scans.preprocessing == "prostate"
    if run.step:
        keys = {"loss": "segmentation loss (source)", "alignment_scaled": "alignment loss, scaled"}
        figures.training_curves(report, run.out, keys, "loss", "Loss during training")
        figures.training_curves(
            report, run.out, {"source_score": "source"}, "Dice" if is_prostate else "surface Dice (1 mm)",
            f"Score on the source scans that choose the network ({training.checkpoint})",
        )  # fmt: skip
    report.text(f"Kept: {chosen}.")
    rows: list[tuple[str, dict[str, float]]] = []
    panels: list[figures.Panel] = []
    for scan in judged:
        mask = mask_of(probabilities(network, scan, scans.channels), is_prostate, is_prostate)
        rows.append((scan.name, evaluation.score(mask, scan.truth, scan.spacing)))
        if len(panels) < 6:
            panels.append(panel(scan, mask, scan.name))
    if rows:
        report.section("Source scans that choose the network")
        report.table(
            ("scan", "surface Dice (1 mm)", "Dice"),
            [(name, values["surface_dice"], values["dice"]) for name, values in rows],
        )
        report.picture(figures.comparison([("", panels)]), "Prediction red, mask green", "slices with outlines")
    means = {}
    for name in ("surface_dice", "dice") if rows else ():
        finite = [values[name] for _, values in rows if np.isfinite(values[name])]
        means[f"source_{name}"] = float(np.mean(finite)) if finite else None
    run.finish({**content, **means, "checkpoint": chosen, "steps": run.step})
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")
    say(f"kept: {chosen}")
    say(f"network: {run.out}   report: {run.out / 'report.html'}")


# --- predict ---------------------------------------------------------------------------------------------------------


def predict(command: of.Predict) -> None:
    """Segment the scans of a site."""
    device = find_device(command.device)
    network, model = load_model(command.model, device)
    scans = command.scans
    check_settings(model, scans, command.model)
    site = command.site or model.target
    datalist = open_datalist(scans.datalist)
    rows = rows_to_predict(datalist, site, command.split)
    for row in rows:  # a broken last file must not waste the work on the others
        load_scan(row, scans)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    is_prostate = scans.preprocessing == "prostate"
    largest = command.largest_component == "on" or (is_prostate and command.largest_component == "default")
    table: list[dict[str, object]] = []
    panels: list[figures.Panel] = []
    for row, name in zip(rows, unique_names(rows), strict=True):
        scan = load_scan(row, scans)
        foreground = probabilities(network, scan, scans.channels, command.batch_size)
        mask = mask_of(foreground, is_prostate, largest)
        values = mask if is_prostate or largest else foreground
        entry = write_prediction(out, scan, name, values, source_site=model.source_site, method=model.shown)
        table.append({**entry, "clusters": model.clusters or ""})
        if command.probabilities:
            scan.write(out / f"{name}_probability.nii.gz", foreground)
        if len(panels) < 6:
            panels.append(panel(scan, mask, name))
    write_predictions(out, table)
    content = {"scans": len(rows), "site": site, "model": dataclasses.asdict(model)}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Predictions", f"{len(rows)} scans of site {site}, method {model.shown}", package=PACKAGE)
    report.text(f"Network: {model.chosen}.")
    report.picture(figures.comparison([("", panels)]), "Prediction red, mask green", "slices with outlines")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"masks: {out}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --predictions {out} --out ...")


# --- evaluate --------------------------------------------------------------------------------------------------------


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of one or more runs and write the tables."""
    evaluation.evaluate(command, PACKAGE, leave_out=command.leave_out, sections=sections)


def sections(report: Report, results: Sequence[Result]) -> None:
    """What the paper shows: means by target site (Tables 1 and 2), and beside them its printed table where it is the data's."""
    targets = tuple(dict.fromkeys(r.pair[1] for r in results))
    methods = tuple(dict.fromkeys(r.method for r in results))
    if len(targets) > 1:
        report.section("Target sites")
        for key, name in (("surface_dice", "surface Dice"), ("dice", "Dice")):
            rows: list[list[Cell]] = [[method, *site_means(results, method, targets, key)] for method in methods]
            report.table(
                ("method", *targets, "average"),
                rows,
                f"Mean {name} of each target site over its source sites, in per cent",
            )
    sites = {site for r in results for joint in r.pair for site in joint.split(JOINT)}
    for known, subject, name, caption in (
        (cc359.SITES, "CC0", "table1", "Paper, Table 1: surface Dice at 1 mm on CC359, in per cent"),
        (prostate.SITES, "_Case", "table2", "Paper, Table 2: Dice on the prostate collection, in per cent"),
    ):
        if sites <= set(known) and all(subject in r.scan for r in results):
            table = printed_table(name)
            report.section("Printed in the paper")
            report.table(tuple(table[0]), [tuple(row.values()) for row in table], caption)


def site_means(results: Sequence[Result], method: str, targets: Sequence[str], key: str) -> list[float]:
    """Per cent for each target: mean over its pairs of the mean over scans; and the average over targets (specification 5)."""
    means = []
    for target in targets:
        pairs: dict[str, list[float]] = {}
        for r in results:
            if r.method == method and r.pair[1] == target and np.isfinite(getattr(r, key)):
                pairs.setdefault(r.pair[0], []).append(getattr(r, key))
        means.append(100 * float(np.mean([np.mean(values) for values in pairs.values()])) if pairs else float("nan"))
    return [*means, float(np.mean(means))]
