"""Table 3: POPAR against other self-supervision on the same pictures, those of ChestX-ray14."""

from __future__ import annotations

from collections.abc import Iterator

from grids.popar import COLUMNS, HOURS, HOURS_FROM, PACKAGE, PAPER_SPREAD, SCALES, row_cells
from table import Cell, Claim, Scale, Table

ROWS = {("POPAR-3", "ViT-B"): "table1_popar-3", ("POPAR-1", "Swin-B"): "table1_popar-1"}
CONVOLUTIONAL = "pretrained by a program of others for convolutional networks, whose weights are not public; popar has transformers only"


def cells(scale: Scale) -> Iterator[Cell]:
    """POPAR's two rows; they are runs of Table 1."""
    for key, row in ROWS.items():
        yield from row_cells(scale, key, row)


TABLE = Table(
    package=PACKAGE,
    name="table3",
    title="mean AUC (RSNA Pneumonia: accuracy), per cent, against self-supervision on ChestX-ray14",
    keys=("method", "backbone"),
    columns=tuple(COLUMNS),
    cells=cells,
    claims=(Claim(("POPAR-1", "Swin-B"), ("POPAR-3", "ViT-B")),),
    scales=SCALES,
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
    test="Student",
    paper_spread=PAPER_SPREAD,
    not_run={
        **{(name, "ResNet-50"): CONVOLUTIONAL for name in ("SimSiam", "MoCoV2", "Barlow Twins")},
        ("SimMIM", "ViT-B"): "no part of popar; benchmark-transformers pretrains with SimMIM",
        (
            "SimMIM",
            "Swin-B",
        ): "no part of popar; the row ChestX-ray14 of Table 2 of benchmark-transformers is such a run",
    },
)
