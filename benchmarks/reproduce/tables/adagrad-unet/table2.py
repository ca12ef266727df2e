"""Table 2: Dice of three structures on the vendors of M&Ms, of the 2-D nnU-Net trained on one of them."""

from __future__ import annotations

from collections.abc import Iterator

from grids import adagrad_unet as grid
from table import Cell, Claim, Scale, Table

ROWS = ("S-1000", "S-25", "S-50", "A-25", "A-50", "AG-25", "AG-50", "AG-1000")
LABELS = ("LV", "MYO", "RV")
TARGETS = tuple(f"{label}_{vendor}" for label in LABELS for vendor in "ACD")


def cells(scale: Scale) -> Iterator[Cell]:
    """Every run, vendor and structure."""
    return grid.cells(scale, "MnMs", ROWS, "dice", scale.pick(paper=LABELS, small=LABELS, smoke=LABELS[:1]))


TABLE = Table(
    package=grid.PACKAGE,
    name="table2",
    title="Dice by structure and vendor; trained on B",
    keys=("method",),
    columns=tuple(f"{label}_{vendor}" for label in LABELS for vendor in grid.MNMS),
    cells=cells,
    claims=(
        *(Claim((better,), ("S-1000",), TARGETS) for better in ("AG-25", "AG-50")),
        *(Claim((f"AG-{n}",), (f"{other}-{n}",), TARGETS) for n in (25, 50) for other in ("S", "A")),
    ),
    scales={
        "paper": "One run, as in the paper.",
        "small": f"{grid.SMALL}No hearts: tumours in FLAIR, DU, FG, HT and CS in the columns of LV on A, C, D and B Test.",
        "smoke": "phantom hearts, one structure and vendor, two steps.",
    },
    hours=grid.HOURS,
    hours_from=grid.HOURS_FROM,
    test="Wilcoxon over cases",
    comparisons=grid.COMPARISONS,
)
