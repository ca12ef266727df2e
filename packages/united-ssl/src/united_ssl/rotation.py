"""The pretext task rotation: turn a cube by a multiple of 90 degrees and ask by which (specification 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dart_core.arrays import accepts_arrays
from dart_core.errors import InputError, SettingError

RotationForm = Literal["proper", "as_coded", "all24"]
CLASSES = {"proper": 8, "as_coded": 8, "all24": 24}
H, W, D = -3, -2, -1
_TURNED_OVER: tuple[tuple[int, int, int] | None, ...] = (None, (2, H, D), (1, H, D), (3, H, D), (1, W, D), (3, W, D))
"""What the D axis does after the turn about it: nothing, or quarter turns in a plane; the first two make the 8 classes."""


@accepts_arrays
def rotate_cube(x: Tensor, label: Any, form: RotationForm = "proper") -> Tensor:
    """Turn cubes by the rotation of a class.

    proper: label r = 4 b + k; k quarter turns in the plane (H, W), one of them giving out[h, w, d] = in[H-1-w, h, d]; then,
    if b is 1, half a turn about the W axis. as_coded: what the authors' program does: the second operation is a mirror image
    along H, and only for labels above 4, so that class 4 equals class 0. all24: all rotations of a cube, the 8 of proper
    first.

    Args:
        x: (..., H, W, D); for several labels (N, ..., H, W, D).
        label: one class for all, or (N,) integers.
        form: proper, as_coded or all24.

    Returns:
        Turned cubes of the type of `x`; one label may exchange unequal sides.

    Raises:
        SettingError: another form.
        InputError: no such class, or several labels for cubes whose sides a turn would exchange.
    """
    if form not in CLASSES:
        raise SettingError(f"form is {form!r}", remedy=f"give one of {', '.join(CLASSES)}")
    labels = _labels(label, CLASSES[form])
    if isinstance(labels, int):
        return _turned(x, labels, form)
    if len(labels) != len(x):
        raise InputError(f"{len(labels)} labels for {len(x)} cubes", remedy="give one label, or one per cube")
    out = torch.empty_like(x)
    members: dict[int, list[int]] = {}
    for place, k in enumerate(labels):
        members.setdefault(k, []).append(place)
    for k, places in members.items():
        index = torch.tensor(places, device=x.device)
        turned = _turned(x[index], k, form)
        if turned.shape[1:] != x.shape[1:]:
            sides = " x ".join(map(str, x.shape[-3:]))
            raise InputError(f"cubes of {sides} voxels change their shape when turned", remedy="give equal sides")
        out[index] = turned
    return out


def _labels(label: Any, classes: int) -> int | list[int]:
    found = label.tolist() if hasattr(label, "tolist") else label
    numbers = [int(k) for k in found] if isinstance(found, Sequence) else [int(found)]
    for k in numbers:
        if not 0 <= k < classes:
            raise InputError(f"there is no rotation class {k}", remedy=f"give 0 to {classes - 1}")
    return numbers if isinstance(found, Sequence) else numbers[0]


def _turned(x: Tensor, k: int, form: RotationForm) -> Tensor:
    turned = torch.rot90(x, -(k % 4), (H, W))
    if form == "as_coded":
        return turned.flip(H) if k > 4 else turned
    over = _TURNED_OVER[k // 4]
    return turned if over is None else torch.rot90(turned, over[0], (over[1], over[2]))
