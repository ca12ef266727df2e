"""Table 1: COCO measures of six ways to train a cell detector from weak labels, against three annotators of CellLab."""

from __future__ import annotations

from collections.abc import Iterator

from grids.sissi import PACKAGE, READERS, ROWS, SCALES, SEEDS, lists, scored, trained
from table import Cell, Claim, Scale, Table, csv_mean

MEASURES = ("AP50", "AP75", "AP", "AR")
COLUMNS = tuple(f"{reader} {measure}" for reader in READERS for measure in MEASURES)
BEST = "A+SISSI (S)"
PRECISIONS = tuple(column for column in COLUMNS if not column.endswith("AR"))
"""AR of A+SISSI (W) is above that of A+SISSI (S)."""
APART = tuple(column for column in COLUMNS if column != "Annotator3 AP50")
"""Where the best row does not print what Baseline and SISSI (W) print."""


def cells(scale: Scale) -> Iterator[Cell]:
    """A repetition is a seed; all measures of a reader come from one run."""
    source, weak, readers = lists(scale)
    pictures = (weak,) if scale.name == "paper" else (next(iter(readers.values())),)
    for method, row in ROWS.items():
        networks = [trained(scale, row, source, weak, seed) for seed in scale.seeds(SEEDS)]
        for reader, boxes in readers.items():
            runs = [[scored(network, reader, boxes, pictures)] for network in networks]
            for measure in MEASURES:
                yield Cell((method,), f"{reader} {measure}", runs, csv_mean("scores.csv", measure))


TABLE = Table(
    package=PACKAGE,
    name="table1",
    title="COCO measures of detected cells by annotator, per cent",
    keys=("method",),
    columns=COLUMNS,
    cells=cells,
    claims=(
        Claim((BEST,), ("Baseline",), APART),
        Claim((BEST,), ("SISSI (W)",), APART),
        Claim((BEST,), ("SISSI (S)",)),
        Claim((BEST,), ("Plain A",)),
        Claim((BEST,), ("A+SISSI (W)",), PRECISIONS),
        Claim(("A+SISSI (W)",), ("Plain A",)),
    ),
    scales=SCALES,
    hours={"train": 0.6, "predict": 0.02, "evaluate": 0.01},
    hours_from="31 epochs of 56 steps of 8 pictures of 512 pixels at 0.3 s, and 20 views of 224 pictures an epoch at 0.02 s each",
)
