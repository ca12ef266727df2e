"""Table 3b: the first pass (batch norm) of a network trained with CateNorm against batch norm trained by itself."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import FOLDS, HOURS, HOURS_FROM, PACKAGE, SMALL, SMOKE, TEST, Task, cell, scored, trained
from table import Cell, Claim, Row, Scale, Table

TASKS: dict[str, Task] = {"prostate": "prostate", "abdominal": "abdomen"}
ROWS: dict[Row, tuple[str, bool]] = {
    ("Baseline", "BN"): ("bn", False),
    ("Ours", "BN"): ("catenorm_1-4", True),
    ("Ours", "CN"): ("catenorm_1-4", False),
}


def cells(scale: Scale) -> Iterator[Cell]:
    """The networks of Table 2, mean over sites and organs."""
    for row, (method, first_pass) in ROWS.items():
        for column, task in list(TASKS.items())[: 1 if scale.name == "smoke" else None]:
            networks = [
                trained(scale, f"table2_{task}_{method}", task, repetition) for repetition in scale.seeds(FOLDS)
            ]
            yield cell(row, column, [[scored(job)] for job in networks], "dice", first_pass=first_pass)


TABLE = Table(
    package=PACKAGE,
    name="table3b",
    title="Dice, per cent, by pass",
    keys=("method", "forward"),
    columns=tuple(TASKS),
    cells=cells,
    claims=(
        Claim(("Ours", "BN"), ("Baseline", "BN")),
        Claim(("Ours", "CN"), ("Baseline", "BN")),
        Claim(("Ours", "CN"), ("Ours", "BN")),
    ),
    scales={"small": SMALL, "smoke": SMOKE},
    test=TEST,
    hours=HOURS,
    hours_from=f"{HOURS_FROM}; the networks are those of Table 2",
)
