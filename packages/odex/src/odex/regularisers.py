"""What each baseline adds to a stage's loss, and what it keeps for the next stages (specification 4).

A regulariser lives for one stage: `begin` before training, `loss` in every step, `end` behind it. What later stages need is in
`memory`, tensors by name that go into the pool.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dart_core.losses import deep_supervision_weights, dice_ce_loss
from dart_core.nets.nnunet import ConvNorm, GenericUNet
from odex import as_coded
from odex import settings as of
from odex.baselines import (
    RWTracker,
    entropy_histogram,
    ewc_penalty,
    fisher_information,
    lwf_loss,
    mib_loss,
    pod_loss,
    prediction_entropy,
    pseudo_label_loss,
    rw_normalise,
    rw_penalty,
    thresholds_of,
)
from odex.features import outputs_of

Batch = dict[str, Tensor]
FisherBatches = Callable[[], Iterable[tuple[Tensor, list[Tensor]]]]


class Regulariser:
    """No regularisation: the loss of sequential, joint and pool methods, and what the others start from.

    Args:
        settings: of all baselines.
        memory: what earlier stages left, empty in the first one.
        stage: number of this stage, from 0.
    """

    passes = 1
    """How often the stage's epochs are run through."""

    def __init__(self, settings: of.Baselines, memory: Mapping[str, Tensor], stage: int) -> None:
        self.settings = settings
        self.memory = dict(memory)
        self.stage = stage

    @property
    def as_coded(self) -> bool:
        """As the authors' program computes it."""
        return self.settings.compat == "lifelong-nnunet"

    def begin(self, network: GenericUNet, batches: Iterator[Batch]) -> None:
        """Before the first step, with the network that the stage starts from and un-augmented batches of an epoch."""
        for name, tensor in self.memory.items():
            self.memory[name] = tensor.to(next(network.parameters()).device)

    def start_step(self, network: GenericUNet, frozen_body: bool) -> None:
        """Before each step: train the segmentation layers alone, or everything."""

    def loss(self, network: GenericUNet, image: Tensor, outputs: list[Tensor], labels: list[Tensor]) -> Tensor:
        """The whole loss of a batch."""
        return self.base(outputs, labels)

    def end_step(self, network: GenericUNet) -> None:
        """Behind the optimiser's step, with the gradients of that step."""

    def end(self, network: GenericUNet, batches: FisherBatches) -> None:
        """Behind the last step; batches as (image, label maps)."""

    def base(self, outputs: list[Tensor], labels: list[Tensor]) -> Tensor:
        """L_base: Dice of each sample plus cross-entropy over all outputs."""
        return dice_ce_loss(outputs, labels, deep_supervision_weights(len(outputs)), batch_dice=False)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed stage needs beyond `memory` and `begin`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""

    def stages_of(self, kind: str) -> list[dict[str, Tensor]]:
        """What `remember` kept of each old stage."""
        found: list[dict[str, Tensor]] = []
        for number in range(self.stage):
            prefix = f"{number}/{kind}/"
            part = {name.removeprefix(prefix): t for name, t in self.memory.items() if name.startswith(prefix)}
            if part:
                found.append(part)
        return found

    def remember(self, kind: str, values: Mapping[str, Tensor]) -> None:
        """Keep tensors of this stage."""
        for name, value in values.items():
            self.memory[f"{self.stage}/{kind}/{name}"] = value.detach().float().clone()


def learning(network: nn.Module) -> dict[str, Tensor]:
    """The parameters that learn."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


class EWC(Regulariser):
    """Elastic weight consolidation."""

    def loss(self, network: GenericUNet, image: Tensor, outputs: list[Tensor], labels: list[Tensor]) -> Tensor:
        """L_base and the penalty."""
        stars, fishers = self.stages_of("star"), self.stages_of("fisher")
        if self.as_coded:
            # The iterator over parameters is used up after the first old stage.
            stars, fishers = stars[:1], fishers[:1]
        penalty = ewc_penalty(learning(network), stars, fishers, self.settings.ewc_lambda)
        return self.base(outputs, labels) + penalty

    def end(self, network: GenericUNet, batches: FisherBatches) -> None:
        """Fisher information at the stage's end."""
        from odex.training import base_loss, resting_norms

        network.seg_outputs[0].requires_grad_(deep_supervision_weights(len(network.seg_outputs))[-1] != 0)
        with resting_norms(network):
            if self.as_coded:
                # One after the other: an epoch of them would not fit into memory.
                ((image, labels),) = deque(batches(), maxlen=1)
                loss = self.loss(network, image, network(image), labels)
                own = learning(network)
                gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True)
                fisher = as_coded.fisher_of_the_last_batch(dict(zip(own, gradients, strict=True)), own)
            else:
                fisher = fisher_information(network, batches(), base_loss, self.settings.fisher_per)
        self.remember("fisher", fisher)
        self.remember("star", learning(network))


class RW(Regulariser):
    """Riemannian walk."""

    def __init__(self, settings: of.Baselines, memory: Mapping[str, Tensor], stage: int) -> None:
        super().__init__(settings, memory, stage)
        self.tracker = RWTracker()
        self.spent = False
        self.device = torch.device("cpu")

    def begin(self, network: GenericUNet, batches: Iterator[Batch]) -> None:
        """Where the network is, what is tracked is too."""
        super().begin(network, batches)
        self.device = next(network.parameters()).device

    def loss(self, network: GenericUNet, image: Tensor, outputs: list[Tensor], labels: list[Tensor]) -> Tensor:
        """L_base and the penalty; as coded the penalty acts in the first iteration only."""
        base = self.base(outputs, labels)
        if self.as_coded and self.spent:
            return base
        stars, fishers, scores = (self.stages_of(kind) for kind in ("star", "fisher", "score"))
        return base + rw_penalty(learning(network), stars, fishers, scores, self.settings.rw_lambda)

    def end_step(self, network: GenericUNet) -> None:
        """Look at parameters and gradients."""
        self.spent = True
        own = learning(network)
        gradients = {name: parameter.grad for name, parameter in own.items()}
        # An overflow of half precision, whose step the scaler has skipped, is no gradient to remember.
        if all(bool(torch.isfinite(g).all()) for g in gradients.values() if g is not None):
            self.tracker.update(own, gradients)

    def end(self, network: GenericUNet, batches: FisherBatches) -> None:
        """Normalise and keep what was tracked."""
        fisher, score = self.tracker.fisher, self.tracker.score
        if self.as_coded:
            # One after the other, as there: the score is normalised by its own maxima too.
            fisher, score = (as_coded.normalise_by_scores(part, score) for part in (fisher, score))
        else:
            fisher, score = rw_normalise(fisher), rw_normalise(score)
        before = self.stages_of("score")
        if self.stage >= (2 if self.as_coded else 1) and before:
            score = {name: 0.5 * (before[-1][name] + value) for name, value in score.items()}
        else:
            score = {name: 2 * value for name, value in score.items()}
        # Of the output that deep supervision leaves out nothing was tracked.
        star = {name: value for name, value in learning(network).items() if name in fisher}
        for kind, values in (("fisher", fisher), ("score", score), ("star", star)):
            self.remember(kind, values)

    def state_dict(self) -> dict[str, Any]:
        """The tracker's."""
        return {"tracker": self.tracker.state_dict(), "spent": self.spent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint, which is read on the CPU."""
        tracked = dict(state["tracker"])
        for kind in ("fisher", "score", "before"):
            tracked[kind] = {name: value.to(self.device) for name, value in tracked[kind].items()}
        self.tracker.load_state_dict(tracked)
        self.spent = bool(state["spent"])


class Distilling(Regulariser):
    """With frozen copies of the network at the end of earlier stages."""

    old: list[GenericUNet]

    def begin(self, network: GenericUNet, batches: Iterator[Batch]) -> None:
        """Copy the network."""
        super().begin(network, batches)
        self.old = []
        if self.stage:
            self.old = [self._frozen(network)]

    def _frozen(self, network: GenericUNet) -> GenericUNet:
        """A copy that gives all outputs, with the running statistics of its norms."""
        from odex.features import NORMS

        frozen = copy.deepcopy(network).requires_grad_(False).train()
        for module in frozen.modules():
            if isinstance(module, NORMS):
                module.eval()
        return frozen

    @torch.no_grad()
    def old_outputs(self, image: Tensor) -> list[Tensor]:
        """Outputs of the newest old network."""
        outputs: list[Tensor] = self.old[0](image)
        return outputs


class LwF(Distilling):
    """Learning without forgetting; the networks of all earlier stages are kept.

    As coded, the term has no gradient and is left out; what stays is that the stage is run through twice, first with a
    frozen body.
    """

    def begin(self, network: GenericUNet, batches: Iterator[Batch]) -> None:
        """Build the old networks from memory."""
        super().begin(network, batches)
        self.passes = 2 if self.as_coded and self.stage else 1
        if self.as_coded:
            self.old = []
            return
        kept = self.stages_of("network")
        self.old = []
        for state in kept:
            frozen = self._frozen(network)
            own = frozen.state_dict()
            frozen.load_state_dict({name: state[name].to(own[name].dtype) for name in own})
            self.old.append(frozen)

    def start_step(self, network: GenericUNet, frozen_body: bool) -> None:
        """The first pass trains the segmentation layers alone."""
        for name, parameter in network.named_parameters():
            if not name.startswith("seg_outputs."):
                parameter.requires_grad_(not frozen_body)

    def loss(self, network: GenericUNet, image: Tensor, outputs: list[Tensor], labels: list[Tensor]) -> Tensor:
        """L_base and the distillation from every old network."""
        base = self.base(outputs, labels)
        if not self.old:
            return base
        with torch.no_grad():
            old = [one(image)[0] for one in self.old]
        return base + lwf_loss(outputs[0], old, self.settings.temperature)

    def end(self, network: GenericUNet, batches: FisherBatches) -> None:
        """Keep the network."""
        if not self.as_coded:
            self.remember("network", network.state_dict())


class MiB(Distilling):
    """Modelling the background: cross-entropy and distillation, no Dice in later stages."""

    def loss(self, network: GenericUNet, image: Tensor, outputs: list[Tensor], labels: list[Tensor]) -> Tensor:
        """L_base in the first stage."""
        if not self.old:
            return self.base(outputs, labels)
        return mib_loss(
            outputs, labels, self.old_outputs(image), alpha=self.settings.mib_alpha, lkd=self.settings.lkd
        )  # fmt: skip


class PLOP(Distilling):
    """Pseudo labels where the old network is sure, and pooled features; no Dice in later stages."""

    def begin(self, network: GenericUNet, batches: Iterator[Batch]) -> None:
        """Median entropies of the old network over an epoch, by predicted class on background voxels."""
        super().begin(network, batches)
        if not self.old:
            return
        histogram: Tensor | int = 0
        classes = network.seg_outputs[0].out_channels
        assert isinstance(classes, int)
        for batch in batches:
            logits = self.old_outputs(batch["image"])[0]
            background = batch["labels"] == 0
            entropy, predicted = self._entropy(logits), logits.argmax(1)
            histogram = histogram + entropy_histogram(entropy[background], predicted[background], classes)
        assert isinstance(histogram, Tensor)
        self.thresholds = as_coded.thresholds_of(histogram) if self.as_coded else thresholds_of(histogram)
        # Filled by the forward pass that the loss has anyway.
        self.features: list[Tensor] = []
        self.hooks = [
            layer.register_forward_hook(lambda module, arguments, output: self.features.append(output))
            for layer in self._layers(network)
        ]

    @staticmethod
    def _layers(network: GenericUNet) -> list[nn.Module]:
        return [part.conv for part in network.modules() if isinstance(part, ConvNorm)]

    def end(self, network: GenericUNet, batches: FisherBatches) -> None:
        """Take the hooks away."""
        if self.old:
            for hook in self.hooks:
                hook.remove()

    def _entropy(self, logits: Tensor) -> Tensor:
        p = logits.float().softmax(1)
        return as_coded.prediction_entropy(p) if self.as_coded else prediction_entropy(p)

    def loss(self, network: GenericUNet, image: Tensor, outputs: list[Tensor], labels: list[Tensor]) -> Tensor:
        """Pseudo labels at every output, and POD of all convolutions (as coded without gradient, so left out)."""
        if not self.old:
            return self.base(outputs, labels)
        features, self.features = self.features, []
        with outputs_of(self._layers(self.old[0])) as old_features:
            old = self.old_outputs(image)
        terms = []
        for w, x, y, x_old in zip(deep_supervision_weights(len(outputs)), outputs, labels, old, strict=True):
            if w:
                truth = y[:, 0].long()
                sure = self._entropy(x_old) < self.thresholds.to(x_old)[x_old.argmax(1)]
                terms.append(w * pseudo_label_loss(x, truth, x_old, (truth == 0) & sure))
        total = torch.stack(terms).sum()
        if self.as_coded or not self.settings.pod_lambda:
            return total
        return total + self.settings.pod_lambda * pod_loss(features, old_features)


KINDS: dict[str, type[Regulariser]] = {"ewc": EWC, "rw": RW, "lwf": LwF, "mib": MiB, "plop": PLOP}


def regulariser_of(method: str, settings: of.Baselines, memory: Mapping[str, Tensor], stage: int) -> Regulariser:
    """The regulariser of a method."""
    return KINDS.get(method, Regulariser)(settings, memory, stage)
