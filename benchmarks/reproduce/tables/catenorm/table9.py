"""Table 9: Dice of eight organs of BTCV, the networks of Table 1."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import HOURS, HOURS_FROM, PACKAGE, SMALL, SMOKE, TEST, organ_cells
from table import Cell, Claim, Row, Scale, Table

COLUMNS = ("AVG", "Spleen", "Kidney_R", "Kidney_L", "Gallbladder", "Pancreas", "Liver", "Stomach", "Aorta")
ROWS: dict[Row, str] = {
    ("Baseline", "no", "no", "BN"): "bn_plain",
    ("Baseline", "no", "yes", "BN"): "bn_augmented",
    ("Baseline", "yes", "yes", "BN"): "bn",
    ("Baseline", "yes", "yes", "IN"): "in",
    ("Baseline", "yes", "yes", "GN"): "gn",
    ("Ours(blk1)", "yes", "yes", "CN"): "catenorm_1",
    ("Ours(blk1-4)", "yes", "yes", "CN"): "catenorm_1-4",
}


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method and organ; a repetition is a fold."""
    return organ_cells(scale, ROWS, COLUMNS, "btcv", "dice")


TABLE = Table(
    package=PACKAGE,
    name="table9",
    title="Dice by organ of BTCV, per cent",
    keys=("method", "pretrained", "aug", "norm"),
    columns=COLUMNS,
    cells=cells,
    claims=tuple(Claim(row, other) for row in list(ROWS)[5:] for other in list(ROWS)[:5]),
    scales={"small": f"{SMALL}Tumour and brain in the columns of Gallbladder and Liver.", "smoke": SMOKE},
    test=TEST,
    hours=HOURS,
    hours_from=f"{HOURS_FROM}; the networks are those of Table 1",
)
