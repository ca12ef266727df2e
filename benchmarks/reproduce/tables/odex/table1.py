"""Table 1: Dice, backward and forward transfer of continual learning on two streams of hippocampi."""

from __future__ import annotations

from collections.abc import Iterator

from grids import odex as grid
from table import Cell, Claim, Row, Scale, Table

NUMBERS = ("dice", "bwt", "fwt")
ROWS: dict[Row, str] = {
    ("Joint",): "table1_joint",
    ("Seq.",): "table1_sequential",
    ("EWC",): "table1_ewc_as-coded",
    ("MiB",): "table1_mib",
    ("RW",): "table1_rw_as-coded",
    ("PLOP",): "table1_plop_as-coded",
    ("LwF",): "table1_lwf_as-coded",
    ("ODEx (ours)",): "table1_odex",
}
DICE = tuple(f"{stream}_dice" for stream in grid.STREAMS)
BACKWARD = tuple(f"{stream}_bwt" for stream in grid.STREAMS)


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method, stream and number."""
    return grid.cells(scale, ROWS, NUMBERS)


TABLE = Table(
    package=grid.PACKAGE,
    name="table1",
    title="mean Dice of all stages in the end, backward and forward transfer",
    keys=("method",),
    columns=tuple(f"{stream}_{number}" for stream in grid.STREAMS for number in NUMBERS),
    cells=cells,
    claims=(
        *(Claim(("ODEx (ours)",), (row,), DICE) for row in ("Seq.", "EWC", "MiB", "RW", "PLOP", "LwF")),
        *(Claim(("ODEx (ours)",), (row,), BACKWARD) for row in ("Seq.", "MiB", "RW", "PLOP", "LwF")),
        Claim(("Joint",), ("ODEx (ours)",), DICE),
    ),
    scales={"paper": grid.PAPER, "small": grid.SMALL, "smoke": grid.SMOKE},
    hours=grid.HOURS,
    hours_from=grid.HOURS_FROM,
    test="one-sided Wilcoxon over cases",
    paper_spread=grid.PAPER_SPREAD,
)
