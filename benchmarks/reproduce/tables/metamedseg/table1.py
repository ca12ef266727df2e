"""Table 1: IoU on four target organs after fine-tuning on 15 slices and on all, from the initialisation of each method."""

from __future__ import annotations

from collections.abc import Iterator

from grids.metamedseg import HOURS, HOURS_FROM, PACKAGE, SEED, SMALL, TARGETS, tuned
from table import Cell, Claim, Scale, Table, json_value

METHODS = {
    "Supervised learning": "",
    "Transfer learning": "table1_transfer",
    "Dawoud et al.": "table1_dawoud",
    "MetaMedSeg + IDW": "table1_IDW",
    "MetaMedSeg + AW": "table1_AW",
}
TASKS = {"standard": "standard", "volumetric": "vol"}
DATA = ("15shots", "full")
COLUMNS = tuple(f"iou_{data}_{tasks}" for data in DATA for tasks in TASKS)


def cells(scale: Scale) -> Iterator[Cell]:
    """Every target and method; the first two have no tasks, and stand with the standard ones."""
    columns = scale.pick(paper=COLUMNS, small=COLUMNS[:2], smoke=COLUMNS[:1])
    for target in TARGETS:
        for method, name in METHODS.items():
            for data in DATA:
                for tasks, ending in TASKS.items():
                    column = f"iou_{data}_{tasks}"
                    has_tasks = name not in ("", "table1_transfer")
                    if column not in columns or (tasks == "volumetric" and not has_tasks):
                        continue
                    whole = f"{name}_{ending}" if has_tasks else name
                    runs = [[tuned(scale, whole, target, data, seed)] for seed in scale.seeds((SEED,))]
                    yield Cell((method, target), column, runs, json_value("mean"))


TABLE = Table(
    package=PACKAGE,
    name="table1",
    title="IoU, per cent, by target organ, tasks and amount of data",
    keys=("method", "target_organ"),
    columns=COLUMNS,
    cells=cells,
    claims=tuple(
        Claim((f"MetaMedSeg + {weighting}", target), (other, target))
        for target in TARGETS
        for weighting in ("AW", "IDW")
        for other in ("Supervised learning", "Transfer learning", "Dawoud et al.")
    ),
    scales={
        "paper": "The ten tasks of the Medical Segmentation Decathlon in the folder MSD; one run, mean of five selections, as in the paper.",
        "small": f"{SMALL}Full data are not run.",
        "smoke": "phantom abdomens, first column, one step of everything.",
    },
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
)
