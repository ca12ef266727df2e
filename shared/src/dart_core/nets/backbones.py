"""Image encoders from timm, with random weights or with those of a local file. Nothing is ever downloaded."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dart_core.checkpoint import read_weight_file, unwrap
from dart_core.errors import CheckpointError, SettingError


@dataclass(frozen=True)
class Conversion:
    """Which weights of a file found their place in a network."""

    loaded: tuple[str, ...]
    """Names in the network."""
    missing: tuple[str, ...]
    """Names in the network that the file has not; they keep their values."""
    unexpected: tuple[str, ...]
    """Names in the file that the network has not, such as those of a classifier's last layer."""
    shape_mismatch: tuple[str, ...]
    """Names in the network for which the file has another shape; they keep their values."""


def create_backbone(
    name: str, weights: Path | None = None, in_channels: int = 3, image_size: int | None = None, **options: Any
) -> nn.Module:
    """An encoder that timm knows, without its classifier: images (B, in_channels, H, W) -> pooled features (B, K).

    Args:
        name: of the architecture in timm, such as "resnext101_32x8d" or "vit_tiny_patch16_224".
        weights: a local weight file, see `load_backbone_weights`; every weight of the encoder must be in it. None starts
            from random weights.
        in_channels: of the images.
        image_size: side of the images, for the networks that are built for one size (most transformers); None is the
            size of the architecture. Networks that take any size ignore it.
        options: further keywords of the architecture in timm, such as `drop_path_rate`, `embed_dim`, `depth`.

    Returns:
        The network, with the attribute `num_features` = K.

    Raises:
        SettingError: timm has no such network, or cannot build it for these images.
        CheckpointError: the file cannot be read, or has not all the weights.
    """
    import timm

    if in_channels < 1:
        raise SettingError(f"in_channels is {in_channels}", remedy="an image has at least 1 channel")
    config = _configuration(name)
    keywords = dict(options)
    if image_size is not None and config is not None and config.fixed_input_size:
        keywords["img_size"] = image_size
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **keywords)
    except (TypeError, ValueError, ArithmeticError, LookupError, AssertionError, RuntimeError) as error:
        size = "" if image_size is None else f" of side {image_size}"
        given = "".join(f", {key} = {value}" for key, value in options.items())
        raise SettingError(
            f"the network {name} cannot be built for images{size} with {in_channels} channels{given} ({error})",
            remedy="choose another size or network",
        ) from error
    # Where layers lie between the pooling and the classifier, timm's own `num_features` is what comes before them.
    network.num_features = getattr(network, "head_hidden_size", None) or network.num_features
    if weights is not None:
        found = load_backbone_weights(network, weights)
        if lacking := (*found.shape_mismatch, *found.missing):
            kind = "has another shape for" if found.shape_mismatch else "has no"
            raise CheckpointError(
                f"fits only {len(found.loaded)} of the {len(found.loaded) + len(lacking)} weights of {name}: it {kind} "
                f"'{lacking[0]}'",
                where=weights,
                remedy="give the weights of this network",
            )
    return network


def _configuration(name: str) -> Any:
    """What timm knows about a network."""
    import timm

    # Names with a colon ("hf-hub:...") would make timm ask the network.
    if ":" not in name and timm.is_model(name):
        try:
            return timm.get_pretrained_cfg(name)
        except RuntimeError:  # a tag behind the architecture ("resnet18.a1_in1k") that timm does not know
            near = dict.fromkeys([name.split(".", 1)[0]])
    else:
        known = timm.list_models()
        longer = [other for other in known if name and other.startswith(name.lower())][:3]
        near = dict.fromkeys((*longer, *difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)))
    raise SettingError(
        f"timm has no network {name!r}",
        remedy=f"nearest: {', '.join(near)}" if near else "timm knows, for example, resnet50 and efficientnet_b3",
    )


def load_backbone_weights(module: nn.Module, path: str | os.PathLike[str]) -> Conversion:
    """Copy the weights of a local file into a network as far as names and shapes fit.

    The file may hold the weights under a key of their own ("state_dict", "model", ...), and something may stand before
    the network's names in it ("module.", "backbone.", ...); the key and the prefix with which most fits are taken.

    Args:
        module: the network, changed in place.
        path: a safetensors file or a PyTorch one (`.pth`, `.pt`), of which only tensors and plain values are read.

    Returns:
        What was loaded and what was not. Counters of batches seen (`num_batches_tracked`), which older files lack, are not
        named as missing.

    Raises:
        CheckpointError: the file cannot be read, or nothing in it fits; the network is untouched.
    """
    module = unwrap(module)
    own = module.state_dict()
    best: tuple[int, str, dict[str, Tensor]] = (0, "", {})
    content = read_weight_file(path)
    for state in _containers(content):
        for prefix in _prefixes(state, own):
            fits = sum(1 for key in own if _fits(own[key], state.get(prefix + key)))
            if fits > best[0]:
                best = (fits, prefix, state)
    count, prefix, state = best
    if not count:
        given = {key for one in _containers(content) for key in one}
        raise CheckpointError(
            f"holds no weight that fits this network ({type(module).__name__}): 0 loaded, {len(own.keys() - given)} missing, "
            f"{len(own.keys() & given)} of another shape, {len(given - own.keys())} unexpected",
            where=path,
            remedy="give a file with the weights of this architecture",
        )
    fitting = {key: state[prefix + key] for key in own if _fits(own[key], state.get(prefix + key))}
    other = tuple(key for key in own if key not in fitting and prefix + key in state)
    absent = tuple(
        key
        for key in own
        if key not in fitting and prefix + key not in state and not key.endswith("num_batches_tracked")
    )
    used = {prefix + key for key in own}
    module.load_state_dict(fitting, strict=False)
    return Conversion(tuple(fitting), absent, tuple(key for key in state if key not in used), other)


def _fits(own: Tensor, theirs: Tensor | None) -> bool:
    return theirs is not None and own.shape == theirs.shape


def _containers(content: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """The mapping itself and the mappings in it, as far as they hold tensors by name."""
    found = []
    for mapping in (content, *(value for value in content.values() if isinstance(value, Mapping))):
        tensors = {key: value for key, value in mapping.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if tensors:
            found.append(tensors)
    return found


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """What may stand before the network's names in the file, the commonest first."""
    counts: Counter[str] = Counter()
    firsts = {key.split(".", 1)[0] for key in own}
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            if parts[depth] in firsts:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    return ["", *(prefix for prefix, _ in counts.most_common() if prefix)]
