"""What a stage leaves behind of its features, a mean and a covariance (Eq. 3), and how far other features lie from it (Eq. 4)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.arrays import accepts_arrays
from dart_core.errors import InputError, SettingError

Covariance = Literal["empirical", "shrunk", "ledoit_wolf"]
Array: TypeAlias = NDArray[Any] | Tensor

_WELL_CONDITIONED, _NEAR = 1e3, 8.0
"""Up to here, and with means so many deviations from their centre, the product may be computed in single precision."""
_BLOCK, _ROWS = 32, 512
"""Columns of a triangular factor, and features, that are multiplied at a time (benchmarks/speed/mahalanobis.py)."""


# --- Eq. 3: mean and covariance of a stage ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Gaussian:
    """What a stage leaves behind: its mean and covariance, the latter by the directions in which the features varied.

    Unpacks into mean (d,) and covariance (d, d). Kept like this, a stage of n images with d features takes n d numbers where
    n < d, and its distances cost as much (specification 2.3).
    """

    mean: Tensor
    """(d,) float64."""
    directions: Tensor
    """(d, r) orthonormal."""
    variances: Tensor
    """(r,) above 0."""
    rest: float = 0.0
    """Variance in every other direction; 0: such a direction does not count (the pseudo-inverse)."""

    def __iter__(self) -> Any:
        return iter((self.mean, self.covariance))

    @property
    def rank(self) -> int:
        """Directions in which the features of the stage varied."""
        return len(self.variances)

    @property
    def covariance(self) -> Tensor:
        """(d, d) float64."""
        found = (self.directions * (self.variances - self.rest)) @ self.directions.T
        found.diagonal().add_(self.rest)
        return found

    def distance(self, features: Tensor, squared: bool = True) -> Tensor:
        """Mahalanobis distance (n,) float64 of features (n, d)."""
        centred = features.double() - self.mean
        along = centred @ self.directions
        found = (along.square() / self.variances).sum(1)
        if self.rest:
            found = found + (centred.square().sum(1) - along.square().sum(1)).clamp(min=0) / self.rest
        return found if squared else found.sqrt()

    @classmethod
    def fit(cls, features: Tensor, covariance: Covariance = "empirical", shrinkage: float = 0.1) -> Gaussian:
        """The Gaussian of features (n, d); see `fit_gaussian`."""
        z = checked_features(features)
        eps = torch.finfo(z.dtype).eps
        z = z.double()
        n, d = z.shape
        if n < 2:
            raise InputError(
                "a Gaussian of one image has no spread", remedy="give at least two images, better more than features"
            )
        mean = z.mean(0)
        # Of n < d the thin factorisation: n^2 d operations where the covariance itself would take d^3.
        _, lengths, right = torch.linalg.svd(z - mean, full_matrices=False)
        variances = lengths.square() / n  # divisor N, Eq. 3
        kept = variances > variances[0] * d * eps
        directions, variances = right[kept].T.contiguous(), variances[kept]
        if covariance == "empirical":
            return cls(mean, directions, variances)
        share = shrinkage if covariance == "shrunk" else _ledoit_wolf_share(z - mean)
        rest = share * float(variances.sum()) / d
        return cls(mean, directions, (1 - share) * variances + rest, rest)

    @classmethod
    def point(cls, features: Tensor) -> Gaussian:
        """A mean without covariance: its distance is the mean square difference, (1 / n^2) sum_ij for Gram matrices."""
        z = checked_features(features).double()
        d = z.shape[1]
        return cls(z.mean(0), z.new_zeros(d, 0), z.new_zeros(0), float(d))


def fit_gaussian(features: Array, covariance: Covariance = "empirical", shrinkage: float = 0.1) -> tuple[Array, Array]:
    """Mean and covariance with divisor N (Eq. 3).

    Args:
        features: (n, d), n at least 2.
        covariance: empirical; shrunk: (1 - a) Sigma + a trace(Sigma) / d I; ledoit_wolf: a chosen from the features.
        shrinkage: a.

    Returns:
        mean (d,) and covariance (d, d), of the kind and type of `features` (whole numbers: float64).

    Raises:
        ValueError: not (n, d), one row, nan or infinite values, an unknown covariance, or a shrinkage outside [0, 1].

    Warns:
        UserWarning: an empirical covariance without full rank: distances ignore the directions that it lacks.
    """
    check_covariance(covariance, shrinkage)
    z = torch.as_tensor(features)
    found = Gaussian.fit(z, covariance, shrinkage)
    if covariance == "empirical" and (found.rank < z.shape[1] or len(z) <= z.shape[1]):
        warnings.warn(rank_warning(len(z), z.shape[1], found.rank), stacklevel=2)
    kind = z.dtype if z.is_floating_point() else torch.float64
    mean, sigma = found.mean.to(kind), found.covariance.to(kind)
    return (mean.numpy(), sigma.numpy()) if isinstance(features, np.ndarray) else (mean, sigma)


def rank_warning(count: int, size: int, rank: int) -> str:
    """One line about a covariance that is not of full rank."""
    return (
        f"the covariance of {count} images with {size} features has rank {rank}: shifts along other directions are not seen"
        " and distances of these images to themselves say nothing; give more images, or covariance 'shrunk'"
    )


def _ledoit_wolf_share(centred: Tensor) -> float:
    from sklearn.covariance import ledoit_wolf_shrinkage

    return float(ledoit_wolf_shrinkage(centred.cpu().numpy(), assume_centered=True))


# --- Mahalanobis distance --------------------------------------------------------------------------------------------


@accepts_arrays
def mahalanobis(features: Tensor, mean: Tensor, covariance: Tensor, squared: bool = True) -> Tensor:
    """(z - mu)^T Sigma^+ (z - mu), squared by default (specification 2.4), to one Gaussian or to several at once.

    A singular covariance is inverted where it is not: eigenvalues of at most max|l| d eps are dropped (`pinvh`).

    Args:
        features: (n, d).
        mean: (d,), or (k, d).
        covariance: (d, d), or (k, d, d), symmetric.
        squared: False gives the root.

    Returns:
        (n,), or (k, n), of the type of `features`.

    Raises:
        ValueError: shapes that do not fit, nan or infinite values.
    """
    z = checked_features(features)
    d = z.shape[1]
    several = mean.ndim == 2
    if mean.shape[-1:] != (d,) or mean.ndim > 2 or covariance.shape != (*mean.shape, d) or 0 in mean.shape:
        raise InputError(
            f"features have {d} columns, mean {tuple(mean.shape)}, covariance {tuple(covariance.shape)}",
            remedy="give mean (d,) and covariance (d, d), or (k, d) and (k, d, d)",
        )
    means = torch.atleast_2d(_finite(mean, "the mean")).to(z.device, torch.float64)
    sigmas = _finite(covariance, "the covariance").reshape(len(means), d, d).to(z.device)
    found = z.new_empty(len(means), len(z), dtype=torch.float64)
    factors, triangular, single = _whitening(sigmas)
    if triangular.any():
        found[triangular] = _squared_norms(z, means[triangular], factors[triangular], single[triangular])
    for k in (~triangular).nonzero()[:, 0].tolist():
        found[k] = ((z.double() - means[k]) @ _pseudo_whitening(sigmas[k])).square().sum(1)
    found = (found if squared else found.sqrt()).to(z.dtype)
    return found if several else found[0]


def _whitening(sigmas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Upper triangular W (k, d, d) float64 with W W^T = Sigma^-1; (k,) which Sigma have one; (k,) for which single precision does."""
    d, eps = sigmas.shape[1], torch.finfo(sigmas.dtype).eps
    sigma = sigmas.double()
    lower, failed = torch.linalg.cholesky_ex(sigma)
    inverse = torch.linalg.solve_triangular(lower, torch.eye(d, dtype=sigma.dtype, device=sigma.device), upper=False)
    # trace(Sigma) bounds the largest eigenvalue, 1 / trace(Sigma^-1) the smallest: no eigenvalue would be dropped.
    spread = sigma.diagonal(dim1=1, dim2=2).sum(1) * inverse.square().sum((1, 2))
    regular = (failed == 0) & (spread * d * eps < 1)
    return inverse.mT, regular, regular & (spread < _WELL_CONDITIONED * d * d)


def _squared_norms(z: Tensor, means: Tensor, factors: Tensor, single: Tensor) -> Tensor:
    """|(z - mu) W|^2 (k, n) for upper triangular W: a block of its columns needs only the rows above the block's end.

    One product for all Gaussians, a few hundred features at a time, so that what lies between stays in the processor's cache.
    """
    count, d = means.shape
    # Of the features' own type, so that it is subtracted from them without error.
    origin = means.mean(0).to(z.dtype).double()
    shifts = ((means - origin)[:, None] @ factors)[:, 0]
    # Means many deviations apart would cancel in single precision.
    near = bool((shifts.abs() < _NEAR).all())
    kind = torch.float32 if near and bool(single.all()) and z.dtype == torch.float32 else torch.float64
    centred = z.to(kind) - origin.to(kind)
    blocks = []
    for first in range(0, d, _BLOCK):
        last = min(first + _BLOCK, d)
        rows = factors[:, :last, first:last].mT.reshape(-1, last)
        blocks.append((rows.to(kind), shifts[:, first:last].reshape(-1, 1).to(kind)))
    found = []
    for part in centred.split(_ROWS):
        total = part.new_zeros(count, len(part))
        for rows, shift in blocks:
            white = torch.addmm(shift, rows, part[:, : rows.shape[1]].T, beta=-1)
            total += white.square_().view(count, -1, len(part)).sum(1)
        found.append(total)
    return torch.cat(found, 1).double()


def _pseudo_whitening(sigma: Tensor) -> Tensor:
    """W (d, r) float64 with W W^T = Sigma^+."""
    values, vectors = torch.linalg.eigh((sigma.double() + sigma.double().T) / 2)
    kept = values.abs() > values.abs().max() * len(sigma) * torch.finfo(sigma.dtype).eps
    if bool((values[kept] < 0).any()):
        raise InputError("the covariance has negative eigenvalues", remedy="give a covariance matrix")
    factor: Tensor = vectors[:, kept] / values[kept].sqrt()
    return factor


def summed_distance(history: Sequence[Gaussian], features: Tensor, squared: bool = True) -> Tensor:
    """Sum of the distances to the stages of a history (Eq. 4, the term that is minimised).

    A sum of quadratic forms is a quadratic form: a history of any length costs as much as one stage.

    Args:
        history: one or more stages.
        features: (n, d).
        squared: sum of squares, else of roots.

    Returns:
        (n,) float64.
    """
    if not squared or len(history) == 1 or 2 * sum(stage.rank for stage in history) < len(history[0].mean):
        return torch.stack([stage.distance(features, squared) for stage in history]).sum(0)
    origin = torch.stack([stage.mean for stage in history]).mean(0)
    directions = torch.cat([stage.directions for stage in history], 1)
    rests = [1 / stage.rest if stage.rest else 0.0 for stage in history]
    weights = torch.cat([1 / stage.variances - rest for stage, rest in zip(history, rests, strict=True)])
    form = (directions * weights) @ directions.T  # the sum of all precisions
    form.diagonal().add_(sum(rests))
    linear, constant = torch.zeros_like(origin), 0.0
    for stage, rest in zip(history, rests, strict=True):
        offset = stage.mean - origin
        pulled = stage.directions @ ((1 / stage.variances - rest) * (stage.directions.T @ offset)) + rest * offset
        linear, constant = linear + pulled, constant + float(offset @ pulled)
    centred = features.double() - origin
    squares: Tensor = (centred @ form * centred).sum(1) - 2 * (centred @ linear) + constant
    return squares.clamp(min=0)


# --- Checks ----------------------------------------------------------------------------------------------------------


def checked_features(features: Array) -> Tensor:
    """(n, d) finite; a single (d,) becomes (1, d)."""
    z = torch.as_tensor(features)
    z = z[None] if z.ndim == 1 else z
    if z.ndim != 2 or 0 in z.shape:
        raise InputError(f"features have shape {tuple(z.shape)}, (n, d) is needed")
    return _finite(z if z.is_floating_point() else z.double(), "the features")


def _finite(values: Tensor, what: str) -> Tensor:
    if not bool(values.isfinite().all()):
        raise InputError(f"{what} are not finite", remedy="check images and network for nan and infinite values")
    return values


def check_covariance(covariance: str, shrinkage: float) -> None:
    """Refuse an unknown covariance or a shrinkage outside [0, 1]."""
    check_choice("covariance", covariance, Covariance)
    if not 0 <= shrinkage <= 1:
        raise SettingError(f"shrinkage is {shrinkage}", remedy="give a number from 0 to 1")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse what a Literal does not list."""
    if value not in choices.__args__:
        raise SettingError(f"{name} is {value!r}", remedy=f"give one of {', '.join(choices.__args__)}")
