"""Table 2: IoU on the heart after fine-tuning on 15 slices, by loss and weighting of the meta-training."""

from __future__ import annotations

from collections.abc import Iterator

from grids.metamedseg import HOURS, HOURS_FROM, PACKAGE, SEED, SMALL, tuned
from table import Cell, Claim, Scale, Table, json_value

LOSSES = {
    "IoU": "iou",
    "Tversky Focal loss": "focal-tversky",
    "Dice loss": "dice",
    "BCE": "weighted-bce",
    "BCE + IoU": "combined",
}
TASKS = {"iou_standard": "standard", "iou_volumetric": "vol"}
WEIGHTINGS = ("AW", "IDW")


def cells(scale: Scale) -> Iterator[Cell]:
    """Every loss, weighting and kind of task."""
    for loss, short in LOSSES.items():
        for weighting in WEIGHTINGS:
            for column, ending in list(TASKS.items())[: 1 if scale.name == "smoke" else None]:
                runs = [
                    [tuned(scale, f"table2_{weighting}_{short}_{ending}", "Cardiac", "15shots", seed)]
                    for seed in scale.seeds((SEED,), small=2)
                ]
                yield Cell((weighting, loss), column, runs, json_value("mean"))


TABLE = Table(
    package=PACKAGE,
    name="table2",
    title="IoU on the heart, per cent",
    keys=("method", "segmentation_loss"),
    columns=tuple(TASKS),
    cells=cells,
    claims=(
        *(Claim(("AW", loss), ("IDW", loss)) for loss in LOSSES),
        *(Claim(("AW", "BCE"), ("AW", loss)) for loss in LOSSES if loss != "BCE"),
    ),
    scales={
        "paper": "The ten tasks of the Medical Segmentation Decathlon in the folder MSD; one run, mean of five selections, as in the paper.",
        "small": SMALL,
        "smoke": "phantom abdomens, first column, one step of everything.",
    },
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
)
