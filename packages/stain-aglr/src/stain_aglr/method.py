"""Stain-AgLr in the order of the paper: losses (section 1.2), the step, the schedule and the loop (section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.batches import Batches
from dart_core.checkpoint import unwrap
from dart_core.errors import InputError, SettingError
from dart_core.fine_tuning import validated
from dart_core.run import Run
from stain_aglr.light import BLUR, HEDLight, as_float, random_turns
from stain_aglr.networks import PatchClassifier, StainAgLr
from stain_aglr.settings import (
    ALTERED,
    CONSISTENT,
    REGENERATING,
    Augmentation,
    CrossEntropyOn,
    Losses,
    Method,
    RegenerationForm,
    Training,
)  # fmt: skip

LAMBDA1, LAMBDA2 = 0.1, 10.0
"""Weights of the regeneration and the consistency loss (section 2.1)."""
DROP = 0.1
"""Factor of the learning rate on a plateau."""
CLOSE = 1 + 1e-6
"""A learning rate that came down by multiplications counts as the stopping one up to rounding (specification 2.5)."""
_AUGMENT = 2
"""Key of the augmentation's random numbers, beside those of `dart_core.batches`."""


# --- Losses (specification 2.4) --------------------------------------------------------------------------------------


def consistency_loss(
    logits_raw: Tensor, logits_altered: Tensor, detach_target: bool = False, reduction: str = "batchmean"
) -> Tensor:
    """Kullback-Leibler divergence of the prediction for the altered patch from that for the raw one (Eq. 2).

    KL(p || q) = sum_k p_k (log p_k - log q_k) with p = softmax(logits_raw), q = softmax(logits_altered).

    Args:
        logits_raw: (B, K).
        logits_altered: (B, K).
        detach_target: no gradient into `logits_raw` (unsupervised data augmentation's choice; the paper prints none).
        reduction: "batchmean" divides the sum by B, "mean" by B K.

    Returns:
        Scalar, 0 or more.

    Raises:
        ValueError: another reduction, or shapes that differ.
    """
    if logits_raw.shape != logits_altered.shape or logits_raw.dim() != 2:
        raise InputError(
            f"the logits have shapes {tuple(logits_raw.shape)} and {tuple(logits_altered.shape)}",
            remedy="give (B, K) twice",
        )
    if reduction not in ("batchmean", "mean"):
        raise SettingError(f"reduction is {reduction!r}", remedy="give batchmean or mean")
    target = F.log_softmax(logits_raw.detach() if detach_target else logits_raw, 1)
    total = F.kl_div(F.log_softmax(logits_altered, 1), target, reduction="sum", log_target=True)
    # PyTorch's own "mean" will come to mean "batchmean" one day.
    return total / (len(logits_raw) if reduction == "batchmean" else logits_raw.numel())


def regeneration_loss(regenerated: Tensor, raw: Tensor, form: RegenerationForm = "pixel") -> Tensor:
    """How far the regenerated patch is from the raw one (Eq. 3). No gradient reaches `raw`.

    Args:
        regenerated: (B, 3, H, W).
        raw: (B, 3, H, W), after the geometry, before any change of colour.
        form: "pixel": squared distance of the colours, averaged over pixels and batch, as printed; "element": averaged over
            the channels as well (a third).

    Returns:
        Scalar.

    Raises:
        ValueError: another form, or shapes that differ.
    """
    if regenerated.shape != raw.shape:
        raise InputError(
            f"the patches have shapes {tuple(regenerated.shape)} and {tuple(raw.shape)}", remedy="give equal ones"
        )
    if form not in ("pixel", "element"):
        raise SettingError(f"form is {form!r}", remedy="give pixel or element")
    per_value = F.mse_loss(regenerated, raw.detach())
    return per_value * regenerated.shape[1] if form == "pixel" else per_value


def stain_aglr_loss(
    logits_raw: Tensor,
    logits_altered: Tensor,
    labels: Tensor,
    regenerated: Tensor | None,
    raw: Tensor | None,
    lambda1: float = LAMBDA1,
    lambda2: float = LAMBDA2,
    ce_on: CrossEntropyOn = "both",
    detach_target: bool = False,
    form: RegenerationForm = "pixel",
) -> Tensor:
    """L = L_CE + lambda1 L_Reg + lambda2 L_Cons (Eq. 1).

    A term of weight 0 is not computed: no gradient reaches what only it depends on.

    Args:
        logits_raw: (B, 2).
        logits_altered: (B, 2).
        labels: (B,) int64.
        regenerated: (B, 3, H, W); may be None where lambda1 is 0.
        raw: (B, 3, H, W), likewise.
        lambda1: weight of the regeneration loss.
        lambda2: weight of the consistency loss.
        ce_on: patches of the cross-entropy; both: the mean over all 2B.
        detach_target: see `consistency_loss`.
        form: see `regeneration_loss`.

    Returns:
        Scalar.

    Raises:
        ValueError: an unknown option, or lambda1 above 0 without patches.
    """
    loss = cross_entropy(logits_raw, logits_altered, labels, ce_on)
    if lambda1:
        if regenerated is None or raw is None:
            raise InputError("the regeneration loss needs patches", remedy="give regenerated and raw, or lambda1 = 0")
        loss = loss + lambda1 * regeneration_loss(regenerated, raw, form)
    if lambda2:
        loss = loss + lambda2 * consistency_loss(logits_raw, logits_altered, detach_target)
    return loss


def cross_entropy(
    logits_raw: Tensor | None, logits_altered: Tensor | None, labels: Tensor, ce_on: CrossEntropyOn
) -> Tensor:
    """L_CE: softmax cross-entropy, the mean over the patches that count."""
    chosen = {"both": (logits_raw, logits_altered), "altered": (logits_altered,), "raw": (logits_raw,)}
    if ce_on not in chosen:
        raise SettingError(f"ce_on is {ce_on!r}", remedy=f"give one of {', '.join(chosen)}")
    given = [logits for logits in chosen[ce_on] if logits is not None]
    return F.cross_entropy(torch.cat(given), labels.repeat(len(given)))


# --- Schedule (specification 2.5) ------------------------------------------------------------------------------------


class PlateauUntil:
    """Multiply the learning rate by `factor` on a plateau of the validation loss, until it has come down to `stop_lr`.

    PyTorch's ReduceLROnPlateau: the epoch after `patience` bad ones reduces; a loss is better if it is below the best by more
    than `threshold` of it. With a constant loss 1e-2 lasts 16 epochs at patience 4, 5e-3 lasts 49 at patience 15.

    Args:
        optimizer: all of its learning rates are changed.
        patience: bad epochs that are tolerated.
        factor: see above.
        stop_lr: the rate at which the training ends.
        threshold: see above.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        patience: int = 4,
        factor: float = DROP,
        stop_lr: float = 1e-5,
        threshold: float = 1e-4,
    ) -> None:
        self.optimizer, self.stop_lr = optimizer, stop_lr
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=factor, patience=patience, threshold=threshold, eps=0.0
        )

    def step(self, validation_loss: float | Tensor) -> bool:
        """Take an epoch's validation loss; True says that the training is over."""
        self._plateau.step(float(validation_loss))
        return self.over

    @property
    def over(self) -> bool:
        """The learning rate has come down to where the training ends."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups) <= self.stop_lr * CLOSE

    def state_dict(self) -> dict[str, Any]:
        """Best loss and number of bad epochs; the learning rates are in the optimiser's state."""
        return dict(self._plateau.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        self._plateau.load_state_dict(dict(state))


class BestEpoch:
    """The network of the epoch with the lowest validation loss (specification 2.5); part of the checkpoints."""

    def __init__(self) -> None:
        self.loss, self.epoch = float("inf"), 0
        self.weights: dict[str, Tensor] = {}

    def offer(self, loss: float, epoch: int, network: nn.Module) -> None:
        """Take the network if its loss is lower; of equal ones the first stays."""
        if loss < self.loss or not self.weights:
            self.loss, self.epoch = loss, epoch
            self.weights = {key: value.detach().clone() for key, value in network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"loss": self.loss, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on what `state_dict` gave."""
        self.loss, self.epoch, self.weights = state["loss"], state["epoch"], dict(state["weights"])


# --- Batches ---------------------------------------------------------------------------------------------------------


class BalancedBatches(Batches):
    """Half of every batch from each class, drawn with replacement inside the class (specification 2.5, TUPAC).

    Args:
        load: see `Batches`.
        labels: class of each sample, 0 or 1.
        batch_size: even.
        seed: see `Batches`.

    Raises:
        SettingError: an odd batch size, or a class without sample.
    """

    def __init__(
        self, load: Callable[[int, np.random.Generator], Mapping[str, Any]], labels: Any, batch_size: int, seed: int
    ) -> None:
        labels = np.asarray(labels)
        super().__init__(load, len(labels), batch_size, seed, replacement=True)
        self.members = tuple(np.flatnonzero(labels == k) for k in (0, 1))
        if batch_size % 2 or not all(map(len, self.members)):
            problem = f"the batch size is {batch_size}" if batch_size % 2 else "a class has no patch"
            raise SettingError(
                f"batches cannot be balanced: {problem}", remedy="change it, or train without --balanced"
            )

    def plan(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, sample) pairs of one step: class 0 and class 1 by turns, so that each process gets both."""
        generator = self._generator(step)
        drawn = [generator.choice(members, self.batch_size // 2) for members in self.members]
        return [(step, int(sample)) for sample in np.stack(drawn, 1).ravel()]


def batches_per_epoch(patches: int, batch_size: int) -> int:
    """ceil(N / B): a pass over the training patches."""
    return -(-patches // batch_size)


# --- The step (specification 2.1) ------------------------------------------------------------------------------------


def weights_of(method: Method, losses: Losses) -> tuple[float, float, CrossEntropyOn]:
    """lambda1, lambda2 and the patches of the cross-entropy, of each row of the tables (specification 4)."""
    lambda1 = (LAMBDA1 if losses.lambda1 is None else losses.lambda1) if method in REGENERATING else 0.0
    lambda2 = (LAMBDA2 if losses.lambda2 is None else losses.lambda2) if method in CONSISTENT else 0.0
    if method == "hed":
        return lambda1, lambda2, "altered"
    return lambda1, lambda2, (losses.ce_on or "both") if method in ALTERED else "raw"


def recipe_of(augmentation: Augmentation) -> HEDLight:
    """The recipe with the options of a command."""
    return HEDLight(
        augmentation.strength, augmentation.space, augmentation.quantise, spatial=augmentation.spatial == "light",
        blur=(BLUR[0], augmentation.largest_blur),
    )  # fmt: skip


def views(
    images: Tensor, method: Method, recipe: HEDLight, generator: torch.Generator | None, need_raw: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The raw patches after the shared geometry, and the altered ones (items 1 to 4); None for what a method does not use.

    Args:
        images: uint8 (B, 3, H, W).
        method: vanilla and the normalising methods see raw patches only, turned and mirrored.
        recipe: geometry and change of colours.
        generator: draws.
        need_raw: some loss looks at the raw patches.
    """
    if method not in ALTERED:
        return random_turns(as_float(images), generator), None
    raw, altered = recipe(images, generator)
    return raw if need_raw else None, altered


def train_network(
    run: Run,
    network: StainAgLr,
    batches: Batches,
    method: Method,
    training: Training,
    losses: Losses,
    augmentation: Augmentation,
    validate: Callable[[PatchClassifier], Mapping[str, float]],
) -> BestEpoch:
    """Train until the learning rate has come down; resumes where the run was stopped.

    Args:
        run: an entered run.
        network: trained in place; with a generator where the method needs one.
        batches: of "image" uint8 (B, 3, H, W) and "label" int64 (B,).
        method: row of the tables.
        training: recipe.
        losses: options of the loss.
        augmentation: options of the altered patches.
        validate: called after every epoch, in every process, with the classifier in evaluation mode; gives "validation_loss"
            and what else is to be logged.

    Returns:
        The weights of the best epoch; `network` holds those of the last.
    """
    lambda1, lambda2, ce_on = weights_of(method, losses)
    recipe = recipe_of(augmentation)
    prepared = run.prepare(network)
    optimizer = torch.optim.Adam(prepared.parameters(), training.learning_rate, foreach=True)
    plateau = PlateauUntil(optimizer, training.patience, stop_lr=training.stop_lr)
    best = BestEpoch()
    run.restore(network=prepared, optimizer=optimizer, plateau=plateau, best=best)
    classifier = unwrap(prepared).patch_classifier
    assert isinstance(classifier, PatchClassifier)
    need_raw = lambda1 > 0 or lambda2 > 0 or ce_on != "altered"
    if best.weights and plateau.over:  # a finished training that is resumed
        return best

    def loss_of(part: dict[str, Tensor]) -> Tensor:
        raw, altered = part.get("raw"), part.get("altered")
        logits_raw, logits_altered, regenerated = prepared(raw, altered)
        if logits_raw is None or logits_altered is None:
            return cross_entropy(logits_raw, logits_altered, part["label"], ce_on)
        return stain_aglr_loss(
            logits_raw, logits_altered, part["label"], regenerated, raw, lambda1, lambda2, ce_on, losses.detach_target,
            losses.form,
        )  # fmt: skip

    epoch_batches = batches_per_epoch(batches.size, training.batch_size)
    prepared.train()
    for step, batch in run.steps(batches, training.max_epochs * epoch_batches):
        generator = torch.Generator(run.device).manual_seed(_seed(run, step))
        with torch.no_grad():
            raw, altered = views(batch["image"], method, recipe, generator, need_raw)
        seen = {"label": batch["label"], "raw": raw, "altered": altered}
        loss = run.optimise(optimizer, loss_of, {k: v for k, v in seen.items() if v is not None}, prepared)
        if step % training.log_every == 0:
            run.log.write(step, loss=loss, learning_rate=optimizer.param_groups[0]["lr"])
        if (step + 1) % epoch_batches == 0:
            epoch = (step + 1) // epoch_batches
            found = validated(run, classifier, validate)
            run.log.write(step, epoch=epoch, **found)
            best.offer(found["validation_loss"], epoch, unwrap(prepared))
            if plateau.step(found["validation_loss"]):
                run.step = step + 1
                run.save()  # leaving the loop saves nothing
                break
    return best


def _seed(run: Run, step: int) -> int:
    """Of a step's augmentation in this process: the same after a resume."""
    sequence = np.random.SeedSequence(run.settings.seed, spawn_key=(_AUGMENT, step, run.rank))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
