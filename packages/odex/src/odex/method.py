"""ODEx: stage statistics, distances, and the pool that decides which network learns and which one answers.

In the order of the paper (section 2) and of the specification (2.2 to 2.9). Everything here works on features z; where they come
from is in `features.py`, the training in between in `learning.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.arrays import accepts_arrays, elementwise
from dart_core.errors import InputError, SettingError

Covariance = Literal["empirical", "shrunk", "ledoit_wolf"]
Selection = Literal["mean", "sum", "normalised"]
Normalisation = Literal["per_model", "per_stage_mean", "raw"]
Distance = Literal["mahalanobis", "gram"]
Action = Literal["update", "expand"]
Array: TypeAlias = NDArray[Any] | Tensor
Features: TypeAlias = Array | Sequence[Array]
"""(n, d), the same for every model of the pool; or one array for each of them, since each has features of its own."""

MULTIPLIER = 2.0
"""Of the largest in-distribution distance (upper bound of the normalisation), and of mu in the threshold."""
_WELL_CONDITIONED = 1e3
"""Up to here the product may be computed in single precision."""


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
        z = _checked(features).double()
        n, d = z.shape
        if n < 2:
            raise InputError(
                "a Gaussian of one image has no spread", remedy="give at least two images, better more than features"
            )
        mean = z.mean(0)
        # Of n < d the thin factorisation: n^2 d operations where the covariance itself would take d^3.
        _, lengths, right = torch.linalg.svd(z - mean, full_matrices=False)
        variances = lengths.square() / n  # divisor N, Eq. 3
        kept = variances > variances[0] * d * torch.finfo(features.dtype).eps if len(variances) else variances > 0
        directions, variances = right[kept].T.contiguous(), variances[kept]
        if covariance == "empirical":
            return cls(mean, directions, variances)
        share = shrinkage if covariance == "shrunk" else _ledoit_wolf_share(z - mean)
        rest = share * float(variances.sum()) / d
        return cls(mean, directions, (1 - share) * variances + rest, rest)

    @classmethod
    def point(cls, features: Tensor) -> Gaussian:
        """A mean without covariance: its distance is the mean square difference, (1 / n^2) sum_ij for Gram matrices."""
        z = _checked(features).double()
        d = z.shape[1]
        return cls(z.mean(0), z.new_zeros(d, 0), z.new_zeros(0), float(d))


def fit_gaussian(features: Array, covariance: Covariance = "empirical", shrinkage: float = 0.1) -> tuple[Array, Array]:
    """Mean and covariance with divisor N (Eq. 3).

    Args:
        features: (n, d), n at least 2.
        covariance: empirical; shrunk: (1 - a) Sigma + a trace(Sigma) / d I; ledoit_wolf: a chosen from the features.
        shrinkage: a.

    Returns:
        mean (d,) and covariance (d, d), of the kind and type of `features`.

    Raises:
        ValueError: not (n, d), one row, nan or infinite values, an unknown covariance, or a shrinkage outside [0, 1].

    Warns:
        UserWarning: an empirical covariance without full rank: distances ignore the directions that it lacks.
    """
    _check_covariance(covariance, shrinkage)
    z = torch.as_tensor(features)
    found = Gaussian.fit(z, covariance, shrinkage)
    if covariance == "empirical" and (found.rank < z.shape[1] or len(z) <= z.shape[1]):
        warnings.warn(rank_warning(len(z), z.shape[1], found.rank), stacklevel=2)
    mean, sigma = found.mean.to(z.dtype), found.covariance.to(z.dtype)
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
    """(z - mu)^T Sigma^+ (z - mu), squared by default (specification 2.4).

    A singular covariance is inverted where it is not: eigenvalues of at most max|l| d eps are dropped (`pinvh`).

    Args:
        features: (n, d).
        mean: (d,).
        covariance: (d, d), symmetric.
        squared: False gives the root.

    Returns:
        (n,) of the type of `features`.

    Raises:
        ValueError: shapes that do not fit, nan or infinite values.
    """
    z = _checked(features)
    d = z.shape[1]
    if mean.shape != (d,) or covariance.shape != (d, d):
        raise InputError(f"features have {d} columns, mean {tuple(mean.shape)}, covariance {tuple(covariance.shape)}")
    factor, single = _whitening(_finite(covariance, "the covariance"))
    kind = torch.float32 if single and z.dtype == torch.float32 else torch.float64
    white = (z.to(kind) - mean.to(z.device, kind)) @ factor.to(z.device, kind)
    found = torch.linalg.vecdot(white, white)
    return (found if squared else found.sqrt()).to(z.dtype)


def _whitening(covariance: Tensor) -> tuple[Tensor, bool]:
    """W (d, r) float64 with W W^T = Sigma^+, and whether Sigma is so well conditioned that single precision does."""
    sigma, d = covariance.double(), len(covariance)
    eps = torch.finfo(covariance.dtype).eps
    lower, failed = torch.linalg.cholesky_ex(sigma)
    if not int(failed):
        inverse = torch.linalg.solve_triangular(
            lower, torch.eye(d, dtype=sigma.dtype, device=sigma.device), upper=False
        )
        # trace(Sigma) bounds the largest eigenvalue, 1 / trace(Sigma^-1) the smallest: no eigenvalue would be dropped.
        spread = float(sigma.trace() * inverse.square().sum())
        if spread * d * eps < 1:
            return inverse.T, spread < _WELL_CONDITIONED * d * d
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    kept = values.abs() > values.abs().max() * d * eps
    if bool((values[kept] < 0).any()):
        raise InputError("the covariance has negative eigenvalues", remedy="give a covariance matrix")
    return vectors[:, kept] / values[kept].sqrt(), False


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
    return (torch.linalg.vecdot(centred @ form, centred) - 2 * (centred @ linear) + constant).clamp(min=0)


# --- Normalisation between the minimum and the doubled maximum; xi = 2 mu ----------------------------------------------


def normalisation_bounds(reference: Array | Sequence[float]) -> tuple[float, float, float]:
    """lo = min R, hi = 2 max R, and mu, the mean of the normalised R (specification 2.6).

    Args:
        reference: in-distribution distances R, at least one.

    Raises:
        ValueError: none, or nan, infinite or negative ones.
    """
    values = (
        torch.as_tensor(np.asarray(reference) if not isinstance(reference, Tensor) else reference).double().flatten()
    )
    if not len(values) or not bool(values.isfinite().all()) or bool((values < 0).any()):
        raise InputError(
            "in-distribution distances are finite, from 0 on, and at least one", remedy="check the features"
        )
    low, high = float(values.min()), MULTIPLIER * float(values.max())
    return low, high, float(np.mean(normalise_distance(values.cpu().numpy(), low, high)))


def normalise_distance(s: Any, lo: float, hi: float) -> Any:
    """(clip(s, lo, hi) - lo) / (hi - lo); with hi = lo (all distances 0) whatever lies above is 1.

    Args:
        s: a number, array or tensor.
        lo: lower bound.
        hi: upper bound.

    Returns:
        likewise, in [0, 1].
    """

    def rule(values: NDArray[Any]) -> NDArray[Any]:
        if hi == lo:
            return (values > lo).astype(np.float64)
        return np.asarray((np.clip(values, lo, hi) - lo) / (hi - lo))

    return elementwise(s, rule)


def dice_ex(
    before: float, after: float, drop: float = 0.10, mode: Literal["relative", "absolute"] = "relative"
) -> bool:
    """DiceEx (paper 4.2): whether the Dice has fallen by more than `drop` from `before` to `after`.

    Args:
        before: Dice of the network on the training images of its last stage, after it was trained on them.
        after: its Dice on the training images of the new stage, before it is trained on them.
        drop: how much it may fall.
        mode: relative to `before`, or absolute.

    Raises:
        ValueError: a Dice outside [0, 1], or an unknown mode.
    """
    if not (0 <= before <= 1 and 0 <= after <= 1):
        raise InputError(f"Dice {before} and {after} do not lie in [0, 1]")
    if mode not in ("relative", "absolute"):
        raise SettingError(f"mode is {mode!r}", remedy="give relative or absolute")
    fallen = before - after
    return bool(fallen > drop * before if mode == "relative" else fallen > drop)


# --- The pool: Eq. 4, expansion, selection ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """In-distribution distances in three numbers (`normalisation_bounds`), and their plain mean."""

    lo: float
    hi: float
    mu: float
    mean: float

    @classmethod
    def of(cls, reference: Tensor) -> Bounds:
        """Those of distances (n,)."""
        return cls(*normalisation_bounds(reference), float(reference.mean()))


class ModelPool:
    """Statistics of a growing number of models; decides which one to train, whether to clone it, and which one answers.

    Args:
        threshold: xi: "2mu" (paper) or a number in units of the normalised distance; -inf expands at every stage.
        selection: the closest model has the smallest mean over its history (2.7), the smallest sum as printed in Eq. 4
            (which no clone can win while its parent rests), or the smallest sum normalised without clipping.
        squared: Mahalanobis distances squared, as in the authors' code.
        history: keep all stages of a model; False: only its last one (ODEx -B).
        normalisation: of the sum over the history of each model; per_stage_mean: of every term by itself, which also
            selects; raw: none, with xi = 2 mean(R).
        covariance: of `fit_gaussian`.
        shrinkage: of `fit_gaussian`.
        distance: mahalanobis; gram: features are flattened Gram matrices (`features.gram_matrix`).

    Attributes:
        histories: for each model its stages in order, as `Gaussian`s (which unpack into mean and covariance).
        stages: for each model the numbers (from 0) of these stages.
        bounds: for each model those of its in-distribution distances, one for each stage of its history with
            per_stage_mean, else one.
        last: the latest decision: `key` (mean distance of the closest model), `score`, `threshold`, `index` (the closest
            model; after `record` the model that was trained). nan before there was any model to compare with.
    """

    def __init__(
        self,
        threshold: Literal["2mu"] | float = "2mu",
        selection: Selection = "mean",
        squared: bool = True,
        history: bool = True,
        normalisation: Normalisation = "per_model",
        *,
        covariance: Covariance = "empirical",
        shrinkage: float = 0.1,
        distance: Distance = "mahalanobis",
    ) -> None:
        _choice("selection", selection, Selection)
        _choice("normalisation", normalisation, Normalisation)
        _choice("distance", distance, Distance)
        _check_covariance(covariance, shrinkage)
        if threshold != "2mu" and (isinstance(threshold, str) or math.isnan(threshold)):
            raise SettingError(f"threshold is {threshold!r}", remedy="give 2mu or a number")
        self.threshold = threshold
        self.selection = selection
        self.squared = squared
        self.history = history
        self.normalisation = normalisation
        self.covariance: Covariance = covariance
        self.shrinkage = shrinkage
        self.distance = distance
        self.histories: list[list[Gaussian]] = []
        self.stages: list[list[int]] = []
        self.bounds: list[list[Bounds]] = []
        self.count = 0
        self.last: dict[str, Any] = {"key": math.nan, "score": math.nan, "threshold": math.nan, "index": 0}
        self._parent: int | None = None

    def __len__(self) -> int:
        return len(self.histories)

    def observe(self, features: Features, validation_features: Features | None = None) -> Action:
        """Decide about a stage and record it with these features, without any training in between.

        Args:
            features: of the stage's training images.
            validation_features: of its held-out images; without at least two, leave-one-out distances take their place.
        """
        action = self.decide(features)
        index = self.last["index"]
        own = self._per_model(features)[index] if len(self) else _checked(_first(features))
        held_out = None
        if validation_features is not None:
            held_out = self._per_model(validation_features)[index] if len(self) else _first(validation_features)
        self.record(len(self) if action == "expand" else index, own, held_out)
        return action

    def decide(self, features: Features) -> Action:
        """Train the closest model on a stage, or a clone of it? `last` says why; nothing is recorded."""
        if not len(self):
            _checked(_first(features))
            self.last = {"key": math.nan, "score": math.nan, "threshold": math.nan, "index": 0}
            self._parent = None
            return "expand"
        own = self._per_model(features)
        keys = [float(self._key(i, z).mean()) for i, z in enumerate(own)]
        index = int(np.argmin(keys))  # of equal ones the oldest
        score, threshold = float(self._score(index, own[index]).mean()), self._threshold(index)
        self.last = {"key": keys[index], "score": score, "threshold": threshold, "index": index}
        action: Action = "update" if score < threshold else "expand"  # cases 1 and 2
        self._parent = index if action == "expand" else None
        return action

    def record(
        self,
        index: int,
        features: Array,
        validation_features: Array | None = None,
        *,
        action: Action | None = None,
    ) -> None:
        """Append a stage to the history of the model that was trained on it.

        Args:
            index: the model; `len(pool)` is a new one, which begins with a copy of the history of the model that the last
                decision named (so does that model's own index right after a decision to expand).
            features: (n, d) of the stage's training images, by the trained network.
            validation_features: (m, d) of held-out images; without at least two, leave-one-out distances take their place.
            action: what was done, where it was decided otherwise (DiceEx); None: what `decide` said.

        Raises:
            ValueError: no such model, or features that do not fit its history.
        """
        if action != "update" and index == self._parent and self._parent is not None:
            index = len(self)
        if not 0 <= index <= len(self):
            raise InputError(f"no model {index}; there are {len(self)}")
        z = _checked(features)
        fit = self._fit
        new = fit(z)
        old: list[Gaussian] = []
        stages, bounds = [], []
        parent = index if index < len(self) else self.last["index"] if len(self) else None
        if parent is not None and self.history:
            old, stages = list(self.histories[parent]), list(self.stages[parent])
            bounds = list(self.bounds[parent])
        if old and len(old[0].mean) != z.shape[1]:
            raise InputError(f"features have {z.shape[1]} columns, those of the history {len(old[0].mean)}")
        before = [] if self.normalisation == "per_stage_mean" else old
        if validation_features is not None and len(validation_features) > 1:
            held_out = _checked(validation_features)
            reference = summed_distance([*before, new], held_out, self.squared)
        else:
            reference = self._leave_one_out(z, before)
        if self.normalisation != "per_stage_mean":
            bounds = []
        if index == len(self):
            self.histories.append([])
            self.stages.append([])
            self.bounds.append([])
        self.histories[index] = [*old, new]
        self.stages[index] = [*stages, self.count]
        self.bounds[index] = [*bounds, Bounds.of(reference)]
        self.count += 1
        self.last = {**self.last, "index": index}
        self._parent = None

    def select(self, features: Features) -> int:
        """The model that is closest to some images on average.

        Args:
            features: (n, d) or (d,), or one of these for each model.
        """
        return int(np.argmin([float(self._key(i, z).mean()) for i, z in enumerate(self._per_model(features))]))

    def infer(self, features: Features) -> Any:
        """The closest model of each image (2.9), the oldest of equal ones: (n,), an array for arrays."""
        keys = torch.stack([self._key(i, z) for i, z in enumerate(self._per_model(features))])
        chosen = torch.from_numpy(keys.cpu().numpy().argmin(0))
        return chosen if isinstance(_first(features), Tensor) else chosen.numpy()

    # Eq. 4 and 2.6, for one model

    def _sum(self, index: int, z: Tensor) -> Tensor:
        return summed_distance(self.histories[index], z, self.squared)

    def _key(self, index: int, z: Tensor) -> Tensor:
        """What the closest model has least of, for each image."""
        if self.normalisation == "per_stage_mean":
            return self._score(index, z)
        s = self._sum(index, z)
        if self.selection == "mean":
            return s / len(self.histories[index])
        if self.selection == "sum":
            return s
        bounds = self.bounds[index][0]
        return (s - bounds.lo) / max(bounds.hi - bounds.lo, torch.finfo(s.dtype).tiny)

    def _score(self, index: int, z: Tensor) -> Tensor:
        """What is compared with the threshold, for each image."""
        if self.normalisation == "per_stage_mean":
            terms = [
                normalise_distance(stage.distance(z, self.squared), bounds.lo, bounds.hi)
                for stage, bounds in zip(self.histories[index], self.bounds[index], strict=True)
            ]
            return torch.stack(terms).mean(0)
        s, bounds = self._sum(index, z), self.bounds[index][0]
        scaled: Tensor = s if self.normalisation == "raw" else normalise_distance(s, bounds.lo, bounds.hi)
        return scaled

    def _threshold(self, index: int) -> float:
        if self.threshold != "2mu":
            return float(self.threshold)
        raw = self.normalisation == "raw"
        return MULTIPLIER * float(np.mean([bounds.mean if raw else bounds.mu for bounds in self.bounds[index]]))

    def _fit(self, z: Tensor) -> Gaussian:
        return Gaussian.point(z) if self.distance == "gram" else Gaussian.fit(z, self.covariance, self.shrinkage)

    def _leave_one_out(self, z: Tensor, before: Sequence[Gaussian]) -> Tensor:
        """Distance of each image to the older stages and to the other images of its own."""
        least = 2 if self.distance == "gram" else 3
        if len(z) < least:
            raise InputError(
                f"{len(z)} images without held-out ones leave nothing to compare with",
                remedy=f"give at least {least} training images, or two of split val",
            )
        others = ~torch.eye(len(z), dtype=torch.bool)
        own = torch.stack([self._fit(z[rest]).distance(z[i : i + 1], self.squared)[0] for i, rest in enumerate(others)])
        return own + summed_distance(before, z, self.squared) if before else own

    def _per_model(self, features: Features) -> list[Tensor]:
        if not len(self):
            raise InputError("the pool is empty", remedy="record a stage first")
        if isinstance(features, Tensor | np.ndarray):
            return [_checked(features)] * len(self)
        if len(features) != len(self):
            raise InputError(f"features for {len(features)} models; there are {len(self)}")
        return [_checked(own) for own in features]


def _first(features: Features) -> Array:
    return features if isinstance(features, Tensor | np.ndarray) else features[0]


def _checked(features: Array) -> Tensor:
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


def _check_covariance(covariance: str, shrinkage: float) -> None:
    _choice("covariance", covariance, Covariance)
    if not 0 <= shrinkage <= 1:
        raise SettingError(f"shrinkage is {shrinkage}", remedy="give a number from 0 to 1")


def _choice(name: str, value: str, choices: Any) -> None:
    if value not in choices.__args__:
        raise SettingError(f"{name} is {value!r}", remedy=f"give one of {', '.join(choices.__args__)}")
