"""The command `predict`: segment images with a network of `train` or `spottune` (specification 2.7)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from adagrad_unet import settings as of
from adagrad_unet.cases import Recipe, metadata_recipe, prepare, read_case, to_file
from adagrad_unet.figures import slices_figure
from adagrad_unet.method import sliding_window_predict
from adagrad_unet.network import GenericUNet2d
from adagrad_unet.rows import select
from adagrad_unet.spottune import (
    POLICY,
    Network,
    load_labelled,
    load_network,
    policy_recorder,
    segment,
    write_policy,
)
from dart_core.adapt import LAYERS, PolicyStatistics, SpotTUNet, policy_figure
from dart_core.checkpoint import load_weights, read_metadata, weights_file
from dart_core.cli import say
from dart_core.data.datalist import Row
from dart_core.data.nnunet import CroppedCase
from dart_core.data.scans import Scan, load_scan, open_datalist, predict_scan, rows_of, unique_names
from dart_core.errors import CheckpointError
from dart_core.evaluation import write_prediction, write_predictions
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from dart_core.settings import ScanSettings

PICTURES = 6
Panels = list[tuple[str, NDArray[Any], NDArray[Any] | None]]


def predict(command: of.Predict) -> None:
    """Segment the images of a site."""
    device = find_device(command.device)
    path = weights_file(command.model)
    metadata = read_metadata(path)
    if metadata.get("network") == "GenericUNet2d" and "recipe" in metadata:
        rows = select(of.Cases(command.datalist, command.site), command.split or "all")
        _predict_nnunet(command, rows, path, metadata, device)
    elif "spottune" in metadata:
        # The same splits as in training, those published with a public set included.
        listed, sites = open_datalist(command.datalist), [command.site] if command.site else []
        rows = rows_of(listed, sites, None if command.split == "all" else command.split)
        if command.split is None and any(row.split for row in rows):
            command = dataclasses.replace(command, split="test")
            rows = rows_of(listed, sites, "test")
            say("only scans for test: the network may have learnt from the others; --split all segments them too")
        _predict_spottune(command, rows, device)
    else:
        raise CheckpointError(
            "is not a network of `adagrad-unet`", where=path, remedy="give a run of train or spottune"
        )


# --- Networks of `train` ---------------------------------------------------------------------------------------------


def load_unet(path: Path, metadata: Mapping[str, str]) -> tuple[GenericUNet2d, Recipe]:
    """The network of a weight file, and its recipe.

    Raises:
        InputError: the file's recipe is damaged.
        CheckpointError: weights that do not fit it.
    """
    recipe = metadata_recipe(metadata, path)
    network = GenericUNet2d(recipe.channels, recipe.classes, recipe.plan.pool, recipe.plan.conv, recipe.plan.features)
    load_weights(path, network)
    return network.eval(), recipe


def segment_case(
    network: nn.Module, raw: CroppedCase, recipe: Recipe, mirror: bool = True, tiles: int = 16
) -> NDArray[np.uint8]:
    """Labels (x, y, z) of a case on the grid of its file."""
    image, _ = prepare(raw, recipe)
    probabilities = sliding_window_predict(network, image, recipe.plan.patch_size, mirror, batch_size=tiles)
    return to_file(probabilities, raw, recipe)


def _predict_nnunet(
    command: of.Predict, rows: Sequence[Row], path: Path, metadata: dict[str, str], device: torch.device
) -> None:
    network, recipe = load_unet(path, metadata)
    network.to(device)
    # A broken last file must not waste the work on the others.
    for row in rows:
        _read(row, recipe)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    mirror = metadata.get("mirror") == "yes" if command.mirror == "as-trained" else command.mirror == "yes"
    method = command.name or metadata.get("method", "AG")
    table: list[dict[str, str]] = []
    panels: Panels = []
    for row, name in zip(rows, unique_names(rows), strict=True):
        raw = _read(row, recipe)
        labels = segment_case(network, raw, recipe, mirror, command.tiles)
        scan = Scan(row, raw.file.array, None, raw.file, raw.file, raw.file.spacing)
        site = metadata.get("site", "")
        table.append(write_prediction(out, scan, name, labels.astype(np.int16), source_site=site, method=method))
        if len(panels) < PICTURES:
            found, image = labels.T[raw.box], raw.image[0]
            panels.append(
                _panel(name, np.moveaxis(image, recipe.slice_axis, 0), np.moveaxis(found, recipe.slice_axis, 0))
            )
    _finish(command, table, panels, recipe.labels if recipe.classes > 2 else (), {"mirror": mirror})


def _read(row: Row, recipe: Recipe) -> CroppedCase:
    """The case without its mask, which need not fit the plan, nor be there."""
    return read_case(dataclasses.replace(row, mask=None), recipe, recipe.channels, need_mask=False)


def _panel(name: str, image: NDArray[Any], labels: NDArray[Any]) -> tuple[str, NDArray[Any], NDArray[Any] | None]:
    """The slice (first axis) with the most foreground, rows and columns as `figures.show` wants them."""
    z = int((labels > 0).sum((1, 2)).argmax())
    return name, image[z].T, labels[z].T


# --- Networks of `spottune` ------------------------------------------------------------------------------------------


def _predict_spottune(command: of.Predict, rows: Sequence[Row], device: torch.device) -> None:
    network, model = load_network(command.model)
    network.eval().to(device)
    spacing = model.spacing if model.spacing is None else (model.spacing[0], model.spacing[1], model.spacing[2])
    settings = ScanSettings(command.datalist, preprocessing=model.preprocessing, spacing=spacing)  # type: ignore[arg-type]
    for row in rows:
        _load(row, settings, model)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    statistics = PolicyStatistics()
    forward = policy_recorder(network, statistics) if isinstance(network, SpotTUNet) else network
    table: list[dict[str, str]] = []
    panels: Panels = []
    for row, name in zip(rows, unique_names(rows), strict=True):
        scan = _load(row, settings, model)
        logits = predict_scan(forward, scan.volume, model.channels, command.tiles, device)
        values = segment(logits)
        table.append(
            write_prediction(out, scan, name, values, source_site=model.site, method=command.name or model.method)
        )
        if len(panels) < PICTURES:
            z = int((values > 0).sum((0, 1)).argmax())
            panels.append((name, scan.volume[..., z].astype(np.float32), values[..., z].astype(np.int16)))
    metrics: dict[str, Any] = {}
    if isinstance(network, SpotTUNet):
        fractions = statistics.fine_tuned()
        write_policy(out / POLICY, {"inference": fractions})
        metrics["fine_tuned"] = dict(zip(LAYERS, fractions.tolist(), strict=True))
    _finish(command, table, panels, model.labels, metrics, statistics)


def _load(row: Row, settings: ScanSettings, model: Network) -> Scan:
    return load_labelled(row, settings, model.labels).scan if model.labels and row.mask else load_scan(row, settings)


# --- Both ------------------------------------------------------------------------------------------------------------


def _finish(
    command: of.Predict,
    table: Sequence[Mapping[str, object]],
    panels: Panels,
    labels: Sequence[str],
    metrics: dict[str, Any],
    statistics: PolicyStatistics | None = None,
) -> None:
    """Write predictions.csv, metrics.json and report.html."""
    out = command.output.out
    write_predictions(out, table)
    content = {"scans": len(table), "labels": {name: number for number, name in enumerate(labels, 1)}, **metrics}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Predictions", f"{len(table)} images, {table[0]['method']}", package="adagrad-unet")
    report.picture(
        slices_figure([("", panels)]),
        "Of the first images, the slice with the most foreground; each label has its colour",
        "slices with outlines of the predicted labels",
    )
    if statistics is not None and statistics.samples:
        report.section("Policy")
        report.picture(
            policy_figure({str(table[0]["method"]): statistics.fine_tuned()}),
            "Share of the slices for which each layer is fine-tuned (Fig. 5 of the paper)",
            "U-Net coloured by the share of slices that fine-tune each layer",
        )
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"masks: {out}   report: {out / 'report.html'}   next: adagrad-unet evaluate --predictions {out} --out ...")
