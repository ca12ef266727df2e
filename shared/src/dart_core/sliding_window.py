"""Sliding-window prediction as in nnU-Net: a 2-D network over slices, a 3-D network over volumes (specification adagrad-unet 2.7)."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError, SettingError

OVERLAP = 0.5
"""Largest step between two tiles, in patches."""
SIGMA = 1 / 8
"""Standard deviation of the importance map, in patches."""
MIRRORED_AXES: tuple[tuple[int, ...], ...] = ((), (-1,), (-2,), (-2, -1))
"""The four passes of test-time mirroring."""

Network: TypeAlias = Callable[[Tensor], Tensor | Sequence[Tensor]]


@overload
def sliding_window_predict(
    network: Network, volume: Tensor, patch_size: Sequence[int], mirror: bool = True, *, batch_size: int = 16
) -> Tensor: ...
@overload
def sliding_window_predict(
    network: Network, volume: NDArray[Any], patch_size: Sequence[int], mirror: bool = True, *, batch_size: int = 16
) -> NDArray[Any]: ...
def sliding_window_predict(
    network: Network,
    volume: Tensor | NDArray[Any],
    patch_size: Sequence[int],
    mirror: bool = True,
    *,
    batch_size: int = 16,
) -> Tensor | NDArray[Any]:
    """Class probabilities of every voxel, slice by slice.

    Slices smaller than the patch are padded with 0 on both sides (the odd pixel behind) and the result is cropped back. Tiles
    lie at `window_starts`. The softmax of each tile is the mean over the passes with both axes mirrored or not; where
    a slice has more than one tile, the tiles are averaged with the weights of `importance_map`.

    The network works in eval mode without gradients, and its modules get back the modes that they had.

    Args:
        network: maps (B, C, h, w) to logits (B, K, h, w), or to a list of outputs, full resolution first, of which the
            first is taken (deep supervision). Usually a module.
        volume: (C, S, H, W), tensor or array; moved to the network's device and type piece by piece.
        patch_size: (h, w).
        mirror: average over the four mirrored passes. Off for networks that were trained without augmentation.
        batch_size: tiles per forward pass.

    Returns:
        (K, S, H, W) probabilities on the volume's device (an array for an array), of the type of the network's output,
        half precision as float32.

    Raises:
        InputError: the volume is not 4-D or is empty, or the network's output has another shape than its input.
        SettingError: the patch size is not two positive numbers, or the batch size is not positive.
    """
    if isinstance(volume, np.ndarray):
        as_tensor = torch.from_numpy(np.ascontiguousarray(volume))
        return sliding_window_predict(network, as_tensor, patch_size, mirror, batch_size=batch_size).numpy()
    patch = _checked(volume, patch_size, batch_size)
    volume = volume if volume.is_floating_point() else volume.float()
    missing = [max(p - n, 0) for n, p in zip(volume.shape[-2:], patch, strict=True)]
    top, left = (m // 2 for m in missing)
    padded = F.pad(volume, (left, missing[1] - left, top, missing[0] - top))
    rows, columns = (window_starts(n, p) for n, p in zip(padded.shape[-2:], patch, strict=True))
    positions = list(itertools.product(rows, columns))
    # As many whole slices as fit into a batch; where one slice has more tiles than that, its tiles are shared out.
    slices = max(batch_size // len(positions), 1)
    per_pass = max(batch_size // slices, 1)

    parameter = next(network.parameters(), volume) if isinstance(network, nn.Module) else volume
    total = weights = None
    with _inference(network):
        for first in range(0, padded.shape[1], slices):
            part_CSHW = padded[:, first : first + slices].to(parameter.device, parameter.dtype)
            for start in range(0, len(positions), per_pass):
                group = positions[start : start + per_pass]
                tiles = torch.cat([part_CSHW[..., r : r + patch[0], c : c + patch[1]] for r, c in group], dim=1)
                p_KBhw = _mirrored_softmax(network, tiles.transpose(0, 1), mirror).transpose(0, 1)
                if total is None or weights is None:
                    importance = importance_map(patch) if len(positions) > 1 else torch.ones(patch)
                    importance = importance.to(volume.device, p_KBhw.dtype)
                    total = importance.new_zeros(len(p_KBhw), *padded.shape[1:])
                    weights = importance.new_zeros(padded.shape[-2:])
                    for r, c in positions:
                        weights[r : r + patch[0], c : c + patch[1]] += importance
                each = p_KBhw.to(volume.device).split(part_CSHW.shape[1], dim=1)
                for (r, c), p_KShw in zip(group, each, strict=True):
                    total[:, first : first + slices, r : r + patch[0], c : c + patch[1]] += importance * p_KShw
    assert total is not None  # an empty volume was refused
    assert weights is not None
    return total.div_(weights)[..., top : top + volume.shape[-2], left : left + volume.shape[-1]].contiguous()


def predict_volume(
    network: Network, volume: Tensor, patch_size: Sequence[int], mirror: bool = False, *, batch_size: int = 4
) -> Tensor:
    """Class probabilities of every voxel by a 3-D network.

    As `sliding_window_predict`, with tiles along three axes: a smaller volume is padded with 0 on both sides and cropped back,
    tiles lie at `window_starts` and are averaged with the weights of `importance_map`. The network works in eval mode without
    gradients, and its modules get back the modes that they had.

    Args:
        network: maps (B, C, d, h, w) to logits (B, K, d, h, w), or to a list of outputs of which the first is taken.
        volume: (C, D, H, W); moved to the network's device and type piece by piece.
        patch_size: (d, h, w).
        mirror: average over the eight mirrored passes.
        batch_size: tiles per forward pass.

    Returns:
        (K, D, H, W) probabilities on the volume's device, half precision as float32.

    Raises:
        InputError: the volume is not 4-D or is empty, or the network's output has another shape than its input.
        SettingError: the patch size is not three positive numbers, or the batch size is not positive.
    """
    if volume.ndim != 4 or not volume.numel():
        raise InputError(
            f"a volume (C, D, H, W) is needed, not shape {tuple(volume.shape)}",
            remedy="give one volume with a channel axis in front",
        )
    patch = tuple(int(p) for p in patch_size)
    if len(patch) != 3 or min(patch) < 1 or batch_size < 1:
        raise SettingError(
            f"patch size {patch}, batch size {batch_size}", remedy="give three positive numbers, and one"
        )
    padded, front = pad_to_patch(volume if volume.is_floating_point() else volume.float(), patch)
    starts = [window_starts(n, p) for n, p in zip(padded.shape[1:], patch, strict=True)]
    windows = [
        (slice(None), *(slice(s, s + p) for s, p in zip(place, patch, strict=True)))
        for place in itertools.product(*starts)
    ]
    passes = [axes for count in range(4 if mirror else 1) for axes in itertools.combinations((-3, -2, -1), count)]
    parameter = next(network.parameters(), volume) if isinstance(network, nn.Module) else volume
    importance = importance_map(patch) if len(windows) > 1 else torch.ones(patch)
    total = weights = None
    with _inference(network):
        for first in range(0, len(windows), batch_size):
            group = windows[first : first + batch_size]
            tiles = torch.stack([padded[window] for window in group]).to(parameter.device, parameter.dtype)
            p_BK = _mean_softmax(network, tiles, passes).to(volume.device)
            if total is None or weights is None:
                importance = importance.to(volume.device, p_BK.dtype)
                total = p_BK.new_zeros(p_BK.shape[1], *padded.shape[1:])
                weights = p_BK.new_zeros(padded.shape[1:])
            for window, p in zip(group, p_BK, strict=True):
                total[window] += importance * p
                weights[window[1:]] += importance
    assert total is not None  # an empty volume was refused
    assert weights is not None
    inside = (slice(None), *(slice(f, f + n) for f, n in zip(front, volume.shape[1:], strict=True)))
    return total.div_(weights)[inside].contiguous()


def pad_to_patch(volume: Tensor, patch: Sequence[int]) -> tuple[Tensor, list[int]]:
    """A volume (C, ...) of at least the patch's size, padded with 0, and how many voxels were put in front on each axis.

    Half of what is missing lies in front, the odd voxel behind.
    """
    missing = [max(p - n, 0) for n, p in zip(volume.shape[1:], patch, strict=True)]
    front = [m // 2 for m in missing]
    sides = [side for m, f in zip(reversed(missing), reversed(front), strict=True) for side in (f, m - f)]
    return F.pad(volume, sides), front


def window_starts(size: int, patch: int) -> list[int]:
    """First pixels of the tiles along an axis: evenly spread and rounded, at most half a patch apart.

    `window_starts(110, 64)` is [0, 23, 46]; a half rounds to the even neighbour, as in NumPy.

    Args:
        size: pixels of the axis.
        patch: pixels of a tile, at most `size`.

    Raises:
        ValueError: the tile does not fit.
    """
    if not 1 <= patch <= size:
        raise ValueError(f"a tile of {patch} pixels does not fit into {size}")
    last = size - patch
    steps = math.ceil(last / (OVERLAP * patch))
    return [round(last / steps * i) for i in range(steps + 1)] if steps else [0]


def importance_map(patch_size: Sequence[int]) -> Tensor:
    """Weight of each pixel of a tile: a Gaussian with standard deviation patch / 8 whose peak, at pixel n // 2, is 1.

    nnU-Net filters a single bright pixel and replaces the zeros. The filter reaches every pixel of the patch, so the
    result is this product of two exponentials, which never gets to 0: the smallest weight is exp(-16).

    Args:
        patch_size: (h, w), or (d, h, w).

    Returns:
        (h, w) or (d, h, w) float64.
    """
    axes = [
        torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float64) - n // 2) / (SIGMA * n)).square()) for n in patch_size
    ]
    return functools.reduce(torch.multiply, torch.meshgrid(*axes, indexing="ij"))


def _mirrored_softmax(network: Network, tiles: Tensor, mirror: bool) -> Tensor:
    """(B, C, h, w) -> probabilities (B, K, h, w), mean over the mirrored passes."""
    return _mean_softmax(network, tiles, MIRRORED_AXES if mirror else MIRRORED_AXES[:1])


def _mean_softmax(network: Network, tiles: Tensor, passes: Sequence[tuple[int, ...]]) -> Tensor:
    """(B, C, ...) -> probabilities (B, K, ...), mean over passes with reversed axes."""
    total = None
    for axes in passes:
        output = network(tiles.flip(axes))
        logits = output if isinstance(output, Tensor) else output[0]
        if logits.ndim != tiles.ndim or (len(logits), *logits.shape[2:]) != (len(tiles), *tiles.shape[2:]):
            raise InputError(
                f"the network gave {tuple(logits.shape)} for {tuple(tiles.shape)}",
                remedy="use a network whose first output has the size of its input, and a patch size that suits it",
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        p = logits.softmax(1).flip(axes)
        total = p if total is None else total + p
    assert total is not None  # there is always the pass without mirroring
    return total / len(passes)


@contextlib.contextmanager
def _inference(network: object) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode that it had."""
    modes = [(part, part.training) for part in network.modules()] if isinstance(network, nn.Module) else []
    if isinstance(network, nn.Module):
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def _checked(volume: Tensor, patch_size: Sequence[int], batch_size: int) -> tuple[int, int]:
    if volume.ndim != 4 or not volume.numel():
        raise InputError(
            f"a volume (C, S, H, W) is needed, not shape {tuple(volume.shape)}",
            remedy="give one volume with a channel axis in front and the slice axis second",
        )
    patch = tuple(int(p) for p in patch_size)
    if len(patch) != 2 or min(patch) < 1:
        raise SettingError(f"patch size {patch}", remedy="give two positive numbers of pixels")
    if batch_size < 1:
        raise SettingError(f"batch size {batch_size}", remedy="give at least 1")
    return patch[0], patch[1]
