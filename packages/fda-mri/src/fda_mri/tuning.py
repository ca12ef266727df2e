"""The command `tune-beta`: the choice of beta on labelled target scans (paper section 4.3, specification 2.6)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dart_core.cli import say
from dart_core.data.datalist import Row
from dart_core.errors import InputError
from dart_core.evaluation import score
from dart_core.files import write_atomic
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from fda_mri import settings as of
from fda_mri.adaptation import TUNING, check_all, check_roles, choose_donors, load_network, open_bank, read_tuning
from fda_mri.donors import DonorBank
from fda_mri.method import multi_source_predict, predict_per_donor, select_beta
from fda_mri.scans import Grid, Scan, load, select


def tune_beta(command: of.TuneBeta) -> None:
    """Mean surface Dice of the target validation scans for every beta, and the beta that each policy chooses."""
    rows = select(command.scans, "val")
    device = find_device(command.device)
    network, metadata = load_network(command.model, device)
    donors, grid, scans = open_bank(command.bank, command.transfer, command.scans, command.modes)
    settings = {
        "tolerance": command.tolerance,
        "surface": command.surface,
        "betas": list(command.betas),
        # Modes have a curve each, over all betas.
        "transfer": {name: value for name, value in vars(command.transfer).items() if name not in ("mode", "beta")},
    }
    others = [read_tuning(path, command.modes, settings) for path in command.curves_of]
    check_all(rows, scans, grid, need_mask=True)
    check_roles(rows, scans, "val", {command.model: metadata, command.bank: donors.metadata})
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    curves, counts = _tuning_scores(command, rows, scans, grid, network, donors)
    pair = f"{metadata.get('site') or 'source'} -> {command.scans.site or 'target'}"
    chosen: dict[str, dict[str, float]] = {}
    for mode, curve in curves.items():
        table = np.array([curve, *(other["curves"][mode] for other in others)])
        chosen[mode] = {
            "per_pair": float(np.asarray(select_beta(table[:1], command.betas, "per_pair"))[0]),
            "averaged": float(select_beta(table, command.betas, "averaged")),
        }
    result = {
        "pair": pair,
        "scans": len(rows),
        **settings,
        "curves": curves,
        "chosen": chosen,
        "averaged_over_pairs": [pair, *(other["pair"] for other in others)],
        "counts": counts,
    }
    write_atomic(out / TUNING, json.dumps(result, indent=2) + "\n")
    write_atomic(out / METRICS, json.dumps({"chosen": chosen}, indent=2) + "\n")
    report = Report("Choice of beta", f"{pair}, {len(rows)} validation scans", package="fda-mri")
    tuning_section(report, result)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for mode, values in chosen.items():
        say(
            f"{mode}: beta {values['per_pair']:g} for this pair, {values['averaged']:g} averaged over {1 + len(others)} pairs"
        )
    say(f"report: {out / 'report.html'}")


def tuning_section(report: Report, result: Mapping[str, Any]) -> None:
    """Curves of surface Dice against beta and against n, with the chosen values marked."""
    betas = result["betas"]
    marks = {}
    for mode, values in result["chosen"].items():
        beta = values["per_pair"]
        marks[f"chosen, {mode}"] = (beta, result["curves"][mode][betas.index(beta)])
    report.curves(
        {mode: (betas, values) for mode, values in result["curves"].items()},
        "beta",
        f"mean surface Dice at {result['tolerance']:g} mm",
        f"{result['pair']}: surface Dice of {result['scans']} validation scans against beta. Where the maximum is at 0 (no "
        "swap) the next value is taken.",
        marks,
    )
    if result["counts"]:
        series = {f"beta {beta}": tuple(np.array(points).T) for beta, points in result["counts"].items()}
        ns = [n for n, _ in next(iter(result["counts"].values()))]
        series["mean"] = (ns, np.mean([[value for _, value in points] for points in result["counts"].values()], axis=0))
        report.curves(
            series, "n, donors per slice", "mean surface Dice", f"{result['pair']}: surface Dice against n, 3-D search"
        )


def _tuning_scores(
    command: of.TuneBeta, rows: Sequence[Row], scans: of.Scans, grid: Grid, network: nn.Module, donors: DonorBank
) -> tuple[dict[str, list[float]], dict[str, list[tuple[int, float]]]]:
    """Mean surface Dice by mode and beta, and by beta and n."""
    device = next(network.parameters()).device
    by_mode: dict[str, list[list[float]]] = {mode: [] for mode in command.modes}
    # The authors studied n at 0.005 to 0.02, the first four of their grid.
    studied = [beta for beta in command.betas if beta > 0][:4] if command.counts else []
    by_count: dict[float, list[list[float]]] = {beta: [] for beta in studied}
    of_logits = command.transfer.average == "logits"
    for scan in load(rows, scans, grid, need_mask=True):
        target = torch.from_numpy(scan.volume)

        def surface(probabilities: Tensor, scan: Scan = scan) -> float:
            mask = probabilities.cpu().numpy() > 0.5
            return score(mask, scan.truth, scan.grid.spacing, command.tolerance, command.surface)["surface_dice"]

        for mode in command.modes:
            transfer = dataclasses.replace(command.transfer, mode=mode)
            chosen, offsets, _ = choose_donors(donors, target, transfer)
            styles = donors.gather(chosen, offsets).to(device)
            options: dict[str, Any] = {
                "output": transfer.output,
                "average": transfer.average,
                "batch_size": command.batch_size,
            }
            by_mode[mode].append(
                [
                    surface(multi_source_predict(network, target.to(device), styles, beta, **options))
                    for beta in command.betas
                ]
            )
        if command.counts:
            chosen, offsets, _ = donors.rank(target, "3d", max(command.counts), crop=command.transfer.crop or None)
            styles = donors.gather(chosen, offsets).to(device)
            for beta, table in by_count.items():
                # Donors are ranked once: the mean over n donors is a running mean over ranks.
                total, values = torch.zeros_like(target, device=device), {}
                terms = predict_per_donor(
                    network, target.to(device), styles, beta, command.transfer.output, command.batch_size
                )
                for rank, (logits, _) in enumerate(terms, 1):
                    total += logits if of_logits else logits.sigmoid()
                    mean = (total / rank).sigmoid() if of_logits else total / rank
                    values[rank] = surface(mean) if rank in command.counts or rank == len(styles) else np.nan
                table.append([values[min(n, len(styles))] for n in command.counts])
    if any(np.isnan(table).all(axis=0).any() for table in by_mode.values()):
        raise InputError(
            "a beta has no surface Dice: no validation scan has a mask or a prediction", where=command.scans.datalist,
            remedy="give scans with masks that are not empty",
        )  # fmt: skip
    curves = {mode: np.nanmean(table, axis=0).tolist() for mode, table in by_mode.items()}
    counts = {
        f"{beta:g}": list(zip(command.counts, np.nanmean(table, axis=0).tolist(), strict=True))
        for beta, table in by_count.items()
    }
    return curves, counts
