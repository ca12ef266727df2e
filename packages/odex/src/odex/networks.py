"""The network of the paper: nnU-Net's 3-D U-Net with batch normalisation (specification 3)."""

from __future__ import annotations

from collections.abc import Sequence

from dart_core.nets.nnunet import GenericUNet, Norm


def build_unet(
    features: Sequence[int],
    pools: Sequence[Sequence[int]],
    in_channels: int = 1,
    classes: int = 2,
    norm: Norm = "batch",
) -> GenericUNet:
    """Build nnU-Net's U-Net with kernels of 3 voxels.

    Args:
        features: feature maps of each resolution, one more than reductions.
        pools: stride of each reduction along each axis, such as ((2, 2, 2), (2, 2, 2), (2, 2, 1)).
        in_channels: channels of the image.
        classes: classes with the background.
        norm: batch (ODEx needs its statistics) or instance (nnU-Net's own); as many parameters in both.

    Returns:
        the network; in train mode it gives a list of outputs, full resolution first.

    Raises:
        ValueError: lists that do not fit.
    """
    axes = len(pools[0]) if pools else 3
    return GenericUNet(in_channels, classes, pools, [(3,) * axes] * (len(pools) + 1), features, norm)
