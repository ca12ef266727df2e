"""Table 3a: one shared network for both passes against two networks (W-Net), on ISBN-R."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import FOLDS, HOURS, HOURS_FROM, PACKAGE, SMALL, SMOKE, TEST, cell, scored, site_of, trained
from table import Cell, Claim, Row, Scale, Table

ROWS: dict[Row, str] = {
    ("U-Net", "-"): "table1_prostate_bn",
    ("W-Net", "no"): "table3a_w-net",
    ("Ours (block 1)", "yes"): "table1_prostate_catenorm_1",
    ("Ours (block 1-4)", "yes"): "table1_prostate_catenorm_1-4",
}


def cells(scale: Scale) -> Iterator[Cell]:
    """Every network; but for the W-Net those of Table 1."""
    site = site_of(scale, "ISBN-R")
    for row, name in ROWS.items():
        runs = [[scored(trained(scale, name, "prostate", repetition, site))] for repetition in scale.seeds(FOLDS)]
        yield cell(row, "dice", runs, "dice")


TABLE = Table(
    package=PACKAGE,
    name="table3a",
    title="Dice on ISBN-R, per cent (the numbers of parameters are in the package's README)",
    keys=("method", "sharing"),
    columns=("dice",),
    cells=cells,
    claims=(
        *(Claim(row, ("W-Net", "no")) for row in list(ROWS)[2:]),
        *(Claim(row, ("U-Net", "-")) for row in list(ROWS)[1:]),
    ),
    scales={"small": SMALL, "smoke": SMOKE},
    test=TEST,
    hours=HOURS,
    hours_from=HOURS_FROM,
)
