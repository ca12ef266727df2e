"""Table 2: Dice on each site of the prostate collection, of networks from the five other sites adapted without its masks."""

from __future__ import annotations

from collections.abc import Iterator

from grids import aiva as grid
from table import Cell, Claim, Scale, Table

COLUMNS = ("Site A", "Site B", "Site C", "Site D", "Site E", "Site F", "Average")
ROWS = tuple(row for row in grid.ROWS if row != "Seg-JDOT")  # it did not converge there


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method and target."""
    return grid.cells(scale, "table2", COLUMNS, ROWS, "dice")


TABLE = Table(
    package=grid.PACKAGE,
    name="table2",
    title="Dice, per cent, by target site",
    keys=("method",),
    columns=COLUMNS,
    cells=cells,
    claims=(
        *(Claim(("AIVA",), (other,)) for other in ("Source site model", "AdaBN", "AdaptSegNet")),
        Claim(("Target site model",), ("AIVA",)),
    ),
    scales={
        "paper": "The paper chose the target's own network by the target's test scans; here its last one is kept. One run, as in the paper.",
        "small": f"{grid.SMALL}Tumour masks on FLAIR in place of prostates, the three other hospitals as source; Adam as in the paper, at ten "
        "times its rate for adaptation.",
        "smoke": "phantom pelvises, one target, a few steps.",
    },
    hours=grid.HOURS,
    hours_from="3,500 steps of 16 slices of 384 pixels at about 0.15 s, 30 times",
    factor=100,
)
