"""What the commands show in their reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from dart_core.adapt import PolicyStatistics, policy_figure
from dart_core.data.scans import Scan, predict_scan
from dart_core.report import Cell, Report
from mmtl_octl import features as of_features
from mmtl_octl.pools import Pool

PACKAGE = "mmtl-octl"


def amount(pool: Pool) -> str:
    """How much there is to train on, in words."""
    count = len(pool.patients)
    return f"{count} patient{'s' * (count != 1)}, {pool.size} slices"


def schedule_section(report: Report, counts: Sequence[int], batch_size: int) -> None:
    """What a batch of MMTL holds, by epoch."""
    report.section("Schedule")
    epochs = np.arange(len(counts))
    series = {"target": (epochs, np.array(counts)), "source": (epochs, batch_size - np.array(counts))}
    report.curves(series, "epoch (from 0)", "samples", f"What a batch of {batch_size} holds")


def policy_section(report: Report, network: nn.Module, scans: Sequence[Scan], channels: int) -> None:
    """Which layers SpotTUNet fine-tunes, at inference."""
    statistics = PolicyStatistics()

    def watched(images: Tensor) -> Tensor:
        logits: Tensor
        logits, policy = network(images, return_policy=True)
        statistics.update(policy)
        return logits

    device = next(network.parameters()).device
    network.eval()
    for scan in scans:
        predict_scan(watched, scan.volume, channels, device=device)
    report.section("Policy")
    report.picture(
        policy_figure({"fine-tuned at inference": statistics.fine_tuned()}),
        "Fraction of slices for which each layer uses its fine-tuned copy. The skip of full resolution always does; cell 30 "
        "stands for the final batch norm, which follows its decision.",
        "the U-Net's layers coloured by how often they are fine-tuned",
    )


def features_section(report: Report, runs: Mapping[str, Path]) -> None:
    """Fig. 1 of the paper for one or more fine-tunings."""
    report.section("Features during fine-tuning")
    report.text(
        "One point per patient: bottleneck activations averaged over channels and the middle slices, in the plane by "
        "t-SNE, anew for each epoch, so that only neighbourhoods mean something. Near: within an L1 distance of "
        f"{of_features.NEAR:g} of a target training patient."
    )
    table: list[tuple[Cell, ...]] = []
    for name, folder in runs.items():
        snapshots = of_features.load_snapshots(folder)
        points = [of_features.embed(taken.features) for taken in snapshots]
        report.picture(
            of_features.progress_figure(snapshots, points),
            f"{name}: source blue, target training patients green, target test patients red (after Fig. 1 of the paper)",
            f"t-SNE of all patients at several epochs of {name}",
        )
        for taken, where in zip(snapshots, points, strict=True):
            found = of_features.near_and_far(taken, where)
            trained = taken.loss[np.array(taken.group) == "target train"].mean()
            table.append(
                (name, taken.epoch, float(trained), *(found[k] for k in ("near", "loss_near", "far", "loss_far")))
            )
    columns = (
        "method",
        "epoch",
        "loss of training patients",
        "test patients near",
        "their loss",
        "far",
        "loss of these",
    )
    report.table(
        columns, table, "Mean loss of patients: does the network fit those it was trained on, and their neighbours?"
    )
