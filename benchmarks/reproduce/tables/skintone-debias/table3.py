"""Table 3: AUC on skin types that training has not seen (Fitzpatrick17k), LNTL with and without gradient reversal."""

from __future__ import annotations

from collections.abc import Iterator

from grids.skintone_debias import PACKAGE, PAPER, SCALES, SEEDS, by_type, scored, trained
from table import Cell, Claim, Scale, Table, csv_mean

ROWS = {"LNTL": "table3_lntl", "LNTL* (no gradient reversal)": "table3_lntl_nogr"}
GROUPS = {"AUC types 3&4": "3&4", "AUC types 5&6": "5&6"}


def cells(scale: Scale) -> Iterator[Cell]:
    """As in Table 1."""
    datalist = by_type(scale)
    for method, row in ROWS.items():
        runs = [[scored(trained(scale, row, datalist, seed), datalist)] for seed in scale.seeds(SEEDS)]
        for column, group in GROUPS.items():
            yield Cell((method,), column, runs, csv_mean("scores.csv", "auc", group=group))


TABLE = Table(
    package=PACKAGE,
    name="table3",
    title="AUC on Fitzpatrick types 3 & 4 and 5 & 6, LNTL with and without gradient reversal",
    keys=("method",),
    columns=tuple(GROUPS),
    cells=cells,
    claims=(Claim(("LNTL",), ("LNTL* (no gradient reversal)",)),),
    scales={
        **SCALES,
        "paper": PAPER,
        "small": SCALES["small"] + "Sixths of the labeller's angle stand for the types: trained on the lightest two.",
    },
    hours={"train": 0.15, "predict": 0.05, "evaluate": 0.01},
    hours_from="1,080 steps of 64 pictures of 256 pixels through ResNeXt-101 32x8d, twice a step, at about 0.2 s a pass",
)
