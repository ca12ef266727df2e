"""Features z of an image: what the first normalisation layer of the network puts out, pooled (specification 2.1), and Gram matrices."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.arrays import accepts_arrays
from dart_core.errors import InputError, SettingError
from dart_core.sliding_window import pad_to_patch, window_starts

Pooling = int | Literal["authors"]
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.SyncBatchNorm)
_KERNELS = {3: (2, 2), 2: (5, 3)}
"""Kernel and stride of the authors' pooling by the number of spatial axes."""


# --- Pooling ---------------------------------------------------------------------------------------------------------


@accepts_arrays
def pool_features(x: Tensor, pooling: Pooling = 1, max_elems: int = 10_000) -> Tensor:
    """Activations as vectors.

    Args:
        x: (N, C, H, W) or (N, C, D, H, W).
        pooling: g: means over a grid of g parts along each axis (1: channel means); authors: average pooling (3-D: 2 x 2 x 2,
            stride 2; 2-D: 5 x 5, stride 3; no padding) until the whole tensor has at most `max_elems` numbers, or until it
            cannot be pooled once more.
        max_elems: see there.

    Returns:
        (N, d).

    Raises:
        ValueError: another number of axes, or an unknown pooling.
    """
    axes = x.ndim - 2
    if axes not in _KERNELS or 0 in x.shape:
        raise InputError(f"activations have shape {tuple(x.shape)}", remedy="give (N, C, H, W) or (N, C, D, H, W)")
    if pooling == "authors":
        kernel, stride = _KERNELS[axes]
        pool = F.avg_pool3d if axes == 3 else F.avg_pool2d
        while x.numel() > max_elems and min(x.shape[2:]) >= kernel:
            x = pool(x, kernel, stride)
        return x.flatten(1)
    if not isinstance(pooling, int) or pooling < 1:
        raise SettingError(f"pooling is {pooling!r}", remedy="give a number of parts from 1 on, or authors")
    if pooling == 1:
        return x.flatten(2).mean(2)
    return (F.adaptive_avg_pool3d if axes == 3 else F.adaptive_avg_pool2d)(x, pooling).flatten(1)


# --- Gram matrices (ablation) ----------------------------------------------------------------------------------------


@accepts_arrays
def gram_matrix(features: Tensor) -> Tensor:
    """G_ij = (1/M) sum of F_i F_j over the M positions (specification 4.7).

    Args:
        features: (N, C, ...) activations of a layer.

    Returns:
        (N, C, C).
    """
    flat = features.flatten(2)
    return flat @ flat.mT / flat.shape[2]


@accepts_arrays
def gram_distance(features: Tensor, mean_gram: Tensor) -> Tensor:
    """(1/n^2) sum_ij (G(x)_ij - mean G_ij)^2 for the n channels of a layer.

    Args:
        features: (N, n, ...) activations.
        mean_gram: (n, n).

    Returns:
        (N,).

    Raises:
        ValueError: another number of channels.
    """
    gram = gram_matrix(features)
    if gram.shape[1:] != mean_gram.shape:
        raise InputError(f"Gram matrices of {tuple(gram.shape[1:])} and {tuple(mean_gram.shape)} do not compare")
    return (gram - mean_gram).square().mean((1, 2))


# --- Hooks -----------------------------------------------------------------------------------------------------------


def first_norms(network: nn.Module, layers: Literal["first", "first_stage"] = "first") -> list[nn.Module]:
    """The normalisation layers that the features come from: the first one, or all of the first encoder stage.

    Raises:
        ValueError: the network has none.
    """
    found: list[nn.Module] = [module for module in front(network).modules() if isinstance(module, NORMS)]
    if not found:
        raise InputError("the network has no normalisation layer", remedy="build it with batch or instance norm")
    return found[:1] if layers == "first" else found


def front(network: nn.Module) -> nn.Module:
    """The first encoder stage, which is all that the features need; of another architecture the whole network."""
    encoder = getattr(network, "conv_blocks_context", None)
    return encoder[0] if isinstance(encoder, nn.ModuleList) else network


@contextlib.contextmanager
def outputs_of(modules: Sequence[nn.Module], inputs: bool = False) -> Generator[list[Tensor]]:
    """Collect what modules put out (or take in) in one forward pass after the other; the list is emptied by its user."""
    found: list[Tensor] = []

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        # A copy: the activation behind the norm works in place.
        found.append((arguments[0] if inputs else output).clone())

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class FeatureExtractor:
    """z of whole images by a network in eval mode: the mean over sliding-window patches with a step of half a patch.

    Args:
        network: on its device.
        patch_size: (d, h, w).
        pooling: of `pool_features`; batch norm with 1 gives the channel means.
        layers: the first norm layer, or all of the first encoder stage, concatenated in forward order.
        gram: flattened Gram matrices instead of pooled activations.
        batch_size: patches per forward pass.

    Raises:
        SettingError: instance norm with pooling 1, whose channel means are the learnt shift for every image; take the mean and
            standard deviation of the norm's input with `statistics`.
    """

    def __init__(
        self,
        network: nn.Module,
        patch_size: Sequence[int],
        pooling: Pooling | Literal["statistics"] = 1,
        layers: Literal["first", "first_stage"] = "first",
        gram: bool = False,
        batch_size: int = 8,
    ) -> None:
        self.network = network
        self.patch_size = tuple(patch_size)
        self.pooling = pooling
        self.gram = gram
        self.batch_size = batch_size
        self.modules = first_norms(network, layers)
        constant = any(isinstance(module, nn.InstanceNorm2d | nn.InstanceNorm3d) for module in self.modules)
        if constant and pooling == 1 and not gram:
            raise SettingError(
                "channel means behind instance norm are the same for every image, so that no shift can be seen",
                remedy="take --pooling statistics or 2, or --norm batch",
            )

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """(C, D, H, W) -> (d,) float32."""
        parameter = next(self.network.parameters())
        padded, _ = pad_to_patch(image, self.patch_size)
        starts = [window_starts(n, p) for n, p in zip(padded.shape[1:], self.patch_size, strict=True)]
        places = [(a, b, c) for a in starts[0] for b in starts[1] for c in starts[2]]
        d, h, w = self.patch_size
        total: Tensor | None = None
        training = self.network.training
        self.network.eval()
        try:
            with outputs_of(self.modules, inputs=self.pooling == "statistics") as found:
                for first in range(0, len(places), self.batch_size):
                    tiles = torch.stack(
                        [
                            padded[:, a : a + d, b : b + h, c : c + w]
                            for a, b, c in places[first : first + self.batch_size]
                        ]
                    )
                    front(self.network)(tiles.to(parameter.device, parameter.dtype))
                    z = torch.cat([self._vectors(activation) for activation in found], 1).sum(0)
                    found.clear()
                    total = z if total is None else total + z
        finally:
            self.network.train(training)
        assert total is not None  # there is always a patch
        return (total / len(places)).float().cpu()

    def _vectors(self, activation: Tensor) -> Tensor:
        activation = activation.float()
        if self.gram:
            return gram_matrix(activation).flatten(1)
        if self.pooling == "statistics":
            std, mean = torch.std_mean(activation.flatten(2), 2, correction=0)
            return torch.cat([mean, std], 1)
        if self.pooling == "authors":
            # Each patch by itself, as there: the limit counts the whole tensor.
            return torch.cat([pool_features(one[None], "authors") for one in activation])
        return pool_features(activation, self.pooling)
