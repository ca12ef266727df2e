"""Files of classifiers and what they say of themselves, and the scores that a classifier gives to pictures."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dart_core.checkpoint import load_weights, read_model, save_model, weights_file
from dart_core.data.slices import evaluating
from dart_core.errors import InputError
from mmtl_octl.models import JOINT
from mmtl_octl.pictures import Pictures, SplitBy, load_picture, whole_view
from mmtl_octl.reports import PACKAGE
from mmtl_octl.settings import OptimizerName
from mmtl_octl.xray import ChestNet, SpotTuneChestNet

Network: TypeAlias = ChestNet | SpotTuneChestNet


@dataclass(frozen=True)
class Classifier:
    """Where a classifier comes from and how it wants its pictures."""

    network: str
    """ChestNet or SpotTuneChestNet."""
    label_sets: dict[str, list[str]]
    """Data set -> its labels, in the order of the outputs."""
    image_size: int
    split_by: SplitBy
    optimizer: OptimizerName
    seed: int
    source: list[str]
    """Source data sets; none for a network trained on the target alone."""
    target: str = ""
    """Data set it was fine-tuned on; empty for a source network."""
    method: str = "source"
    images: int = 0
    """Target images."""
    size: list[Any] = field(default_factory=lambda: [32, [6, 12, 24, 16], 64])
    """Growth, blocks and stem of the DenseNet."""

    @property
    def source_site(self) -> str:
        """The source data sets as one name."""
        return JOINT.join(self.source)


def build(model: Classifier) -> Network:
    """A network of this kind with random weights."""
    growth, blocks, stem = model.size
    network = ChestNet(model.label_sets, growth, blocks, stem)
    return SpotTuneChestNet(network) if model.network == "SpotTuneChestNet" else network


def starting_network(model: Classifier, source: ChestNet | None) -> ChestNet:
    """What a fine-tuning starts from: a copy of the source network with a new head for the target.

    Args:
        model: of the target network.
        source: None starts from random weights.
    """
    if source is None:
        network = build(model)
        assert isinstance(network, ChestNet)
        return network
    network = copy.deepcopy(source)
    network.add_label_set(model.target, model.label_sets[model.target])
    return network


def save_classifier(folder: Path, network: nn.Module, model: Classifier) -> None:
    """Write model.safetensors into a run folder.

    Raises:
        OutputError: the file cannot be written.
    """
    save_model(folder, network, PACKAGE, model)


def load_classifier(path: Path, device: torch.device | str = "cpu") -> tuple[Network, Classifier]:
    """The network of a run folder or weight file, and what its file says of it.

    Raises:
        CheckpointError: no such file, a damaged one, or weights of something else.
    """

    def parse(fields: Any) -> tuple[Network, Classifier]:
        model = Classifier(**fields)
        return build(model), model

    file = weights_file(path)
    remedy = "give a run folder of `pretrain` or `adapt` with --task classification"
    network, model = read_model(file, PACKAGE, parse, "is no classifier of mmtl-octl", remedy)
    load_weights(file, network)
    return network.to(device), model


@torch.inference_mode()
def predict_classifier(network: Network, pictures: Pictures, image_size: int, batch_size: int = 32) -> NDArray[Any]:
    """Probabilities of all outputs for each picture, resized as a whole (specification 5.3).

    Args:
        network: put into evaluation mode for the call.
        pictures: n of them.
        image_size: side of the pictures.
        batch_size: pictures per forward pass.

    Returns:
        (n, outputs) float32 in [0, 1].
    """
    device = next(network.parameters()).device
    found: list[Tensor] = []
    with evaluating(network):
        for start in range(0, len(pictures), batch_size):
            rows = pictures.rows[start : start + batch_size]
            images = torch.stack([whole_view(load_picture(row), image_size) for row in rows])
            found.append(network(images.to(device)).float().sigmoid().cpu())
    return torch.cat(found).numpy()


def outputs_for(label_sets: Mapping[str, Sequence[str]], site: str, labels: Sequence[str] = ()) -> dict[str, int]:
    """Which output of a network answers which label of a data set.

    A data set with a head of its own is answered by that; another one by the outputs of the same names, of the first
    data set that has them.

    Args:
        label_sets: data set -> its labels, in the order of the outputs.
        site: the data set.
        labels: its labels; none of them: all that the network knows.

    Raises:
        InputError: no output answers any of the labels.
    """
    places: dict[str, int] = {}
    start = 0
    for name, own in label_sets.items():
        for place, label in enumerate(own, start):
            if name == site or (site not in label_sets and label not in places):
                places[label] = place
        start += len(own)
    answered = {label: places[label] for label in labels or places if label in places}
    if not answered:
        raise InputError(
            f"the network has no output for any label of {site} ({', '.join(labels)})",
            remedy=f"it knows: {', '.join(sorted({label for own in label_sets.values() for label in own}))}",
        )
    return answered
