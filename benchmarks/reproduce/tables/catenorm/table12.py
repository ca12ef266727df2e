"""Table 12: how long the warm-up has to be, on the prostates of three sites."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import FOLDS, HOURS, HOURS_FROM, PACKAGE, SMALL, SMOKE, TEST, cell, scored, trained
from table import Cell, Claim, Scale, Table

LENGTHS = ("450", "1440", "9000")


def cells(scale: Scale) -> Iterator[Cell]:
    """The network at the end of the warm-up, and after CateNorm went on from it."""
    for length in LENGTHS[: 1 if scale.name == "smoke" else None]:
        runs = [trained(scale, f"table12_warmup_{length}", "prostate", repetition) for repetition in scale.seeds(FOLDS)]
        yield cell(("warmup accuracy (%)",), length, [[scored(job, "warmup")] for job in runs], "dice")
        yield cell(("ours accuracy (%)",), length, [[scored(job)] for job in runs], "dice")


TABLE = Table(
    package=PACKAGE,
    name="table12",
    title="mean Dice of three prostate sites, per cent, by steps of the warm-up",
    keys=("method",),
    columns=LENGTHS,
    cells=cells,
    claims=(Claim(("ours accuracy (%)",), ("warmup accuracy (%)",)),),
    scales={"small": f"{SMALL}Warm-ups of 20, 64 and 400 steps.", "smoke": SMOKE},
    test=TEST,
    hours=HOURS,
    hours_from=HOURS_FROM,
)
