"""The command `predict` for segmentation, and what may follow the threshold (specification 6.2)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dart_core import figures
from dart_core.cli import say
from dart_core.data.datalist import Datalist
from dart_core.data.scans import Scan, largest_component, load_scan, open_datalist, predict_scan, rows_of, unique_names
from dart_core.evaluation import write_prediction, write_predictions
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from dart_core.scan_commands import check_settings, panel, rows_to_predict
from mmtl_octl import settings as of
from mmtl_octl.models import load_model
from mmtl_octl.reports import PACKAGE


def predict(command: of.Predict) -> None:
    """Segment the scans of a site."""
    device = find_device(command.device)
    network, model = load_model(command.model, device)
    scans = command.scans
    check_settings(model, scans, command.model)
    site = command.site or model.target
    datalist = open_datalist(scans.datalist)
    rows = rows_to_predict(datalist, site, command.split)
    limit = _limit(command, network, datalist, site) if command.filter_slices else 0
    for row in rows:  # a broken last file must not waste the work on the others
        load_scan(row, scans)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    prostate = scans.preprocessing == "prostate"
    largest = prostate if command.largest_component == "auto" else command.largest_component == "on"
    table: list[dict[str, object]] = []
    panels: list[figures.Panel] = []
    extra = {"target_site": model.target, "optimizer": model.optimizer, "seed": model.seed}
    extra |= {"patients": model.patients, "interval": model.interval, "slices": model.slices}
    method = "none" if model.method == "source" else model.method
    for row, name in zip(rows, unique_names(rows), strict=True):
        scan = load_scan(row, scans)
        probabilities = segment(network, scan, scans.channels, command.batch_size)
        mask = foreground(probabilities, scans.preprocessing)
        if limit:
            mask = filter_slices(mask, limit)
        if largest:
            mask = largest_component(mask)
        changed = prostate or limit > 0 or largest
        values = mask if changed else probabilities
        entry = write_prediction(out, scan, name, values, source_site=model.source_site, method=method)
        table.append({**entry, **extra})
        if command.probabilities:
            scan.write(out / f"{name}_probability.nii.gz", probabilities)
        if len(panels) < 6:
            panels.append(panel(scan, mask, name))
    write_predictions(out, table)
    content = {"scans": len(rows), "site": site, "model": dataclasses.asdict(model)}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Predictions", f"{len(rows)} scans of site {site}, {method}", package=PACKAGE)
    report.picture(figures.comparison([("", panels)]), "Prediction red, mask green", "slices with outlines")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"masks: {out}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --predictions {out} --out ...")


def segment(network: nn.Module, scan: Scan, channels: int, batch_size: int = 16) -> NDArray[np.float32]:
    """Foreground probabilities (H, W, Z) of a scan."""
    return predict_scan(network, scan.volume, channels, batch_size)[0].sigmoid().numpy()


def foreground(probabilities: NDArray[np.float32], preprocessing: str) -> NDArray[np.bool_]:
    """Mask (H, W, Z) of probabilities above 0.5; of prostates the authors predict slices 1 to Z - 2 (specification 6.2)."""
    mask = probabilities > 0.5
    if preprocessing == "prostate":
        mask[..., [0, -1]] = False
    return mask


def filter_slices(mask: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
    """Empty the slices whose largest connected part has fewer pixels than `limit` (specification 6.2)."""
    sizes = part_sizes(mask)
    return mask & (sizes >= limit)


def part_sizes(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(Z,) pixels in the largest connected part of each slice of a mask (H, W, Z)."""
    from scipy import ndimage

    # Neighbours within a slice only: one call labels all slices.
    within = np.zeros((3, 3, 3), bool)
    within[..., 1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(mask, within)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray(sizes[labels].max((0, 1)), dtype=np.int64)


def size_limit(predicted: Sequence[NDArray[np.bool_]], truths: Sequence[NDArray[np.bool_]]) -> float:
    """The release's limit for `filter_slices`: 0.9 q55 of the part sizes on slices that are empty in truth, plus 0.1 q10
    of those on the others (specification 6.2); 0 where there is no slice of one of the kinds."""
    sizes = np.concatenate([part_sizes(mask) for mask in predicted])
    filled = np.concatenate([truth.any((0, 1)) for truth in truths])
    if filled.all() or not filled.any():
        return 0.0
    return float(0.9 * np.quantile(sizes[~filled], 0.55) + 0.1 * np.quantile(sizes[filled], 0.1))


def _limit(command: of.Predict, network: nn.Module, datalist: Datalist, site: str) -> float:
    rows = rows_of(datalist, [site] if site else [], "val")
    predicted, truths = [], []
    for row in rows:
        scan = load_scan(row, command.scans, need_mask=True)
        probabilities = segment(network, scan, command.scans.channels, command.batch_size)
        predicted.append(foreground(probabilities, command.scans.preprocessing))
        truths.append(scan.truth)
    return size_limit(predicted, truths)
