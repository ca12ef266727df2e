"""Pictures for reports: altered and regenerated patches, the feature space (Fig. 2), sensitivity to the weights (Fig. 5)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from dart_core.errors import SettingError
from dart_core.figures import Points, scatter
from dart_core.report import COLOURS
from stain_aglr.light import HEDLight, as_float
from stain_aglr.method import recipe_of
from stain_aglr.networks import StainAgLr
from stain_aglr.settings import Augmentation

MOST_POINTS = 5000
"""Patches shown in Fig. 2; of more, a random sample."""


def patch_grid(rows: Sequence[tuple[str, Tensor]]) -> Figure:
    """Rows of patches.

    Args:
        rows: (name, patches (n, 3, H, W) in [0, 1]).
    """
    columns = max(len(patches) for _, patches in rows)
    figure = Figure(figsize=(1.05 * columns + 0.5, 1.12 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (name, patches), cells in zip(rows, axes, strict=True):
        for cell in cells:
            cell.set_xticks([])
            cell.set_yticks([])
            cell.spines[:].set_visible(False)
        for patch, cell in zip(patches, cells, strict=False):
            cell.imshow(patch.permute(1, 2, 0).clamp(0, 1).cpu().numpy())
        cells[0].set_ylabel(name, fontsize=8)
    return figure


def views_figure(patches: Tensor, augmentation: Augmentation, seed: int) -> Figure:
    """Patches uint8 (n, 3, H, W) as read, after the shared geometry, and altered."""
    raw, altered = _views(patches, recipe_of(augmentation), seed)
    return patch_grid([("as read", as_float(patches)), ("raw", raw), ("altered", altered)])


def regeneration_figure(
    network: StainAgLr, patches: Tensor, augmentation: Augmentation, seed: int, device: torch.device
) -> Figure:
    """Raw patches, altered ones, and what the generator makes of the altered ones' features.

    Args:
        network: with a generator, in evaluation mode.
        patches: uint8 (n, 3, H, W).
        augmentation: how patches are altered.
        seed: of that.
        device: where the network lies.
    """
    raw, altered = _views(patches, recipe_of(augmentation), seed)
    assert network.generator is not None
    with torch.no_grad():
        regenerated = network.generator(network.patch_classifier.features(altered.to(device)))
    return patch_grid([("raw", raw), ("altered", altered), ("regenerated", regenerated)])


def _views(patches: Tensor, recipe: HEDLight, seed: int) -> tuple[Tensor, Tensor]:
    return recipe(patches, torch.Generator().manual_seed(seed))


def embed(features: NDArray[Any], how: Literal["umap", "tsne"], seed: int = 0) -> NDArray[np.float64]:
    """Features (n, d) in two dimensions (n, 2); the same for the same seed.

    Raises:
        SettingError: umap-learn is not installed, or there are fewer than five patches.
    """
    if len(features) < 5:
        raise SettingError(f"{len(features)} patches make no picture of a feature space", remedy="predict more patches")
    if how == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(features) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed, method="barnes_hut")
        return np.asarray(tsne.fit_transform(features), dtype=np.float64)
    with warnings.catch_warnings():
        # umap-learn warns of parts that are not used here, and numba of its threads.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ImportError as error:
            raise SettingError(
                f"--embedding umap: umap-learn is not installed ({error})",
                remedy='pip install "stain-aglr[umap]", or give --embedding tsne',
            ) from error
        found = UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed, n_jobs=1).fit_transform(features)
    return np.asarray(found, dtype=np.float64)


def feature_figure(
    panels: Mapping[str, tuple[NDArray[Any], Sequence[str], NDArray[Any]]], how: Literal["umap", "tsne"]
) -> Figure:
    """Fig. 2: the feature space of networks; colour = laboratory, plus = class 0, dot = class 1.

    Args:
        panels: name of a network -> pooled features (n, d), laboratory of each patch, labels (n,).
        how: embedding; one is fitted for each network, on all of its patches together.
    """
    shown = []
    for name, (features, sites, labels) in panels.items():
        order = np.random.default_rng(0).permutation(len(features))[:MOST_POINTS]
        points = embed(np.asarray(features)[order], how)
        place, truth = np.asarray(sites, dtype=object)[order], np.asarray(labels)[order]
        kinds = []
        for colour, site in zip(_colours(), sorted(set(sites)), strict=False):
            for k, marker, size in ((0, "P", 13.0), (1, "o", 8.0)):
                chosen = points[(place == site) & (truth == k)]
                if len(chosen):
                    kinds.append(Points(chosen, colour, f"{site}, {k}", marker, size))
        shown.append((name, kinds))
    return scatter(shown, columns=2, same_axes=False)


def _colours() -> list[str]:
    return [*COLOURS, "#7f7f7f", "#8c564b", "#bcbd22", "#17becf"]


def sensitivity_figure(curves: Mapping[str, Mapping[float, Sequence[float]]]) -> Figure:
    """Fig. 5: mean AUC over the test laboratories against the weight of a loss.

    Args:
        curves: name of the weight -> weight -> mean AUC of each seed. A weight of 0 is left out: the axis is logarithmic.
    """
    figure = Figure(figsize=(3.4 * len(curves), 3.0), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        weights = sorted(weight for weight in values if weight > 0)
        means = [np.mean(values[weight]) for weight in weights]
        spread = [np.std(values[w], ddof=1) if len(values[w]) > 1 else 0.0 for w in weights]
        axes.errorbar(weights, means, spread, marker="o", color=COLOURS[0], capsize=3, linewidth=1.6)
        axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.set_ylabel("mean AUC")
        axes.grid(visible=True, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
