"""What the paper compares with: EWC, RW, LwF, MiB and PLOP, as published and adapted to streams whose classes stay the same.

Specification 4.2 to 4.6, "intended". What the authors' program computes instead is in `as_coded.py`. Label maps are (N, 1, ...) or
(N, ...) of an integer type; a list has one entry per output of the network, full resolution first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError, SettingError
from dart_core.losses import deep_supervision_weights

Named: TypeAlias = Mapping[str, Tensor]
Stages: TypeAlias = Named | Sequence[Named]
"""One old stage, or several."""
Levels: TypeAlias = Tensor | Sequence[Tensor]

GUARD = 1e-8
BINS = 100
FLOOR = 0.001


# --- EWC (4.2) -------------------------------------------------------------------------------------------------------


def ewc_penalty(parameters: Named, stars: Stages, fishers: Stages, lam: float = 0.4) -> Tensor:
    """(lambda / 2) sum over old stages t and parameters p of F_tp (theta_p - theta*_tp)^2.

    Args:
        parameters: by name, with gradient.
        stars: parameters at the end of each old stage.
        fishers: diagonal Fisher information of each old stage.
        lam: lambda.

    Returns:
        scalar; 0 without old stages.

    Raises:
        ValueError: names that do not fit.
    """
    return 0.5 * lam * _anchored(parameters, _stages(stars), _stages(fishers))


def fisher_information(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    loss: Callable[[Any, Any], Tensor],
    per: Literal["sample", "batch"] = "sample",
) -> dict[str, Tensor]:
    """Mean squared gradient of the loss, for every parameter.

    The model is taken in the mode it is in, and its gradients are left as they were.

    Args:
        model: at the end of a stage.
        batches: pairs (x, y): the model gets x, the loss the model's output and y. A list y is cut like x, entry by entry.
        loss: mean over a batch.
        per: squares of the gradients of single samples, or of mini-batches.

    Returns:
        by parameter name; 0 where no gradient arrives.

    Raises:
        ValueError: no batch.
    """
    if per not in ("sample", "batch"):
        raise SettingError(f"per is {per!r}", remedy="give sample or batch")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    own = [dict(model.named_parameters())[name] for name in names]
    total = [torch.zeros_like(parameter) for parameter in own]
    count = 0
    for x, y in batches:
        parts = [(x, y)] if per == "batch" else [(x[i : i + 1], _cut(y, i)) for i in range(len(x))]
        for one, truth in parts:
            gradients = torch.autograd.grad(loss(model(one), truth), own, allow_unused=True)
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_ += gradient.square()
            count += 1
    if not count:
        raise InputError("no batch to take the Fisher information from")
    return {name: sum_ / count for name, sum_ in zip(names, total, strict=True)}


# --- Riemannian walk (4.3) -------------------------------------------------------------------------------------------


def rw_penalty(parameters: Named, stars: Stages, fishers: Stages, scores: Stages, lam: float = 0.4) -> Tensor:
    """lambda sum over old stages t and parameters p of (F_tp + s_tp) (theta_p - theta*_tp)^2.

    Args:
        parameters: by name, with gradient.
        stars: parameters at the end of each old stage.
        fishers: of each old stage (`RWTracker`), normalised.
        scores: likewise.
        lam: lambda.

    Returns:
        scalar; 0 without old stages.
    """
    weights = [
        {name: fisher[name] + score[name] for name in fisher}
        for fisher, score in zip(_stages(fishers), _stages(scores), strict=True)
    ]
    return lam * _anchored(parameters, _stages(stars), weights)


class RWTracker:
    """Running Fisher information and score of the parameters while a stage is trained.

    Args:
        every: iterations between looks; the first is iteration 0.
        alpha: share of the new squared gradient.
        eps: added to the denominator of the score.

    Attributes:
        fisher: by parameter name.
        score: by parameter name.
    """

    def __init__(self, every: int = 10, alpha: float = 0.9, eps: float = 1e-8) -> None:
        self.every = every
        self.alpha = alpha
        self.eps = eps
        self.count = 0
        self.fisher: dict[str, Tensor] = {}
        self.score: dict[str, Tensor] = {}
        self.before: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, parameters: Named, gradients: Mapping[str, Tensor | None]) -> None:
        """Once per iteration, behind the optimiser's step, with the gradients of that step (None: no gradient)."""
        look = self.count % self.every == 0
        self.count += 1
        if not look:
            return
        for name, value in parameters.items():
            gradient = gradients.get(name)
            g = torch.zeros_like(value) if gradient is None else gradient.detach()
            fisher = self.fisher.get(name, torch.zeros_like(value))
            score = self.score.get(name, torch.zeros_like(value))
            if name in self.before:
                moved = value.detach() - self.before[name]
                score = score + (-g * moved / (0.5 * fisher * moved.square() + self.eps)).clamp(min=0)
            self.score[name] = score
            self.before[name] = value.detach().clone()
            self.fisher[name] = self.alpha * g.square() + (1 - self.alpha) * fisher

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"count": self.count, "fisher": self.fisher, "score": self.score, "before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.count = int(state["count"])
        self.fisher, self.score, self.before = (dict(state[name]) for name in ("fisher", "score", "before"))


def rw_normalise(values: Any) -> Any:
    """(v - min) / (max - min + 1e-8), minimum and maximum over all parameters together.

    Args:
        values: by parameter name, or one tensor.

    Returns:
        likewise, in [0, 1].
    """
    parts = list(values.values()) if isinstance(values, Mapping) else [values]
    low = torch.stack([part.min() for part in parts]).min()
    high = torch.stack([part.max() for part in parts]).max()
    scaled = [(part - low) / (high - low + GUARD) for part in parts]
    return dict(zip(values, scaled, strict=True)) if isinstance(values, Mapping) else scaled[0]


# --- LwF (4.4) -------------------------------------------------------------------------------------------------------


def lwf_loss(logits: Levels, old_logits: Levels, temperature: float = 2.0) -> Tensor:
    """T^2 KL(softmax(old / T) || softmax(new / T)), mean over voxels, at full resolution.

    Args:
        logits: (N, C, ...), or one for each output of the network, of which the first counts.
        old_logits: of the frozen network on the same batch; for a single tensor `logits`, a list is several old
            networks, whose terms are added.
        temperature: T.
    """
    new = _first(logits)
    old = [_first(old_logits)] if isinstance(old_logits, Tensor) or not isinstance(logits, Tensor) else list(old_logits)
    log_new = F.log_softmax(new / temperature, 1)
    terms = []
    for one in old:
        log_old = F.log_softmax(one.detach() / temperature, 1)
        terms.append((log_old.exp() * (log_old - log_new)).sum(1).mean())
    return temperature**2 * torch.stack(terms).sum()


# --- MiB (4.5) -------------------------------------------------------------------------------------------------------


def unbiased_ce(logits: Tensor, labels: Tensor, old_classes: int) -> Tensor:
    """Cross-entropy in which the background stands for background and all old classes together.

    Args:
        logits: (N, C, ...).
        labels: classes below `old_classes` count as background.
        old_classes: with the background; 1 is the plain cross-entropy.

    Returns:
        scalar, mean over voxels.
    """
    y = _labels(labels, logits)
    log_p = F.log_softmax(logits, 1)
    background = torch.logsumexp(log_p[:, :old_classes], 1, keepdim=True)
    # Old classes have no probability of their own here: their labels are background.
    unused = log_p.new_zeros(len(log_p), old_classes - 1, *log_p.shape[2:])
    joint = torch.cat((background, unused, log_p[:, old_classes:]), 1)
    return F.nll_loss(joint, torch.where(y < old_classes, 0, y))


def unbiased_kd(logits: Tensor, old_logits: Tensor, alpha: float = 1.0) -> Tensor:
    """-(1/C) sum_c softmax(alpha old)_c log p_c, mean over voxels; the new background is background and new classes together.

    Args:
        logits: (N, C + new classes, ...).
        old_logits: (N, C, ...), of the frozen network.
        alpha: multiplies the old logits.

    Raises:
        ValueError: fewer new classes than old ones.
    """
    old_classes, classes = old_logits.shape[1], logits.shape[1]
    if classes < old_classes:
        raise InputError(f"{classes} classes now, {old_classes} before", remedy="classes may only be added")
    log_p = F.log_softmax(logits, 1)
    q = (alpha * old_logits.detach()).softmax(1)
    background = torch.logsumexp(torch.cat((log_p[:, :1], log_p[:, old_classes:]), 1), 1, keepdim=True)
    joint = torch.cat((background, log_p[:, 1:old_classes]), 1)
    return -(q * joint).sum(1).mean() / old_classes


def mib_loss(
    logits: Levels,
    labels: Levels,
    old_logits: Levels,
    weights: Sequence[float] | None = None,
    alpha: float = 0.9,
    lkd: float = 1.0,
) -> Tensor:
    """sum_k w_k CE(x_k, y_k) + lkd sum_k w_k KD(x_k, old_k): the whole loss of stages after the first, without Dice.

    Args:
        logits: one for each output.
        labels: likewise.
        old_logits: likewise, of the frozen network on the same batch.
        weights: of the outputs; None: those of deep supervision.
        alpha: of `unbiased_kd`.
        lkd: weight of the distillation.
    """
    new, truth, old = (_levels(part) for part in (logits, labels, old_logits))
    factors = _weights(weights, new, truth, old)
    terms = []
    for w, x, y, x_old in zip(factors, new, truth, old, strict=True):
        if w:
            # With new classes the old ones hide in the background of the labels.
            old_classes = x_old.shape[1] if x.shape[1] > x_old.shape[1] else 1
            terms.append(w * (unbiased_ce(x, y, old_classes) + lkd * unbiased_kd(x, x_old, alpha)))
    return torch.stack(terms).sum()


# --- PLOP (4.6) ------------------------------------------------------------------------------------------------------


def prediction_entropy(p: Tensor) -> Tensor:
    """-sum_c p_c log p_c / log C, between 0 and 1.

    Args:
        p: (N, C, ...) probabilities.

    Returns:
        (N, ...).
    """
    return -(p * (p + GUARD).log()).sum(1) / math.log(p.shape[1])


def plop_thresholds(entropies: Tensor, classes: Tensor, n_classes: int) -> Tensor:
    """The median entropy of each predicted class from a histogram of 100 bins, but at least 0.001.

    Args:
        entropies: normalised entropy of the old network on background voxels, any shape.
        classes: its predicted class there, of the same shape.
        n_classes: classes with the background.

    Returns:
        (n_classes,) float64; 0.001 for a class that is never predicted.
    """
    return thresholds_of(entropy_histogram(entropies, classes, n_classes))


def entropy_histogram(entropies: Tensor, classes: Tensor, n_classes: int) -> Tensor:
    """(n_classes, 100) counts of entropies by predicted class; histograms of several batches may be added."""
    bins = (entropies.flatten() * BINS).long().clamp(0, BINS - 1)
    return torch.bincount(classes.flatten().long() * BINS + bins, minlength=n_classes * BINS).view(n_classes, BINS)


def thresholds_of(histogram: Tensor) -> Tensor:
    """The medians of histograms (n, 100), interpolated within their bins, but at least 0.001."""
    counts = histogram.double()
    half = counts.sum(1) / 2
    running = counts.cumsum(1)
    index = (running < half[:, None]).sum(1).clamp(max=BINS - 1)
    inside = counts.gather(1, index[:, None])[:, 0]
    before = running.gather(1, index[:, None])[:, 0] - inside
    median = (index + (half - before) / inside.clamp(min=GUARD)) / BINS
    return torch.where(half > 0, median, 0).clamp(min=FLOOR)


def pseudo_labels(labels: Tensor, old_logits: Tensor, confident: Tensor) -> Tensor:
    """The old network's arg-max where it is confident, else the given label; both (N, ...)."""
    return torch.where(confident, old_logits.argmax(1), labels)


def pseudo_label_loss(logits: Tensor, labels: Tensor, old_logits: Tensor, confident: Tensor) -> Tensor:
    """Mean over samples of ratio (mean CE of confident voxels + mean CE of the others); ratio = confident background / background.

    Args:
        logits: (N, C, ...).
        labels: (N, ...).
        old_logits: (N, C, ...).
        confident: (N, ...) bool: background voxels where the old network is sure.
    """
    ce = F.cross_entropy(logits, pseudo_labels(labels, old_logits, confident), reduction="none")
    sure, rest = ((ce * chosen).sum() / chosen.sum().clamp(min=1) for chosen in (confident.to(ce), (~confident).to(ce)))
    # A patch without background has no confident one either: its ratio is 0, not 0 / 0.
    ratio = confident.flatten(1).sum(1) / (labels == 0).flatten(1).sum(1).clamp(min=1)
    return ratio.to(ce).mean() * (sure + rest)


def pod_loss(new: Sequence[Tensor], old: Sequence[Tensor], scales: int = 3) -> Tensor:
    """Distance of pooled features: L2 norm per sample, mean over the batch, then over the layers.

    For scale s = 0, 1, ... the last two axes are split into 2^s x 2^s windows, each averaged over its width and over its
    height; everything of a sample makes one vector. In 3-D every slice of the depth counts as channels do.

    Args:
        new: features of each layer, (N, C, H, W) or (N, C, D, H, W).
        old: of the frozen network on the same batch.
        scales: number of scales; one that a layer is too small for is left out.

    Raises:
        ValueError: another number of layers, or none.
    """
    if len(new) != len(old) or not len(new):
        raise InputError(f"{len(new)} new and {len(old)} old layers do not compare")
    norms = []
    for a, b in zip(new, old, strict=True):
        difference = _pooled(a - b.detach(), scales)
        norms.append(torch.linalg.vector_norm(difference, dim=1).mean())
    return torch.stack(norms).mean()


def _pooled(x: Tensor, scales: int) -> Tensor:
    """(N, ...): the pooled windows of all scales; pooling is linear, so that of a difference is the difference."""
    height, width = x.shape[-2:]
    parts = []
    for scale in range(scales):
        h, w = height >> scale, width >> scale
        if not (h and w):
            break
        windows = x[..., : h << scale, : w << scale].unflatten(-1, (-1, w)).unflatten(-3, (-1, h))
        parts += [windows.mean(-1).flatten(1), windows.mean(-3).flatten(1)]
    return torch.cat(parts, 1)


def plop_loss(
    logits: Levels,
    labels: Levels,
    old_logits: Levels,
    thresholds: Tensor,
    features: Sequence[Tensor],
    old_features: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    pod_lambda: float = 0.01,
    scales: int = 3,
) -> Tensor:
    """sum_k w_k PL_k + pod_lambda POD: the whole loss of stages after the first, without Dice.

    Args:
        logits: one for each output.
        labels: likewise.
        old_logits: likewise, of the frozen network on the same batch.
        thresholds: (C,) of `plop_thresholds`: below it the old network is confident of a predicted class.
        features: of the layers that POD compares; empty: no POD.
        old_features: likewise.
        weights: of the outputs; None: those of deep supervision.
        pod_lambda: weight of POD.
        scales: of `pod_loss`.
    """
    new, truth, old = (_levels(part) for part in (logits, labels, old_logits))
    factors = _weights(weights, new, truth, old)
    terms = []
    for w, x, y, x_old in zip(factors, new, truth, old, strict=True):
        if w:
            y = _labels(y, x)
            entropy = prediction_entropy(x_old.detach().softmax(1))
            confident = (y == 0) & (entropy < thresholds.to(entropy)[x_old.argmax(1)])
            terms.append(w * pseudo_label_loss(x, y, x_old, confident))
    total = torch.stack(terms).sum()
    return total + pod_lambda * pod_loss(features, old_features, scales) if len(features) else total


# --- What they share -------------------------------------------------------------------------------------------------


def _anchored(parameters: Named, stars: Sequence[Named], weights: Sequence[Named]) -> Tensor:
    total = next(iter(parameters.values())).new_zeros(())
    for star, weight in zip(stars, weights, strict=True):
        if missing := (star.keys() ^ weight.keys()) | (star.keys() - parameters.keys()):
            raise InputError(f"parameter {min(missing)} is not everywhere", remedy="give those of one network")
        for name, anchor in star.items():
            total = total + (weight[name] * (parameters[name] - anchor).square()).sum()
    return total


def _stages(values: Stages) -> list[Named]:
    return [values] if isinstance(values, Mapping) else list(values)


def _first(values: Levels) -> Tensor:
    return values if isinstance(values, Tensor) else values[0]


def _levels(values: Levels) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else list(values)


def _cut(y: Any, i: int) -> Any:
    return [_cut(part, i) for part in y] if isinstance(y, list | tuple) else y[i : i + 1]


def _weights(weights: Sequence[float] | None, *levels: Sequence[Tensor]) -> list[float]:
    count = len(levels[0])
    factors = deep_supervision_weights(count) if weights is None else [float(w) for w in weights]
    if any(len(level) != len(factors) for level in levels) or not any(factors):
        raise InputError(
            f"{', '.join(str(len(level)) for level in levels)} outputs, label maps and old outputs, and {len(factors)} weights",
            remedy="give one of each per level, and a weight above 0",
        )
    return factors


def _labels(labels: Tensor, logits: Tensor) -> Tensor:
    """(N, ...) int64. The channel axis alone is taken out: a batch of one keeps its own."""
    if labels.ndim == logits.ndim:
        labels = labels[:, 0]
    if labels.shape != (len(logits), *logits.shape[2:]):
        raise InputError(f"labels have shape {tuple(labels.shape)}, the logits {tuple(logits.shape)}")
    return labels.long()
