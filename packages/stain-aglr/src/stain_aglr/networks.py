"""The three networks (paper Table 3 and section 1.2; specification 3): M_ft, M_cls, and M_gen, which only training needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stain_aglr.settings import Halving, Upsampling

STAGES = 5
DROPOUT = 0.5


class FeatureExtractor(nn.Module):
    """M_ft: five stages of two 3x3 convolutions with batch norm and ReLU; each stage halves the side.

    With the default width it has 4,714,208 parameters (no biases in front of batch norm).

    Args:
        width: filters of the first stage, each further one has twice as many.
        halving: what halves the side, which the paper does not print: stride 2 in the stage's second convolution (as in the
            network it cites), in its first, or 2x2 max pooling behind both.
    """

    def __init__(self, width: int = 32, halving: Halving = "second") -> None:
        super().__init__()
        self.width = width
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(STAGES):
            filters = width << stage
            layers += _convolution(channels, filters, 2 if halving == "first" else 1)
            layers += _convolution(filters, filters, 2 if halving == "second" else 1)
            if halving == "pool":
                layers.append(nn.MaxPool2d(2))
            channels = filters
        self.stages = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 16 width, H/32, W/32)."""
        features: Tensor = self.stages(images)
        return features


class StainClassifier(nn.Module):
    """M_cls: global average pooling, dropout 0.5, a dense layer of 256 with ReLU, a dense layer of 2. 131,842 parameters.

    Args:
        width: of the feature extractor.
        relu_logits: a ReLU on the logits as well, as the paper's Table 3 has it; it kills half of the gradient.
    """

    def __init__(self, width: int = 32, relu_logits: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(DROPOUT)
        self.hidden = nn.Linear(width << (STAGES - 1), 8 * width)
        self.logits = nn.Linear(8 * width, 2)
        self.relu_logits = relu_logits

    def forward(self, features: Tensor) -> Tensor:
        """(N, 16 width, h, w) -> logits (N, 2)."""
        logits: Tensor = self.logits(F.relu(self.hidden(self.dropout(pooled(features)))))
        return F.relu(logits) if self.relu_logits else logits


class StainGenerator(nn.Module):
    """M_gen: the mirror of M_ft, which paints the patch in its own colours again. 7,073,507 parameters.

    Five stages of two 3x3 convolutions with batch norm and ReLU, each followed by nearest-neighbour doubling; then a 3x3
    convolution to three channels and a sigmoid. No skip connections: they would pass the altered colours.

    Args:
        width: of the feature extractor.
        upsampling: how the side is doubled: "nearest" or "bilinear".
    """

    def __init__(self, width: int = 32, upsampling: Upsampling = "nearest") -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = width << (STAGES - 1)
        for stage in reversed(range(STAGES)):
            filters = width << stage
            layers += [*_convolution(channels, filters), *_convolution(filters, filters)]
            layers.append(nn.Upsample(scale_factor=2, mode=upsampling))
            channels = filters
        self.stages = nn.Sequential(*layers)
        self.colours = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(N, 16 width, h, w) -> (N, 3, 32 h, 32 w) in [0, 1]."""
        return torch.sigmoid(self.colours(self.stages(features)))


def pooled(features: Tensor) -> Tensor:
    """Global average pooling: (N, C, h, w) -> (N, C)."""
    return features.mean((2, 3))


def _convolution(channels: int, filters: int, stride: int = 1) -> list[nn.Module]:
    """A 3x3 convolution with batch norm and ReLU."""
    return [
        nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    ]


class PatchClassifier(nn.Module):
    """What is used after training: patches to logits. 4,846,050 parameters with the default width, whatever the method.

    Args:
        width: filters of the first stage.
        halving: see `FeatureExtractor`.
        relu_logits: see `StainClassifier`.
    """

    def __init__(self, width: int = 32, halving: Halving = "second", relu_logits: bool = False) -> None:
        super().__init__()
        self.features = FeatureExtractor(width, halving)
        self.classifier = StainClassifier(width, relu_logits)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> logits (N, 2)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class StainAgLr(nn.Module):
    """What is trained: the classifier, and the generator where there is a regeneration loss.

    Args:
        width: filters of the first stage.
        regenerate: with the generator.
        halving: see `FeatureExtractor`.
        relu_logits: see `StainClassifier`.
        upsampling: see `StainGenerator`.
    """

    def __init__(
        self, width: int = 32, regenerate: bool = True, halving: Halving = "second", relu_logits: bool = False,
        upsampling: Upsampling = "nearest",
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch_classifier = PatchClassifier(width, halving, relu_logits)
        self.generator = StainGenerator(width, upsampling) if regenerate else None

    def forward(self, raw: Tensor | None, altered: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """One pass of raw and altered patches together, so that batch norm sees both (specification 2.1, item 5).

        Args:
            raw: (B, 3, H, W) in [0, 1], or None.
            altered: likewise, or None.

        Returns:
            Logits of the raw patches (B, 2), of the altered ones (B, 2), regenerated patches (B, 3, H, W); None for what was
            not given. The generator sees the altered patches' features only.
        """
        given = [patches for patches in (raw, altered) if patches is not None]
        features = self.patch_classifier.features(torch.cat(given) if len(given) > 1 else given[0])
        logits = self.patch_classifier.classifier(features)
        count = 0 if raw is None else len(raw)
        seen = altered is not None
        regenerated = self.generator(features[count:]) if seen and self.generator is not None else None
        return logits[:count] if count else None, logits[count:] if seen else None, regenerated
