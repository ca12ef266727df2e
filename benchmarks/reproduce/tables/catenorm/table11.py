"""Table 11: CateNorm in DeepLabV3+."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import (
    FOLDS,
    HOURS,
    PACKAGE,
    SMALL,
    SMOKE,
    TASK,
    TEST,
    Task,
    cell,
    scored,
    site_of,
    trained,
)
from table import Cell, Claim, Row, Scale, Table

COLUMNS = ("AVG", "site1_dice", "site2_dice", "site3_dice")
TASKS: dict[str, Task] = {"abdominal": "abdomen", "prostate": "prostate"}
METHODS = {"BN": "bn", "CN": "catenorm"}


def cells(scale: Scale) -> Iterator[Cell]:
    """Both norms on both tasks; a repetition is a fold."""
    for label, task in TASKS.items():
        for norm, method in METHODS.items():
            row: Row = ("DeepLabV3+", norm, label)
            runs = [
                [scored(trained(scale, f"table11_{task}_{method}", task, repetition))]
                for repetition in scale.seeds(FOLDS)
            ]
            yield cell(row, "AVG", runs, "dice")
            sites = [column for column, own in TASK.items() if own == task] if scale.name != "smoke" else []
            for column, site in zip(COLUMNS[1:], sites, strict=False):
                yield cell(row, column, runs, "dice", "sites", site_of(scale, site))


TABLE = Table(
    package=PACKAGE,
    name="table11",
    title="Dice of DeepLabV3+, per cent; sites are BTCV and TCIA (abdominal), ISBN-R, ISBN-B and I2CVB (prostate)",
    keys=("method", "norm", "task"),
    columns=COLUMNS,
    cells=cells,
    claims=tuple(Claim(("DeepLabV3+", "CN", task), ("DeepLabV3+", "BN", task)) for task in TASKS),
    scales={"small": f"{SMALL}Here 150 + 150 steps of the whole ResNet-50.", "smoke": SMOKE},
    test=TEST,
    hours=HOURS | {"train": 2.0},
    hours_from="9,000 + 9,000 steps of 6 slices of 384 pixels at about 0.3 s; one run for each of five folds",
)
