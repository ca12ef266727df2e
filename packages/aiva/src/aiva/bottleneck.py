"""The bottleneck space of the segmentation network (paper section 2): its features, and which layers shape it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dart_core.nets import ResidualUNet2d

TRAINED = ("init_path", "down1", "down2", "out_path")
TRAINED_OF_BOTTLENECK = ("bottleneck.0", "bottleneck.1", "bottleneck.2", "bottleneck.3.first")


def bottleneck_features(network: nn.Module, images: Tensor) -> Tensor:
    """v(x), the network's bottleneck features, by its encoder alone (specification 2.1).

    Args:
        network: ResidualUNet2d.
        images: (B, C, H, W).

    Returns:
        (B, 8 width, H/8, W/8): what `network(images, return_bottleneck=True)` gives as well.
    """
    encoder: Any = network
    block = encoder.bottleneck[3]
    features: Tensor = block.second.norm(
        block.first(encoder.bottleneck[:3](encoder.down2(encoder.down1(encoder.init_path(images)))))
    )
    return features


def bottleneck_width(network: ResidualUNet2d) -> int:
    """Channels of the bottleneck features."""
    return int(network.state_dict()["bottleneck.3.second.norm.weight"].numel())


def freeze_for_adaptation(network: ResidualUNet2d) -> int:
    """Leave trainable what the authors train: the encoder up to the bottleneck features, and out_path (specification 2.6).

    Returns:
        Number of trainable parameters: 1,087,670 at width 16 with two output channels.
    """
    count = 0
    for name, parameter in network.named_parameters():
        trained = name.startswith(tuple(f"{part}." for part in (*TRAINED, *TRAINED_OF_BOTTLENECK)))
        parameter.requires_grad_(trained)
        count += parameter.numel() if trained else 0
    return count


@contextlib.contextmanager
def statistics_kept(network: nn.Module) -> Generator[None]:
    """Within the block, batch norms in train mode use the batch's statistics and leave their running ones alone."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
