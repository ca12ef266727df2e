"""Table 2: ODEx without parts of it, and the number of networks that each keeps."""

from __future__ import annotations

from collections.abc import Iterator

from grids import odex as grid
from table import Cell, Claim, Row, Scale, Table

NUMBERS = ("dice", "bwt", "fwt", "n_models")
ROWS: dict[Row, str] = {
    ("ODEx (ours)",): "table1_odex",
    ("ODEx -inf xi",): "table2_odex-inf",
    ("DiceEx",): "table2_dice-ex",
    ("ODEx -B",): "table2_odex-last",
    ("Gram",): "table2_gram",
}
DICE = tuple(f"{stream}_dice" for stream in grid.STREAMS)
FEWER = tuple(f"{stream}_n_models" for stream in grid.STREAMS)


def cells(scale: Scale) -> Iterator[Cell]:
    """Every variant, stream and number."""
    return grid.cells(scale, ROWS, NUMBERS)


TABLE = Table(
    package=grid.PACKAGE,
    name="table2",
    title="mean Dice of all stages in the end, backward and forward transfer, number of networks",
    keys=("method",),
    columns=tuple(f"{stream}_{number}" for stream in grid.STREAMS for number in NUMBERS),
    cells=cells,
    claims=(
        *(Claim(("ODEx (ours)",), (row,), DICE) for row in ("ODEx -inf xi", "DiceEx", "ODEx -B", "Gram")),
        # The price of always expanding.
        Claim(("ODEx -inf xi",), ("ODEx (ours)",), FEWER),
    ),
    scales={"paper": grid.PAPER, "small": grid.SMALL, "smoke": grid.SMOKE},
    hours=grid.HOURS,
    hours_from=f"{grid.HOURS_FROM}; ODEx itself is that of Table 1",
    paper_spread=grid.PAPER_SPREAD,
)
