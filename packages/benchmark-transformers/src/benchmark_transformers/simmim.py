"""SimMIM: reconstruct masked cells of a picture from the rest (specification 2.2).

Xie et al., "SimMIM: a simple framework for masked image modeling", CVPR 2022. Cells are masked after the patch embedding, all
tokens go through the encoder, one linear layer paints the pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark_transformers.settings import BackboneName
from dart_core.arrays import accepts_arrays
from dart_core.errors import InputError, SettingError
from dart_core.nets.backbones import create_backbone

CELL = 32
"""Side of a cell in pixels (specification 2.2.1)."""
RATIO = 0.6
"""Share of masked cells."""
CLIP_NORM = 5.0
"""Largest norm of the gradient."""
_TINY = 1e-5
IMAGE_SIZES = {"swin_b": 192, "vit_b": 224}
"""Side that SimMIM's recipes pre-train at."""
ARCHITECTURES = {"swin_b": "swin_base_patch4_window7_224", "vit_b": "beit_base_patch16_224"}
"""timm's classes of the encoders; SimMIM's ViT is BEiT's."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "swin_b": {"window_size": 6, "drop_path_rate": 0.0},
    "vit_b": {
        "use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "init_values": 0.1,
        "global_pool": "",
    },
}  # fmt: skip
"""What differs from timm's architecture of that name."""
DROP_PATH = {"swin_b": 0.0, "vit_b": 0.1}
"""Stochastic depth of SimMIM's recipes (specification 2.2.6); the class itself has none unless asked."""


@accepts_arrays
def simmim_mask(permutation: Tensor, grid: int, cells: int, ratio: float = RATIO) -> Tensor:
    """The token mask that a permutation of the cells stands for.

    Args:
        permutation: (..., cells²) of the cell numbers, row by row; the first ceil(ratio cells²) are masked.
        grid: tokens per side, a multiple of `cells`.
        cells: cells per side.
        ratio: share that is masked.

    Returns:
        (..., grid, grid) int64, 1 = masked.

    Raises:
        ValueError: another number of cells, a grid that they do not divide, or a ratio outside [0, 1].
    """
    if cells < 1 or permutation.shape[-1] != cells**2:
        raise InputError(
            f"a permutation of {permutation.shape[-1]} cells for {cells} x {cells}", remedy=f"give {cells**2} of them"
        )
    if grid % cells:
        raise InputError(f"{cells} cells do not divide {grid} tokens per side", remedy="change the picture's side")
    if not 0 <= ratio <= 1:
        raise SettingError(f"the ratio is {ratio:g}", remedy="give a share from 0 to 1")
    masked = permutation[..., : masked_cells(cells, ratio)]
    flat = torch.zeros(permutation.shape, dtype=torch.int64, device=permutation.device).scatter(-1, masked.long(), 1)
    square = flat.unflatten(-1, (cells, cells))
    enlarged: Tensor = square.repeat_interleave(grid // cells, -1).repeat_interleave(grid // cells, -2)
    return enlarged


def masked_cells(cells: int, ratio: float = RATIO) -> int:
    """ceil(ratio cells²): 22 of 36, 30 of 49."""
    return math.ceil(ratio * cells**2 - 1e-9)  # a product such as 0.6 * 25 must not come out above 15 by a rounding


def simmim_loss(image: Tensor, reconstruction: Tensor, mask: Tensor, patch: int) -> Tensor:
    """Mean absolute error over the masked pixels and channels.

    Args:
        image: (N, C, H, W), normalised.
        reconstruction: likewise.
        mask: (N, h, w) of tokens, 1 = masked; integer, bool or float.
        patch: pixels per token and side.

    Returns:
        Scalar: sum of |image - reconstruction| over what is masked / (masked pixels + 1e-5) / C; 0 where nothing is masked.

    Raises:
        ValueError: shapes that do not fit.
    """
    if image.shape != reconstruction.shape or image.dim() != 4:
        raise InputError(
            f"picture and reconstruction have shapes {tuple(image.shape)} and {tuple(reconstruction.shape)}",
            remedy="give (N, C, H, W) twice",
        )
    if mask.shape != (len(image), image.shape[2] // patch, image.shape[3] // patch) or image.shape[2] % patch:
        raise InputError(
            f"a mask of shape {tuple(mask.shape)} for pictures of shape {tuple(image.shape)} and tokens of {patch} pixels",
            remedy="give one number for each token",
        )
    weight = mask.to(image.dtype)
    pixels = weight.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    error = ((image - reconstruction).abs() * pixels).sum()
    return error / (weight.sum() * patch**2 + _TINY) / image.shape[1]


class SimMIM(nn.Module):
    """Encoder with a mask token, and the linear decoder.

    Args:
        backbone: "swin_b" or "vit_b".
        image_size: side of the pictures; None: 192 for Swin (window 6), 224 for ViT.
        network: keywords of timm's class for another size of network: patch_size, embed_dim, depths (Swin) or depth (ViT),
            num_heads, window_size, drop_path_rate (default 0).

    Attributes:
        patch: pixels per token and side.
        stride: pixels per side of what the encoder gives.
        grid: tokens per side.

    Raises:
        SettingError: no such backbone, or timm cannot build it for these pictures.
    """

    def __init__(self, backbone: BackboneName = "swin_b", image_size: int | None = None, **network: Any) -> None:
        super().__init__()
        if backbone not in ARCHITECTURES:
            raise SettingError(f"backbone is {backbone!r}", remedy=f"give {' or '.join(ARCHITECTURES)}")
        self.image_size = IMAGE_SIZES[backbone] if image_size is None else image_size
        patch = int(network.get("patch_size", 4 if backbone == "swin_b" else 16))
        stages = len(network.get("depths", (2, 2, 18, 2))) if backbone == "swin_b" else 1
        self.patch, self.stride = patch, patch * 2 ** (stages - 1)
        if self.image_size < 1 or self.image_size % self.stride:
            nearest = max(1, round(self.image_size / self.stride)) * self.stride
            raise SettingError(
                f"pictures of side {self.image_size} are not divided by the {self.stride} pixels of a {backbone} feature",
                remedy=f"give a multiple such as {nearest}",
            )
        self.grid = self.image_size // patch
        options = {**OPTIONS[backbone], **network}
        self.encoder = create_backbone(ARCHITECTURES[backbone], image_size=self.image_size, **options)
        width = int(network.get("embed_dim", 128 if backbone == "swin_b" else 768))
        self.encoder.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        bound = 2.0 if backbone == "swin_b" else 0.02
        nn.init.trunc_normal_(self.encoder.mask_token, std=0.02, a=-bound, b=bound)
        features = width * self.stride // patch
        # Channel c * stride² + a * stride + b becomes pixel (a, b) of channel c (specification 2.2.3).
        self.decoder = nn.Sequential(nn.Conv2d(features, 3 * self.stride**2, 1), nn.PixelShuffle(self.stride))

    @property
    def is_swin(self) -> bool:
        """Whether the encoder is a Swin transformer."""
        return hasattr(self.encoder, "layers")

    def encode(self, image: Tensor, mask: Tensor) -> Tensor:
        """What the encoder makes of a masked picture, after its last norm.

        Args:
            image: (N, 3, S, S), normalised.
            mask: (N, grid, grid) of tokens, 1 = masked.

        Returns:
            (N, C, S / stride, S / stride); ViT: without the class token.
        """
        encoder = cast(Any, self.encoder)
        tokens = encoder.patch_embed(image)  # Swin (N, grid, grid, K), ViT (N, grid², K)
        hidden = mask.to(tokens.dtype)[..., None]
        hidden = hidden if self.is_swin else hidden.flatten(1, 2)
        tokens = tokens * (1 - hidden) + encoder.mask_token.to(tokens.dtype).view(-1) * hidden
        if self.is_swin:
            found: Tensor = encoder.norm(encoder.layers(tokens))
            return found.permute(0, 3, 1, 2).contiguous()
        tokens = torch.cat([encoder.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], 1)
        bias = encoder.rel_pos_bias()
        for block in encoder.blocks:
            tokens = block(encoder.pos_drop(tokens) if block is encoder.blocks[0] else tokens, shared_rel_pos_bias=bias)
        features: Tensor = encoder.norm(tokens)[:, 1:]
        return features.transpose(1, 2).reshape(len(image), -1, self.grid, self.grid)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the masked pixels and the whole reconstruction (N, 3, S, S); see `encode`."""
        reconstruction = self.decoder(self.encode(image, mask)).float()
        reconstruction = reconstruction.to(image.dtype) if image.dtype == torch.float64 else reconstruction
        return simmim_loss(image, reconstruction, mask, self.patch), reconstruction


def parameter_groups(network: SimMIM, weight_decay: float) -> list[dict[str, Any]]:
    """Which parameters SimMIM's weight decay shrinks (specification 2.2.6).

    None of one dimension; of a Swin not the mask token and the tables of position bias; of a ViT not the class token, while its
    mask token and table are decayed, as in SimMIM's code.
    """
    spared = ("mask_token", "relative_position_bias_table") if network.is_swin else ("cls_token", "pos_embed")
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in network.named_parameters():
        groups[parameter.dim() == 1 or name.endswith(spared)].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def visible(image: Tensor, mask: Tensor, patch: int) -> Tensor:
    """A picture (N, C, H, W) with its masked tokens (N, h, w) set to 0, the mean of normalised pictures; for showing."""
    return image * (1 - F.interpolate(mask[:, None].to(image.dtype), scale_factor=patch, mode="nearest"))
