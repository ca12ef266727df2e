"""The distortions of Models Genesis for batches of pictures and volumes, on CPU and GPU.

Every function draws anew for each sample. Draws follow from the state of `generator`, or of the global generator of the batch's
device. The argument stays as it is, unless it is also given as `out`. How often which distortion happens is the methods' affair;
`distort` is the fastest way to several.

On the CPU compiled code (extra `compiled`) takes the samples one by one, on as many threads as PyTorch may use; their number does
not change the result. On GPUs, and for types that the compiled code does not know, tensor operations do the same with other draws.

Source: specifications popar 2.9 (pictures) and united-ssl 2.4 (volumes).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.augment._parts import Draw, in_parts, seeds
from dart_core.augment._shuffling import BLOCK_SHARE, mean_volume, sources
from dart_core.threads import sample_by_sample

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
# Of values that compiled code shuffles.
SHUFFLED = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64,
)  # fmt: skip


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
    sides, blocks = _blocks(x, blocks, channels)
    if _compiled(x, *SHUFFLED):
        return _through([_shuffling(x, blocks, channels, generator)], x, out)
    result = _memory(x, out)
    if blocks == 0 or x.numel() == 0:
        return _given(result.copy_(x.detach()), out)
    if channels == "mixed":
        # The channels become an axis that every block spans.
        shape, sides, whole = (len(x), 1, -1), [x.shape[1], *sides], 1
    else:
        shape, whole = (len(x), x.shape[1], -1), 0

    def shuffle(part: Tensor, moved: Tensor, draw: Draw) -> None:
        source = sources(len(part), tuple(sides), whole, blocks, draw)
        if part.shape[1] == 1:
            moved.copy_(part.reshape(-1).index_select(0, source.view(-1)).view(part.shape))
        else:
            source = source - torch.arange(0, source.numel(), source.shape[1], device=source.device)[:, None]
            moved.copy_(part.gather(2, source[:, None].expand(part.shape)))

    parts = (x.detach().reshape(shape), result.view(shape))
    in_parts(shuffle, parts, int(blocks * mean_volume(sides, whole)), generator)
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
    across, up = _curves(x, control_points, decreasing, points)
    if _compiled(x, torch.float32, torch.float64):
        return _through([_mapping(x, across, up, points)], x, out)
    result = _memory(x, out)

    def change(part: Tensor, curves: Tensor, changed: Tensor, draw: Draw) -> None:
        tables = (curves.reshape(-1, 4) @ _bernstein(points, curves.device)).view(len(curves), 2, points)
        changed.copy_(_interpolate(part.double(), tables[:, 0].contiguous(), tables[:, 1].contiguous()))

    parts = (x.detach().reshape(len(x), -1), torch.stack([across, up], 1), result.view(len(x), -1))
    in_parts(change, parts, parts[0].shape[1], None)
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
    return _cutout(x, "inner", generator, out)


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
    return _cutout(x, "outer", generator, out)


def distort(
    x: Tensor,
    control_points: Tensor,
    shuffled: Tensor,
    mapped: Tensor,
    outer: Tensor,
    inner: Tensor,
    decreasing: bool | Tensor = False,
    blocks: int | None = None,
    channels: Literal["mixed", "together"] = "mixed",
    points: int = POINTS,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`local_pixel_shuffle`, `nonlinear_intensity`, `outer_cutout` and `inner_cutout`, each of the samples chosen for it.

    The result is that of calling them in this order with the chosen samples (popar 2.9, united-ssl 2.4).

    Args:
        x: (N, C, H, W) or (N, C, D, H, W), float32 or float64.
        control_points: (4, 2), or (N, 4, 2).
        shuffled: (N,) bool, whose values are shuffled.
        mapped: (N,) bool, whose values are mapped.
        outer: (N,) bool, which get noise outside of windows.
        inner: (N,) bool, which get noise inside of windows.
        decreasing: as `nonlinear_intensity`.
        blocks: as `local_pixel_shuffle`.
        channels: as `local_pixel_shuffle`.
        points: as `nonlinear_intensity`.
        generator: for reproducible draws.
        out: takes the result; like x, and x itself or other memory.

    Returns:
        out, or a new tensor like x.

    Raises:
        ValueError: as the single functions; or a choice has another shape or type.
    """
    choices = {"shuffled": shuffled, "mapped": mapped, "outer": outer, "inner": inner}
    for name, chosen in choices.items():
        if chosen.shape != (len(x),) or chosen.dtype != torch.bool:
            raise ValueError(f"{name} is {chosen.dtype} of shape {tuple(chosen.shape)}; give ({len(x)},) bool")
    across, up = _curves(x, control_points, decreasing, points)
    if _compiled(x, torch.float32):
        steps = []
        if shuffled.any():
            steps.append(_shuffling(x, blocks, channels, generator, shuffled))
        if mapped.any():
            steps.append(_mapping(x, across, up, points, mapped))
        if outer.any():
            steps.append(_cutting(x, "outer", generator, outer))
        if inner.any():
            steps.append(_cutting(x, "inner", generator, inner))
        return _through(steps, x, out)
    curves = torch.as_tensor(control_points, device=x.device).expand(len(x), 4, 2)
    falling = torch.as_tensor(decreasing, device=x.device).expand(len(x))
    changes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "shuffled": lambda part, rows: local_pixel_shuffle(part, blocks, channels, generator, part),
        "mapped": lambda part, rows: nonlinear_intensity(part, curves[rows], falling[rows], points, part),
        "outer": lambda part, rows: outer_cutout(part, generator, part),
        "inner": lambda part, rows: inner_cutout(part, generator, part),
    }
    result = _memory(x, out).copy_(x.detach())
    for name, change in changes.items():
        rows = choices[name].nonzero()[:, 0].to(x.device)
        if len(rows):
            result[rows] = change(result[rows], rows)
    return _given(result, out)


# Local shuffling


def _blocks(x: Tensor, blocks: int | None, channels: str) -> tuple[list[int], int]:
    """The spatial sides of a batch and the number of blocks, checked."""
    sides = _spatial(x, BLOCK_SHARE)
    if blocks is None:
        blocks = BLOCKS[len(sides)]
    if blocks < 0 or channels not in ("mixed", "together"):
        raise ValueError(f"blocks is {blocks}, channels {channels!r}; give 0 or more, and 'mixed' or 'together'")
    return sides, blocks


def _shuffling(
    x: Tensor, blocks: int | None, channels: str, generator: torch.Generator | None, chosen: Tensor | None = None
) -> _Step:
    from dart_core.augment._compiled import shuffle  # Numba takes a second to import

    sides, count = _blocks(x, blocks, channels)
    planes, spanned = (1, x.shape[1]) if channels == "mixed" else (x.shape[1], 1)
    # A picture is a volume of one layer.
    lengths = np.array([1] * (3 - len(sides)) + sides)
    limits = np.maximum(lengths // BLOCK_SHARE, 1)
    of, own = _seeds(x, generator, chosen)

    def change(before: NDArray[np.generic], after: NDArray[np.generic], i: int) -> None:
        if np.may_share_memory(before, after):
            before = before.copy()
        # Only the size of a value matters.
        source, target = (values.reshape(planes, -1).view(f"u{values.itemsize}") for values in (before, after))
        shuffle(source, target, spanned, lengths, limits, count, own[i])

    return _Step(of, change)


# Non-linear intensity


def _curves(x: Tensor, control_points: Tensor, decreasing: bool | Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Control values of X and of Y, float64 (N, 4) each, checked."""
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
    up = torch.where(down.view(-1, 1), control[..., 1].flip(-1), control[..., 1])
    return control[..., 0].expand(n, 4), up.expand(n, 4)


def _mapping(x: Tensor, across: Tensor, up: Tensor, points: int, chosen: Tensor | None = None) -> _Step:
    from dart_core.augment._compiled import interpolate

    xs, ys, tolerance = across.numpy(), up.numpy(), torch.finfo(x.dtype).eps / 2

    def change(before: NDArray[np.generic], after: NDArray[np.generic], i: int) -> None:
        interpolate(before.reshape(-1), after.reshape(-1), xs[i], ys[i], points, tolerance)

    return _Step(_chosen(x, chosen), change)


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


def _limits(x: Tensor, kind: Literal["inner", "outer"]) -> tuple[list[int], list[tuple[int, int]], int]:
    """The spatial sides of a batch, checked; a window's shortest and longest side per axis; windows before the first stop."""
    if kind == "inner":
        sides = _spatial(x, 8)
        return sides, [(side // 6, side // 3) for side in sides], 0
    sides = _spatial(x, 14)
    return sides, [(side - 4 * side // 7, side - 3 * side // 7) for side in sides], 1


def _cutting(
    x: Tensor, kind: Literal["inner", "outer"], generator: torch.Generator | None, chosen: Tensor | None = None
) -> _Step:
    from dart_core.augment._compiled import cut

    sides, limits, always = _limits(x, kind)
    # A picture is a volume of one layer, which every window covers.
    missing = 3 - len(sides)
    shape = (x.shape[1], *[1] * missing, *sides)
    lows, highs = (np.array([1] * missing + list(ends)) for ends in zip(*limits, strict=True))
    margins = np.array([0] * missing + [MARGIN] * len(sides))
    of, own = _seeds(x, generator, chosen)

    def change(before: NDArray[np.generic], after: NDArray[np.generic], i: int) -> None:
        source, target = before.reshape(shape), after.reshape(shape)
        cut(source, target, lows, highs, margins, WINDOWS, always, STOP_PROBABILITY, own[i])

    return _Step(of, change)


def _cutout(
    x: Tensor, kind: Literal["inner", "outer"], generator: torch.Generator | None, out: Tensor | None
) -> Tensor:
    sides, limits, always = _limits(x, kind)
    if _compiled(x, torch.float32):
        return _through([_cutting(x, kind, generator)], x, out)
    result = _memory(x, out)

    def noise(part: Tensor, changed: Tensor, draw: Draw) -> None:
        windows = _windows(len(part), sides, limits, always, draw)
        if always:
            changed.copy_(torch.where(windows, part, draw.uniform(part.numel(), x.dtype).view(part.shape)))
        else:
            changed.copy_(torch.where(windows, draw.uniform(windows.numel(), x.dtype).view(windows.shape), part))

    in_parts(noise, (x.detach(), result), math.prod(x.shape[1:]), generator)
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


# Compiled steps, and where results go


class _Step(NamedTuple):
    """A distortion in compiled code."""

    of: NDArray[np.bool_]
    """(N,): the samples it is for."""
    change: Callable[[NDArray[np.generic], NDArray[np.generic], int], None]
    """From a sample's values (C, *sides) to others, which may be the same memory; and the sample's number."""


def _compiled(x: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether compiled code, which knows some types, works on a batch."""
    return x.device.type == "cpu" and x.dtype in dtypes


def _chosen(x: Tensor, chosen: Tensor | None) -> NDArray[np.bool_]:
    """(N,): which samples are chosen; None stands for all."""
    return np.ones(len(x), bool) if chosen is None else chosen.cpu().numpy()


def _seeds(
    x: Tensor, generator: torch.Generator | None, chosen: Tensor | None
) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
    """Which samples are chosen, and a seed for each of them, 0 for the others."""
    of, found = _chosen(x, chosen), np.zeros(len(x), np.uint64)
    found[of] = seeds(int(of.sum()), generator)
    return of, found


def _through(steps: Sequence[_Step], x: Tensor, out: Tensor | None) -> Tensor:
    """Take each sample through the steps that are for it, one after the other, so that it stays in the cache."""
    result = _memory(x, out)
    given, taken = x.detach().numpy(), result.numpy()

    def distort_one(i: int) -> None:
        before, after = np.ascontiguousarray(given[i]), taken[i]
        for step in steps:
            if step.of[i]:
                step.change(before, after, i)
                before = after
        if not np.may_share_memory(before, after):
            after[...] = before

    if x.numel():
        sample_by_sample(distort_one, len(x))
    return _given(result, out)


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
