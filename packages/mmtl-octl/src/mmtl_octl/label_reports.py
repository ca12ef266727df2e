"""What the commands for classification show in their reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart_core.adapt import PolicyStatistics
from dart_core.data.slices import evaluating
from dart_core.report import COLOURS, Report
from mmtl_octl.pictures import Pictures, load_picture, whole_view
from mmtl_octl.xray import SpotTuneChestNet


def mean_of(table: Sequence[dict[str, Any]]) -> float | None:
    """The mean AUC of the labels that have one; None if none has."""
    defined = [row["auc"] for row in table if row["auc"] is not None]
    return float(np.mean(defined)) if defined else None


def auc_section(report: Report, table: Sequence[dict[str, Any]], what: str) -> None:
    """Add the AUC of every label to a report.

    Args:
        report: where to.
        table: of `auc_rows`.
        what: the images, for the caption.
    """
    report.section("Area under the ROC curve")
    report.table(
        ("label", "positive", "negative", "AUC"),
        [(row["label"], row["positive"], row["negative"], row["auc"]) for row in table],
        f"Each label on {what}; one without both classes has no AUC and does not count in the mean",
    )


def policy_section(report: Report, network: SpotTuneChestNet, pictures: Pictures, size: int) -> None:
    """Which layers are fine-tuned, at inference."""
    statistics = PolicyStatistics(network.switches)
    device = next(network.parameters()).device
    with evaluating(network), torch.no_grad():
        for row in pictures.rows:
            statistics.update(network(whole_view(load_picture(row), size)[None].to(device), return_policy=True)[1])
    report.section("Policy")
    report.picture(
        switch_figure(statistics.fine_tuned().numpy(), network.fine_tuned.size[1]),
        f"Fraction of {len(pictures)} pictures for which each layer uses its fine-tuned copy, at inference",
        "bars of how often each layer is fine-tuned",
    )


def switch_figure(fractions: NDArray[Any], blocks: Sequence[int]) -> Figure:
    """Bars of how often each switchable layer of a DenseNet is fine-tuned.

    Args:
        fractions: (switches,) in [0, 1].
        blocks: dense layers of each block.
    """
    figure = Figure(figsize=(7.2, 2.4), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(1, len(fractions) + 1)
    axes.bar(places, fractions, width=0.9, color=COLOURS[0])
    borders = 1.5 + np.cumsum([0, *(layers + 1 for layers in blocks)])  # behind the stem, and behind each transition
    for number, border in enumerate(borders[:-1]):
        axes.axvline(border, color="0.5", linewidth=0.8)
        axes.text(border + 0.4, 1.04, f"block {number + 1}", fontsize=7)
    axes.set_xlim(0.4, len(fractions) + 0.6)
    axes.set_ylim(0, 1.14)
    axes.set_xlabel("switch: stem, then dense layers and the transition of each block", fontsize=8)
    axes.set_ylabel("fine-tuned", fontsize=8)
    axes.tick_params(labelsize=7)
    return figure
