"""Fig. 1 of the paper: pre-trained models as bars, training from scratch as lines, one panel per data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from benchmark_transformers.tables import LEVEL, t_test
from dart_core.report import COLOURS

_LINES = ("--", ":", "-.")


@dataclass(frozen=True)
class Bar:
    """One result of a panel."""

    name: str
    backbone: str
    scratch: bool
    values: tuple[float, ...]
    """One per run, in [0, 1]."""

    @property
    def is_cnn(self) -> bool:
        """Convolutional or transformer."""
        return self.backbone.startswith("ResNet")


def initialisation_figure(panels: Mapping[str, Sequence[Bar]]) -> Figure:
    """Bars of pre-trained models, CNNs first, with their standard deviation; lines at the level of random weights.

    A star stands above the best transformer where it differs from the best CNN (t-test, p below 0.05), a box where not.

    Args:
        panels: data set -> results.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    most = max(sum(not bar.scratch for bar in bars) for bars in panels.values())
    figure = Figure(figsize=(max(3.4, 0.55 * most + 1.6) * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in axes[len(panels) :]:
        cell.remove()
    for (title, bars), cell in zip(panels.items(), axes, strict=False):
        shown = sorted((bar for bar in bars if not bar.scratch), key=lambda bar: not bar.is_cnn)
        means = [100 * float(np.mean(bar.values)) for bar in shown]
        spread = [100 * float(np.std(bar.values)) for bar in shown]
        colours = [COLOURS[1] if bar.is_cnn else COLOURS[0] for bar in shown]
        cell.bar(range(len(shown)), means, yerr=spread, color=colours, width=0.7, capsize=3, error_kw={"linewidth": 1})
        lines = [bar for bar in bars if bar.scratch]
        backbones = [bar.backbone for bar in lines]
        for number, bar in enumerate(lines):
            level = 100 * float(np.mean(bar.values))
            cell.axhline(
                level,
                color="0.25",
                linestyle=_LINES[number % len(_LINES)],
                linewidth=1,
                label=f"{bar.backbone} from scratch" if backbones.count(bar.backbone) == 1 else bar.name,
            )
        _mark(cell, shown, means, spread)
        levels = [m - s for m, s in zip(means, spread, strict=True)] + [100 * float(np.mean(b.values)) for b in lines]
        tops = [m + s for m, s in zip(means, spread, strict=True)] + [100 * float(np.mean(b.values)) for b in lines]
        if levels:
            room = max(max(tops) - min(levels), 1.0)
            cell.set_ylim(min(levels) - 0.25 * room, max(tops) + 0.35 * room)
        cell.set_xticks(
            range(len(shown)), [bar.name for bar in shown], rotation=50, ha="right", rotation_mode="anchor", fontsize=7
        )
        for text in cell.get_xticklabels():
            text.set_parse_math(False)
        cell.set_title(title, fontsize=10, parse_math=False)
        cell.set_ylabel("%")
        cell.spines[["top", "right"]].set_visible(False)
        if lines:
            cell.legend(fontsize=6.5, loc="upper left", framealpha=0.8)
    return figure


def _mark(cell: object, shown: Sequence[Bar], means: Sequence[float], spread: Sequence[float]) -> None:
    """The test of the best transformer against the best CNN."""
    places = {kind: [i for i, bar in enumerate(shown) if bar.is_cnn == kind] for kind in (False, True)}
    if not all(places.values()):
        return
    best, rival = (max(places[kind], key=lambda i: means[i]) for kind in (False, True))
    p = t_test(shown[best].values, shown[rival].values)
    if p == p:
        marker = "*" if p < LEVEL else "s"
        style = {"markersize": 9, "color": "0.1", "fillstyle": "full" if marker == "*" else "none", "linestyle": ""}
        height = means[best] + spread[best]
        cell.plot([best], [height], marker=marker, transform=_above(cell), **style)  # type: ignore[attr-defined]


def _above(cell: object) -> object:
    """A little above a point of the axes."""
    from matplotlib.transforms import ScaledTranslation

    figure = cell.get_figure()  # type: ignore[attr-defined]
    return cell.transData + ScaledTranslation(0, 8 / 72, figure.dpi_scale_trans)  # type: ignore[attr-defined]
