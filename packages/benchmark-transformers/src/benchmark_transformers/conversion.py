"""Weight files of other projects in the names of timm's networks (specification 2.3).

What a file does not give is counted; below 95 % of the backbone's tensors, or without a layer between stages, it is refused:
most such files load without an error into a network that then starts from random weights.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmark_transformers.settings import Source
from dart_core.arrays import accepts_arrays
from dart_core.checkpoint import read_weight_file, unwrap
from dart_core.errors import CheckpointError, InputError, SettingError
from dart_core.nets.backbones import Conversion

LEAST = 0.95
"""Share of the backbone's tensors that a file must give."""
_HEADS = ("head.", "fc.", "head_dist.", "fc_norm.")
"""What is new in a classifier: the last layer, and the norm after mean pooling."""
_BIAS = "relative_position_bias_table"
_EXTRA = 3
"""Rows of BEiT's tables for the class token: to it, from it, to itself."""


# --- Position bias ---------------------------------------------------------------------------------------------------


@accepts_arrays
def interpolate_relative_position_bias(table: Tensor, new_window: int) -> Tensor:
    """Bring Swin's table of position bias on to another window, on a grid whose steps grow geometrically.

    Args:
        table: ((2 w - 1)², heads).
        new_window: side of the new window.

    Returns:
        ((2 new_window - 1)², heads) of the same type. The same window: unchanged. The middle and its neighbours keep their
        values; towards the edge the old offsets are stretched so that the largest one becomes the largest new one.

    Raises:
        ValueError: a table that is not square, or no window.
    """
    side = math.isqrt(len(table))
    if table.dim() != 2 or side**2 != len(table) or side % 2 == 0:
        raise InputError(f"a table of shape {tuple(table.shape)}", remedy="give ((2 window - 1)², heads)")
    if new_window < 1:
        raise InputError(f"the new window is {new_window}", remedy="give at least 1")
    new_side = 2 * new_window - 1
    if new_side == side:
        return table.clone()
    if side == 1:
        return table.expand(new_side**2, -1).clone()
    from scipy.interpolate import RectBivariateSpline

    steps = _geometric(side // 2, new_side // 2)
    grid = np.concatenate([-steps[::-1], [0.0], steps])
    wanted = np.clip(np.arange(-(new_side // 2), new_side // 2 + 1, dtype=np.float64), grid[0], grid[-1])
    degree = min(3, side - 1)
    old = table.detach().double().cpu().numpy().reshape(side, side, -1)
    heads = [
        RectBivariateSpline(grid, grid, old[:, :, k], kx=degree, ky=degree, s=0)(wanted, wanted)
        for k in range(old.shape[2])
    ]
    new = torch.from_numpy(np.stack(heads, -1).reshape(new_side**2, -1))
    return new.to(table.dtype).to(table.device)


def _geometric(count: int, last: int) -> NDArray[np.float64]:
    """The offsets 1, 1 + q, 1 + q + q², ... (`count` of them), q found by bisection so that the last one is `last`."""
    low, high, q = 1.01, 1.5, 1.01
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**count) / (1 - q) > last else (q, high)
    return np.cumsum(q ** np.arange(count, dtype=np.float64))


# --- Files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Converted:
    """What a file gives a network."""

    state: dict[str, Tensor]
    """By the network's names; only what fits."""
    counts: Conversion

    @property
    def share(self) -> float:
        """Of the backbone's tensors."""
        found = self.counts
        return len(found.loaded) / max(1, len(found.loaded) + len(found.missing) + len(found.shape_mismatch))

    def __str__(self) -> str:
        found = self.counts
        text = f"{len(found.loaded)} loaded, {len(found.missing)} missing, {len(found.unexpected)} unexpected"
        return text + (f", {len(found.shape_mismatch)} of another shape" if found.shape_mismatch else "")


def convert_checkpoint(path: str | os.PathLike[str], model: nn.Module, source: Source = "simmim") -> dict[str, Tensor]:
    """Read the weight file of another project for a network of timm.

    Args:
        path: a file of PyTorch or safetensors; only tensors and plain values are read.
        model: Swin, ViT, BEiT (SimMIM's ViT) or ResNet of timm; not changed.
        source: simmim: `model`, `encoder.*`; moco_v3: `state_dict`, `module.base_encoder.*`; dino: `teacher`; mae: `model`;
            moby: `model`, `encoder.*`. A table of position bias of another window is interpolated, one that all blocks share
            is copied to each.

    Returns:
        State dict in the model's names, without the head, for `load_state_dict(..., strict=False)`.

    Raises:
        SettingError: an unknown source.
        CheckpointError: fewer than 95 % of the backbone's tensors or not every layer between stages (names the counts), or the
            file cannot be read. Both are ValueErrors.
    """
    return convert(path, model, source).state


def convert(path: str | os.PathLike[str], model: nn.Module, source: Source | str = "simmim") -> Converted:
    """`convert_checkpoint`, with the counts."""
    if source not in get_args(Source):
        raise SettingError(f"source is {source!r}", remedy=f"give one of {', '.join(get_args(Source))}")
    state = _SOURCES[source](read_weight_file(path))
    own = backbone_tensors(model)
    if any(map(is_merge, own)):
        state = _moved_merges(state)
    state = _shared_bias(state, own)
    return _checked(_matched(state, own), path, model, source)


def _matched(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Converted:
    """What fits a network's tensors by name and, after changes of size, by shape."""
    fitting: dict[str, Tensor] = {}
    missing: list[str] = []
    other: list[str] = []
    for name, tensor in own.items():
        if name not in state:
            missing.append(name)
            continue
        found = _resized(name.removeprefix("encoder."), state[name], tensor)
        if found.shape == tensor.shape:
            fitting[name] = found.to(tensor.dtype)
        else:
            other.append(name)
    unexpected = tuple(name for name in state if name not in own and not name.startswith(_HEADS))
    return Converted(fitting, Conversion(tuple(fitting), tuple(missing), unexpected, tuple(other)))


def _checked(converted: Converted, path: str | os.PathLike[str], model: nn.Module, source: str) -> Converted:
    """The same, unless too little fits, or a layer between stages does not."""
    lacking = (*converted.counts.missing, *converted.counts.shape_mismatch)
    merges = [name for name in lacking if is_merge(name)]
    if merges or converted.share < LEAST:
        raise CheckpointError(
            f"fits {converted.share:.0%} of the weights of {type(unwrap(model)).__name__} ({converted}; the first that "
            f"does not is '{(*merges, *lacking)[0]}')",
            where=path,
            remedy=f"give a file of {source} for this network, or name another source or network",
        )
    return converted


def is_merge(name: str) -> bool:
    """Whether a tensor is of a layer between stages: three of Swin's are too few to be missed in a share of all tensors."""
    return ".downsample." in name


def backbone_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers that a pre-training can give; not the head, nor what is worked out from the sizes."""
    skipped = ("num_batches_tracked", "relative_position_index", "attn_mask")
    return {
        name: tensor
        for name, tensor in unwrap(model).state_dict().items()
        if not name.startswith(_HEADS) and not name.endswith(skipped)
    }


def _inner(content: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """The tensors under a key; of a file without that key the tensors of the file itself."""
    inner = content.get(key, content)
    inner = inner if isinstance(inner, Mapping) else content
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}


def _after(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What stands after a prefix; all of it where nothing begins with it."""
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return found or dict(state)


def _simmim(content: Mapping[str, Any]) -> dict[str, Tensor]:
    state = _after(_inner(content, "model"), "encoder.")
    return {name: tensor for name, tensor in state.items() if name != "mask_token" and not name.startswith("decoder.")}


def _moco_v3(content: Mapping[str, Any]) -> dict[str, Tensor]:
    state = _after(_inner(content, "state_dict"), "module.base_encoder.")
    return {name: tensor for name, tensor in state.items() if not name.startswith(("module.", "head.", "fc."))}


def _dino(content: Mapping[str, Any]) -> dict[str, Tensor]:
    state = _after(_after(_inner(content, "teacher"), "module."), "backbone.")
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def _mae(content: Mapping[str, Any]) -> dict[str, Tensor]:
    state = _inner(content, "model")
    return {name: tensor for name, tensor in state.items() if not name.startswith(("decoder_", "mask_token"))}


def _moby(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return _after(_after(_inner(content, "model"), "module."), "encoder.")


_SOURCES: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Tensor]]] = {
    "simmim": _simmim,
    "moco_v3": _moco_v3,
    "dino": _dino,
    "mae": _mae,
    "moby": _moby,
}


def _moved_merges(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm has Swin's merge layers at the head of a stage, the owners' files at the end of the one before."""
    state = {name: t for name, t in state.items() if not name.endswith(("relative_position_index", "attn_mask"))}
    if any(name.startswith("layers.0.downsample.") for name in state):
        moved = re.compile(r"^layers\.(\d+)\.downsample\.")
        state = {moved.sub(lambda found: f"layers.{int(found[1]) + 1}.downsample.", k): t for k, t in state.items()}
    return state


def _shared_bias(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy a table that all blocks share to each of them, where the network wants it there."""
    state = {name: tensor for name, tensor in state.items() if not name.endswith("relative_position_index")}
    shared = f"rel_pos_bias.{_BIAS}"
    targets = [name for name in own if name.startswith("blocks.") and name.endswith(_BIAS)]
    if shared in state and targets and shared not in own:
        table = state.pop(shared)
        state |= {name: table for name in targets if name not in state}
    if "fc_norm.weight" not in own and "norm.weight" not in own:
        # With mean pooling the norm of the pre-training has no place; the new one is not loaded.
        state = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
    return state


def _resized(name: str, given: Tensor, own: Tensor) -> Tensor:
    """A table of position bias or an embedding of positions for another size of picture."""
    if given.shape == own.shape or given.dim() != own.dim():
        return given
    if name.endswith(_BIAS) and given.shape[1] == own.shape[1]:
        extra = _EXTRA if name.startswith(("blocks.", "rel_pos_bias.")) else 0
        sides = [math.isqrt(len(table) - extra) for table in (given, own)]
        if all(side**2 == len(table) - extra for side, table in zip(sides, (given, own), strict=True)):
            body = interpolate_relative_position_bias(given[: len(given) - extra], (sides[1] + 1) // 2)
            return torch.cat([body, given[len(given) - extra :]])
    if name == "pos_embed" and given.shape[2] == own.shape[2]:
        from timm.layers.pos_embed import resample_abs_pos_embed

        side = math.isqrt(own.shape[1] - 1)
        if side**2 == own.shape[1] - 1:
            found: Tensor = resample_abs_pos_embed(given, new_size=[side, side], num_prefix_tokens=1)
            return found
    return given


def convert_simmim(path: str | os.PathLike[str], network: nn.Module) -> Converted:
    """Encoder, mask token and decoder of a SimMIM file (or of a network of `pretrain`) for continued pre-training.

    Args:
        path: a file with the key `model`, or the tensors themselves.
        network: a `SimMIM`; not changed. A table of position bias of another window is interpolated.

    Raises:
        CheckpointError: fewer than 95 % of its tensors, a layer between stages is not there, or the file cannot be read.
    """
    state = _inner(read_weight_file(path), "model")
    own = dict(unwrap(network).state_dict())
    encoder = {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}
    if any(map(is_merge, own)):
        encoder = _moved_merges(encoder)
    encoder = {name: t for name, t in encoder.items() if not name.endswith("relative_position_index")}
    state = {f"encoder.{name}": t for name, t in encoder.items()} | {
        name: t for name, t in state.items() if not name.startswith("encoder.")
    }
    return _checked(_matched(state, own), path, network, "simmim")
