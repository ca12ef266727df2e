"""ODEx: the pool that decides which network learns a stage, which one is cloned, and which one answers.

In the order of the paper (section 2) and of the specification (2.6 to 2.9). Everything here works on features z: where they come from
is in `features.py`, what a stage leaves behind of them (Eq. 3) in `gaussians.py`, the training in between in `learning.py`.
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

from dart_core.arrays import elementwise
from dart_core.errors import InputError, SettingError
from odex.gaussians import (
    Array,
    Covariance,
    Gaussian,
    check_choice,
    check_covariance,
    checked_features,
    rank_warning,
    summed_distance,
)

Selection = Literal["mean", "sum", "normalised"]
Normalisation = Literal["per_model", "per_stage_mean", "raw"]
Distance = Literal["mahalanobis", "gram"]
Action = Literal["update", "expand"]
Features: TypeAlias = Array | Sequence[Array]
"""(n, d), the same for every model of the pool; or one array for each of them, since each has features of its own."""

MULTIPLIER = 2.0
"""Of the largest in-distribution distance (upper bound of the normalisation), and of mu in the threshold."""


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
        check_choice("selection", selection, Selection)
        check_choice("normalisation", normalisation, Normalisation)
        check_choice("distance", distance, Distance)
        check_covariance(covariance, shrinkage)
        if threshold != "2mu" and not _is_number(threshold):
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
        own = self._per_model(features)[index] if len(self) else checked_features(_first(features))
        held_out = None
        if validation_features is not None and len(_first(validation_features)) > 1:
            held_out = self._per_model(validation_features)[index] if len(self) else _first(validation_features)
        self.record(len(self) if action == "expand" else index, own, held_out)
        return action

    def decide(self, features: Features) -> Action:
        """Train the closest model on a stage, or a clone of it? `last` says why; nothing is recorded."""
        if not len(self):
            checked_features(_first(features))
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

        Warns:
            UserWarning: an empirical covariance without full rank: distances ignore the directions that it lacks.
        """
        if action != "update" and index == self._parent and self._parent is not None:
            index = len(self)
        if not 0 <= index <= len(self):
            raise InputError(f"no model {index}; there are {len(self)}")
        z = checked_features(features)
        fit = self._fit
        new = fit(z)
        if self.distance == "mahalanobis" and self.covariance == "empirical" and new.rank < z.shape[1]:
            warnings.warn(rank_warning(len(z), z.shape[1], new.rank), stacklevel=2)
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
            held_out = checked_features(validation_features)
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
            return [checked_features(features)] * len(self)
        if len(features) != len(self):
            raise InputError(f"features for {len(features)} models; there are {len(self)}")
        return [checked_features(own) for own in features]


def _first(features: Features) -> Array:
    return features if isinstance(features, Tensor | np.ndarray) else features[0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)
