"""Table 3: what the choice of donors and their number bring: seven similar ones (2-D search), seven at random, one at random."""

from __future__ import annotations

from collections.abc import Iterator

from grids.fda_mri import HOURS, PACKAGE, PAIRS, PAPER, SMALL, SMOKE, over_pairs
from table import Cell, Claim, Row, Scale, Table

POLICIES = {"beta averaged optimal": "averaged", "beta optimal per pair": "per pair"}
LEVELS = {"SR-SIM + MST": "table2_fda_2d", "MST": "table3_mst", "None": "table3_none"}
ROWS: dict[Row, tuple[str, str]] = {
    (f"{policy} / {level}",): (name, kind) for policy, kind in POLICIES.items() for level, name in LEVELS.items()
}


def cells(scale: Scale) -> Iterator[Cell]:
    """Every pair, and the mean of the six."""
    return over_pairs(scale, ROWS)


TABLE = Table(
    package=PACKAGE,
    name="table3",
    title="surface Dice on the target, by choice and number of donors",
    keys=("method",),
    columns=(*PAIRS, "average"),
    cells=cells,
    claims=tuple(
        Claim((f"{policy} / {better}",), (f"{policy} / {other}",))
        for policy in POLICIES
        for better, other in (("SR-SIM + MST", "MST"), ("SR-SIM + MST", "None"), ("MST", "None"))
    ),
    scales={
        "paper": PAPER,
        "small": f"{SMALL}Pairs by the paper's rule from the transfer matrix there.",
        "smoke": SMOKE,
    },
    hours=HOURS,
    hours_from="source networks and most choices of beta are those of Table 2; each validation scan is segmented 200 times",
)
