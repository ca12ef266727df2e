"""AdaBN: batch-norm statistics of the target site instead of the source's, all weights unchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dart_core.errors import InputError


@torch.no_grad()
def adapt_batch_norm(
    model: nn.Module, batches: Iterable[Tensor], momentum: float | None = 0.1, reset: bool = True
) -> nn.Module:
    """Feed target images once and keep what the batch norms see of them (specification aiva 4.2).

    Only batch norms are put into training mode, so that dropout does not disturb what they see. Whether it succeeds or not,
    every layer's mode and momentum are put back; where it fails, so are the statistics.

    Args:
        model: network, changed in place: only the running statistics of its batch norms.
        batches: image tensors (N, C, ...), shuffled; moved to the network's device.
        momentum: of the running statistics; 0.1 follows mostly the last 20 batches or so, None is the exact average over
            batches.
        reset: start from mean 0 and variance 1 instead of the source's statistics.

    Returns:
        `model`.

    Raises:
        ValueError: no batch at all, or no batch norm with running statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise InputError("the network has no batch norm with running statistics; there is nothing to adapt")
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise InputError("no batch to adapt to", remedy="give images of the target site")
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in norms]
    model.eval()
    try:
        for norm in norms:
            norm.train()
            norm.momentum = momentum
            if reset:
                norm.reset_running_stats()
        for batch in itertools.chain((first,), stream):
            model(batch.to(before[0]["running_mean"].device))
        if not all(buffer.isfinite().all() for norm in norms for buffer in norm.buffers(recurse=False)):
            raise InputError("the batches give statistics that are not finite", remedy="remove images with NaN")
    except BaseException:
        for norm, buffers in zip(norms, before, strict=True):
            for name, buffer in buffers.items():
                norm.get_buffer(name).copy_(buffer)
        raise
    finally:
        for norm, old in zip(norms, momenta, strict=True):
            norm.momentum = old
        for module, mode in modes.items():
            module.training = mode
    return model
