"""The 2-D U-Net of nnU-Net version 1 (specification 3), under the names that its modules have there."""

from __future__ import annotations

from collections.abc import Sequence

from dart_core.nets.nnunet import GenericUNet

GROUPS = {
    "conv_blocks_context": "context",
    "conv_blocks_localization": "localization",
    "tu": "transpose",
    "seg_outputs": "segmentation",
}
"""Modules of the network, and what Fig. 2 of the paper calls them: encoder with bottleneck; convolutions behind each
concatenation; transposed convolutions; convolutions that give the segmentation at every resolution of the decoder."""


class GenericUNet2d(GenericUNet):
    """nnU-Net's U-Net for slices, with instance normalisation (`dart_core.nets.nnunet.GenericUNet`).

    29,505,312 parameters at nnU-Net's plan for slices of 256 x 196, one channel and two classes.

    Args:
        in_channels: channels of the image.
        classes: classes with the background.
        pool: kernel (and stride) of each reduction, from full resolution downwards.
        conv: kernels of the convolutions of each stage, one more than reductions.
        features: feature maps of each stage.

    Raises:
        ValueError: lists of lengths that do not fit, or no reduction.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        pool: Sequence[Sequence[int]],
        conv: Sequence[Sequence[int]],
        features: Sequence[int],
    ) -> None:
        super().__init__(in_channels, classes, pool, conv, features)
