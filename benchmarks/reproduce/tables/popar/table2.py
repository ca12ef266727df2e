"""Table 2: POPAR pretrained on ChestX-ray14 against self-supervised networks pretrained on ImageNet."""

from __future__ import annotations

from collections.abc import Iterator

from grids.popar import COLUMNS, FILES, HOURS, HOURS_FROM, PACKAGE, PAPER_SPREAD, SCALES, row_cells
from table import Cell, Claim, Scale, Table

ROWS = {
    ("MoCoV3", "ViT-B"): "table2_moco-v3",
    ("DINO", "ViT-B"): "table2_dino",
    ("MAE", "ViT-B"): "table2_mae",
    ("POPAR-3", "ViT-B"): "table1_popar-3",
    ("POPAR-1", "Swin-B"): "table1_popar-1",
}
OURS, SWIN = ("POPAR-3", "ViT-B"), ("POPAR-1", "Swin-B")


def cells(scale: Scale) -> Iterator[Cell]:
    """Small has no weights of others."""
    for key, row in ROWS.items():
        if scale.name != "small" or row not in FILES:
            yield from row_cells(scale, key, row)


TABLE = Table(
    package=PACKAGE,
    name="table2",
    title="mean AUC (RSNA Pneumonia: accuracy), per cent, against self-supervision on ImageNet",
    keys=("method", "backbone"),
    columns=tuple(COLUMNS),
    cells=cells,
    claims=(*(Claim(OURS, other) for other in ROWS if other not in (OURS, SWIN)), Claim(SWIN, OURS)),
    scales=SCALES,
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
    test="Student",
    paper_spread=PAPER_SPREAD,
    not_run={
        (
            "SimMIM",
            "ViT-B",
        ): "its weights are BEiT's class, which popar does not take; see Table 1 of benchmark-transformers",
        ("SimMIM", "Swin-B"): "see Table 1 of benchmark-transformers",
        ("BEiT", "ViT-B"): "the purely self-supervised weights are in no registry",
    },
)
