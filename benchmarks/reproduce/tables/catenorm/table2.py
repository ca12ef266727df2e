"""Table 2: Dice of networks trained on several sites together, CateNorm against batch norm, DSBN and MS-Net."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import HOURS, HOURS_FROM, PACKAGE, SMALL, SMOKE, TEST, site_cells
from table import Cell, Claim, Row, Scale, Table

COLUMNS = ("BTCV", "TCIA", "ISBN-R", "ISBN-B", "I2CVB")
ROWS: dict[Row, str] = {
    ("Baseline", "BN"): "bn",
    ("DSBN", "BN"): "dsbn",
    ("MS-Net", "BN"): "ms-net",
    ("Ours (block 1)", "CN"): "catenorm_1",
    ("Ours (block 1-4)", "CN"): "catenorm_1-4",
}


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method and site; a repetition is a fold."""
    return site_cells(scale, ROWS, COLUMNS, "dice")


TABLE = Table(
    package=PACKAGE,
    name="table2",
    title="Dice, per cent, trained on two abdominal or three prostate sites together",
    keys=("method", "norm"),
    columns=COLUMNS,
    cells=cells,
    claims=tuple(Claim(row, other) for row in list(ROWS)[3:] for other in list(ROWS)[:3]),
    scales={"small": SMALL, "smoke": SMOKE},
    test=TEST,
    hours=HOURS,
    hours_from=HOURS_FROM,
)
