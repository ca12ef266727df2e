"""Table 4: Dice on a site of the prostate collection after fine-tuning on 10 to 40 of its slices (Adam), mean of its six sites."""

from __future__ import annotations

from collections.abc import Iterator

from grids.mmtl_octl import AUTHORS_SEEDS, METHODS, PACKAGE, prostate_scored, prostate_targets
from table import Cell, Claim, Scale, Table, csv_mean

AMOUNTS = ("10", "20", "40")


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method and amount; a repetition is a seed, its value the mean over targets."""
    for method, flag in METHODS.items():
        for amount in scale.pick(paper=AMOUNTS, small=AMOUNTS, smoke=AMOUNTS[:1]):
            runs = [
                [prostate_scored(scale, amount, flag, target, seed) for target in prostate_targets(scale)]
                for seed in scale.seeds(AUTHORS_SEEDS)
            ]
            yield Cell((method, "Adam"), amount, runs, csv_mean("scores.csv", "dice"))


TABLE = Table(
    package=PACKAGE,
    name="table4",
    title="Dice on the target, per cent, by number of labelled target slices",
    keys=("method", "optimizer"),
    columns=AMOUNTS,
    cells=cells,
    claims=tuple(Claim(("MMTL", "Adam"), (other, "Adam")) for other in METHODS if other != "MMTL"),
    scales={
        "small": "lgg_multisite instead of the prostates: tumours in FLAIR at 3.6 mm, two of four hospitals as target, the three others as source, "
        "1, 2 and 4 patients; a U-Net of width 4; 216 steps for the source and 84 for fine-tuning instead of 6,000, both at 0.001.",
        "smoke": "phantom pelvises, one target, a few steps.",
    },
    hours={"pretrain": 0.25, "adapt": 0.25, "predict": 0.02, "evaluate": 0.01},
    hours_from="6,000 steps of 16 slices of 384 pixels at about 0.15 s; 324 fine-tunings",
    factor=100,
)
