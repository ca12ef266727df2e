"""The distortions of Models Genesis for batches of pictures and volumes, on CPU and GPU.

Every function leaves its argument alone and draws anew for each sample. Draws come from `generator`, on its device; without one
from the global generator of the batch's device. Which distortions follow each other, and how often, is the methods' affair.

Source: specifications popar 2.9 (pictures) and united-ssl 2.4 (volumes).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

BLOCKS = {2: 40, 3: 10_000}
"""Blocks of the local shuffling, in pictures and in volumes."""
BLOCK_SHARE = 10
"""A block's sides go up to this part of the picture's."""
POINTS = 500
"""Points of the table of the non-linear map; Models Genesis takes 100,000 for volumes."""
WINDOWS = 5
"""Most windows of a cutout."""
STOP_PROBABILITY = 0.05
"""Of stopping before each further window."""
MARGIN = 3
"""Pixels at each border that no window covers."""
# Values that are shuffled at once, which bounds the memory, and values that are worth a step of their own.
_AT_ONCE = {"cpu": 2**23, "cuda": 2**26}
_GROUP = 2**14


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
    if channels == "mixed":
        # The channels become an axis that every block spans.
        flat, sides, whole = x.reshape(len(x), 1, -1), [x.shape[1], *sides], 1
    else:
        flat, whole = x.flatten(2), 0
    result = torch.empty_like(flat)
    each = blocks * math.prod(side if axis < whole else side / BLOCK_SHARE / 2 for axis, side in enumerate(sides))
    step = max(1, int(_AT_ONCE["cuda" if x.is_cuda else "cpu"] / max(each, 1)))
    for part, out in zip(flat.split(step), result.split(step), strict=True):
        source = _shuffled(len(part), sides, whole, blocks, generator, x.device)
        torch.gather(part, 2, source[:, None].expand(part.shape), out=out)
    return result.view(x.shape)


def nonlinear_intensity(
    x: Tensor, control_points: Tensor, decreasing: bool | Tensor = False, points: int = POINTS
) -> Tensor:
    """Map the values through a monotone Bezier curve (popar 2.9 b).

    With control points p0 to p3, (X, Y)(u) = sum_i binom(3, i) u^i (1 - u)^(3 - i) p_i. The increasing map takes X(u) to Y(u), the
    decreasing one X(u) to Y(1 - u); between `points` equidistant u it is linear, and outside [0, 1] it stays at the ends'
    values. All channels get the same map.

    Args:
        x: (N, ...) float32 or float64, in [0, 1].
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
    control = torch.as_tensor(control_points, dtype=torch.float64, device=x.device)
    if control.shape not in ((4, 2), (len(x), 4, 2)):
        raise ValueError(f"control points have shape {tuple(control.shape)}; (4, 2) and ({len(x)}, 4, 2) fit")
    ends = control[..., [0, 3], :]
    if not ((ends == ends.new_tensor([[0.0], [1.0]])) & (control >= 0).all() & (control <= 1).all()).all():
        raise ValueError("control points must go from (0, 0) to (1, 1) and lie within [0, 1]")
    if points < 2:
        raise ValueError(f"a table of {points} points has no intervals; give at least 2")
    down = torch.as_tensor(decreasing, device=x.device)
    if down.shape not in ((), (len(x),)):
        raise ValueError(
            f"decreasing has shape {tuple(down.shape)}; give one bool, or one for each of the {len(x)} samples"
        )
    u = torch.linspace(0, 1, points, dtype=torch.float64, device=x.device)
    curves = _bezier(control.expand(len(x), 4, 2), u)
    across, up = curves[:, 0].contiguous(), curves[:, 1]
    up = torch.where(down.expand(len(x))[:, None], up.flip(1), up)
    # Rounding must not turn the order of two neighbours that are nearly equal.
    across = across.cummax(1).values
    values = x.reshape(len(x), -1).double()
    right = torch.searchsorted(across, values, right=True).clamp(1, points - 1)
    left = right - 1
    x0, x1, y0, y1 = across.gather(1, left), across.gather(1, right), up.gather(1, left), up.gather(1, right)
    share = ((values - x0) / (x1 - x0).clamp(min=torch.finfo(torch.float64).tiny)).clamp(0, 1)
    return torch.lerp(y0, y1, share).to(x.dtype).view(x.shape)


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
    inside = _windows(len(x), sides, [(side // 6, side // 3) for side in sides], 0, generator, x.device)
    noise = _uniform(inside, x.dtype, generator)
    return torch.where(inside, noise, x)


def outer_cutout(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Put noise everywhere but in 1 to 5 windows (popar 2.9 c, out-painting).

    Sides s are s - floor(4s / 7) to s - floor(3s / 7). The noise is uniform in [0, 1), another in each channel.

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
    outside = ~_windows(len(x), sides, limits, 1, generator, x.device)
    return torch.where(outside, _uniform(outside.expand(x.shape), x.dtype, generator), x)


def _bezier(control: Tensor, u: Tensor) -> Tensor:
    """(N, 2, points): the cubic curves of control points (N, 4, 2) at u (points,)."""
    v = 1 - u
    basis = torch.stack([v**3, 3 * u * v**2, 3 * u**2 * v, u**3])
    return control.mT @ basis


def _windows(
    n: int,
    sides: Sequence[int],
    limits: Sequence[tuple[int, int]],
    always: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """(n, 1, *sides) bool: union of up to 5 windows in each sample.

    Args:
        n: samples.
        sides: of a sample.
        limits: smallest and largest side of a window, per axis.
        always: windows before the first chance to stop.
        generator: or None.
        device: of the result.
    """
    where = device if generator is None else generator.device
    draw = torch.rand((2 * len(sides) + 1, n, WINDOWS), generator=generator, dtype=torch.float64, device=where).to(
        device
    )
    going = draw[-1] >= STOP_PROBABILITY
    going[:, :always] = True
    going = going.cumprod(1).bool()
    axes = []
    for axis, (side, (low, high)) in enumerate(zip(sides, limits, strict=True)):
        length = low + (draw[2 * axis] * (high - low + 1)).long()
        start = MARGIN + (draw[2 * axis + 1] * (side - length - 2 * MARGIN + 1)).long()
        position = torch.arange(side, device=device)
        along = (position >= start[..., None]) & (position < (start + length)[..., None])
        axes.append(along.view(n, WINDOWS, *(side if other == axis else 1 for other in range(len(sides)))))
    axes[0] = axes[0] & going.view(n, WINDOWS, *[1] * len(sides))
    result = torch.zeros((n, *sides), dtype=torch.bool, device=device)
    for window in range(WINDOWS):
        result |= functools.reduce(torch.logical_and, [along[:, window] for along in axes])
    return result[:, None]


def _uniform(where: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """Noise from [0, 1) at the places that are True, 0 elsewhere."""
    device = where.device if generator is None else generator.device
    count = int(where.sum())
    noise = torch.rand(count, generator=generator, dtype=dtype, device=device).to(where.device)
    return torch.zeros(where.shape, dtype=dtype, device=where.device).masked_scatter_(where, noise)


def _shuffled(
    n: int, sides: Sequence[int], whole: int, blocks: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """(n, size): where in its own sample each value comes from.

    Args:
        n: samples.
        sides: of one sample; size is their product.
        whole: so many of the first axes are spanned by every block.
        blocks: per sample.
        generator: or None.
        device: of the result.
    """
    size = math.prod(sides)
    limits = [side if axis < whole else side // BLOCK_SHARE for axis, side in enumerate(sides)]
    strides = [math.prod(sides[axis + 1 :]) for axis in range(len(sides))]
    # Sides and places of the blocks. `kind` numbers the shapes, so that values of blocks of a kind lie in the same pattern.
    first = torch.arange(n, device=device).repeat_interleave(blocks) * size
    kind, radix = torch.zeros_like(first), 1
    for axis in range(whole, len(sides)):
        draw = _random_bits((n * blocks,), generator, device)
        length = ((draw >> 32) * limits[axis] >> 31) + 1
        first += ((draw & 0xFFFFFFFF) * (sides[axis] - length + 1) >> 32) * strides[axis]
        kind += (length - 1) * radix
        radix *= limits[axis]
    # Blocks in the order of their volumes.
    shapes = _shapes(tuple(limits), whole)
    volumes = shapes.prod(1)
    by_volume = volumes.argsort(stable=True)
    counts = torch.bincount(kind, minlength=radix).cpu()[by_volume]
    present = counts.nonzero()[:, 0]
    place = torch.empty_like(by_volume)
    place[by_volume] = torch.arange(radix)
    order = place.to(device, torch.int32)[kind].argsort(stable=True)
    shapes, counts = shapes[by_volume[present]], counts[present]
    first = first[order]

    # Each value of the result gets the largest of what blocks write there: the block's rank, and behind it the source.
    bits = (n * size).bit_length()
    rank = ((order % blocks + 1) << bits) if blocks else order
    best = torch.arange(n * size, device=device)
    start = 0
    for group, number in _groups(shapes, counts):
        stop = start + int(number.sum())
        rows = number.to(device)
        at = _pattern(group, strides).to(device).repeat_interleave(rows, 0, output_size=stop - start)
        at += first[start:stop, None]
        keys = _random_bits((at.shape[0], (at.shape[1] + 1) // 2), generator, device).view(torch.int32)
        keys = ((keys[:, : at.shape[1]].long() & 0x7FFFFFFF) << bits) | at
        volume = group.prod(1)
        if int(volume[0]) < at.shape[1]:
            beyond = torch.arange(at.shape[1]) >= volume[:, None]
            beyond = beyond.to(device).repeat_interleave(rows, 0, output_size=stop - start)
            keys.masked_fill_(beyond, torch.iinfo(torch.int64).max)
        else:
            beyond = None
        value = (_sort_rows(keys) & ((1 << bits) - 1)) | rank[start:stop, None]
        if beyond is not None:
            value.masked_fill_(beyond, -1)
        best.scatter_reduce_(0, at.flatten(), value.flatten(), "amax")
        start = stop
    source = (best & ((1 << bits) - 1)).view(n, size)
    return source - torch.arange(0, n * size, size, device=device)[:, None] if n > 1 else source


def _shapes(limits: tuple[int, ...], whole: int) -> Tensor:
    """(kinds, axes): all shapes of blocks in the order of their numbers, the first axis fastest."""
    axes = [torch.arange(1, limit + 1) for limit in limits[whole:]]
    grid = torch.meshgrid(*axes[::-1], indexing="ij")[::-1]
    columns = [torch.full((grid[0].numel(),), limit) for limit in limits[:whole]]
    return torch.stack([*columns, *(part.flatten() for part in grid)], 1)


def _groups(shapes: Tensor, counts: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Shapes in the order of their volumes, in groups of equal volume or of few values."""
    start, held = 0, 0
    volumes, numbers = shapes.prod(1).tolist(), counts.tolist()
    for index, (volume, number) in enumerate(zip(volumes, numbers, strict=True)):
        if held >= _GROUP and volume != volumes[index - 1]:
            yield shapes[start:index], counts[start:index]
            start, held = index, 0
        held += volume * number
    if start < len(volumes):
        yield shapes[start:], counts[start:]


def _pattern(shapes: Tensor, strides: Sequence[int]) -> Tensor:
    """(shapes, largest volume): offsets of a block's values from its first; behind the last they stay at 0."""
    rest = torch.arange(int(shapes.prod(1).max())).expand(len(shapes), -1)
    beyond = rest >= shapes.prod(1)[:, None]
    offset = torch.zeros_like(rest)
    for axis in reversed(range(len(strides))):
        side = shapes[:, axis, None]
        offset = offset + rest % side * strides[axis]
        rest = rest // side
    return offset.masked_fill_(beyond, 0)


def _sort_rows(keys: Tensor) -> Tensor:
    """Sort the rows, in place on the CPU: there NumPy is ten times as fast as PyTorch on short rows."""
    if keys.is_cuda:
        return keys.sort(1).values
    keys.numpy().sort(axis=1)
    return keys


def _random_bits(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """63 random bits in each int64."""
    where = device if generator is None else generator.device
    return torch.empty(tuple(shape), dtype=torch.int64, device=where).random_(generator=generator).to(device)


def _spatial(x: Tensor, smallest: int) -> list[int]:
    """The spatial sides of a batch, checked."""
    if x.ndim not in (4, 5) or min(x.shape[2:]) < smallest:
        raise ValueError(
            f"the batch has shape {tuple(x.shape)}; (N, C, H, W) and (N, C, D, H, W) fit, with sides of at least {smallest}"
        )
    return list(x.shape[2:])
