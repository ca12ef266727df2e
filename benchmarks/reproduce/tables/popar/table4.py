"""Table 4: POPAR against random weights and supervised pretraining on ImageNet and on ChestX-ray14."""

from __future__ import annotations

from collections.abc import Iterator

from grids.popar import COLUMNS, FILES, HOURS, HOURS_FROM, PACKAGE, PAPER_SPREAD, SCALES, row_cells
from table import Cell, Claim, Scale, Table

ROWS = {
    ("Random", "ViT-B"): "table4_random_vit-b",
    ("ImageNet-21K", "ViT-B"): "table4_imagenet21k_vit-b",
    ("ChestX-ray14", "ViT-B"): "table4_chestxray14_vit-b",
    ("POPAR-3", "ViT-B"): "table1_popar-3",
    ("Random", "Swin-B"): "table4_random_swin-b",
    ("ImageNet-21K", "Swin-B"): "table4_imagenet21k_swin-b",
    ("ChestX-ray14", "Swin-B"): "table4_chestxray14_swin-b",
    ("POPAR-1", "Swin-B"): "table1_popar-1",
}
CONVOLUTIONAL = "quoted for comparison; popar has transformers only"


def cells(scale: Scale) -> Iterator[Cell]:
    """Small has no ImageNet weights. Supervised networks go on from the run on ChestX-ray14 with the same seed."""
    for key, row in ROWS.items():
        if scale.name != "small" or row not in FILES:
            yield from row_cells(scale, key, row)


TABLE = Table(
    package=PACKAGE,
    name="table4",
    title="mean AUC (RSNA Pneumonia: accuracy), per cent, against supervised and random weights",
    keys=("initialization", "backbone"),
    columns=tuple(COLUMNS),
    cells=cells,
    claims=(
        *(Claim(("POPAR-3", "ViT-B"), (other, "ViT-B")) for other in ("Random", "ImageNet-21K", "ChestX-ray14")),
        *(Claim(("POPAR-1", "Swin-B"), (other, "Swin-B")) for other in ("Random", "ChestX-ray14")),
        Claim(("POPAR-1", "Swin-B"), ("ImageNet-21K", "Swin-B"), ("CheXpert", "ShenZhen", "RSNA Pneumonia")),
    ),
    scales=SCALES,
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
    test="Student",
    paper_spread=PAPER_SPREAD,
    not_run={(name, "ResNet-50"): CONVOLUTIONAL for name in ("Random", "ImageNet-1K", "ChestX-ray14")},
)
