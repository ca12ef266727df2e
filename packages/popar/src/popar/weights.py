"""Weights of a pretraining in any layout: ours, the authors', timm's (specification 3)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dart_core.checkpoint import read_weight_file, unwrap, weights_file
from dart_core.errors import CheckpointError
from dart_core.nets import Conversion
from popar.networks import POPAR, Classifier

LEAST = 0.95
"""Share of a backbone's tensors that a file must hold: below it, one would fine-tune a random network without noticing."""
_PREFIX = re.compile(r"^(?:module\.|swin_model\.|vit_model\.|backbone\.|model\.|base_encoder\.|encoder\.)+")
_AUTHORS = re.compile(r"(?:module\.)?(?:swin|vit)_model\.")
"""How names begin in the files of the authors' pretraining, and in no others."""
_BUFFERS = ("attn_mask", "relative_position_index")
"""Computed from the sizes; those of another image size would not fit."""
_CONTAINERS = ("model", "state_dict", "model_state_dict", "network")
_HEADS = {
    "head.weight": "order_head.weight", "head.bias": "order_head.bias", "bias": "order_head.bias",
    "decoder.0.weight": "restoration_head.weight", "decoder.0.bias": "restoration_head.bias",
}  # fmt: skip
"""Names of the two heads in the authors' files -> ours."""


def load_popar_weights(path: str | os.PathLike[str], model: nn.Module) -> Conversion:
    """Copy the weights of a pretraining into a network.

    Understands files of this package, of the authors (names begin with swin_model., with module. before it if saved in
    parallel; merging layers stand at the end of a stage instead of at the start of the next; buffers of window masks), of timm
    and of MoCo v3. Weights of another image size fit where the architecture allows it: a Swin takes them as they are, a ViT's position
    embeddings are interpolated.

    Args:
        path: a run folder of `popar pretrain`, or a weight file of which only tensors and plain values are read.
        model: a Swin or ViT of timm, a `POPAR` (its heads are loaded too where they fit) or a `Classifier`; changed in place.

    Returns:
        What was loaded and what was not, in the names of `model`'s backbone (for a `POPAR` also of its heads).

    Raises:
        CheckpointError: a ValueError too: fewer than 95 % of the backbone's tensors are in the file and have the right shape,
            or it cannot be read; `model` is untouched.
    """
    module = unwrap(model)
    backbone = module.backbone if isinstance(module, POPAR | Classifier) else module
    assert isinstance(backbone, nn.Module)
    file = weights_file(Path(path))
    state, heads = standard_names(read_weight_file(file), file)
    own = {name: value for name, value in backbone.state_dict().items() if not name.startswith("head.")}
    state = {name: value for name, value in state.items() if name in own or not name.startswith(("head", "fc_head"))}
    _resample_positions(state, own, backbone)
    fitting = {name: state[name] for name in own if name in state and state[name].shape == own[name].shape}
    other = tuple(name for name in own if name in state and name not in fitting)
    missing = tuple(name for name in own if name not in state)
    unexpected = tuple(name for name in state if name not in own)
    if len(fitting) < LEAST * len(own):
        first = f"has another shape for '{other[0]}'" if other else f"has no '{missing[0]}'"
        raise CheckpointError(
            f"fits only {len(fitting)} of the {len(own)} tensors of the backbone ({len(missing)} missing, {len(other)} of "
            f"another shape, {len(unexpected)} unexpected): it {first}",
            where=file,
            remedy="give the weights of this architecture",
        )
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
        loaded = list(fitting)
        if isinstance(module, POPAR):
            targets = {name: value for name, value in module.state_dict().items() if not name.startswith("backbone.")}
            for name, value in targets.items():
                found = _as_head(heads.get(name), value)
                if found is not None:
                    value.copy_(found)
                    loaded.append(name)
                else:
                    missing = (*missing, name)
    return Conversion(tuple(loaded), missing, unexpected, other)


def standard_names(content: Mapping[str, Any], where: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a weight file in timm's names, and those of POPAR's heads in ours.

    Args:
        content: what the file holds, as `dart_core.checkpoint.read_weight_file` reads it.
        where: the file, for the message.

    Raises:
        CheckpointError: it holds no tensors by name.
    """
    tensors = _tensors(content)
    if not tensors:
        raise CheckpointError("holds no tensors by name", where=where, remedy="give a weight file")
    backbone: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    ours = any(name.startswith("order_head.") for name in tensors)
    for full, value in tensors.items():
        name = _PREFIX.sub("", full)
        if name.endswith(_BUFFERS):
            continue
        if name.startswith(("order_head.", "restoration_head.")):
            heads[name] = value
        elif name in _HEADS and not ours:
            heads[_HEADS[name]] = value
            if name.startswith("head."):
                backbone[name] = value  # or that of a classifier, which is left out where it is not wanted
        else:
            backbone[name] = value
    if any(name.startswith("layers.0.downsample.") for name in backbone):
        # Before timm 0.9, as with the authors, a stage ends with the merging layer that now begins the next one.
        backbone = {_moved(name): value for name, value in backbone.items()}
    return backbone, heads


def is_of_the_authors(path: Path) -> bool:
    """Whether a file is of the authors' pretraining, which normalises with ChestX-ray14's statistics (specification 8.3).

    Raises:
        CheckpointError: it cannot be read.
    """
    return any(_AUTHORS.match(name) for name in _tensors(read_weight_file(weights_file(path))))


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a weight file by their own names, from below the key that some programs store them under."""
    held = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), content)
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def timm_state(model: POPAR | Classifier) -> dict[str, Tensor]:
    """The backbone in timm's names; with the classifier, where that is one linear layer.

    `timm.create_model(name, checkpoint_path=..., num_classes=...)` loads it, num_classes=0 without a classifier.
    """
    found = {name: value.detach().cpu().clone() for name, value in model.backbone.state_dict().items()}
    if isinstance(model, Classifier) and isinstance(model.head, nn.Linear):
        # A Swin pools inside its head.
        prefix = "head.fc" if hasattr(model.backbone, "layers") else "head"
        found |= {f"{prefix}.{name}": value.detach().cpu().clone() for name, value in model.head.state_dict().items()}
    return found


def _moved(name: str) -> str:
    match = re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name)
    return f"layers.{int(match[1]) + 1}.downsample.{match[2]}" if match else name


def _as_head(found: Tensor | None, own: Tensor) -> Tensor | None:
    """A head's tensor in the shape of ours (a 1x1 convolution or a linear layer), or None."""
    if found is None:
        return None
    if found.numel() == own.numel() and found.shape[0] == own.shape[0]:
        return found.reshape(own.shape)
    return None


def _resample_positions(state: dict[str, Tensor], own: Mapping[str, Tensor], backbone: nn.Module) -> None:
    """Bring a ViT's position embeddings to another number of patches."""
    theirs, ours = state.get("pos_embed"), own.get("pos_embed")
    if theirs is None or ours is None or theirs.shape == ours.shape or theirs.shape[-1] != ours.shape[-1]:
        return
    from timm.layers.pos_embed import resample_abs_pos_embed

    prefix = int(backbone.num_prefix_tokens)  # type: ignore[arg-type]
    if theirs.dim() == 3 and round((theirs.shape[1] - prefix) ** 0.5) ** 2 == theirs.shape[1] - prefix:
        new = list(backbone.patch_embed.grid_size)  # type: ignore[union-attr,arg-type]
        state["pos_embed"] = resample_abs_pos_embed(theirs, new, num_prefix_tokens=prefix)
