"""Table 1: AUC on skin types that training has not seen (Fitzpatrick17k, trained on types 1 and 2), baseline against CLGR."""

from __future__ import annotations

from collections.abc import Iterator

from grids.skintone_debias import PACKAGE, PAPER, SCALES, SEEDS, by_type, scored, trained
from table import Cell, Claim, Scale, Table, csv_mean

ROWS = {"Baseline": "table1_baseline", "CLGR": "table1_clgr"}
GROUPS = {"AUC types 3&4": "3&4", "AUC types 5&6": "5&6"}


def cells(scale: Scale) -> Iterator[Cell]:
    """A repetition is a seed; both columns come from one run."""
    datalist = by_type(scale)
    for method, row in ROWS.items():
        runs = [[scored(trained(scale, row, datalist, seed), datalist)] for seed in scale.seeds(SEEDS)]
        for column, group in GROUPS.items():
            yield Cell((method,), column, runs, csv_mean("scores.csv", "auc", group=group))


TABLE = Table(
    package=PACKAGE,
    name="table1",
    title="AUC on Fitzpatrick types 3 & 4 and 5 & 6, trained on types 1 & 2",
    keys=("method",),
    columns=tuple(GROUPS),
    cells=cells,
    claims=(Claim(("CLGR",), ("Baseline",)),),
    scales={
        **SCALES,
        "paper": PAPER,
        "small": SCALES["small"] + "Sixths of the labeller's angle stand for the types: trained on the lightest two.",
    },
    hours={"train": 0.15, "predict": 0.05, "evaluate": 0.01},
    hours_from="1,080 steps of 64 pictures of 256 pixels through ResNeXt-101 32x8d, twice a step for CLGR, at about 0.2 s a pass",
)
