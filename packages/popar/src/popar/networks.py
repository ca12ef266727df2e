"""The network of the pretraining (specification 3): a backbone and two single linear heads; and the one that is fine-tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dart_core.errors import InputError, SettingError
from dart_core.nets import create_backbone
from popar.patches import check_sides, unpatchify

NAMES = {"swin_b": "swin_base_patch4_window7_224", "vit_b": "vit_base_patch16_224"}
"""The paper's backbones as timm calls them; any other Swin or ViT of timm goes by its own name."""
SIDES = {"swin_b": 448, "vit_b": 224}
"""Side of the images in the pretraining (section 4.1)."""
DROP_PATH = 0.1
STD = 0.02
"""Of the truncated normal distribution of linear weights."""
HIDDEN = (512, 256)
"""Widths of the head with two hidden layers (the authors' later code)."""


class POPAR(nn.Module):
    """Says of every position which patch it shows, and restores the image: the network of the pretraining.

    Args:
        backbone: "swin_b", "vit_b", or the name of a Swin or ViT in timm.
        image_size: side H of the images, a multiple of the patch. None: 448 for swin_b, 224 for vit_b, else timm's.
        drop_path: stochastic depth of the last block; rises linearly from 0 at the first.
        options: further keywords of the architecture in timm (patch_size, embed_dim, depth or depths, num_heads, window_size).

    Attributes:
        backbone: the timm model without classifier.
        order_head: (..., K) -> (..., n), one linear layer.
        restoration_head: 1x1 convolution (Swin) or linear layer (ViT), K -> 3 k^2, in the order (channel, row, column).
        image_size: H.
        patch: k, the backbone's step from one final token to the next.
        grid: g = H / k; there are n = g^2 patches.

    Raises:
        ValueError: timm has no such network, it is neither Swin nor ViT, cannot be built like this, or `image_size` is not a
            multiple of the patch.
    """

    def __init__(
        self, backbone: str = "swin_b", image_size: int | None = None, drop_path: float = DROP_PATH, **options: Any
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, image_size, drop_path, **options)
        self.image_size, self.patch = image_side(backbone, self.backbone), patch_of(self.backbone)
        self.grid = self.image_size // self.patch
        features, values = int(getattr(self.backbone, "num_features")), 3 * self.patch**2  # noqa: B009 (typed)
        self.order_head = nn.Linear(features, self.grid**2)
        nn.init.trunc_normal_(self.order_head.weight, std=STD)
        nn.init.zeros_(self.order_head.bias)
        if is_swin(self.backbone):
            # A convolution keeps PyTorch's initial weights, as in the authors' code.
            self.restoration_head: nn.Module = nn.Conv2d(features, values, 1)
        else:
            linear = nn.Linear(features, values)
            nn.init.trunc_normal_(linear.weight, std=STD)
            nn.init.zeros_(linear.bias)
            self.restoration_head = linear

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Order logits and the restored image.

        Args:
            images: (B, 3, H, H), normalised.

        Returns:
            Logits (B, n, n): for each position one n-way classification of where its patch comes from. Restored image
            (B, 3, H, H) in normalised values.

        Raises:
            ValueError: images of another shape.
        """
        if images.dim() != 4 or images.shape[1:] != (3, self.image_size, self.image_size):
            raise InputError(
                f"the images have shape {tuple(images.shape)}",
                remedy=f"give (B, 3, {self.image_size}, {self.image_size})",
            )
        tokens = patch_tokens(self.backbone, images)
        logits = self.order_head(tokens)
        if isinstance(self.restoration_head, nn.Conv2d):
            cells = tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))
            return logits, F.pixel_shuffle(self.restoration_head(cells), self.patch)
        patches = self.restoration_head(tokens).unflatten(2, (3, self.patch, self.patch))
        return logits, unpatchify(patches, self.grid)


class Classifier(nn.Module):
    """A backbone under a fresh head: what is fine-tuned.

    Args:
        backbone: see `POPAR`.
        outputs: classes or labels.
        image_size: see `POPAR`.
        head: "linear": one layer (paper); "mlp": two hidden layers of 512 and 256 with batch norm (later code).
        drop_path: see `POPAR`.
        options: see `POPAR`.

    Raises:
        ValueError: see `POPAR`.
    """

    def __init__(
        self,
        backbone: str,
        outputs: int,
        image_size: int | None = None,
        head: Literal["linear", "mlp"] = "linear",
        drop_path: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, image_size, drop_path, **options)
        self.image_size = image_side(backbone, self.backbone)
        features = int(getattr(self.backbone, "num_features"))  # noqa: B009 (typed)
        if head == "linear":
            self.head: nn.Module = nn.Linear(features, outputs)
        else:
            layers: list[nn.Module] = []
            for width in HIDDEN:
                layers += [nn.Linear(features, width), nn.BatchNorm1d(width, eps=1e-6, affine=False), nn.ReLU()]
                features = width
            self.head = nn.Sequential(*layers, nn.Linear(features, outputs))
        for layer in self.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=STD)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, outputs) of normalised images (B, 3, H, H): of the class token (ViT) or the mean token (Swin)."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


# --- Backbones -------------------------------------------------------------------------------------------------------


def build_backbone(name: str, image_size: int | None = None, drop_path: float = DROP_PATH, **options: Any) -> nn.Module:
    """A Swin or ViT of timm without classifier, for square images.

    Raises:
        ValueError: see `POPAR`.
    """
    if not 0 <= drop_path < 1:
        raise SettingError(f"drop path is {drop_path:g}", remedy="give a number from 0 to below 1")
    timm_name = NAMES.get(name, name)
    side = SIDES.get(name) if image_size is None else image_size
    try:
        backbone = create_backbone(timm_name, image_size=side, drop_path_rate=drop_path, **options)
    except SettingError:
        # The patch is what a side usually does not fit; a network without memory knows it at once.
        if side is not None:
            with torch.device("meta"):
                check_sides((side, side), patch_of(create_backbone(timm_name, **options)))
        raise
    if not hasattr(backbone, "feature_info") or not (is_swin(backbone) or is_vit(backbone)):
        raise SettingError(
            f"{name} is a {type(backbone).__name__}", remedy="give swin_b, vit_b, or another Swin or ViT of timm"
        )
    check_sides((image_side(name, backbone),) * 2, patch_of(backbone))
    return backbone


def is_swin(backbone: nn.Module) -> bool:
    """Whether a backbone is a Swin transformer (features (B, h, w, K))."""
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return isinstance(backbone, SwinTransformer | SwinTransformerV2)


def is_vit(backbone: nn.Module) -> bool:
    """Whether a backbone is a ViT (features (B, tokens, K))."""
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(backbone, VisionTransformer)


def image_side(name: str, backbone: nn.Module) -> int:
    """Side of the images that a backbone was built for.

    Raises:
        SettingError: they are not square.
    """
    height, width = backbone.patch_embed.img_size  # type: ignore[union-attr,misc]
    if height != width:
        raise SettingError(f"{name} was built for {height} x {width} pixels", remedy="give a network of square images")
    return int(height)


def patch_of(backbone: nn.Module) -> int:
    """Pixels from one final token to the next: 32 for Swin-B, 16 for ViT-B."""
    return int(backbone.feature_info[-1]["reduction"])  # type: ignore[index]


def patch_tokens(backbone: nn.Module, images: Tensor) -> Tensor:
    """The final tokens (B, n, K) in the order of the patches, after the last norm; a class token is dropped."""
    features: Tensor = backbone.forward_features(images)  # type: ignore[operator]
    if features.dim() == 4:
        return features.flatten(1, 2)
    return features[:, int(backbone.num_prefix_tokens) :]  # type: ignore[arg-type]


def parse_options(words: Mapping[str, Any] | tuple[str, ...]) -> dict[str, Any]:
    """Keywords of an architecture from words such as "embed_dim=192" or "depths=2,2,6".

    Raises:
        SettingError: a word of another form, or a number below 1.
    """
    if isinstance(words, Mapping):
        return {key: tuple(value) if isinstance(value, list) else value for key, value in words.items()}
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        try:
            numbers = [int(part) for part in value.split(",")]
        except ValueError:
            numbers = []
        if not key or not equals or not numbers or min(numbers) < 1:
            raise SettingError(f"--network has {word!r}", remedy="write for example embed_dim=192 or depths=2,2,6")
        found[key] = numbers[0] if len(numbers) == 1 else tuple(numbers)
    return found
