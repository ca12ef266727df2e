"""Feather-light Fourier domain adaptation (Zakazov et al., DART 2022), in the order of the paper.

The source network stays frozen. Each target slice receives the low-frequency Fourier amplitudes of well chosen source
slices (similarity.py, donors.py), keeps its own phase, is segmented once per donor, and the probabilities are averaged.

Shapes: volumes (H, W, Z) are processed along the last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dart_core.arrays import accepts_arrays
from dart_core.batches import Batches
from dart_core.data.slices import crop_or_pad, predict_slices
from dart_core.data.volumes import scale_percentile
from dart_core.errors import InputError, SettingError
from dart_core.fine_tuning import refuse_divergence
from dart_core.losses import bce_dice
from dart_core.metrics import to_numpy
from fda_mri.donors import DonorBank, SearchMode
from fda_mri.fourier import Output, fourier_transfer

if TYPE_CHECKING:
    from dart_core.run import Run
    from fda_mri.settings import Training


# --- Paper section 3: multi-source transfer --------------------------------------------------------------------------


@accepts_arrays
@torch.no_grad()
def multi_source_predict(
    model: Callable[[Tensor], Tensor],
    target: Tensor,
    donors: DonorBank | Tensor,
    beta: float,
    mode: SearchMode = "3d",
    n: int = 7,
    neighbours: int = 2,
    *,
    crop: int | None = 60,
    output: Output = "authors",
    average: Literal["probabilities", "logits"] = "probabilities",
    batch_size: int = 16,
) -> Tensor:
    """sum_j net(f_FDA(s_j, t)) / n (paper section 3): segment once per donor, average the probabilities.

    Args:
        model: network that maps (B, 1, h, w) to logits of the same shape; a module is put into evaluation mode for
            the call. It sees sides padded to multiples of 8.
        target: (H, W, Z) normalised target scan.
        donors: a bank to search (by `mode`, `n`, `neighbours`, `crop`), or (n, H, W, Z) donors already chosen, nan
            where a slice has fewer than n.
        beta: window radius, see `fourier_transfer`.
        output: see `fourier_transfer`.
        average: "logits" averages before the sigmoid; neither the paper nor its code do so.
        batch_size: slices per forward pass.

    Returns:
        (H, W, Z) foreground probabilities; the mask is probabilities > 0.5.

    Raises:
        ValueError: another grid, or a slice without any donor.

    Source: specification 2.5.
    """
    if isinstance(donors, DonorBank):
        scans, offsets, _ = donors.rank(target.cpu(), mode, n, neighbours, crop)
        donors = donors.gather(scans, offsets)
    total = torch.zeros_like(target)
    counts = target.new_zeros(target.shape[-1])
    for logits, present in predict_per_donor(model, target, donors, beta, output, batch_size):
        total[..., present] += logits.sigmoid() if average == "probabilities" else logits
        counts += present
    if bool((counts == 0).any()):
        raise InputError(f"slice {int((counts == 0).nonzero()[0])} of the target scan has no donor")
    mean = total / counts
    return mean if average == "probabilities" else mean.sigmoid()


@torch.no_grad()
def predict_per_donor(
    model: Callable[[Tensor], Tensor], target: Tensor, donors: Tensor, beta: float, output: Output, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The terms net(f_FDA(s_j, t)) of the sum, one donor rank after the other.

    Args:
        donors: (n, H, W, Z), nan in slices without a j-th donor; the others as in `multi_source_predict`.

    Yields:
        logits (H, W, P) of the P slices that have a j-th donor, and which they are, (Z,) bool.
    """
    if donors.ndim != 4 or donors.shape[1:] != target.shape:
        raise InputError(
            f"donors have shape {tuple(donors.shape)}, the target scan {tuple(target.shape)}",
            remedy="give (n, H, W, Z) donors on the target's grid",
        )
    slices = target.movedim(-1, 0)
    for donor in donors:
        styles = donor.to(target).movedim(-1, 0)
        present = torch.isfinite(styles).flatten(1).all(1)
        transferred = fourier_transfer(slices[present], styles[present], beta, output)
        yield predict_slices(model, transferred.movedim(0, -1), batch_size=batch_size), present


# --- Paper section 4.1: network input, loss, training of the source model --------------------------------------------


@accepts_arrays
def normalise_volume(volume: Tensor) -> Tensor:
    """Clip to the 1st and 99th percentile, subtract the minimum, divide by the maximum (specification 5.3).

    Args:
        volume: (H, W, Z) of any real dtype, without nan or infinity. No slices are dropped.

    Returns:
        float32 in [0, 1], the kind (array or tensor) that was given; a constant volume gives zeros.
    """
    return torch.from_numpy(scale_percentile(volume.detach().cpu().numpy(), 1, 99)).to(volume.device)


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """0.4 BCE + 0.6 Dice (paper section 4.1; specification 3).

    Args:
        logits: (B, ...) before the sigmoid.
        target: the same shape, 0 to 1.
    """
    return bce_dice(logits, target, bce_weight=0.4, dice_weight=0.6)


def training_batches(
    volumes: Sequence[np.ndarray], masks: Sequence[np.ndarray], settings: Training, seed: int
) -> Batches:
    """Batches of {"image", "mask"}, each (B, 1, crop_size, crop_size): random scan, random slice, random crop (specification 3)."""

    def load(scan: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
        z = int(generator.integers(volumes[scan].shape[-1]))
        image, mask = crop_or_pad(volumes[scan][..., z], masks[scan][..., z], settings.crop_size, generator)
        return {"image": image[None].astype(np.float32), "mask": mask[None].astype(np.float32)}

    return Batches(load, size=len(volumes), batch_size=settings.batch_size, seed=seed, replacement=True)


def train_source(
    run: Run,
    network: nn.Module,
    volumes: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    settings: Training,
    validation: tuple[Sequence[np.ndarray], Sequence[np.ndarray]] = ((), ()),
) -> nn.Module:
    """Train the source network with the paper's recipe (section 4.1); resumes where the run was stopped.

    Args:
        run: an entered run; says where, how, and from which step.
        network: usually `dart_core.nets.ResidualUNet2d(width=settings.width)`.
        volumes: normalised (H, W, Z) source training scans.
        masks: their masks, 0 and 1.
        settings: epochs, iterations, learning rate and crop.
        validation: volumes and masks whose loss is logged after every epoch, to see the plateau; nothing is selected.

    Returns:
        The trained network, on the run's device.
    """
    prepared = run.prepare(network)
    optimizer = torch.optim.SGD(
        prepared.parameters(), lr=settings.learning_rate, momentum=0.9, nesterov=True, foreach=True
    )
    run.restore(network=prepared, optimizer=optimizer)
    batches = training_batches(volumes, masks, settings, run.settings.seed)

    def loss_of(batch: dict[str, Tensor]) -> Tensor:
        return segmentation_loss(prepared(batch["image"]), batch["mask"])

    prepared.train()
    steps = settings.epochs * settings.iterations
    for step, batch in run.steps(batches, steps):
        rate = settings.learning_rate * (0.1 if step >= settings.drop_epoch * settings.iterations else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = run.optimise(optimizer, loss_of, batch, prepared)
        if step % settings.log_every == 0 or step + 1 == steps:
            refuse_divergence(float(loss), f"the loss of step {step}")
            run.log.write(step, loss=float(loss), learning_rate=rate)
        if (step + 1) % settings.iterations == 0 and validation[0] and run.is_main:
            run.log.write(step, validation_loss=validation_loss(network, *validation))
    return network


def validation_loss(network: nn.Module, volumes: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """Mean loss over all slices of some scans."""
    losses = []
    for volume, mask in zip(volumes, masks, strict=True):
        logits = predict_slices(network, torch.from_numpy(volume)).movedim(-1, 0)
        losses.append(segmentation_loss(logits, torch.from_numpy(mask).float().movedim(-1, 0)))
    return float(torch.stack(losses).mean())


# --- Paper sections 4.2 and 4.3: choice of the pairs and of beta -----------------------------------------------------


def select_beta(
    scores: np.ndarray, betas: Sequence[float], policy: Literal["averaged", "per_pair"] = "averaged"
) -> float | np.ndarray:
    """Beta with the best validation score (paper section 4.3; specification 2.6).

    Args:
        scores: (pairs, betas) mean validation surface Dice.
        betas: the grid, ascending.
        policy: "averaged" takes the maximum of the mean over pairs, "per_pair" one maximum for each pair.

    Returns:
        A float, or (pairs,) floats. The first maximum wins; where it is beta = 0 the next entry of the grid is taken.

    Raises:
        ValueError: shapes do not fit, a score is nan, or the grid holds nothing above 0.
    """
    table = np.atleast_2d(to_numpy(scores).astype(np.float64))
    grid = np.asarray(betas, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(grid) or np.isnan(table).any():
        raise InputError(
            f"scores of shape {np.shape(scores)} for {len(grid)} betas",
            remedy="give one finite score per pair and beta",
        )
    if policy not in ("averaged", "per_pair"):
        raise SettingError(f"unknown policy {policy!r}", remedy="give averaged or per_pair")
    curves = table.mean(0, keepdims=True) if policy == "averaged" else table
    best = curves.argmax(1)
    at_zero = grid[best] == 0
    if at_zero.any() and (best[at_zero] + 1 >= len(grid)).any():
        raise InputError("the best beta is 0 and the grid ends there", remedy="add a beta above 0")
    chosen = grid[best + at_zero]
    return float(chosen[0]) if policy == "averaged" else chosen


def select_pairs(
    matrix: np.ndarray,
    per_cluster: int = 2,
    by: Literal["score", "decline_vs_source", "decline_vs_target"] = "score",
) -> list[tuple[int, int]]:
    """Severe, medium and subtle source-target pairs of a transfer matrix (paper section 4.2; specification 2.7).

    Args:
        matrix: (sites, sites) score of `[target][source]`, in-domain scores on the diagonal.
        per_cluster: k pairs per cluster.
        by: what severity is: the transferred score itself (the authors' code), or its decline from the source
            model's own in-domain score, or from that of the target site's model.

    Returns:
        3 k tuples (source, target), the most severe first: the first k, the middle k and the last k of the list
        sorted by severity.

    Raises:
        ValueError: matrix not square, scores that are not finite, fewer than 3 k pairs, or an unknown `by`.
    """
    scores = to_numpy(matrix).astype(np.float64)
    sites = len(scores)
    if scores.shape != (sites, sites) or sites * (sites - 1) < 3 * per_cluster or per_cluster < 1:
        raise InputError(
            f"a transfer matrix of shape {scores.shape} has no three clusters of {per_cluster} pairs",
            remedy="give a square matrix of enough sites",
        )
    if by == "score":
        rising = scores
    elif by == "decline_vs_source":
        rising = scores - np.diag(scores)[None, :]
    elif by == "decline_vs_target":
        rising = scores - np.diag(scores)[:, None]
    else:
        raise SettingError(f"unknown order {by!r}", remedy="give score, decline_vs_source or decline_vs_target")
    if not np.isfinite(rising[~np.eye(sites, dtype=bool)]).all():
        raise InputError(
            "the transfer matrix has scores that are not finite", remedy="score these pairs or leave the site out"
        )
    # Equal ones stay in the order of their sources; so do declines that are equal on paper, hence the rounding.
    pairs = [(source, target) for source in range(sites) for target in range(sites) if source != target]
    pairs.sort(key=lambda pair: round(float(rising[pair[1], pair[0]]), 9))
    middle = (len(pairs) - per_cluster) // 2
    return pairs[:per_cluster] + pairs[middle : middle + per_cluster] + pairs[-per_cluster:]
