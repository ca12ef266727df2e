"""The distortions of Models Genesis for batches of pictures and volumes, on CPU and GPU.

Every function leaves its argument alone and draws anew for each sample. Draws follow from the state of `generator`, or of the
global generator of the batch's device. On the CPU the samples are shared among as many threads as PyTorch may use, which does
not change the result. Which distortions follow each other, and how often, is the methods' affair.

Source: specifications popar 2.9 (pictures) and united-ssl 2.4 (volumes).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
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
# Values that are worked on at once: on the CPU so many that they stay in the cache.
_AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
# Values of blocks that are worth a step of their own.
_GROUP = 2**12
# Of the non-linear map in single precision: intervals of equal length, and how far a straight line may lie from the curve.
_BINS = 2**13
_TOLERANCE = 5e-7
_PIECE = 2**16


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
    layout = _layout(tuple(sides), whole)
    result = torch.empty_like(flat, memory_format=torch.contiguous_format)

    def shuffle(part: Tensor, out: Tensor, draw: _Draw) -> None:
        source = _sources(len(part), layout, blocks, draw)
        if part.shape[1] == 1:
            torch.index_select(part.reshape(-1), 0, source.view(-1), out=out.view(-1))
        else:
            source = source - torch.arange(0, source.numel(), source.shape[1], device=source.device)[:, None]
            torch.gather(part, 2, source[:, None].expand(part.shape), out=out)

    _in_parts(shuffle, (flat, result), int(blocks * layout.mean_volume), generator)
    return result.view(x.shape)


def nonlinear_intensity(
    x: Tensor, control_points: Tensor, decreasing: bool | Tensor = False, points: int = POINTS
) -> Tensor:
    """Map the values through a monotone Bezier curve (popar 2.9 b).

    With control points p0 to p3, (X, Y)(u) = sum_i binom(3, i) u^i (1 - u)^(3 - i) p_i. The increasing map takes X(u) to Y(u), the
    decreasing one X(u) to Y(1 - u); between `points` equidistant u it is linear, and outside [0, 1] it stays at the ends'
    values. All channels get the same map.

    Args:
        x: (N, ...) in [0, 1]. float64 is interpolated exactly, float32 up to 5e-7.
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

    def change(values: Tensor, curves: Tensor, out: Tensor, draw: _Draw) -> None:
        tables = (curves.reshape(-1, 4) @ _bernstein(points, curves.device)).view(len(curves), 2, points)
        across, up = tables[:, 0].contiguous(), tables[:, 1].contiguous()
        if values.dtype == torch.float64 or values.shape[1] < 4 * _BINS:
            out.copy_(_interpolate(values.double(), across, up))
        else:
            _interpolate_coarsely(values, across, up, out)

    _in_parts(change, (flat, control, result), flat.shape[1], None)
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


# Local shuffling


class _Layout(NamedTuple):
    """Shapes that the blocks of a picture can have, in the order of their volumes."""

    sides: tuple[int, ...]
    whole: int
    strides: tuple[int, ...]
    shapes: Tensor
    """(kinds, axes)."""
    place: Tensor
    """(kinds,): where in `shapes` the shape stands whose sides, less 1, are the digits of a number."""
    free: Tensor
    """(4, free axes): longest blocks, sides, strides, and what each digit of the shapes' numbers counts."""
    mean_volume: float


@functools.lru_cache(maxsize=8)
def _layout(sides: tuple[int, ...], whole: int) -> _Layout:
    """For samples with these sides, the first `whole` of which every block spans."""
    limits = [side // BLOCK_SHARE for side in sides[whole:]]
    grid = torch.stack(torch.meshgrid(*(torch.arange(1, limit + 1) for limit in limits), indexing="ij"), -1)
    shapes = grid.view(-1, len(limits))
    shapes = torch.cat([torch.tensor(sides[:whole], dtype=torch.int64).expand(len(shapes), whole), shapes], 1)
    by_volume = shapes.prod(1).argsort(stable=True)
    strides = tuple(math.prod(sides[axis + 1 :]) for axis in range(len(sides)))
    digits = [math.prod(limits[axis + 1 :]) for axis in range(len(limits))]
    free = torch.tensor([limits, sides[whole:], strides[whole:], digits])
    mean = float(shapes.prod(1).double().mean())
    return _Layout(sides, whole, strides, shapes[by_volume], by_volume.argsort(), free, mean)


def _sources(n: int, layout: _Layout, blocks: int, draw: _Draw) -> Tensor:
    """(n, size): where in the batch each value of each of n samples comes from."""
    size, device = math.prod(layout.sides), draw.device
    # Shape and first value of every block, the blocks in the order of their volumes.
    free = layout.free.to(device)
    limits, sides, strides, digits = free[:, :, None]
    bits = draw.bits(free.shape[1] * n * blocks).view(-1, n * blocks)
    lengths = (bits >> 32 & 0x7FFFFFFF) * limits >> 31
    first = (((bits & 0xFFFFFFFF) * (sides - lengths) >> 32) * strides).sum(0)
    kind = (lengths * digits).sum(0)
    kind, order = _sort(layout.place.to(device).index_select(0, kind), len(layout.place))
    sample = order // blocks
    first = (first.index_select(0, order) + sample * size)[:, None]

    # Each place gets the largest of what the blocks write there: the block's number, and in the lower bits the source. Within
    # a block the sources get random upper bits and are sorted. Half as long numbers, where they do, stay in the cache.
    low = (n * size - 1).bit_length()
    mask = (1 << low) - 1
    small = (blocks + 1) << low <= 1 << 32
    least = -(1 << 31) if small else 0
    number = torch.int32 if small else torch.int64
    rank = ((order - sample * blocks + 1) << low)[:, None] + least
    best = torch.arange(least, least + n * size, dtype=number, device=device)
    groups = _groups(layout, kind)
    bits = draw.bits(sum((group.stop - group.start) * group.values for group in groups) // 2 + 1).view(torch.int32)
    for group in groups:
        at, beyond = _group_offsets(layout, kind, group)
        at += first[group.start : group.stop]
        keys, bits = bits[: at.numel()].view(at.shape).long(), bits[at.numel() :]
        # 31 bits, because on CUDA the upper half of an int64 has no random sign.
        keys <<= 33
        keys |= at
        if beyond is not None:
            keys.masked_fill_(beyond, torch.iinfo(torch.int64).max)
        keys = _sort_rows(keys)
        keys &= mask
        keys += rank[group.start : group.stop]
        if beyond is not None:
            keys.masked_fill_(beyond, least)
        best.scatter_reduce_(0, at.view(-1), keys.view(-1).to(number), "amax")
    best &= mask
    return best.view(n, size)


class _Group(NamedTuple):
    """Blocks from `start` to before `stop`, of the shapes from `lowest` to before `highest`, of at most `values` values."""

    start: int
    stop: int
    lowest: int
    highest: int
    values: int


def _groups(layout: _Layout, kind: Tensor) -> list[_Group]:
    """Cut blocks, which stand in the order of their volumes, into groups of one volume or of few values.

    Args:
        layout: of the samples.
        kind: (blocks,) positions in layout.shapes, in order.
    """
    counts = torch.bincount(kind, minlength=len(layout.shapes)).tolist()
    volumes = layout.shapes.prod(1).tolist()
    groups: list[_Group] = []
    start = stop = lowest = largest = 0
    for index, (count, volume) in enumerate(zip(counts, volumes, strict=True)):
        stop += count
        largest = volume if count else largest
        last = index + 1 == len(counts)
        if stop > start and (last or (volume != volumes[index + 1] and (stop - start) * volume >= _GROUP)):
            groups.append(_Group(start, stop, lowest, index + 1, largest))
            start, lowest = stop, index + 1
    return groups


def _group_offsets(layout: _Layout, kind: Tensor, group: _Group) -> tuple[Tensor, Tensor | None]:
    """Offsets (blocks, most values) of blocks' values from the first one, and which lie beyond the block; None if none do."""
    kinds = kind[group.start : group.stop]
    if len(kinds) <= group.highest - group.lowest:
        return _offsets(layout.shapes.to(kind.device)[kinds], layout.strides)
    # Of every shape, and from there of every block. Where the largest shape is absent, there are more values than needed.
    offsets, beyond = _shape_offsets(layout, group.lowest, group.highest, kind.device)
    kinds = kinds - group.lowest
    offsets = offsets[:, : group.values].index_select(0, kinds)
    return offsets, None if beyond is None else beyond[:, : group.values].index_select(0, kinds)


def _offsets(shapes: Tensor, strides: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Offsets (blocks, most values) of blocks' values from the first one, and which lie beyond the block; None if none do."""
    volume = shapes.prod(1, keepdim=True)
    # Quotients of whole numbers below 2^24 are rounded down rightly in single precision.
    rest = torch.arange(int(volume.max()), device=shapes.device, dtype=torch.float32).expand(len(shapes), -1)
    beyond = rest >= volume
    offset = torch.zeros_like(rest, dtype=torch.int64)
    for axis in range(len(strides) - 1, -1, -1):
        side = shapes[:, axis, None].float()
        above = (rest / side).floor_()
        offset += torch.addcmul(rest, above, side, value=-1).long().mul_(strides[axis])
        rest = above
    if int(volume.min()) == beyond.shape[1]:
        return offset, None
    return offset.masked_fill_(beyond, 0), beyond


@functools.lru_cache(maxsize=256)
def _shape_offsets(layout: _Layout, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    return _offsets(layout.shapes[start:stop].to(device), layout.strides)


def _sort(values: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Sort numbers below `limit`: the sorted ones and the order. On the CPU NumPy is ten times as fast as PyTorch."""
    if values.is_cuda:
        return values.sort(stable=True)
    order = torch.from_numpy(values.numpy().astype(np.min_scalar_type(limit)).argsort(kind="stable"))
    return values.index_select(0, order), order


def _sort_rows(keys: Tensor) -> Tensor:
    """Sort short rows, in place on the CPU, where NumPy is ten times as fast as PyTorch."""
    if keys.is_cuda:
        return keys.sort(1).values
    keys.numpy().sort(axis=1)
    return keys


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


def _interpolate_coarsely(values: Tensor, across: Tensor, up: Tensor, out: Tensor) -> None:
    """The same at many values in float32, by a straight line in each of many intervals where that is near enough."""
    grid = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64, device=values.device)
    ends = _interpolate_sorted(grid, across, up)
    step = ends.diff(dim=1)
    # A curve that bends to one side lies between the line and the neighbours' lines, drawn on: never further off than a quarter
    # of the changes of the slope on both sides. One that bends sharply to both sides changes it much, too.
    bend = torch.nn.functional.pad(step.diff(dim=1).abs(), (1, 1))
    off = bend[:, :-1] + bend[:, 1:] > 4 * _TOLERANCE
    # Interval b reaches from above b - 1 to b; that of 0 alone is for the background.
    slope = torch.nn.functional.pad(step.masked_fill(off, torch.nan), (1, 0))
    lines = torch.complex(ends.float(), slope.float()).view(-1)
    first = torch.arange(0, len(lines), _BINS + 1, dtype=torch.int32, device=values.device)[:, None]
    for part, result in zip(values.split(_PIECE, 1), out.split(_PIECE, 1), strict=True):
        scaled = part.clamp(0, 1).mul_(_BINS)
        upper = scaled.ceil()
        scaled -= upper
        index = upper.int().clamp_(0, _BINS).add_(first)
        line = torch.view_as_real(lines.index_select(0, index.view(-1))).view(*part.shape, 2)
        torch.addcmul(line[..., 0], scaled, line[..., 1], out=result)
    # One unknown value makes the sum unknown.
    if out.sum().isnan():
        row, column = out.isnan().nonzero(as_tuple=True)
        where, (across, up) = values[row, column].double() + 2 * row, _in_a_row(across, up)
        out[row, column] = _interpolate(where[None], across, up)[0].to(out.dtype)


def _in_a_row(across: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Tables (1, N points) that hold those of all samples (N, points), each sample's moved up by 2."""
    if len(across) == 1:
        return across, up
    return (across + 2.0 * torch.arange(len(across), device=across.device)[:, None]).view(1, -1), up.view(1, -1)


def _interpolate_sorted(values: Tensor, across: Tensor, up: Tensor) -> Tensor:
    """Linear interpolation at sorted values (n,) in tables (N, points); NumPy remembers where it found the value before."""
    if across.is_cuda:
        return _interpolate(values.expand(len(across), -1).contiguous(), across, up)
    where, _ = _in_a_row(values.expand(len(across), -1), up)
    table, heights = _in_a_row(across, up)
    return torch.from_numpy(np.interp(where[0].numpy(), table[0].numpy(), heights[0].numpy())).view(len(across), -1)


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

    def cut(part: Tensor, out: Tensor, draw: _Draw) -> None:
        windows = _windows(len(part), sides, limits, always, draw)
        if always:
            torch.where(windows, part, draw.uniform(part.numel(), x.dtype).view(part.shape), out=out)
        else:
            torch.where(windows, draw.uniform(windows.numel(), x.dtype).view(windows.shape), part, out=out)

    _in_parts(cut, (x, result), math.prod(x.shape[1:]), generator)
    return result


def _windows(n: int, sides: Sequence[int], limits: Sequence[tuple[int, int]], always: int, draw: _Draw) -> Tensor:
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


# Draws and parts


class _Draw:
    """Random numbers on a device.

    Of the CPU's generator just the seed of a stream of NumPy's: these are twice as fast, and threads can have one each.
    """

    def __init__(self, device: torch.device, source: torch.Generator | Sequence[int] | None) -> None:
        self.device = device
        self.generator = source if isinstance(source, torch.Generator) else None
        self.stream = None if source is None or self.generator else np.random.SFC64(source)  # type: ignore[arg-type]

    def bits(self, count: int) -> Tensor:
        """int64 (count,) of random bits; the sign may be fixed."""
        if self.stream is not None:
            return torch.from_numpy(self.stream.random_raw(count).view(np.int64)).to(self.device)
        return torch.empty(count, dtype=torch.int64, device=self.device).random_(generator=self.generator)

    def uniform(self, count: int, dtype: torch.dtype) -> Tensor:
        """(count,) from [0, 1), in steps of 2^-24, or 2^-53 in double precision."""
        if dtype == torch.float64:
            return (self.bits(count) & (1 << 53) - 1).double().mul_(2.0**-53)
        return (self.bits(count // 2 + 1).view(torch.int32)[:count] & (1 << 24) - 1).float().mul_(2.0**-24).to(dtype)


def _in_parts(
    function: Callable[..., None], tensors: Sequence[Tensor], values: int, generator: torch.Generator | None
) -> None:
    """Call a function with parts of tensors along the samples, and with draws.

    Args:
        function: (*parts, draw), writes into the last of the parts.
        tensors: (N, ...) each.
        values: that a sample costs.
        generator: or None.
    """
    device = tensors[0].device
    step = max(1, _AT_ONCE[device.type] // max(values, 1))
    parts = list(zip(*(tensor.split(step) for tensor in tensors), strict=True))
    if device.type == "cuda" and (generator is None or generator.device.type == "cuda"):
        for part in parts:
            function(*part, _Draw(device, generator))
        return
    where = "cpu" if generator is None else generator.device
    seeds = torch.empty((len(parts), 4), dtype=torch.int64, device=where).random_(generator=generator).tolist()
    threads = min(torch.get_num_threads(), len(parts))
    if device.type == "cuda" or threads < 2:
        for part, seed in zip(parts, seeds, strict=True):
            function(*part, _Draw(device, seed))
        return
    before = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done in [
            pool.submit(function, *part, _Draw(device, seed)) for part, seed in zip(parts, seeds, strict=True)
        ]:
            done.result()
    # Threads that others start get what was set last.
    torch.set_num_threads(before)


def _spatial(x: Tensor, smallest: int) -> list[int]:
    """The spatial sides of a batch, checked."""
    if x.ndim not in (4, 5) or min(x.shape[2:]) < smallest:
        raise ValueError(
            f"the batch has shape {tuple(x.shape)}; (N, C, H, W) and (N, C, D, H, W) fit, with sides of at least {smallest}"
        )
    return list(x.shape[2:])
