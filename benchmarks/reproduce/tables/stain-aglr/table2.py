"""Table 2: AUC for mitoses in two centres of TUPAC16 that training on the first has not seen."""

from __future__ import annotations

from collections.abc import Iterator

from grids.stain_aglr import COUNTS, METHODS, PACKAGE, SCALES, SEEDS, claims, mean_of, scored
from stain_aglr_patches import HOME
from table import Cell, Scale, Table

CENTRES = {"Center2_auc": "centre2", "Center3_auc": "centre3"}


def cells(scale: Scale) -> Iterator[Cell]:
    """A repetition is a seed; both columns come from one run."""
    first = next(iter(CENTRES))
    for method, flag in METHODS.items():
        runs = [[scored(scale, "table2", flag, seed)] for seed in scale.seeds(SEEDS)]
        if scale.name == "paper":
            for column, name in CENTRES.items():
                yield Cell((method,), column, runs, mean_of((name,)))
        else:
            yield Cell((method,), first, runs, mean_of(home=scale.pick(paper="", small=HOME, smoke="RUMC")))


TABLE = Table(
    package=PACKAGE,
    name="table2",
    title="AUC for mitoses in centres that training has not seen, TUPAC16",
    keys=("method",),
    columns=tuple(CENTRES),
    cells=cells,
    claims=claims(tuple(CENTRES)),
    scales={
        "paper": SCALES["paper"] + " The column of seconds is measured by benchmarks/speed/stain_inference.py.",
        "small": SCALES["small"] + "monuseg_sites: patches rich and poor in nuclei instead of mitoses; half of the hospitals train, "
        "the mean over the others (those with both classes) stands for the first column.",
        "smoke": SCALES["smoke"],
    },
    hours={"patches": 0.2, "train": 0.7, "predict": 0.05, "evaluate": 0.01},
    hours_from="about 80 epochs of 67 steps of 2 x 64 patches of 128 pixels at 0.08 s; GANs 64,000 steps at 0.04 s",
    not_run=COUNTS,
)  # fmt: skip
