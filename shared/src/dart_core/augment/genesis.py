"""The distortions of Models Genesis for batches of pictures and volumes, on CPU and GPU.

Every function leaves its argument alone and draws anew for each sample. Draws follow from the state of `generator`, or of the
global generator of the batch's device. On the CPU the samples are shared among as many threads as PyTorch may use, which does
not change the result. Which distortions follow each other, and how often, is the methods' affair.

Source: specifications popar 2.9 (pictures) and united-ssl 2.4 (volumes).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dart_core.augment._parts import Draw, in_parts
from dart_core.augment._shuffling import BLOCK_SHARE, mean_volume, sources

BLOCKS = {2: 40, 3: 10_000}
"""Blocks of the local shuffling, in pictures and in volumes."""
POINTS = 500
"""Points of the table of the non-linear map; Models Genesis takes 100,000 for volumes."""
WINDOWS = 5
"""Most windows of a cutout."""
STOP_PROBABILITY = 0.05
"""Of stopping before each further window."""
MARGIN = 3
"""Pixels at each border that no window covers."""


def local_pixel_shuffle(
    x: Tensor,
    blocks: int | None = None,
    channels: Literal["mixed", "together"] = "mixed",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Shuffle the values within many small blocks (popar 2.9 a).

    A block's sides are uniform from 1 to a tenth of the picture's, its place is uniform. All blocks read the undistorted
    input, and later ones overwrite earlier ones; so with many blocks the result is no permutation of the input.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W), every side at least 10.
        blocks: number of blocks in each sample; None is 40 in pictures and 10,000 in volumes.
        channels: "mixed" shuffles the values of all channels among each other, as the authors do; "together" moves each
            pixel with all its channels.
        generator: for reproducible draws.

    Returns:
        New tensor like x.

    Raises:
        ValueError: the shape, a side below 10, or a setting does not fit.
    """
    sides = _spatial(x, BLOCK_SHARE)
    if blocks is None:
        blocks = BLOCKS[len(sides)]
    if blocks < 0 or channels not in ("mixed", "together"):
        raise ValueError(f"blocks is {blocks}, channels {channels!r}; give 0 or more, and 'mixed' or 'together'")
    if blocks == 0 or x.numel() == 0:
        return x.clone()
    if channels == "mixed":
        # The channels become an axis that every block spans.
        flat, sides, whole = x.reshape(len(x), 1, -1), [x.shape[1], *sides], 1
    else:
        flat, whole = x.reshape(*x.shape[:2], -1), 0
    result = torch.empty_like(flat, memory_format=torch.contiguous_format)

    def shuffle(part: Tensor, out: Tensor, draw: Draw) -> None:
        source = sources(len(part), tuple(sides), whole, blocks, draw)
        if part.shape[1] == 1:
            torch.index_select(part.reshape(-1), 0, source.view(-1), out=out.view(-1))
        else:
            source = source - torch.arange(0, source.numel(), source.shape[1], device=source.device)[:, None]
            torch.gather(part, 2, source[:, None].expand(part.shape), out=out)

    in_parts(shuffle, (flat, result), int(blocks * mean_volume(sides, whole)), generator)
    return result.view(x.shape)


def nonlinear_intensity(
    x: Tensor, control_points: Tensor, decreasing: bool | Tensor = False, points: int = POINTS
) -> Tensor:
    """Map the values through a monotone Bezier curve (popar 2.9 b).

    With control points p0 to p3, (X, Y)(u) = sum_i binom(3, i) u^i (1 - u)^(3 - i) p_i. The increasing map takes X(u) to Y(u), the
    decreasing one X(u) to Y(1 - u); between `points` equidistant u it is linear, and outside [0, 1] it stays at the ends'
    values. All channels get the same map.

    Args:
        x: float32 or float64 (N, ...) in [0, 1]; interpolated in float64.
        control_points: (4, 2), or (N, 4, 2) for a map of its own for each sample, from (0, 0) to (1, 1), all within [0, 1].
        decreasing: for all samples, or (N,) bool.
        points: of the table, at least 2.

    Returns:
        New tensor like x.

    Raises:
        ValueError: types, shapes or control points do not fit.
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the batch is of type {x.dtype}; give float32 or float64")
    n = len(x)
    control = torch.as_tensor(control_points, dtype=torch.float64, device=x.device)
    if control.shape not in ((4, 2), (n, 4, 2)):
        raise ValueError(f"control points have shape {tuple(control.shape)}; (4, 2) and ({n}, 4, 2) fit")
    ends = control[..., [0, 3], :]
    if not ((ends == ends.new_tensor([[0.0], [1.0]])).all() & (control >= 0).all() & (control <= 1).all()):
        raise ValueError("control points must go from (0, 0) to (1, 1) and lie within [0, 1]")
    if points < 2:
        raise ValueError(f"a table of {points} points has no intervals; give at least 2")
    down = torch.as_tensor(decreasing, device=x.device)
    if down.shape not in ((), (n,)):
        raise ValueError(f"decreasing has shape {tuple(down.shape)}; give one bool, or one for each of the {n} samples")
    flat = x.reshape(n, -1)
    result = torch.empty_like(flat, memory_format=torch.contiguous_format)

    # Y(1 - u) is the curve of the same values in the reverse order.
    heights = torch.where(down.view(-1, 1), control[..., 1].flip(-1), control[..., 1]).expand(n, 4)
    control = torch.stack([control[..., 0].expand(n, 4), heights], 1)

    def change(values: Tensor, curves: Tensor, out: Tensor, draw: Draw) -> None:
        tables = (curves.reshape(-1, 4) @ _bernstein(points, curves.device)).view(len(curves), 2, points)
        across, up = tables[:, 0].contiguous(), tables[:, 1].contiguous()
        if values.is_cuda:
            out.copy_(_interpolate(values.double(), across, up))
        else:
            from dart_core.augment._compiled import interpolate  # Numba takes a second to import

            interpolate(values.detach().numpy(), across.numpy(), up.numpy(), out.numpy())

    in_parts(change, (flat, control, result), flat.shape[1], None)
    return result.view(x.shape)


def inner_cutout(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Put noise into up to 5 windows (popar 2.9 c, in-painting).

    Sides are from a sixth to a third of the picture's. The noise is uniform in [0, 1), the same in all channels.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W), every side at least 8.
        generator: for reproducible draws.

    Returns:
        New tensor like x.

    Raises:
        ValueError: the shape does not fit.
    """
    sides = _spatial(x, 8)
    limits = [(side // 6, side // 3) for side in sides]
    return _cutout(x, sides, limits, 0, generator)


def outer_cutout(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Put noise everywhere but in 1 to 5 windows (popar 2.9 c, out-painting).

    Sides are from s - floor(4s / 7) to s - floor(3s / 7) of a side s. The noise is uniform in [0, 1), another in each channel.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W), every side at least 14.
        generator: for reproducible draws.

    Returns:
        New tensor like x.

    Raises:
        ValueError: the shape does not fit.
    """
    sides = _spatial(x, 14)
    limits = [(side - 4 * side // 7, side - 3 * side // 7) for side in sides]
    return _cutout(x, sides, limits, 1, generator)


# Non-linear intensity


@functools.lru_cache(maxsize=4)
def _bernstein(points: int, device: torch.device) -> Tensor:
    """(4, points): the cubic Bernstein polynomials at equidistant u."""
    u = torch.linspace(0, 1, points, dtype=torch.float64, device=device)
    v = 1 - u
    return torch.stack([v**3, 3 * u * v**2, 3 * u**2 * v, u**3])


def _interpolate(values: Tensor, across: Tensor, up: Tensor) -> Tensor:
    """Linear interpolation at values (N, n) in tables (N, points), float64."""
    right = torch.searchsorted(across, values, right=True).clamp_(1, across.shape[1] - 1)
    left = right - 1
    x0, x1, y0, y1 = across.gather(1, left), across.gather(1, right), up.gather(1, left), up.gather(1, right)
    share = ((values - x0) / (x1 - x0).clamp_(min=torch.finfo(torch.float64).tiny)).clamp_(0, 1)
    return torch.lerp(y0, y1, share)


# Cutouts


def _cutout(
    x: Tensor,
    sides: Sequence[int],
    limits: Sequence[tuple[int, int]],
    always: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Noise inside of up to 5 windows, or outside of them if there is `always` one.

    Args:
        x: (N, C, *sides).
        sides: spatial ones.
        limits: smallest and largest side of a window, per axis.
        always: windows before the first chance to stop.
        generator: or None.
    """
    result = torch.empty_like(x, memory_format=torch.contiguous_format)

    def cut(part: Tensor, out: Tensor, draw: Draw) -> None:
        windows = _windows(len(part), sides, limits, always, draw)
        if always:
            torch.where(windows, part, draw.uniform(part.numel(), x.dtype).view(part.shape), out=out)
        else:
            torch.where(windows, draw.uniform(windows.numel(), x.dtype).view(windows.shape), part, out=out)

    in_parts(cut, (x, result), math.prod(x.shape[1:]), generator)
    return result


def _windows(n: int, sides: Sequence[int], limits: Sequence[tuple[int, int]], always: int, draw: Draw) -> Tensor:
    """(n, 1, *sides) bool: union of up to 5 windows in each sample."""
    numbers = draw.uniform((2 * len(sides) + 1) * n * WINDOWS, torch.float64).view(-1, n, WINDOWS)
    going = numbers[-1] >= STOP_PROBABILITY
    going[:, :always] = True
    going = going.cumprod(1).bool()
    # A bit for each window says whether a place lies within it.
    bit = (going * 2 ** torch.arange(WINDOWS, device=draw.device)).to(torch.uint8)[..., None]
    inside = torch.full((n, *[1] * len(sides)), 255, dtype=torch.uint8, device=draw.device)
    for axis, (side, (low, high)) in enumerate(zip(sides, limits, strict=True)):
        length = low + (numbers[2 * axis] * (high - low + 1)).long()
        start = MARGIN + (numbers[2 * axis + 1] * (side - length - 2 * MARGIN + 1)).long()
        position = torch.arange(side, device=draw.device)
        along = (position >= start[..., None]) & (position < (start + length)[..., None])
        within = (along * bit).sum(1, dtype=torch.uint8)
        inside = inside & within.view(n, *(side if other == axis else 1 for other in range(len(sides))))
    return inside.bool()[:, None]


# Shapes


def _spatial(x: Tensor, smallest: int) -> list[int]:
    """The spatial sides of a batch, checked."""
    if x.ndim not in (4, 5) or min(x.shape[2:]) < smallest:
        raise ValueError(
            f"the batch has shape {tuple(x.shape)}; (N, C, H, W) and (N, C, D, H, W) fit, with sides of at least {smallest}"
        )
    return list(x.shape[2:])
