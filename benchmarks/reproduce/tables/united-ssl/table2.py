"""Table 2: classification after discriminative pretraining alone, D, and after restoration was added, (D)+R."""

from __future__ import annotations

from collections.abc import Iterator

from grids.united_ssl import (
    HOURS,
    HOURS_FROM,
    PACKAGE,
    PRETEXTS,
    SCALES,
    SEEDS,
    pretrained,
    score_of,
    scored,
    there,
)
from table import Cell, Claim, Scale, Table

METHODS = ("Jigsaw", "Rubik's Cube", "Deep Clustering", "TransVW", "Rotation")
STEPS = {"D": "D", "(D)+R": "DR"}
RANDOM = ("Random", "-")
COLUMNS = ("NCC", "ECC")


def cells(scale: Scale) -> Iterator[Cell]:
    """A repetition is a seed of the fine-tuning; the encoder is taken over."""
    networks = {
        (method, approach): pretrained(scale, PRETEXTS[method], step)
        for method in METHODS
        for approach, step in STEPS.items()
    }
    for target in there(scale, COLUMNS):
        for row, network in {RANDOM: None, **networks}.items():
            runs = [[scored(scale, target, network, "encoder", seed)] for seed in scale.seeds(SEEDS)]
            yield Cell(row, target, runs, score_of(target))


TABLE = Table(
    package=PACKAGE,
    name="table2",
    title="AUC of classification, per cent, with and without restoration in pretraining",
    keys=("method", "approach"),
    columns=COLUMNS,
    cells=cells,
    claims=(
        *(Claim((method, "(D)+R"), (method, "D")) for method in METHODS),
        *(Claim((method, "(D)+R"), RANDOM) for method in METHODS),
    ),
    scales=SCALES,
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
    test="Student",
)
