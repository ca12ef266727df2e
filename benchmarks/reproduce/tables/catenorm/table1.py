"""Table 1: Dice of networks trained on one site each, CateNorm against batch, instance and group norm."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import HOURS, HOURS_FROM, PACKAGE, SMALL, SMOKE, TEST, site_cells
from table import Cell, Claim, Row, Scale, Table

COLUMNS = ("BTCV", "ISBN-R", "ISBN-B", "I2CVB")
ROWS: dict[Row, str] = {
    ("Baseline (no pretraining, no augmentation)", "BN"): "bn_plain",
    ("Baseline (no pretraining, augmentation)", "BN"): "bn_augmented",
    ("Baseline (pretraining, augmentation)", "BN"): "bn",
    ("Baseline", "IN"): "in",
    ("Baseline", "GN"): "gn",
    ("Ours (block 1)", "CN"): "catenorm_1",
    ("Ours (block 1-4)", "CN"): "catenorm_1-4",
}


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method and site; a repetition is a fold."""
    return site_cells(scale, ROWS, COLUMNS, "dice", single=True)


TABLE = Table(
    package=PACKAGE,
    name="table1",
    title="Dice, per cent, trained on one site",
    keys=("method", "norm"),
    columns=COLUMNS,
    cells=cells,
    claims=tuple(Claim(row, other) for row in list(ROWS)[5:] for other in list(ROWS)[:5]),
    scales={"small": SMALL, "smoke": SMOKE},
    test=TEST,
    hours=HOURS,
    hours_from=HOURS_FROM,
)
