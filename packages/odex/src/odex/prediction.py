"""The command `predict`: each case by the network of the pool that it is closest to (specification 2.9)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dart_core.cli import say
from dart_core.data.datalist import Row
from dart_core.data.nnunet import CroppedCase
from dart_core.data.scans import Scan, unique_names
from dart_core.errors import InputError
from dart_core.evaluation import write_prediction, write_predictions
from dart_core.files import write_atomic
from dart_core.nets.nnunet import GenericUNet
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from dart_core.sliding_window import predict_volume
from odex import settings as of
from odex.cases import Stage, check_size, load_case, prepare, read_case, read_stage, reading, to_file
from odex.figures import cases_figure
from odex.learning import PACKAGE, extractor_of
from odex.patch_dice import patch_dice
from odex.store import Stored, read_pool

PICTURES = 6


def predict(command: of.Predict) -> None:
    """Segment the cases of some stages; masks, predictions.csv, metrics.json and report.html."""
    device = find_device(command.device)
    pool = read_pool(command.pool)
    stages = [_named(read_stage(path), pool) for path in command.stage]
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise InputError(
            f"stages of the same name ({', '.join(names)})", remedy="rename their folders, or give each once"
        )
    # A broken last file must not waste the work on the others.
    rows = [(stage, row) for stage in stages for row in stage.of(command.split)]
    for stage, row in rows:
        _read(pool, row)
        if command.patch_dice:
            read_case(row, reading(pool.plan), stage.labels)  # with its mask
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    networks = [pool.load(index).to(device) for index in range(len(pool.networks))]
    extractors = [extractor_of(network, pool) for network in networks] if len(networks) > 1 else []
    method, after = command.name or of.NAMES[pool.method], len(pool.stages)
    table: list[dict[str, str]] = []
    panels: list[tuple[str, NDArray[Any], NDArray[Any]]] = []
    chosen: dict[str, list[int]] = {}
    for (stage, row), name in zip(rows, unique_names([row for _, row in rows]), strict=True):
        raw = _read(pool, row)
        image = torch.from_numpy(prepare(raw, pool.plan)[0])
        index = _closest(pool, extractors, image)
        network = networks[index]
        p = predict_volume(network, image.to(device), pool.plan.patch_size, command.mirror, batch_size=command.tiles)
        labels = to_file(p.cpu().numpy(), raw, pool.plan)
        named = replace(row, site=stage.name)
        scan = Scan(named, raw.file.array, None, raw.file, raw.file, raw.file.spacing)
        written = write_prediction(
            out, scan, name, labels.astype(np.int16), source_site=f"after stage {after}", method=method
        )  # fmt: skip
        table.append({**written, "network": str(index + 1), "patch_dice": ""})
        chosen.setdefault(stage.name, []).append(index + 1)
        if len(panels) < PICTURES and len(chosen[stage.name]) <= max(1, PICTURES // len(stages)):
            panels.append((f"{stage.name}: {name}, network {index + 1}", raw.image[0], labels.T[raw.box]))
    if command.patch_dice:
        _add_patch_dice(command, pool, networks, rows, table)
    write_predictions(out, table)
    shares = {name: {n: used.count(n) / len(used) for n in sorted(set(used))} for name, used in chosen.items()}
    seed = _seed(command)
    content = {
        "method": method, "after": after, "stages": pool.names, "seed": seed, "networks": len(networks),
        "bytes": pool.bytes, "seconds": [stage.seconds for stage in pool.stages], "cases": len(table), "chosen": shares,
    }  # fmt: skip
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Predictions", f"{method} after {after} stages, {len(table)} images", package=PACKAGE)
    report.picture(
        cases_figure(panels), "Slice with the most foreground of some images", "slices with outlines of predictions"
    )
    report.section("Which network")
    columns = [f"network {n + 1}" for n in range(len(networks))]
    report.table(
        ("stage", *columns),
        [(name, *(share.get(n + 1, 0.0) for n in range(len(networks)))) for name, share in shares.items()],
        "Share of the images of each stage that each network of the pool has segmented",
    )
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"masks: {out}   report: {out / 'report.html'}   next: odex evaluate --predictions ... --out ...")


def _named(stage: Stage, pool: Stored) -> Stage:
    """The stage by the name that it was learned by (`learn --name`)."""
    source = str(stage.source.resolve())
    return replace(stage, name=next((known.name for known in pool.stages if known.source == source), stage.name))


def _read(pool: Stored, row: Row) -> CroppedCase:
    """The case without its mask, which need not fit, nor be there."""
    raw = read_case(replace(row, mask=None), reading(pool.plan), need_mask=False)
    shape = [
        round(side * step / target)
        for side, step, target in zip(raw.inside.shape, raw.spacing, pool.plan.spacing, strict=True)
    ]
    check_size(row, np.broadcast_to(0, (1, *shape)), pool.plan)
    return raw


def _add_patch_dice(
    command: of.Predict,
    pool: Stored,
    networks: Sequence[GenericUNet],
    rows: Sequence[tuple[Stage, Row]],
    table: Sequence[dict[str, str]],
) -> None:
    """Fill the column patch_dice, stage by stage; it stays empty for a case that was never drawn."""
    for name in dict.fromkeys(stage.name for stage, _ in rows):
        own = [i for i, (stage, _) in enumerate(rows) if stage.name == name]
        cases = [load_case(rows[i][1], pool.plan, rows[i][0].labels) for i in own]
        chosen = [int(table[i]["network"]) - 1 for i in own]
        found = patch_dice(networks, chosen, cases, pool.plan, command.patch_dice, command.seed)
        for i, value in zip(own, found, strict=True):
            table[i]["patch_dice"] = "" if value is None else f"{value:.6f}"


def _closest(pool: Stored, extractors: list[Any], image: torch.Tensor) -> int:
    """theta_hat(x); of one network there is no choice."""
    if not extractors or pool.statistics is None:
        return 0
    return int(pool.statistics.infer([extractor(image)[None] for extractor in extractors])[0])


def _seed(command: of.Predict) -> float | None:
    """The seed of the pool's last stage, so that `evaluate` can tell repetitions apart."""
    import yaml

    file = command.pool / "config.yaml"
    try:
        seed = yaml.safe_load(file.read_text(encoding="utf-8"))["seed"]
    except (OSError, KeyError, TypeError, yaml.YAMLError):
        return None
    return seed if isinstance(seed, int) else math.nan
