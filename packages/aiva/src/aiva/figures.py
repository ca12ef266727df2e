"""Pictures of clusters (paper Figs. 2 to 4) and of the number of clusters (Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart_core.data.scans import Scan
from dart_core.figures import Panel, Points, scatter, show
from dart_core.report import Report

PALETTE = (
    "black", "blue", "cyan", "red", "orange", "tomato", "lime", "gold", "magenta", "dodgerblue", "peru", "grey", "brown",
    "olive", "navy", "blueviolet", "darkgreen", "maroon", "yellow", "cadetblue",
)  # fmt: skip
"""Of the authors' code (specification 7)."""
SAMPLES = 4

Arrays = Mapping[str, NDArray[Any]]
"""What clusters/step-*.npz holds."""


def palette(k: int) -> list[str]:
    """k colours: those of the authors, or evenly spaced hues where they are too few."""
    if k <= len(PALETTE):
        return list(PALETTE[:k])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["hsv"](np.linspace(0, 1, k, endpoint=False))]


def embedding_figure(found: Arrays) -> Figure:
    """Fig. 3: the slices of both sites in the plane, matched clusters in the same colour."""
    colours = np.array(palette(len(found["match"])))
    n = len(found["source_assignment"])
    source = Points(found["embedding"][:n], list(colours[found["source_assignment"]]), size=7)
    matched = found["match"][found["target_assignment"]]
    target = Points(found["embedding"][n:], list(colours[matched]), size=7)
    return scatter([("source", [source]), ("target", [target])], columns=2)


def centres_figure(first: Arrays, last: Arrays) -> Figure:
    """Fig. 4: centres of the source (circles) and of the target (triangles), before and after the adaptation."""
    panels = []
    for name, found in (("first clustering", first), ("last clustering", last)):
        colours = palette(len(found["match"]))
        source = Points(found["source_centres"], colours, "source", "o", 45)
        target = Points(found["target_centres"], [colours[s] for s in found["match"]], "target", "^", 45)
        panels.append((f"{name}\nmatched distance {float(found['matched_distance']):.3f}", [source, target]))
    return scatter(panels, columns=2, same_axes=False)


def slices_figure(found: Arrays, scans: Mapping[str, Sequence[Scan]], columns: int = 4) -> Figure:
    """Fig. 2: four slices of several source clusters (top), and of the target clusters matched with them (bottom).

    The clusters shown are those with the most target slices; the slices of a cluster are those nearest to its centre.
    """
    counts = np.bincount(found["target_assignment"], minlength=len(found["match"]))
    shown = np.argsort(-counts, kind="stable")[:columns]
    figure = Figure(figsize=(2.3 * len(shown), 5.2), layout="constrained")
    for place, cluster in zip(figure.subfigures(1, len(shown), squeeze=False)[0], shown, strict=True):
        axes = place.subplots(4, 2)
        for half, site, own in ((axes[:2], "source", int(found["match"][cluster])), (axes[2:], "target", int(cluster))):
            chosen = nearest(found, site, own, SAMPLES)
            for cell, (scan, z) in zip(half.ravel(), chosen, strict=False):
                show(cell, Panel("", _grey(scans[site][scan], z)))
            for cell in half.ravel():
                cell.axis("off")
        place.suptitle(f"cluster {int(found['match'][cluster])}\ntop source, bottom target", fontsize=8)
    return figure


def nearest(found: Arrays, site: str, cluster: int, count: int) -> list[tuple[int, int]]:
    """(scan, slice) of the slices of a cluster that lie nearest to its centre."""
    n = len(found["source_assignment"])
    points = found["embedding"][:n] if site == "source" else found["embedding"][n:]
    members = np.flatnonzero(found[f"{site}_assignment"] == cluster)
    distance = np.linalg.norm(points[members] - found[f"{site}_centres"][cluster], axis=1)
    order = members[np.argsort(distance, kind="stable")[:count]]
    return [(int(scan), int(z)) for scan, z in found[f"{site}_places"][order]]


def _grey(scan: Scan, z: int) -> NDArray[np.float32]:
    image = np.asarray(scan.volume[..., z], dtype=np.float32)
    low, high = np.percentile(np.asarray(scan.volume, dtype=np.float32), (1, 99))
    return np.asarray(np.clip((image - low) / max(high - low, 1e-9), 0, 1), dtype=np.float32)


def cluster_sections(
    report: Report, found: Sequence[Arrays], scans: Mapping[str, Sequence[Scan]], columns: int = 4, name: str = ""
) -> None:
    """Figs. 2 to 4 of one run.

    Args:
        report: where to.
        found: its clusterings in their order.
        scans: "source" and "target" training scans, as the run had them.
        columns: clusters of which slices are shown.
        name: of the run, where the report shows several.
    """
    first, last = found[0], found[-1]
    report.section(f"Clusters {name}".strip())
    report.picture(
        slices_figure(last, scans, columns),
        f"Slices of matched clusters at step {int(last['step'])} (after Fig. 2 of the paper)",
        "columns of slices, source above, target below",
    )
    report.picture(
        embedding_figure(first),
        "All slices in the plane by t-SNE at the first clustering; matched clusters have one colour (after Fig. 3)",
        "two scatter plots, source and target",
    )
    report.picture(
        centres_figure(first, last),
        "Centres of the source (circles) and the target (triangles). The two planes come from two runs of t-SNE and have no "
        "common scale; the matched distance is the mean distance of matched centres over the spread of all (after Fig. 4)",
        "cluster centres before and after",
    )
    report.table(
        ("step", "source slices", "target slices", "matched distance"),
        [
            (int(f["step"]), len(f["source_assignment"]), len(f["target_assignment"]), float(f["matched_distance"]))
            for f in found
        ],
        "Clusterings; their points, clusters, centres and matching are in the folder clusters/ of the run",
    )


def study_figure(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Fig. 5: score against the number of clusters, for each pair and their mean.

    Args:
        curves: pair -> (clusters, score).
    """
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    values: dict[int, list[float]] = {}
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", linewidth=1, markersize=3, alpha=0.5, label=name)
        for k, score in points:
            values.setdefault(k, []).append(score)
    complete = sorted(k for k, scores in values.items() if len(scores) == len(curves))
    if len(curves) > 1 and complete:
        axes.plot(complete, [np.mean(values[k]) for k in complete], "s-", color="black", label="mean")
    axes.set_xlabel("clusters")
    axes.set_ylabel("surface Dice")
    axes.set_xticks(sorted(values))
    axes.grid(visible=True, alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    for text in axes.legend(fontsize=7).get_texts():
        text.set_parse_math(False)
    return figure
