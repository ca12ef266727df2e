"""Table 2: surface Dice on the target scanner after fine-tuning on 90 to 1,080 of its slices, mean of 30 pairs of CC359 scanners."""

from __future__ import annotations

from collections.abc import Iterator

from grids.mmtl_octl import AUTHORS_SEEDS, METHODS, PACKAGE, SCALES, fine_tuned, pairs, tested
from table import Cell, Claim, Scale, Table, csv_mean

AMOUNTS = ("90", "270", "540", "1080")
OPTIMIZERS = ("SGD", "Adam")


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method with both optimisers and every amount; a repetition is a seed, its value the mean over pairs."""
    for optimizer in OPTIMIZERS:
        for method, flag in METHODS.items():
            for amount in scale.pick(paper=AMOUNTS, small=AMOUNTS, smoke=AMOUNTS[:1]):
                runs = [
                    [
                        tested(scale, fine_tuned(scale, optimizer.lower(), amount, flag, pair, seed), pair[1], seed)
                        for pair in pairs(scale)
                    ]
                    for seed in scale.seeds(AUTHORS_SEEDS)
                ]
                yield Cell((method, optimizer), amount, runs, csv_mean("scores.csv", "surface_dice"))


TABLE = Table(
    package=PACKAGE,
    name="table2",
    title="surface Dice on the target, per cent, by number of labelled target slices",
    keys=("method", "optimizer"),
    columns=AMOUNTS,
    cells=cells,
    claims=tuple(
        Claim(("MMTL", optimizer), (other, optimizer))
        for optimizer in OPTIMIZERS
        for other in ("FTA", "FTF", "L2SP", "ST", "OCTL")
    ),
    scales=SCALES,
    hours={"pretrain": 0.15, "adapt": 0.15, "predict": 0.02, "evaluate": 0.01},
    hours_from="6,000 steps of 16 patches of 256 pixels at about 0.08 s; 4,320 fine-tunings",
    factor=100,
)
