"""The distortions of Models Genesis for batches of pictures and volumes, on CPU and GPU.

Every function draws anew for each sample. Draws follow from the state of `generator`, or of the global generator of the batch's
device. The argument stays as it is, unless it is also given as `out`: distortions that follow each other are fastest in place.

On the CPU compiled code (extra `compiled`) takes the samples one by one, on as many threads as PyTorch may use; their number does
not change the result. On GPUs, and for types that the compiled code does not know, tensor operations do the same with other
draws. Which distortions follow each other, and how often, is the methods' affair.

Source: specifications popar 2.9 (pictures) and united-ssl 2.4 (volumes).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dart_core.augment._parts import Draw, in_parts, sample_by_sample, seeds
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
    out: Tensor | None = None,
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
        out: takes the result; like x, and x itself or other memory.

    Returns:
        out, or a new tensor like x.

    Raises:
        ValueError: the shape, a side below 10, or a setting does not fit.
    """
    sides = _spatial(x, BLOCK_SHARE)
    if blocks is None:
        blocks = BLOCKS[len(sides)]
    if blocks < 0 or channels not in ("mixed", "together"):
        raise ValueError(f"blocks is {blocks}, channels {channels!r}; give 0 or more, and 'mixed' or 'together'")
    result = _memory(x, out)
    if blocks == 0 or x.numel() == 0:
        return _given(result.copy_(x), out)
    if channels == "mixed":
        # The channels become an axis that every block spans.
        shape, sides, whole = (len(x), 1, -1), [x.shape[1], *sides], 1
    else:
        shape, whole = (len(x), x.shape[1], -1), 0
    _shuffle(x.detach().contiguous().view(shape), result.view(shape), sides, whole, blocks, generator)
    return _given(result, out)


def nonlinear_intensity(
    x: Tensor,
    control_points: Tensor,
    decreasing: bool | Tensor = False,
    points: int = POINTS,
    out: Tensor | None = None,
) -> Tensor:
    """Map the values through a monotone Bezier curve (popar 2.9 b).

    With control points p0 to p3, (X, Y)(u) = sum_i binom(3, i) u^i (1 - u)^(3 - i) p_i. The increasing map takes X(u) to Y(u), the
    decreasing one X(u) to Y(1 - u); between `points` equidistant u it is linear, and outside [0, 1] it stays at the ends'
    values. All channels get the same map.

    Args:
        x: float32 or float64 (N, ...) in [0, 1]. The result is exact but for rounding: in float32 to 2e-7.
        control_points: (4, 2), or (N, 4, 2) for a map of its own for each sample, from (0, 0) to (1, 1), all within [0, 1].
        decreasing: for all samples, or (N,) bool.
        points: of the table, at least 2.
        out: takes the result; like x, and x itself or other memory.

    Returns:
        out, or a new tensor like x.

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
    # Y(1 - u) is the curve of the same values in the reverse order.
    across = control[..., 0].expand(n, 4)
    up = torch.where(down.view(-1, 1), control[..., 1].flip(-1), control[..., 1]).expand(n, 4)
    result = _memory(x, out)
    if x.numel():
        _map(x.detach().contiguous().view(n, -1), result.view(n, -1), across, up, points)
    return _given(result, out)


def inner_cutout(x: Tensor, generator: torch.Generator | None = None, out: Tensor | None = None) -> Tensor:
    """Put noise into up to 5 windows (popar 2.9 c, in-painting).

    Sides are from a sixth to a third of the picture's. The noise is uniform in [0, 1), the same in all channels.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W), every side at least 8.
        generator: for reproducible draws.
        out: takes the result; like x, and x itself or other memory.

    Returns:
        out, or a new tensor like x.

    Raises:
        ValueError: the shape does not fit.
    """
    sides = _spatial(x, 8)
    limits = [(side // 6, side // 3) for side in sides]
    return _cutout(x, sides, limits, 0, generator, out)


def outer_cutout(x: Tensor, generator: torch.Generator | None = None, out: Tensor | None = None) -> Tensor:
    """Put noise everywhere but in 1 to 5 windows (popar 2.9 c, out-painting).

    Sides are from s - floor(4s / 7) to s - floor(3s / 7) of a side s. The noise is uniform in [0, 1), another in each channel.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W), every side at least 14.
        generator: for reproducible draws.
        out: takes the result; like x, and x itself or other memory.

    Returns:
        out, or a new tensor like x.

    Raises:
        ValueError: the shape does not fit.
    """
    sides = _spatial(x, 14)
    limits = [(side - 4 * side // 7, side - 3 * side // 7) for side in sides]
    return _cutout(x, sides, limits, 1, generator, out)


# Local shuffling


def _shuffle(
    x: Tensor, out: Tensor, sides: list[int], whole: int, blocks: int, generator: torch.Generator | None
) -> None:
    """Args: x and out (N, planes, values), sides of a plane, of which every block spans the first `whole`, and the others."""
    if _on_cpu(x) and x.element_size() <= 8:
        from dart_core.augment._compiled import shuffle  # Numba takes a second to import

        missing = 3 - len(sides[whole:])
        lengths = np.array([1] * missing + sides[whole:])
        limits = np.array([1] * missing + [side // BLOCK_SHARE for side in sides[whole:]])
        # Only the size of a value matters.
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
        given, taken, own = x.view(kind).numpy(), out.view(kind).numpy(), seeds(len(x), generator)
        in_place = x.data_ptr() == out.data_ptr()

        def one(i: int) -> None:
            before = given[i].copy() if in_place else given[i]
            shuffle(before, taken[i], math.prod(sides[:whole]), lengths, limits, blocks, own[i])

        sample_by_sample(one, len(x))
        return

    def some(part: Tensor, result: Tensor, draw: Draw) -> None:
        source = sources(len(part), tuple(sides), whole, blocks, draw)
        if part.shape[1] == 1:
            result.copy_(part.reshape(-1).index_select(0, source.view(-1)).view(part.shape))
        else:
            source = source - torch.arange(0, source.numel(), source.shape[1], device=source.device)[:, None]
            result.copy_(part.gather(2, source[:, None].expand(part.shape)))

    in_parts(some, (x, out), int(blocks * mean_volume(sides, whole)), generator)


# Non-linear intensity


def _map(x: Tensor, out: Tensor, across: Tensor, up: Tensor, points: int) -> None:
    """Args: x and out (N, values), control values (N, 4) of X and Y, and how many points the table has."""
    if _on_cpu(x):
        from dart_core.augment._compiled import interpolate

        given, taken, xs, ys = x.numpy(), out.numpy(), across.numpy(), up.numpy()
        tolerance = torch.finfo(x.dtype).eps / 2

        def one(i: int) -> None:
            interpolate(given[i], taken[i], xs[i], ys[i], points, tolerance)

        sample_by_sample(one, len(x))
        return

    def some(part: Tensor, curves: Tensor, result: Tensor, draw: Draw) -> None:
        tables = (curves.reshape(-1, 4) @ _bernstein(points, curves.device)).view(len(curves), 2, points)
        result.copy_(_interpolate(part.double(), tables[:, 0].contiguous(), tables[:, 1].contiguous()))

    in_parts(some, (x, torch.stack([across, up], 1), out), x.shape[1], None)


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
    out: Tensor | None,
) -> Tensor:
    """Noise inside of up to 5 windows, or outside of them if there is `always` one.

    Args:
        x: (N, C, *sides).
        sides: spatial ones.
        limits: smallest and largest side of a window, per axis.
        always: windows before the first chance to stop.
        generator: or None.
        out: or None.
    """
    result = _memory(x, out)
    if _on_cpu(x) and x.dtype == torch.float32:
        from dart_core.augment._compiled import cut

        shape = (*x.shape[:2], *[1] * (3 - len(sides)), *sides)
        given, taken = x.detach().contiguous().view(shape).numpy(), result.view(shape).numpy()
        own = seeds(len(x), generator)
        # A picture is a volume of one layer, which every window covers.
        missing = 3 - len(sides)
        lows, highs = (np.array([1] * missing + list(ends)) for ends in zip(*limits, strict=True))
        margins = np.array([0] * missing + [MARGIN] * len(sides))

        def one(i: int) -> None:
            cut(given[i], taken[i], lows, highs, margins, WINDOWS, always, STOP_PROBABILITY, own[i])

        sample_by_sample(one, len(x))
        return _given(result, out)

    def some(part: Tensor, result: Tensor, draw: Draw) -> None:
        windows = _windows(len(part), sides, limits, always, draw)
        if always:
            result.copy_(torch.where(windows, part, draw.uniform(part.numel(), x.dtype).view(part.shape)))
        else:
            result.copy_(torch.where(windows, draw.uniform(windows.numel(), x.dtype).view(windows.shape), part))

    in_parts(some, (x.detach(), result), math.prod(x.shape[1:]), generator)
    return _given(result, out)


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


# Where results go


def _on_cpu(x: Tensor) -> bool:
    """Whether there is compiled code."""
    return x.device.type == "cpu"


def _memory(x: Tensor, out: Tensor | None) -> Tensor:
    """Contiguous memory for a result like x: that of `out`, if it is contiguous, or new."""
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype or out.device != x.device):
        raise ValueError(
            f"out is {out.dtype} of shape {tuple(out.shape)} on {out.device}, the batch {x.dtype} of shape {tuple(x.shape)} "
            f"on {x.device}; give the same"
        )
    if out is not None and out.is_contiguous():
        return out.detach()
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _given(result: Tensor, out: Tensor | None) -> Tensor:
    """`out`, if there is one, with the result in it."""
    if out is None:
        return result
    return out if out.is_contiguous() else out.copy_(result)
