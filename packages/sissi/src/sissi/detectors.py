"""Detectors of torchvision with the paper's settings (specification 3), a small one, and their files."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.misc import FrozenBatchNorm2d

from dart_core.checkpoint import load_weights, read_model, read_weight_file, save_model, weights_file
from dart_core.errors import CheckpointError, SettingError
from sissi import settings as of

PACKAGE, SMALL, PAPER = "sissi", "small", "fasterrcnn_resnet50_fpn"
CLASSES = 2
"""Background and cell."""
_LABEL = "sissi-detector"
_KINDS = ("fasterrcnn", "retinanet", "fcos")
_COCO = 91
"""Classes of torchvision's files trained on COCO."""
_ZERO_EPS = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
"""Detectors whose files trained on COCO mean a batch norm that adds nothing to the variance (torchvision's `overwrite_eps`)."""
_CLASS_LAYERS = ("roi_heads.box_predictor.cls_score.bias", "head.classification_head.cls_logits.bias")


@dataclass(frozen=True)
class About:
    """What a detector file says of itself."""

    detector: str
    size: int
    frozen: bool
    """Batch norm with frozen statistics."""
    colours: str
    score: float
    nms: float
    detections: int
    method: str
    """What tables call it."""
    epochs: int
    seed: int
    zero_eps: bool = False
    """Frozen batch norm adds nothing to the variance, as torchvision's file trained on COCO wants it."""


def names() -> list[str]:
    """Detectors that can be chosen."""
    found = [name for name in dir(detection) if name.startswith(_KINDS) and callable(getattr(detection, name))]
    return [SMALL, *found]


class AsGiven(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision carries no annotations
    """Normalises pictures, and resizes them only where `resizes` is set: views of other scales are meant to differ (P1)."""

    resizes = False

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The picture and its boxes as they are."""
        found: tuple[Tensor, dict[str, Tensor] | None] = (
            super().resize(image, target) if self.resizes else (image, target)
        )
        return found


class SmallBackbone(nn.Sequential):
    """Four convolutions of 16 to 64 channels, a cell of the map every 8 pixels: for cells of 10 to 60 pixels and machines without GPU."""

    out_channels = 32

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 32, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers)


def build_detector(
    name: str = PAPER,
    size: int = 512,
    *,
    frozen: bool = False,
    score: float = 0.05,
    nms: float = 0.2,
    detections: int = 400,
    zero_eps: bool = False,
) -> nn.Module:
    """A detector of one class with random weights that takes pictures as they come, without resizing them.

    Args:
        name: of a Faster R-CNN, RetinaNet or FCOS in torchvision, or "small".
        size: side that pictures are resized to where the detector does it (specification P1, `resizing`).
        frozen: batch norm keeps its statistics and weights.
        score: lowest score of a detection.
        nms: IoU above which the lower of two detections goes.
        detections: at most, of a picture.
        zero_eps: frozen batch norm adds nothing to the variance.

    Raises:
        SettingError: no such detector.
    """
    known = names()
    if name not in known:
        raise SettingError(f"no detector {name!r}", remedy=f"give one of {', '.join(known)}")
    words: dict[str, Any] = {"min_size": size, "max_size": 2 * size}
    faster = name.startswith(("fasterrcnn", SMALL))
    prefix = "box_" if faster else ""
    words |= {f"{prefix}score_thresh": score, f"{prefix}nms_thresh": nms}
    words[f"{prefix}detections_per_img"] = detections
    if name == SMALL:
        anchors = AnchorGenerator(((16, 32, 64),), ((0.7, 1.0, 1.4),))
        pool = MultiScaleRoIAlign(["0"], 4, 1)
        head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        made: Any = FasterRCNN(
            SmallBackbone(), None, rpn_anchor_generator=anchors, box_roi_pool=pool, box_head=head,
            box_predictor=detection.faster_rcnn.FastRCNNPredictor(128, CLASSES), rpn_pre_nms_top_n_train=600,
            rpn_post_nms_top_n_train=300, rpn_pre_nms_top_n_test=400, rpn_post_nms_top_n_test=200,
            box_batch_size_per_image=64, **words,
        )  # fmt: skip
    elif name == PAPER:
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
        made = FasterRCNN(backbone, CLASSES, rpn_post_nms_top_n_train=2000, rpn_post_nms_top_n_test=1000, **words)
    else:
        made = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=CLASSES, **words)
    old = made.transform
    made.transform = AsGiven(size, 2 * size, old.image_mean, old.image_std)
    if frozen:
        _freeze(made)
    if zero_eps:
        overwrite_eps(made, 0.0)
    return made  # type: ignore[no-any-return]


def _freeze(network: nn.Module) -> None:
    """Put a frozen batch norm, of the same names in a weight file, in the place of every batch norm of a new network."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, FrozenBatchNorm2d(child.num_features, child.eps))
        else:
            _freeze(child)


@contextlib.contextmanager
def resizing(detector: nn.Module, on: bool = True) -> Generator[None]:
    """Let the detector resize whatever it gets to its one size, as the authors do in all views (pitfall 3)."""
    transform: Any = detector.transform
    before, transform.resizes = transform.resizes, on
    try:
        yield
    finally:
        transform.resizes = before


def load_initial(detector: nn.Module, path: Path) -> tuple[int, list[str], bool]:
    """Take weights from a file; layers of another shape (the classes) keep their own.

    Names of older torchvision, which its files trained on COCO still have, are torchvision's to translate.

    Returns:
        number of tensors taken, the names of those left out, and whether the file has COCO's classes.

    Raises:
        CheckpointError: less than 90 % of the tensors fit, or a number among them is not finite.
    """
    state = read_weight_file(path)
    state = next((state[key] for key in ("state_dict", "model") if isinstance(state.get(key), dict)), state)
    own = detector.state_dict()
    given = {name: value for name, value in state.items() if isinstance(value, Tensor) and _fits(own, name, value)}
    missing = detector.load_state_dict(given, strict=False).missing_keys
    left = [name for name in missing if not name.endswith("num_batches_tracked")]
    wanted = sum(not name.endswith("num_batches_tracked") for name in own)
    if len(left) > 0.1 * wanted:
        raise CheckpointError(
            f"only {wanted - len(left)} of {wanted} tensors fit", where=path, remedy="give a file of this --detector"
        )
    _check_finite(detector, path)
    # A layer may have several rows a class: compared with the two classes here.
    layers = [name for name in _CLASS_LAYERS if name in own and isinstance(state.get(name), Tensor)]
    coco = any(len(state[name]) * CLASSES == _COCO * len(own[name]) for name in layers)
    return wanted - len(left), left, coco


def _check_finite(detector: nn.Module, where: Path) -> None:
    """Torchvision drops detections whose score is no number, so that a broken detector would just see nothing."""
    for name, value in detector.state_dict().items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name} has values that are not finite", where=where, remedy="train anew")


def _fits(own: dict[str, Tensor], name: str, value: Tensor) -> bool:
    return name not in own or own[name].shape == value.shape


def make(settings: of.DetectorSettings) -> tuple[nn.Module, bool, str]:
    """The detector that the settings ask for, with its initial weights.

    Returns:
        the detector, whether its batch norm is frozen, and what was taken from the weight file ("" without one).
    """
    detector = build_detector(
        settings.detector, settings.size, frozen=settings.frozen, score=settings.score, nms=settings.nms,
        detections=settings.detections,
    )  # fmt: skip
    if settings.init is None:
        return detector, settings.frozen, ""
    taken, left, coco = load_initial(detector, settings.init)
    if coco and settings.detector in _ZERO_EPS:
        overwrite_eps(detector, 0.0)
    others = f"; random: {', '.join(left)}" if left else ""
    return detector, settings.frozen, f"{settings.init}: {taken} tensors taken{others}"


def has_zero_eps(detector: nn.Module) -> bool:
    """Whether its frozen batch norm adds nothing to the variance."""
    return any(isinstance(module, FrozenBatchNorm2d) and module.eps == 0 for module in detector.modules())


def save_detector(folder: Path, detector: nn.Module, about: About) -> None:
    """Write model.safetensors into a run folder.

    Raises:
        OutputError: the file cannot be written.
    """
    save_model(folder, detector, _LABEL, about)


def describe(path: Path) -> About:
    """What a run folder or detector file says of itself.

    Raises:
        CheckpointError: no such file, or one that is no detector of this package.
    """
    problem, remedy = "not a detector of this package", "give a run folder of `sissi train`"
    return read_model(weights_file(path), _LABEL, lambda fields: About(**fields), problem, remedy)


def load_detector(path: Path, device: torch.device | str = "cpu") -> tuple[nn.Module, About]:
    """The detector of a run folder or file, in evaluation mode.

    Raises:
        CheckpointError: missing or damaged file, another network, or weights that are not finite.
    """
    about = describe(path)
    detector = build_detector(
        about.detector, about.size, frozen=about.frozen, score=about.score, nms=about.nms, detections=about.detections,
        zero_eps=about.zero_eps,
    )  # fmt: skip
    load_weights(weights_file(path), detector)
    _check_finite(detector, weights_file(path))
    return detector.to(device).eval(), about
