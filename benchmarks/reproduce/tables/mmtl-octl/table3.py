"""Table 3: surface Dice on the source scanner's test patients after fine-tuning (SGD), the source network itself in the first row."""

from __future__ import annotations

from collections.abc import Iterator

from grids.mmtl_octl import AUTHORS_SEEDS, METHODS, PACKAGE, SCALES, fine_tuned, pairs, source_network, tested
from table import Cell, Claim, Scale, Table, csv_mean

AMOUNTS = ("90", "270", "540", "1080")


def cells(scale: Scale) -> Iterator[Cell]:
    """The networks of Table 2, tested where they come from."""
    read, seeds = csv_mean("scores.csv", "surface_dice"), scale.seeds(AUTHORS_SEEDS)
    for amount in scale.pick(paper=AMOUNTS, small=AMOUNTS, smoke=AMOUNTS[:1]):
        own = [
            [tested(scale, source_network(scale, "sgd", pair[0], seed), pair[0], seed) for pair in pairs(scale)]
            for seed in seeds
        ]
        yield Cell(("Source Model",), amount, own, read)
        for method, flag in METHODS.items():
            if method == "FTA":  # not in this table
                continue
            runs = [
                [
                    tested(scale, fine_tuned(scale, "sgd", amount, flag, pair, seed), pair[0], seed)
                    for pair in pairs(scale)
                ]
                for seed in seeds
            ]
            yield Cell((method,), amount, runs, read)


TABLE = Table(
    package=PACKAGE,
    name="table3",
    title="surface Dice on the source, per cent, after fine-tuning on the target",
    keys=("method",),
    columns=AMOUNTS,
    cells=cells,
    claims=tuple(Claim(("MMTL",), (other,)) for other in ("FTF", "L2SP", "ST", "OCTL")),
    scales=SCALES,
    hours={"pretrain": 0.15, "adapt": 0.15, "predict": 0.02, "evaluate": 0.01},
    hours_from="6,000 steps of 16 patches of 256 pixels at about 0.08 s; the networks are those of Table 2",
    factor=100,
)
