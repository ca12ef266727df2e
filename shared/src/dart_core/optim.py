"""Pieces of training recipes that several methods share: nnU-Net's learning rate and clipping of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from dart_core.errors import SettingError

Number = TypeVar("Number", float, Tensor, NDArray[Any])


def poly_lr(step: Number, total: float, lr0: float, exponent: float = 0.9) -> Number:
    """lr0 (1 - step / total)^exponent. A run sets it once per epoch, with its own number of epochs as `total`.

    Args:
        step: epoch, from 0 to `total`; a number, an array or a tensor.
        total: epochs of the run.
        lr0: initial learning rate.
        exponent: how fast it falls.

    Raises:
        ValueError: `total` is not positive, or a step outside 0 to `total`.
    """
    values = np.asarray(step.detach().cpu() if isinstance(step, Tensor) else step)
    if not total > 0 or not ((values >= 0) & (values <= total)).all():
        raise SettingError(f"epoch {step} of {total}", remedy="give 0 <= step <= total, total > 0")
    rate: Number = lr0 * (1 - step / total) ** exponent
    return rate


def gradient_clipper(parameters: Sequence[nn.Parameter], limit: float) -> Callable[..., None]:
    """A hook for `Optimizer.register_step_pre_hook` that scales all gradients together to a norm of at most `limit`.

    As a hook it sees gradients that are un-scaled in half precision, and exchanged between processes.
    """

    def clip(optimizer: Optimizer, *arguments: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, limit)

    return clip
