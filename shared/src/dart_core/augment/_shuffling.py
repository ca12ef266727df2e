"""Where each value comes from after local shuffling, by sorting, all blocks of a batch at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dart_core.augment._parts import Draw

BLOCK_SHARE = 10
"""A block's sides go up to this part of the picture's."""
# Values of blocks that are worth a step of their own.
_GROUP = 2**12


def mean_volume(sides: Sequence[int], whole: int) -> float:
    """Values in a block, on average."""
    return math.prod(sides[:whole]) * math.prod((side // BLOCK_SHARE + 1) / 2 for side in sides[whole:])


def sources(n: int, sides: tuple[int, ...], whole: int, blocks: int, draw: Draw) -> Tensor:
    """Where in the batch each value of each sample comes from.

    Args:
        n: samples.
        sides: of a sample.
        whole: how many of the first sides every block spans: 0 or 1.
        blocks: of a sample.
        draw: its device is that of the result.

    Returns:
        (n, product of sides) of int64, or of int32 where that is enough.
    """
    layout = _layout(sides, whole)
    size, device = math.prod(sides), draw.device
    # Shape and first value of every block, the blocks in the order of their volumes.
    free = layout.free.to(device)
    limits, lengths_of_sides, strides, digits = free[:, :, None]
    bits = draw.bits(free.shape[1] * n * blocks).view(-1, n * blocks)
    lengths = (bits >> 32 & 0x7FFFFFFF) * limits >> 31
    first = (((bits & 0xFFFFFFFF) * (lengths_of_sides - lengths) >> 32) * strides).sum(0)
    kind = (lengths * digits).sum(0)
    kind, order = layout.place.to(device).index_select(0, kind).sort(stable=True)
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
        keys = keys.sort(1).values
        keys &= mask
        keys += rank[group.start : group.stop]
        if beyond is not None:
            keys.masked_fill_(beyond, least)
        best.scatter_reduce_(0, at.view(-1), keys.view(-1).to(number), "amax")
    best &= mask
    return best.view(n, size)


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
    return _Layout(sides, whole, strides, shapes[by_volume], by_volume.argsort(), free)


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
