"""RandAugment and mixup, which SimMIM's own fine-tuning uses (specification 2.2.9) and the benchmark does not.

Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", NeurIPS 2020; Zhang et al., "mixup:
beyond empirical risk minimization", ICLR 2018.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dart_core.data.picture_views import IMAGENET

POLICY = "rand-m9-mstd0.5-inc1"
"""SimMIM's, in timm's words: two operations of magnitude about 9 of 10."""
TRANSLATION = 0.45
"""Largest shift, as a share of the side (timm's default)."""


def rand_augment(image: Tensor, generator: np.random.Generator) -> Tensor:
    """timm's RandAugment.

    Args:
        image: uint8 (3, S, S); stays as it is.
        generator: of the sample. timm draws from the global generators of Python and NumPy; they are put back as they were.

    Returns:
        uint8 (3, S, S).
    """
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    with _global_generators(generator):
        changed = _policy(image.shape[-1])(picture)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1).contiguous()


@lru_cache(maxsize=4)
def _policy(size: int) -> Any:
    from timm.data.auto_augment import rand_augment_transform

    fill = tuple(round(255 * value) for value in IMAGENET[0])
    return rand_augment_transform(POLICY, {"translate_const": int(size * TRANSLATION), "img_mean": fill})


@contextmanager
def _global_generators(generator: np.random.Generator) -> Generator[None]:
    """Within, the global generators of Python and NumPy draw what follows from this one."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(int(generator.integers(2**62)))
    np.random.seed(int(generator.integers(2**32)))  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def mixup(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blend each picture of a batch, and its targets, with those of the picture at the opposite place.

    Args:
        images: (N, 3, S, S).
        targets: (N, labels); nan (unknown) stays unknown in both.
        alpha: the share, one for the batch, is drawn from Beta(alpha, alpha).
        generator: on the device of the images.

    Returns:
        The blended pictures and targets, of the same shapes.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return images * share + images.flip(0) * (1 - share), targets * share + targets.flip(0) * (1 - share)
