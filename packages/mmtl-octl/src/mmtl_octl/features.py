"""Fig. 1 of the paper: where the patients lie in the network's features while it is fine-tuned (specification 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.data.scans import Scan
from dart_core.data.slices import evaluating
from dart_core.errors import InputError
from dart_core.files import atomic_write
from mmtl_octl.pools import network_input

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GROUPS = {"source": "#1f77b4", "target train": "#2ca02c", "target test": "#d62728"}
"""Kinds of patients and their colours in the paper's figure."""
SIZES = {"source": 8.0, "target train": 32.0, "target test": 8.0}

FOLDER = "features"
PERPLEXITY = 10
NEAR = 20.0
"""L1 distance in the t-SNE plane within which a test patient counts as near the training patients."""
_FIRST, _LAST, _DEPTH = 120, 180, 269
"""The slices that the authors average over, of CC359 volumes of this many."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All patients at one moment of a fine-tuning."""

    epoch: int
    """Epochs done."""
    features: NDArray[np.float32]
    """(patients, d)."""
    loss: NDArray[np.float32]
    """(patients,) mean binary cross-entropy over their slices."""
    group: tuple[str, ...]
    """Kind of each patient, see GROUPS."""
    patient: tuple[str, ...]


def middle_slices(depth: int) -> range:
    """The slices that a patient's features are averaged over: 120 to 179, scaled down in volumes of fewer than 180."""
    if depth >= _LAST:
        return range(_FIRST, _LAST)
    first = depth * _FIRST // _DEPTH
    return range(first, max(first + 1, depth * _LAST // _DEPTH))


@torch.inference_mode()
def patient_features(
    network: nn.Module, layer: nn.Module, scan: Scan, channels: int, patch_size: int, batch_size: int = 16
) -> tuple[NDArray[np.float32], float]:
    """One patient as a vector: activations of a layer, averaged over channels and then over slices.

    Args:
        network: maps slices to logits; works in evaluation mode.
        layer: the part of it whose output is taken: of the U-Net the third residual block of the bottleneck.
        scan: with mask.
        channels: neighbouring slices that the network sees.
        patch_size: side of the centred patches, 0 = whole slices.
        batch_size: slices per forward pass.

    Returns:
        (h * w,) vector, and the mean loss over the same slices.
    """
    taken: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: taken.append(output.mean(1).flatten(1)))
    device = next(network.parameters()).device
    losses = []
    try:
        with evaluating(network):
            slices = list(middle_slices(scan.volume.shape[-1]))
            for start in range(0, len(slices), batch_size):
                pairs = [network_input(scan, z, channels, patch_size) for z in slices[start : start + batch_size]]
                images = torch.from_numpy(np.stack([image for image, _ in pairs])).to(device)
                masks = torch.from_numpy(np.stack([mask for _, mask in pairs])[:, None]).to(images)
                logits = network(images)
                losses.append(F.binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten(1).mean(1))
    finally:
        handle.remove()
    return torch.cat(taken).mean(0).cpu().numpy(), float(torch.cat(losses).mean())


def snapshot(
    epoch: int,
    network: nn.Module,
    layer: nn.Module,
    scans: Mapping[str, Sequence[Scan]],
    channels: int,
    patch_size: int,
) -> Snapshot:
    """The features of all patients, by group; for the arguments see `patient_features`."""
    rows = [(group, scan) for group, members in scans.items() for scan in members]
    found = [patient_features(network, layer, scan, channels, patch_size) for _, scan in rows]
    return Snapshot(
        epoch,
        np.stack([features for features, _ in found]),
        np.array([loss for _, loss in found], np.float32),
        tuple(group for group, _ in rows),
        tuple(scan.subject for _, scan in rows),
    )


def save_snapshot(folder: Path, taken: Snapshot) -> None:
    """Write it as features/epoch-*.npz in a run folder.

    Raises:
        OutputError: the file cannot be written.
    """
    arrays = {"features": taken.features, "loss": taken.loss, "group": np.array(taken.group)}
    with atomic_write(folder / FOLDER / f"epoch-{taken.epoch:03d}.npz") as temporary:
        np.savez_compressed(temporary, **arrays, patient=np.array(taken.patient))  # type: ignore[arg-type]


def load_snapshots(folder: Path) -> list[Snapshot]:
    """All snapshots of a run folder, by epoch.

    Raises:
        InputError: there are none, or one is damaged.
    """
    found = []
    for path in sorted((folder / FOLDER).glob("epoch-*.npz")):
        try:
            with np.load(path, allow_pickle=False) as data:
                group, patient = (tuple(str(text) for text in data[name]) for name in ("group", "patient"))
                found.append(Snapshot(int(path.stem[6:]), data["features"], data["loss"], group, patient))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"cannot be read ({error})", where=path, remedy="run `adapt --features` again") from error
    if not found:
        raise InputError(
            f"holds no {FOLDER}/", where=folder, remedy="give the run folder of an `mmtl-octl adapt` with --features"
        )
    return found


def embed(features: NDArray[np.floating], seed: int = 0) -> NDArray[np.float64]:
    """t-SNE into two dimensions: perplexity 10, started from the principal components, automatic learning rate.

    With 30 patients or fewer the perplexity is a third of their number less one.

    Args:
        features: (patients, d).
        seed: of the optimisation.

    Returns:
        (patients, 2).

    Raises:
        InputError: fewer than four patients.
    """
    from sklearn.manifold import TSNE

    if len(features) < 4:
        raise InputError(f"{len(features)} patients are too few for t-SNE", remedy="give at least four")
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return np.asarray(tsne.fit_transform(np.asarray(features, dtype=np.float64)), dtype=np.float64)


def near_and_far(taken: Snapshot, points: NDArray[np.floating]) -> dict[str, float]:
    """Mean loss of the target test patients near the target training patients and far from them.

    Args:
        taken: the patients.
        points: (patients, 2), where `embed` put them.

    Returns:
        near, far (numbers of patients), loss_near, loss_far (nan where there is none).
    """
    group = np.array(taken.group)
    tests, trained = group == "target test", group == "target train"
    distance = np.abs(points[tests][:, None] - points[trained][None]).sum(-1)
    near = (distance <= NEAR).any(1)
    loss = taken.loss[tests]
    return {
        "near": int(near.sum()),
        "far": int((~near).sum()),
        "loss_near": float(loss[near].mean()) if near.any() else float("nan"),
        "loss_far": float(loss[~near].mean()) if (~near).any() else float("nan"),
    }


def progress_figure(snapshots: Sequence[Snapshot], points: Sequence[NDArray[np.floating]]) -> Figure:
    """One side of Fig. 1: a panel for each snapshot, one point for each patient."""
    from dart_core.figures import Points, scatter

    panels = []
    for number, (taken, where) in enumerate(zip(snapshots, points, strict=True)):
        group = np.array(taken.group)
        kinds = [
            Points(where[group == name], colour, name if number == 0 else "", size=SIZES[name])
            for name, colour in GROUPS.items()
            if (group == name).any()
        ]
        panels.append((f"epoch {taken.epoch}", kinds))
    return scatter(panels, columns=3, same_axes=False)
