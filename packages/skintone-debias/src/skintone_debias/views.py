"""Scores as the mean over eight views of a picture (specification C1, C2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dart_core.data.datalist import Row
from dart_core.data.pictures import PictureFiles
from dart_core.data.slices import evaluating
from dart_core.errors import InputError

Picture = TypeVar("Picture", Tensor, NDArray[np.generic])
VIEWS = 8


def tta_variants(x: Picture) -> Picture:
    """The eight flips and turns of square pictures.

    Args:
        x: (..., side, side) tensor or array.

    Returns:
        (8, ..., side, side). View i transposes rows and columns if i >= 4, and then, by i mod 4, leaves it so, turns it
        upside down (1), mirrors it left to right (2), or does both (3).

    Raises:
        ValueError: the pictures are not square.
    """
    if isinstance(x, np.ndarray):
        found: NDArray[np.generic] = tta_variants(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return found
    if x.dim() < 2 or x.shape[-1] != x.shape[-2]:
        raise InputError(f"pictures of shape {tuple(x.shape)} are not square", remedy="crop or resize them first")
    views = [y.flip(dims) for y in (x, x.transpose(-1, -2)) for dims in ((), (-2,), (-1,), (-2, -1))]
    return torch.stack(views)


@torch.no_grad()
def score_images(network: nn.Module, images: Tensor, views: int = VIEWS, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Mean score of some pictures over their views.

    Args:
        network: pictures (n, 3, side, side) -> logits (n,); in the mode it is in.
        images: (n, 3, side, side), uint8 or in [0, 1].
        views: 8, or 1 for the picture as it is.
        batch_size: views in a forward pass.

    Returns:
        (n,) mean over the views of the sigmoids, and (n,) mean logit, float32.
    """
    seen = tta_variants(images) if views == VIEWS else images[None]
    flat = seen.flatten(0, 1)
    logits = torch.cat([network(part).float().reshape(-1) for part in flat.split(batch_size)])
    logits = logits.reshape(len(seen), len(images))
    return logits.sigmoid().mean(0), logits.mean(0)


def score_rows(
    network: nn.Module, rows: Sequence[Row], side: int, square: bool, views: int = VIEWS, batch_size: int = 64
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scores and mean logits (n,) of the pictures of some rows; the network's mode is put back.

    Raises:
        InputError: a file that is no picture.
    """
    device = next(network.parameters()).device
    files = PictureFiles(rows, side, square=square)
    count = max(1, batch_size // views)
    scores, logits = [], []
    with evaluating(network):
        for start in range(0, len(rows), count):
            images = torch.stack([files[i]["image"] for i in range(start, min(start + count, len(rows)))])
            found = score_images(network, images.to(device), views, batch_size)
            scores.append(found[0].cpu())
            logits.append(found[1].cpu())
    return torch.cat(scores).numpy(), torch.cat(logits).numpy()
