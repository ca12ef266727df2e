"""Table 3: the runs of Table 1 without augmentation."""

from __future__ import annotations

from collections.abc import Iterator

from grids import adagrad_unet as grid
from table import Cell, Claim, Scale, Table

ROWS = ("S-1000-noAug", "S-25-noAug", "A-25-noAug", "AG-25-noAug")
TARGETS = tuple(grid.CC359)[:-1]


def cells(scale: Scale) -> Iterator[Cell]:
    """Every run on every scanner."""
    return grid.cells(scale, "CC359", ROWS, "surface_dice")


TABLE = Table(
    package=grid.PACKAGE,
    name="table3",
    title="surface Dice by scanner without augmentation; the last column is the source",
    keys=("method",),
    columns=tuple(grid.CC359),
    cells=cells,
    claims=(
        *(Claim(("AG-25-noAug",), (other,)) for other in ("S-1000-noAug", "S-25-noAug", "A-25-noAug")),
        Claim(("S-25-noAug",), ("S-1000-noAug",), TARGETS),
    ),
    scales={
        "paper": "One run, as in the paper.",
        "small": f"{grid.SMALL}Brain masks in T1, surface Dice slice by slice at one pixel; DU, FG, HT and CS stand in the columns of GE15, "
        "Philips 15, Philips 3 and GE 3 Test.",
        "smoke": "phantom heads, one target, two steps.",
    },
    hours=grid.HOURS,
    hours_from=grid.HOURS_FROM,
)
