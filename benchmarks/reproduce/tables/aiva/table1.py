"""Table 1: surface Dice on each scanner of CC359, of networks from the other scanners adapted without its masks."""

from __future__ import annotations

from collections.abc import Iterator

from grids import aiva as grid
from table import Cell, Claim, Scale, Table

COLUMNS = ("Siemens 1.5T", "Siemens 3T", "GE 1.5T", "GE 3T", "Philips 1.5T", "Philips 3T", "Average")


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method and target."""
    return grid.cells(scale, "table1", COLUMNS, tuple(grid.ROWS), "surface_dice")


TABLE = Table(
    package=grid.PACKAGE,
    name="table1",
    title="surface Dice, per cent, by target scanner",
    keys=("method",),
    columns=COLUMNS,
    cells=cells,
    claims=(
        *(Claim(("AIVA",), (other,)) for other in ("Source site model", "AdaBN", "Seg-JDOT", "AdaptSegNet")),
        Claim(("Target site model",), ("AIVA",)),
    ),
    scales={
        "paper": "All 30 pairs; the paper leaves out five that it does not name. One run, as in the paper.",
        "small": f"{grid.SMALL}Brain masks, one source for each target (a ring). Surface Dice is the mean over slices at one pixel.",
        "smoke": "phantom heads, one pair, a few steps.",
    },
    hours=grid.HOURS,
    hours_from="adaptation of 6,500 to 8,000 steps of 16 to 32 slices of 256 pixels at about 0.1 s, 150 times; 12 networks of 5,000 steps",
    factor=100,
)
