"""Table 1: POPAR and its downgraded versions: other backbone, other sizes of pictures in pretraining and fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

from grids.popar import COLUMNS, HOURS, HOURS_FROM, PACKAGE, PAPER_SPREAD, SCALES, row_cells
from table import Cell, Claim, Scale, Table

ROWS = {
    ("POPAR-3", "ViT-B"): "table1_popar-3",
    ("POPAR-2", "Swin-B"): "table1_popar-2",
    ("POPAR-1", "Swin-B"): "table1_popar-1",
    ("POPAR", "Swin-B"): "table1_popar",
}
BEST = ("POPAR", "Swin-B")


def cells(scale: Scale) -> Iterator[Cell]:
    """All rows."""
    for key, row in ROWS.items():
        yield from row_cells(scale, key, row)


TABLE = Table(
    package=PACKAGE,
    name="table1",
    title="mean AUC (RSNA Pneumonia: accuracy), per cent, of POPAR and its downgraded versions",
    keys=("setup", "backbone"),
    columns=tuple(COLUMNS),
    cells=cells,
    claims=(
        *(Claim(BEST, other) for other in ROWS if other != BEST),
        Claim(("POPAR-1", "Swin-B"), ("POPAR-2", "Swin-B")),
        Claim(("POPAR-1", "Swin-B"), ("POPAR-3", "ViT-B")),
    ),
    scales=SCALES,
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
    test="Student",
    paper_spread=PAPER_SPREAD,
)
