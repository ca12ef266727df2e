"""Table 3: segmentation after D and (D)+R, with the pretrained decoder taken over or not."""

from __future__ import annotations

from collections.abc import Iterator

from grids.united_ssl import (
    HOURS,
    HOURS_FROM,
    PACKAGE,
    PRETEXTS,
    SCALES,
    SEEDS,
    Transfer,
    pretrained,
    score_of,
    scored,
    there,
)
from table import Cell, Claim, Row, Scale, Table

METHODS = ("Jigsaw", "Rubik's Cube", "Deep Clustering", "TransVW", "Rotation")
PLAIN, LEFT, TAKEN = "none", "pretrained, not transferred", "pretrained, transferred"
RANDOM: Row = ("Random", "-", PLAIN)
COLUMNS = ("NCS", "LCS", "BMS")


def cells(scale: Scale) -> Iterator[Cell]:
    """A repetition is a seed of the fine-tuning."""
    for target in there(scale, COLUMNS):
        for method in ("Random", *METHODS):
            rows: list[tuple[Row, str, Transfer]] = [
                ((method, "D", PLAIN), "D", "encoder"),
                ((method, "(D)+R", LEFT), "DR", "encoder"),
                ((method, "(D)+R", TAKEN), "DR", "encoder-decoder"),
            ]
            for row, step, transfer in rows if method != "Random" else [(RANDOM, "", "encoder")]:
                network = pretrained(scale, PRETEXTS[method], step) if step else None
                runs = [[scored(scale, target, network, transfer, seed)] for seed in scale.seeds(SEEDS)]
                yield Cell(row, target, runs, score_of(target))


TABLE = Table(
    package=PACKAGE,
    name="table3",
    title="IoU of segmentation, per cent, with and without restoration and its decoder",
    keys=("method", "approach", "decoder"),
    columns=COLUMNS,
    cells=cells,
    claims=(
        *(Claim((method, "(D)+R", TAKEN), (method, "(D)+R", LEFT)) for method in METHODS),
        *(Claim((method, "(D)+R", TAKEN), (method, "D", PLAIN)) for method in METHODS),
        *(Claim((method, "(D)+R", TAKEN), RANDOM) for method in METHODS),
    ),
    scales=SCALES,
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
    test="Student",
)
