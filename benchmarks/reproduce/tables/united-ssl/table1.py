"""Table 1: discriminative, restorative and adversarial learning step by step, ((D)+R)+A, against all at once, D+R+A."""

from __future__ import annotations

from collections.abc import Iterator

from grids.united_ssl import (
    CLASSIFICATION,
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
from table import Cell, Claim, Scale, Table

METHODS = ("Jigsaw", "Rubik's Cube", "TransVW Adv.")
STEPWISE, JOINT = "((D)+R)+A", "D+R+A"
APPROACHES = {JOINT: "joint", STEPWISE: "DRA"}
COLUMNS = ("BMS", "NCC", "LCS", "ECC", "NCS")


def cells(scale: Scale) -> Iterator[Cell]:
    """A repetition is a seed of the fine-tuning. Segmentation takes the decoder over as well."""
    for method in METHODS:
        for approach, step in APPROACHES.items():
            network = pretrained(scale, PRETEXTS[method], step)
            for target in there(scale, COLUMNS):
                transfer: Transfer = "encoder" if target in CLASSIFICATION else "encoder-decoder"
                runs = [[scored(scale, target, network, transfer, seed)] for seed in scale.seeds(SEEDS)]
                yield Cell((method, approach), target, runs, score_of(target))


TABLE = Table(
    package=PACKAGE,
    name="table1",
    title="AUC (NCC, ECC) and IoU (BMS, LCS, NCS), per cent, of stepwise and joint pretraining",
    keys=("method", "approach"),
    columns=COLUMNS,
    cells=cells,
    claims=tuple(Claim((method, STEPWISE), (method, JOINT)) for method in METHODS),
    scales=SCALES,
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
    test="Student",
)
