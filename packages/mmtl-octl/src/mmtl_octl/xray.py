"""The chest X-ray classifier and its fine-tunings (paper section 3.3; specification 3, 4 and 5.3).

DenseNet-121 with one head per data set: the label sets of source and target differ, so the target's head starts from
random weights when the fine-tuning starts. A sample's loss looks at the outputs of its own data set alone. What a step
is, and what the methods are, is in method.py; here is what the task adds.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import DenseNet, resnet50

from dart_core.adapt import greedy_policy, gumbel_policy, mix
from dart_core.checkpoint import load_weights
from dart_core.errors import CheckpointError, InputError
from dart_core.run import Run
from mmtl_octl.method import AfterEpoch, Task, fine_tune, train_source
from mmtl_octl.pictures import Pictures, picture_batches
from mmtl_octl.settings import Adaptation, Training

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours."""
FTF_TENSORS = 42
"""Parameter tensors from the front that FTF trains besides the heads: up to the first transition (specification 4.4)."""
TEMPERATURE, POLICY_DROP_EPOCH = 5.0, 5
"""Of SpotTUNet's variant for X-rays (specification 4.6)."""


class ChestNet(nn.Module):
    """DenseNet-121 (torchvision's) for grey pictures, with a linear head for each label set.

    With two label sets of 14 it has 6,982,556 parameters. ImageNet's mean and standard deviation are part of it.

    Args:
        label_sets: data set -> its labels.
        growth: channels that each dense layer adds.
        blocks: dense layers of each block.
        stem: channels behind the first convolution.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        label_sets: Mapping[str, Sequence[str]],
        growth: int = 32,
        blocks: Sequence[int] = (6, 12, 24, 16),
        stem: int = 64,
    ) -> None:
        super().__init__()
        densenet = DenseNet(growth, tuple(blocks), stem, num_classes=1)
        self.features = densenet.features
        self.size = (growth, tuple(blocks), stem)
        self.width = densenet.classifier.in_features
        self.heads = nn.ModuleList()
        self.label_sets: dict[str, tuple[str, ...]] = {}
        for name, labels in label_sets.items():
            self.add_label_set(name, labels)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def add_label_set(self, name: str, labels: Sequence[str]) -> None:
        """Append a head with random weights.

        Raises:
            ValueError: there is a head for this data set already, or nothing to label.
        """
        if name in self.label_sets or not labels:
            problem = f"has a head for {name} already" if labels else f"cannot label {name} with nothing"
            raise InputError(f"the network {problem}")
        self.heads.append(nn.Linear(self.width, len(labels)))
        self.label_sets[name] = tuple(labels)

    def columns(self, name: str) -> slice:
        """The outputs that belong to a data set."""
        names = list(self.label_sets)
        start = sum(len(self.label_sets[other]) for other in names[: names.index(name)])
        return slice(start, start + len(self.label_sets[name]))

    def normalised(self, x: Tensor) -> Tensor:
        """Grey pictures (B, 1, H, W) in [0, 1] as the colour pictures that ImageNet's networks expect."""
        return (x - self.mean) / self.std

    def classify(self, features: Tensor) -> Tensor:
        """What follows the last batch norm: ReLU, average over the picture, all heads side by side."""
        pooled = F.adaptive_avg_pool2d(F.relu(features), 1).flatten(1)
        return torch.cat([head(pooled) for head in self.heads], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] -> logits (B, all labels), in the order of `label_sets`."""
        return self.classify(self.features(self.normalised(x)))


class SpotTuneChestNet(nn.Module):
    """SpotTUNet's idea for the DenseNet: stem, every dense layer and every transition exist fine-tuned and frozen.

    DenseNet-121 has 62 switches, in the order of the network. The last batch norm and the heads are not switched: they
    are always fine-tuned. The frozen copies get no gradient, the stem's two copies are two, and inference draws no noise:
    the authors' program differs in all three by mistake (specification 8.9).

    Args:
        source: network that is copied.
        policy: gives two logits for each switch; None makes a ResNet-50 with random weights.

    Attributes:
        fine_tuned: the copy that learns.
        frozen: the features that do not.
        policy: the policy network.
    """

    def __init__(self, source: ChestNet, policy: nn.Module | None = None) -> None:
        super().__init__()
        self.fine_tuned = copy.deepcopy(source)
        self.fine_tuned.features.requires_grad_(True)
        self.frozen = copy.deepcopy(source.features).requires_grad_(False)
        self.switches = switches(source)
        self.policy = resnet50(num_classes=2 * self.switches) if policy is None else policy

    @property
    def label_sets(self) -> dict[str, tuple[str, ...]]:
        """Data set -> its labels."""
        return self.fine_tuned.label_sets

    def columns(self, name: str) -> slice:
        """The outputs that belong to a data set."""
        return self.fine_tuned.columns(name)

    def unet_parameters(self) -> Iterator[nn.Parameter]:
        """What the network's optimiser gets; the name is that of dart_core's SpotTUNet."""
        return (parameter for parameter in self.fine_tuned.parameters() if parameter.requires_grad)

    def policy_parameters(self) -> Iterator[nn.Parameter]:
        """What the policy's optimiser gets."""
        return self.policy.parameters()

    @overload
    def forward(self, x: Tensor, policy: Tensor | None = None, return_policy: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, policy: Tensor | None = None, *, return_policy: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, x: Tensor, policy: Tensor | None = None, return_policy: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Classify a batch of pictures.

        Args:
            x: (B, 1, H, W) in [0, 1].
            policy: (B, switches), 1 = frozen, 0 = fine-tuned; None asks the policy network, which is sampled in training
                mode and takes the more probable choice in evaluation mode.
            return_policy: also return the policy.

        Returns:
            Logits (B, all labels); with `return_policy` also the policy (B, switches).

        Raises:
            ValueError: the policy has another shape, or the policy network gives nan.
        """
        x = self.fine_tuned.normalised(x)
        if policy is None:
            logits = self.policy(x)
            policy = gumbel_policy(logits, TEMPERATURE) if self.training else greedy_policy(logits)
        if policy.shape != (len(x), self.switches):
            raise InputError(f"the policy has shape {tuple(policy.shape)}", remedy=f"give ({len(x)}, {self.switches})")
        turn = iter(policy[:, :, None, None, None].unbind(1))
        tuned: Any = self.fine_tuned.features
        frozen: Any = self.frozen
        x = mix(tuned[:4](x), frozen[:4](x), next(turn))  # convolution, batch norm, ReLU, pool
        for fine, fixed in zip(tuned[4:-1], frozen[4:-1], strict=True):
            if isinstance(fine, nn.ModuleDict):  # a dense block: each layer sees all that came before it
                for layer, other in zip(fine.values(), fixed.values(), strict=True):
                    x = torch.cat([x, mix(layer(x), other(x), next(turn))], 1)
            else:
                x = mix(fine(x), fixed(x), next(turn))
        out = self.fine_tuned.classify(tuned[-1](x))
        return (out, policy) if return_policy else out


def switches(network: ChestNet) -> int:
    """Switchable layers of a network: the stem, its dense layers, its transitions."""
    blocks = network.size[1]
    return 1 + sum(blocks) + len(blocks) - 1


def label_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Binary cross-entropy of each sample over its own labels, then the mean over the batch (specification 3).

    In a mixed batch this is alpha L'_source + (1 - alpha) L'_target of paper section 2, however many labels each has.

    Args:
        logits: (B, all labels).
        batch: with "label" (B, all labels), 0 or 1, nan at the outputs that are not the sample's own.
    """
    labels = batch["label"]
    known = ~labels.isnan()
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.nan_to_num(), reduction="none") * known
    return (losses.sum(1) / known.sum(1)).mean()


def freeze_first(network: ChestNet) -> None:
    """FTF: of the features only the first 42 parameter tensors stay trainable; heads stay as they are (specification 4.4)."""
    for number, parameter in enumerate(network.features.parameters()):
        parameter.requires_grad_(number < FTF_TENSORS)


def task_of(network: ChestNet, policy: nn.Module | None = None) -> Task:
    """What classification means for the methods of method.py.

    Args:
        network: with all its heads.
        policy: SpotTUNet's policy network; None makes one with random weights.
    """
    return Task(
        loss=label_loss,
        freeze_first=freeze_first,
        head=[name for name, _ in network.named_parameters() if name.startswith("heads.")],
        spottune=lambda source: SpotTuneChestNet(source, policy),
        layers=switches(network),
        weight_decay=1e-5,
        start_step="keep",
        missing="zeros",
        k=0.0,
        policy_drop_epoch=POLICY_DROP_EPOCH,
    )


def pretrain_classifier(
    run: Run, network: ChestNet, sources: Sequence[Pictures], training: Training, image_size: int,
    after_epoch: AfterEpoch | None = None,
) -> torch.optim.Optimizer:  # fmt: skip
    """Train the source classifier on one or more data sets; resumes where the run was stopped.

    Args:
        run: an entered run.
        network: with a head for each of `sources`; trained in place.
        sources: training pictures.
        training: recipe; the paper's is `settings.SOURCE_CLASSIFIER`.
        image_size: side of the pictures.
        after_epoch: see `train_source`.

    Returns:
        The optimiser, whose history `save_history` writes.
    """
    batches = picture_batches(network.label_sets, (), sources, training, image_size, run.settings.seed, "target")
    return train_source(run, network, batches, task_of(network), training, after_epoch)


def adapt_classifier(
    run: Run, network: ChestNet, target: Pictures, sources: Sequence[Pictures], training: Training,
    adaptation: Adaptation, image_size: int, history: Path | None = None, after_epoch: AfterEpoch | None = None,
    policy: nn.Module | None = None,
) -> nn.Module:  # fmt: skip
    """Fine-tune a classifier on a target data set; resumes where the run was stopped.

    Args:
        run: an entered run.
        network: with a head for the target, and one for each source data set; changed in place (spottune: copied).
        target: the target's training pictures.
        sources: those of the source data sets, which mmtl needs.
        training: recipe; the paper's is `settings.TARGET_CLASSIFIER`.
        adaptation: method and its settings.
        image_size: side of the pictures.
        history: octl: the file that `save_history` wrote after the source training.
        after_epoch: see `fine_tune`.
        policy: spottune: the policy network, usually with ImageNet's weights.

    Returns:
        The network as `fine_tune` gives it.
    """
    mixed = adaptation.method == "mmtl"
    batches = picture_batches(
        network.label_sets, sources if mixed else (), [target], training, image_size, run.settings.seed,
        adaptation.schedule or "xray" if mixed else "target", adaptation.keep_source and mixed,
    )  # fmt: skip
    freeze_unused(network, [target.name, *(source.name for source in sources if mixed)])
    task = task_of(network, policy)
    return fine_tune(run, network, batches, task, training, adaptation, history, after_epoch)


def freeze_unused(network: ChestNet, used: Sequence[str]) -> None:
    """Take heads that no sample uses out of the training: weight decay alone would wear them away."""
    for name, head in zip(network.label_sets, network.heads, strict=True):
        head.requires_grad_(name in used)


# --- ImageNet's weights ----------------------------------------------------------------------------------------------

_OLD_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def load_imagenet(features: nn.Module, path: Path, prefix: str = "", leave: Sequence[str] = ()) -> None:
    """Fill a backbone with the weights of a file as torchvision or timm publish them.

    Args:
        features: changed in place, or not at all if anything does not fit.
        path: a .safetensors file, or a .pth file, of which nothing but tensors is read.
        prefix: what the file's names have in front of those of `features` ("features." for DenseNet).
        leave: beginnings of the names that the file need not have (a new last layer).

    Raises:
        CheckpointError: no such file, a damaged one, one with code in it, or weights of another network.
    """
    state = _read_weights(path)
    state = {_OLD_NAME.sub(r"\1\2", name).removeprefix(prefix): value for name, value in state.items()}
    own = features.state_dict()
    for name, value in own.items():
        if name.startswith(tuple(leave)) or name.endswith("num_batches_tracked"):
            continue
        if name not in state or state[name].shape != value.shape:
            found = tuple(state[name].shape) if name in state else "nothing"
            raise CheckpointError(
                f"has {found} for '{name}', the network {tuple(value.shape)}",
                where=path,
                remedy="give weights of the right network, trained on ImageNet",
            )
    fitting = {name: state[name] for name, value in own.items() if name in state and state[name].shape == value.shape}
    features.load_state_dict(own | fitting)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_weights(path)[0]
    try:
        # Not the core's checkpoint reader: torchvision's older files are not zip archives.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError("no such file", where=path, remedy="give the path of ImageNet weights") from None
    except Exception as error:  # a damaged or hostile file: whatever its reading raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot be read ({reason})", where=path, remedy="download it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError("holds no weights by name", where=path, remedy="give a state_dict")
    return dict(state)
