"""Table 1: surface Dice on the scanners of CC359, of the 2-D nnU-Net trained on one of them, by optimiser and number of epochs."""

from __future__ import annotations

from collections.abc import Iterator

from grids import adagrad_unet as grid
from table import Cell, Claim, Scale, Table

ROWS = ("S-1000", "S-25", "S-50", "A-25", "A-50", "AG-25", "AG-50", "AG-1000")
TARGETS = tuple(grid.CC359)[:-1]


def cells(scale: Scale) -> Iterator[Cell]:
    """Every run on every scanner."""
    return grid.cells(scale, "CC359", ROWS, "surface_dice")


TABLE = Table(
    package=grid.PACKAGE,
    name="table1",
    title="surface Dice by scanner; the last column is the source",
    keys=("method",),
    columns=tuple(grid.CC359),
    cells=cells,
    claims=(
        # Early stopping and AvaGrad on the targets; no loss on the source.
        *(Claim((better,), ("S-1000",), TARGETS) for better in ("AG-25", "AG-50", "A-25", "A-50")),
        *(Claim((f"AG-{n}",), (f"{other}-{n}",), TARGETS) for n in (25, 50) for other in ("S", "A")),
        Claim(("AG-50",), ("AG-1000",)),
        Claim(("AG-25",), ("S-1000",), ("GE 3 Test",)),
    ),
    scales={
        "paper": "One run, as in the paper.",
        "small": f"{grid.SMALL}Brain masks in T1, surface Dice slice by slice at one pixel; DU, FG, HT and CS stand in the columns of GE15, "
        "Philips 15, Philips 3 and GE 3 Test.",
        "smoke": "phantom heads, one target, two steps.",
    },
    hours=grid.HOURS,
    hours_from=grid.HOURS_FROM,
    test="Wilcoxon over cases",
    comparisons=grid.COMPARISONS,
)
