"""Networks with a head for the labels, their first weights, and how they are told apart in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from benchmark_transformers.conversion import LEAST, backbone_tensors, convert, is_merge
from benchmark_transformers.initialisations import BEIT, DROP_PATH, SWIN, VIT, Initialisation
from dart_core.checkpoint import read_metadata, weights_file
from dart_core.data.picture_views import CHESTXRAY14, IMAGENET
from dart_core.errors import CheckpointError, SettingError
from dart_core.nets.backbones import load_backbone_weights

PACKAGE = "benchmark-transformers"
PRETRAINED = f"{PACKAGE}-simmim"
"""Key of what a pre-trained network says of itself."""

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Architecture:
    """What timm builds."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, classes: int, image_size: int, drop_path: float = 0.0) -> nn.Module:
        """The network with random weights: pictures (N, 3, S, S) -> logits (N, classes).

        Raises:
            SettingError: timm cannot build it for this side.
        """
        import timm

        # Always given: the default of timm's Swin is 0.1.
        keywords = {**self.options, **self._size(image_size), "drop_path_rate": drop_path}
        try:
            network: nn.Module = timm.create_model(self.name, pretrained=False, num_classes=classes, **keywords)
        except (TypeError, ValueError, ArithmeticError, LookupError, AssertionError, RuntimeError) as error:
            given = "".join(f", {name} = {value}" for name, value in self.options.items())
            raise SettingError(
                f"{self.name} cannot be built for pictures of side {image_size}{given} ({error or type(error).__name__})",
                remedy="choose another size or network",
            ) from error
        return network

    def _size(self, image_size: int) -> dict[str, Any]:
        """timm's keyword for the side, of networks that are built for one; the side must be a multiple of the patch."""
        import timm

        config = timm.get_pretrained_cfg(self.name)
        if config is None or not config.fixed_input_size:
            return {}
        patch = int(self.options.get("patch_size", 4 if self.name.startswith("swin") else 16))
        if image_size % patch:
            nearest = max(1, round(image_size / patch)) * patch
            raise SettingError(
                f"--image-size is {image_size}, no multiple of the {patch} pixels of a patch of {self.name}",
                remedy=f"give a multiple such as {nearest}",
            )
        return {"img_size": image_size}

    def download(self, tag: str, classes: int, image_size: int, drop_path: float = 0.0) -> nn.Module:
        """The network with the weights that timm's hub has under a tag.

        Raises:
            SettingError: they cannot be had.
        """
        import timm

        keywords = {**self.options, **self._size(image_size), "drop_path_rate": drop_path}
        try:
            network: nn.Module = timm.create_model(tag, pretrained=True, num_classes=classes, **keywords)
        except Exception as error:  # whatever the hub's client, the network or the disk raises, it is one line
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise SettingError(
                f"the weights {tag} cannot be downloaded ({reason})",
                remedy="check the network connection, or give a local file: --weights",
            ) from error
        return network


@dataclass(frozen=True)
class Pretrained:
    """What the weight file of `pretrain` says of itself."""

    backbone: str
    image_size: int
    network: Mapping[str, Any]
    """timm's keywords that were given."""
    normalization: str
    epochs: int
    images: int
    init_from: str = ""


def read_pretrained(path: Path) -> Pretrained | None:
    """What a run folder or weight file of `pretrain` says; None: it is no such file.

    Raises:
        CheckpointError: a folder without weights.
    """
    import json

    file = weights_file(path)
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    text = read_metadata(file).get(PRETRAINED)
    try:
        return None if text is None else Pretrained(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"is no network of this version of {PACKAGE} pretrain", where=file, remedy="pre-train again"
        ) from error


def architecture_of(row: Initialisation, pretrained: Pretrained | None, given: Any) -> tuple[Architecture, float]:
    """What to build, and its default stochastic depth (specification 2.1.12).

    Args:
        row: of the table of initialisations.
        pretrained: of the weights, which then say what the network is; SimMIM's ViT is timm's BEiT.
        given: settings of another size of network.
    """
    if pretrained is not None:
        swin = pretrained.backbone == "swin_b"
        options = {k: v for k, v in pretrained.network.items() if k != "drop_path_rate"}
        # Tables of position bias are brought on to the window of the fine-tuning.
        return Architecture(SWIN if swin else BEIT, {**options, **given.keywords(swin)}), DROP_PATH
    swin = row.architecture.startswith("swin")
    if given.given and row.architecture not in (VIT, BEIT, SWIN):
        raise SettingError(
            f"the network of {row.key} has one size", remedy="leave --patch-size, --embed-dim, --depths, ... out"
        )
    return Architecture(row.architecture, given.keywords(swin) if given.given else {}), row.drop_path


def load_initial_weights(network: nn.Module, path: Path, source: str) -> str:
    """Copy the weights of a file into a network, except its head; what was loaded, in words.

    Args:
        network: changed in place.
        path: weight file, or run folder of `pretrain`.
        source: see `convert_checkpoint`, or "timm": the names of any of its versions.

    Raises:
        CheckpointError: fewer than 95 % of the backbone's tensors fit, a merge layer does not, or the file cannot be read.
    """
    file = weights_file(path)
    if source != "timm":
        converted = convert(file, network, source)
        network.load_state_dict(converted.state, strict=False)
        return str(converted)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    layout, found = network, load_backbone_weights(network, file)
    if hasattr(network, "layers") and any(is_merge(name) for name in (*found.missing, *found.shape_mismatch)):
        layout = owners_layout(network)
        found = load_backbone_weights(layout, file)
    own = backbone_tensors(layout)
    loaded = [name for name in found.loaded if name in own]
    lacking = [name for name in (*found.missing, *found.shape_mismatch) if name in own]
    text = f"{len(loaded)} loaded, {len(lacking)} missing or of another shape, {len(found.unexpected)} unexpected"
    merges = [name for name in lacking if is_merge(name)]
    if merges or len(loaded) < LEAST * len(own):
        network.load_state_dict(before)
        raise CheckpointError(
            f"fits {len(loaded) / len(own):.0%} of the weights of {type(network).__name__} ({text}; the first that does "
            f"not is '{(*merges, *lacking)[0]}')",
            where=file,
            remedy="give the weights of this network, or name their --weights-source",
        )
    # The head is that of the labels, also where the file's has as many classes by chance.
    backbone = backbone_tensors(network)
    network.load_state_dict({k: t for k, t in before.items() if k not in backbone}, strict=False)
    return text


def owners_layout(network: nn.Module) -> nn.Module:
    """The modules of timm's Swin with each merge layer at the end of the stage before it, where the owners' files and those of
    timm before 0.9 have it (specification 2.3)."""
    layout = nn.Module()
    for name, child in network.named_children():
        layout.add_module(name, child)
    stages = list(network.get_submodule("layers").children())
    layout.add_module("layers", new := nn.ModuleList(nn.Module() for _ in stages))
    for place, stage in enumerate(stages):
        for name, child in stage.named_children():
            at = place - (name == "downsample")
            if at >= 0:
                new[at].add_module(name, child)
    return layout


def statistics_of(normalization: str, tag: str | None, pretrained: Pretrained | None) -> Statistics | None:
    """Mean and standard deviation of the pictures (specification 2.1.5).

    Raises:
        SettingError: "weights", and nobody knows what they were trained with.
    """
    import timm

    if normalization == "weights" and pretrained is not None:
        normalization = pretrained.normalization
    if normalization in ("imagenet", "none", "chestxray14"):
        return {"imagenet": IMAGENET, "none": None, "chestxray14": CHESTXRAY14}[normalization]
    config = timm.get_pretrained_cfg(tag) if tag else None
    if config is None:
        raise SettingError(
            "--normalization weights: it is not known what these weights were trained with",
            remedy="give imagenet, chestxray14 or none",
        )
    mean, std = tuple(config.mean), tuple(config.std)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
