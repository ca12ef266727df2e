"""Where a network's first weights come from: the rows of the paper's comparison, and what the authors' code offers besides.

Names of timm without a tag change their meaning between its versions (specification 8.16), so that every row has its tag.
"""

from __future__ import annotations

from typing import NamedTuple

from dart_core.errors import SettingError

VIT, BEIT, SWIN, RESNET = (
    "vit_base_patch16_224", "beit_base_patch16_224", "swin_base_patch4_window7_224", "resnet50",
)  # fmt: skip
DROP_PATH = 0.1


class Initialisation(NamedTuple):
    """One way to start (specification 4)."""

    key: str
    """How commands call it."""
    backbone: str
    """ViT-B, Swin-B, ResNet-50, ..."""
    pretraining: str
    """What the weights were trained on, and how."""
    architecture: str
    """Of timm."""
    tag: str | None = None
    """Architecture and tag of the weights in timm's registry; None: they are not there."""
    source: str | None = None
    """Whose file it is where timm has none; how `convert_checkpoint` calls it."""
    drop_path: float = 0.0
    """Stochastic depth of the fine-tuning (specification 2.1.12)."""
    in_paper: bool = False
    """One of the nine of the paper's Fig. 1, or from scratch."""
    table1: tuple[str, str] | None = None
    """Its row in the paper's Table 1: initialization, backbone."""
    table2: str | None = None
    """Its row in Table 2."""

    @property
    def pretrained(self) -> bool:
        """Whether it needs weights."""
        return self.tag is not None or self.source is not None


_SUPERVISED = "Supervised"

INITIALISATIONS: tuple[Initialisation, ...] = (
    Initialisation("vit-b-in21k", "ViT-B", "supervised, ImageNet-21K", VIT, "vit_base_patch16_224.augreg_in21k", in_paper=True, table1=(_SUPERVISED, "ViT-B")),
    Initialisation("swin-b-in21k", "Swin-B", "supervised, ImageNet-21K", SWIN, "swin_base_patch4_window7_224.ms_in22k", drop_path=DROP_PATH, in_paper=True, table1=(_SUPERVISED, "Swin-B")),
    Initialisation("swin-b-in1k", "Swin-B", "supervised, ImageNet-1K", SWIN, "swin_base_patch4_window7_224.ms_in1k", drop_path=DROP_PATH, in_paper=True),
    Initialisation("vit-b-simmim", "ViT-B", "SimMIM, ImageNet-1K", BEIT, source="simmim", drop_path=DROP_PATH, in_paper=True, table1=("SimMIM", "ViT-B")),
    Initialisation("swin-b-simmim", "Swin-B", "SimMIM, ImageNet-1K", SWIN, source="simmim", drop_path=DROP_PATH, in_paper=True, table1=("SimMIM", "Swin-B"), table2="ImageNet"),
    Initialisation("vit-b-moco-v3", "ViT-B", "MoCo v3, ImageNet-1K", VIT, source="moco_v3", in_paper=True),
    Initialisation("resnet50-in1k", "ResNet-50", "supervised, ImageNet-1K", RESNET, "resnet50.tv_in1k", in_paper=True),
    Initialisation("resnet50-in21k", "ResNet-50", "supervised, ImageNet-21K (BiT; the authors' file is not known)", "resnetv2_50x1_bit", "resnetv2_50x1_bit.goog_in21k", in_paper=True),
    Initialisation("resnet50-moco-v3", "ResNet-50", "MoCo v3, ImageNet-1K (1000 epochs)", RESNET, source="moco_v3", in_paper=True),
    Initialisation("scratch-vit-b", "ViT-B", "random weights", VIT, drop_path=DROP_PATH, in_paper=True, table1=("Scratch", "ViT-B")),
    Initialisation("scratch-swin-b", "Swin-B", "random weights", SWIN, drop_path=DROP_PATH, in_paper=True, table1=("Scratch", "Swin-B"), table2="Scratch"),
    Initialisation("scratch-resnet50", "ResNet-50", "random weights", RESNET, in_paper=True),
    Initialisation("scratch-beit-b", "ViT-B", "random weights in BEiT's class, which SimMIM's ViT is of", BEIT, drop_path=DROP_PATH),
    Initialisation("swin-b-chestxray14", "Swin-B", "SimMIM, ChestX-ray14", SWIN, source="simmim", drop_path=DROP_PATH, table2="ChestX-ray14"),
    Initialisation("swin-b-xrays926k", "Swin-B", "SimMIM, X-rays(926K)", SWIN, source="simmim", drop_path=DROP_PATH, table2="X-rays(926K)"),
    Initialisation("swin-b-in1k-chestxray14", "Swin-B", "SimMIM, ImageNet-1K, then ChestX-ray14", SWIN, source="simmim", drop_path=DROP_PATH, table2="ImageNet->ChestX-ray14"),
    Initialisation("swin-b-in1k-xrays926k", "Swin-B", "SimMIM, ImageNet-1K, then X-rays(926K)", SWIN, source="simmim", drop_path=DROP_PATH, table2="ImageNet->X-rays(926K)"),
    Initialisation("swin-b-in22k-in1k", "Swin-B", "supervised, ImageNet-21K, then 1K", SWIN, "swin_base_patch4_window7_224.ms_in22k_ft_in1k", drop_path=DROP_PATH),
    Initialisation("vit-b-dino", "ViT-B", "DINO, ImageNet-1K", VIT, "vit_base_patch16_224.dino"),
    Initialisation("vit-b-mae", "ViT-B", "MAE, ImageNet-1K", VIT, "vit_base_patch16_224.mae"),
    Initialisation("vit-b-sam", "ViT-B", "supervised with SAM, ImageNet-1K", VIT, "vit_base_patch16_224.sam_in1k"),
    Initialisation("deit-b", "ViT-B", "DeiT, ImageNet-1K", "deit_base_patch16_224", "deit_base_patch16_224.fb_in1k"),
    Initialisation("beit-b", "ViT-B", "BEiT, ImageNet-21K and 1K", BEIT, "beit_base_patch16_224.in22k_ft_in22k_in1k"),
    Initialisation("vit-s-in21k", "ViT-S", "supervised, ImageNet-21K", "vit_small_patch16_224", "vit_small_patch16_224.augreg_in21k"),
    Initialisation("deit-s", "ViT-S", "DeiT, ImageNet-1K", "deit_small_patch16_224", "deit_small_patch16_224.fb_in1k"),
    Initialisation("vit-s-dino", "ViT-S", "DINO, ImageNet-1K", "vit_small_patch16_224", "vit_small_patch16_224.dino"),
    Initialisation("swin-t-in1k", "Swin-T", "supervised, ImageNet-1K", "swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224.ms_in1k", drop_path=DROP_PATH),
    Initialisation("swin-t-moby", "Swin-T", "MoBY, ImageNet-1K", "swin_tiny_patch4_window7_224", source="moby", drop_path=DROP_PATH),
)  # fmt: skip
"""The first nine are those of the paper's Fig. 1 in the order of specification 4; the scratch rows are its horizontal lines."""


def find_initialisation(key: str) -> Initialisation:
    """The row of a key.

    Raises:
        SettingError: there is none.
    """
    for row in INITIALISATIONS:
        if row.key == key:
            return row
    raise SettingError(
        f"no initialisation {key!r}", remedy=f"give one of {', '.join(row.key for row in INITIALISATIONS)}"
    )
