"""DeepLabV3+ with categorical units (specification 3.2).

The authors do not publish theirs. The choice here: torchvision's ResNet-50 without pretrained weights at output stride 16, its
ASPP (rates 6, 12, 18, image pooling; without its dropout), and the decoder of Chen et al. 2018. The three batch norms of every
residual unit of the encoder's first two stages have a CN layer beside them; the batch norm of a unit's projection has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, cat, nn
from torch.nn import functional as F
from torchvision.models import resnet50
from torchvision.models.segmentation.deeplabv3 import ASPP

from catenorm.method import CateNorm2d, Form, MaskMode
from dart_core.errors import SettingError

STAGES = 4
RATES = (6, 12, 18)


class BatchNormPair(nn.BatchNorm2d):
    """Batch norm with a CN layer beside it, whose names are those of the batch norm it replaces."""

    def __init__(self, channels: int, cate: CateNorm2d) -> None:
        super().__init__(channels)
        self.cate = cate

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(N, C, H, W), by the CN layer where there is a mask."""
        if mask is None:
            return super().forward(x)
        out: Tensor = self.cate(x, mask)
        return out


class CateNormDeepLabV3Plus(nn.Module):
    """DeepLabV3+ on ResNet-50 whose encoder stages 1 and 2 can normalise by classes.

    Args:
        in_channels: neighbouring slices.
        classes: K, with the background.
        stages: the categorical encoder stages, 1 to 4; () is the plain network.
        mask_mode: see `CateNorm2d`.
        form: see `CateNorm2d`.
        reduction: see `CateNorm2d`.

    Raises:
        SettingError: no such stage.
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        stages: Sequence[int] = (1, 2),
        *,
        mask_mode: MaskMode = "soft",
        form: Form = "one_plus_gamma",
        reduction: int = 2,
    ) -> None:
        super().__init__()
        if wrong := [stage for stage in stages if not 1 <= stage <= STAGES]:
            raise SettingError(f"there is no encoder stage {wrong[0]}", remedy=f"give numbers from 1 to {STAGES}")
        encoder: Any = resnet50(weights=None, replace_stride_with_dilation=(False, False, True))
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1, self.maxpool = encoder.bn1, encoder.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(encoder, f"layer{n}") for n in range(1, 5))
        for stage in sorted(set(stages)):
            for unit in getattr(self, f"layer{stage}"):
                for name in ("bn1", "bn2", "bn3"):
                    channels = getattr(unit, name).num_features
                    setattr(
                        unit, name, BatchNormPair(channels, CateNorm2d(channels, classes, mask_mode, form, reduction))
                    )
        self.aspp = ASPP(2048, RATES, 256)
        # torchvision ends it with Dropout(0.5), which the network of the specification (3.2) has not.
        for module in self.aspp.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.reduce = nn.Sequential(nn.Conv2d(256, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU())
        self.decoder = nn.Sequential(
            nn.Conv2d(304, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Conv2d(256, classes, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (N, K, H, W) of an input (N, in_channels, H, W); mask (N, K, h, w) for the CN pass."""
        size = x.shape[-2:]
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = low = _stage(self.layer1, x, mask)
        for layer in (self.layer2, self.layer3, self.layer4):
            x = _stage(layer, x, mask)
        x = F.interpolate(self.aspp(x), low.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.out(self.decoder(cat((self.reduce(low), x), 1)))
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def _stage(units: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """An encoder stage, its units in torchvision's order with the mask given to the pairs."""

    def norm(layer: nn.Module, out: Tensor) -> Tensor:
        found: Tensor = layer(out, mask) if isinstance(layer, BatchNormPair) else layer(out)
        return found

    for unit in units:
        out = F.relu(norm(unit.bn1, unit.conv1(x)))
        out = F.relu(norm(unit.bn2, unit.conv2(out)))
        out = norm(unit.bn3, unit.conv3(out))
        x = F.relu(out + (x if unit.downsample is None else unit.downsample(x)))
    return x
