"""The alignment loss in bottleneck space, its weight lambda, and the accumulation over mini-batches (paper Eqs. 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from dart_core.errors import InputError, SettingError

Form: TypeAlias = Literal["count_weighted_mean", "paper_sum", "per_sample_l1"]
Value = TypeVar("Value", float, Tensor)

UNASSIGNED = -1


def alignment_loss(
    features: Tensor, assignment: Tensor, source_means: Tensor, match: Tensor, form: Form = "count_weighted_mean"
) -> Tensor:
    """How far target slices are from the source clusters that theirs are matched with (paper Eq. 2; specification 2.4).

    With xbar_i the mean feature of the n_i slices in target cluster i, nu the source means and D numbers in a feature:

    - "count_weighted_mean" (the authors' code): sum_i n_i mean_D (xbar_i - nu_match(i))^2 / sum_i n_i;
    - "paper_sum" (Eq. 2): sum_i |xbar_i - nu_match(i)|^2;
    - "per_sample_l1" (the authors' ablation): sum over slices of mean_D |v - nu_match(i)|.

    Clusters without a slice take no part.

    Args:
        features: (B, ...) bottleneck features of target slices, with gradient.
        assignment: (B,) target cluster of each, -1 for none.
        source_means: (k, ...) nu, never given a gradient.
        match: (k,) source cluster of each target cluster.
        form: see above.

    Returns:
        A scalar; exactly 0 (with a gradient of zeros) where no slice has a cluster.

    Raises:
        ValueError: shapes that do not fit, an assignment outside -1 to k-1, or an unknown form.
    """
    if form not in ("count_weighted_mean", "paper_sum", "per_sample_l1"):
        raise SettingError(f"unknown alignment {form!r}", remedy="give count_weighted_mean, paper_sum or per_sample_l1")
    k = len(match)
    if features.shape[1:] != source_means.shape[1:] or len(assignment) != len(features) or len(source_means) != k:
        raise InputError(
            f"features {tuple(features.shape)}, assignment {tuple(assignment.shape)}, source means "
            f"{tuple(source_means.shape)} and match {tuple(match.shape)} do not fit",
            remedy="give (B, ...), (B,), (k, ...) and (k,)",
        )
    assignment = assignment.to(features.device, torch.long)
    if len(assignment) and not -1 <= int(assignment.min()) <= int(assignment.max()) < k:
        raise InputError("an assignment lies outside -1 to k-1", remedy="give the clusters of this clustering")
    dtype = torch.promote_types(features.dtype, torch.float32)
    features_BD = features.flatten(1).to(dtype)
    goals_KD = source_means.detach().flatten(1).to(features_BD)[match.to(features.device, torch.long)]
    chosen = assignment != UNASSIGNED
    if not bool(chosen.any()):
        return features_BD[:0].sum()
    features_BD, assignment = features_BD[chosen], assignment[chosen]
    if form == "per_sample_l1":
        return (features_BD - goals_KD[assignment]).abs().mean(1).sum()

    members_KB = torch.nn.functional.one_hot(assignment, k).T.to(dtype)
    counts = members_KB.sum(1)
    filled = counts > 0
    means_KD = members_KB[filled] @ features_BD / counts[filled, None]
    squares_KD = (means_KD - goals_KD[filled]).square()
    if form == "paper_sum":
        return squares_KD.sum()  # Eq. 2
    return (counts[filled] * squares_KD.mean(1)).sum() / counts.sum()


class LambdaNormaliser:
    """Brings the alignment loss to the scale of the segmentation loss (paper, below Eq. 3; specification 2.5).

    The first `warmup` positive values pass unchanged. Their mean is the normaliser for the rest of the run: from the next
    value on, the result is factor * value / normaliser. Zeros (iterations without alignment) are not counted.

    Args:
        factor: 0.9 in the authors' code; the paper's lambda is 1 over the mean, that is factor 1.
        warmup: values that are averaged.

    Raises:
        SettingError: no value to average.
    """

    def __init__(self, factor: float = 0.9, warmup: int = 6) -> None:
        if warmup < 1:
            raise SettingError(f"the warm-up is {warmup}", remedy="give at least 1")
        self.factor, self.warmup = factor, warmup
        self._values: list[float] = []

    @property
    def normaliser(self) -> float | None:
        """Mean of the first values; None before there are enough."""
        return math.fsum(self._values) / self.warmup if len(self._values) == self.warmup else None

    @property
    def scale(self) -> float:
        """What the next value will be multiplied by."""
        return 1.0 if self.normaliser is None else self.factor / self.normaliser

    def __call__(self, value: Value) -> Value:
        """Scale a value, and count it while warming up.

        Args:
            value: float, or scalar tensor, whose gradient is scaled likewise; the normaliser itself has none.
        """
        scale = self.scale
        number = float(value.detach()) if isinstance(value, Tensor) else float(value)
        if len(self._values) < self.warmup and number > 0:
            self._values.append(number)
        return value * scale

    def state_dict(self) -> dict[str, Any]:
        """The values counted so far."""
        return {"values": list(self._values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the values on."""
        self._values = [float(value) for value in state["values"]]


class AlignmentAccumulator:
    """Counts assigned target slices until there are enough for an alignment (specification 2.4).

    The training loop also leaves with it the batches that those slices came in (`hold`): images, features and clusters. Kept
    this way they can be stored, which a graph of features could not, and the alignment passes them through the encoder again,
    one batch at a time, so that no more than one batch's activations are ever in memory.

    Args:
        threshold: more than this many slices are needed.
    """

    def __init__(self, threshold: int = 35) -> None:
        if threshold < 0:
            raise SettingError(f"the threshold is {threshold}", remedy="give at least 0")
        self.threshold = threshold
        self.count = 0
        self.pending: list[dict[str, Tensor]] = []

    def ready(self, n: int) -> bool:
        """Add `n` slices; True, and counting starts anew, when more than `threshold` have come together."""
        self.count += int(n)
        if self.count > self.threshold:
            self.count = 0
            return True
        return False

    def hold(self, images: Tensor, features: Tensor, assignment: Tensor) -> None:
        """Keep a batch that holds at least one assigned slice; the others would get no gradient.

        Args:
            images: (B, C, H, W).
            features: (B, ...), without gradient.
            assignment: (B,), -1 for none.
        """
        if bool((assignment != UNASSIGNED).any()):
            self.pending.append({"images": images, "features": features, "assignment": assignment})

    def clear(self) -> None:
        """Drop what has come together."""
        self.count = 0
        self.pending = []

    def state_dict(self) -> dict[str, Any]:
        """Count and held batches."""
        return {"count": self.count, "pending": list(self.pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them on."""
        self.count = int(state["count"])
        self.pending = [dict(batch) for batch in state["pending"]]
