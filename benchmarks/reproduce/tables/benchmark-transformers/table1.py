"""Table 1: ViT-B and Swin-B from random, supervised and self-supervised ImageNet weights on six tasks of thoracic imaging."""

from __future__ import annotations

from collections.abc import Iterator

from grids.benchmark_transformers import (
    FILES,
    HOURS,
    HOURS_FROM,
    PACKAGE,
    PAPER_SPREAD,
    SCALES,
    others_weights,
    row_cells,
)
from sets import RADIOGRAPHS
from table import Cell, Claim, Row, Scale, Table

ROWS = {
    ("Scratch", "ViT-B"): "table1_scratch-vit-b",
    ("Scratch", "Swin-B"): "table1_scratch-swin-b",
    ("Supervised", "ViT-B"): "table1_vit-b-in21k",
    ("Supervised", "Swin-B"): "table1_swin-b-in21k",
    ("SimMIM", "ViT-B"): "table1_vit-b-simmim",
    ("SimMIM", "Swin-B"): "table1_swin-b-simmim",
}
COLUMNS = tuple(RADIOGRAPHS)


def cells(scale: Scale) -> Iterator[Cell]:
    """All rows; small has no supervised weights."""
    for key, row in ROWS.items():
        if scale.name == "small" and key[0] == "Supervised":
            continue
        weights = others_weights(scale, row) if row in FILES else None
        yield from row_cells(scale, key, row, weights, COLUMNS)


def above(better: Row, other: Row, *but: str) -> Claim:
    """In all columns but some, where the paper prints the reverse."""
    return Claim(better, other, tuple(name for name in COLUMNS if name not in but))


TABLE = Table(
    package=PACKAGE,
    name="table1",
    title="mean AUC (RSNA Pneumonia: accuracy), per cent, by first weights and backbone",
    keys=("initialization", "backbone"),
    columns=COLUMNS,
    cells=cells,
    claims=(
        *(Claim((way, net), ("Scratch", net)) for way in ("Supervised", "SimMIM") for net in ("ViT-B", "Swin-B")),
        above(("SimMIM", "Swin-B"), ("Supervised", "Swin-B"), "VinDr-CXR"),
        above(("SimMIM", "Swin-B"), ("SimMIM", "ViT-B")),
        above(("Supervised", "Swin-B"), ("Supervised", "ViT-B"), "CheXpert", "Shenzhen"),
        Claim(("Scratch", "Swin-B"), ("Scratch", "ViT-B")),
    ),
    scales=SCALES,
    hours=HOURS,
    hours_from=HOURS_FROM,
    factor=100,
    test="Student",
    paper_spread=PAPER_SPREAD,
)
