"""Table 2: Swin-B after SimMIM on ImageNet, on radiographs, and on the one and then the other."""

from __future__ import annotations

from collections.abc import Iterator

from grids.benchmark_transformers import (
    HOURS,
    HOURS_FROM,
    PACKAGE,
    PAPER_SPREAD,
    SCALES,
    others_weights,
    own_weights,
    row_cells,
)
from table import Cell, Claim, Scale, Table

OWN = {
    "ChestX-ray14": "table2_swin-b-chestxray14",
    "X-rays(926K)": "table2_swin-b-xrays926k",
    "ImageNet->ChestX-ray14": "table2_swin-b-in1k-chestxray14",
    "ImageNet->X-rays(926K)": "table2_swin-b-in1k-xrays926k",
}
"""Rows whose pre-training the paper did."""
COLUMNS = ("ChestX-ray14", "CheXpert", "Shenzhen", "VinDr-CXR", "RSNA Pneumonia")
BEST = "ImageNet->X-rays(926K)"


def cells(scale: Scale) -> Iterator[Cell]:
    """The first two rows are networks of Table 1, under its settings, which are the same."""
    yield from row_cells(scale, ("Scratch",), "table1_scratch-swin-b", None, COLUMNS)
    imagenet = "table1_swin-b-simmim"
    yield from row_cells(scale, ("ImageNet",), imagenet, others_weights(scale, imagenet), COLUMNS)
    for name, row in OWN.items():
        yield from row_cells(scale, (name,), row, own_weights(scale, row), COLUMNS)


TABLE = Table(
    package=PACKAGE,
    name="table2",
    title="mean AUC (RSNA Pneumonia: accuracy) of Swin-B, per cent, by what SimMIM saw",
    keys=("initialization",),
    columns=COLUMNS,
    cells=cells,
    claims=(
        *(Claim((BEST,), (other,)) for other in ("Scratch", "ImageNet", *OWN) if other != BEST),
        Claim(("X-rays(926K)",), ("ImageNet",), ("ChestX-ray14", "Shenzhen", "VinDr-CXR", "RSNA Pneumonia")),
        Claim(("X-rays(926K)",), ("ChestX-ray14",)),
        Claim(("ImageNet->ChestX-ray14",), ("ChestX-ray14",)),
    ),
    scales=SCALES,
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
    test="Student",
    paper_spread=PAPER_SPREAD,
)
