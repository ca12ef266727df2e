"""Table 8: average surface distance on three prostate sites."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import HOURS, HOURS_FROM, PACKAGE, SMALL, SMOKE, TEST, organ_cells, site_cells
from table import Cell, Claim, Row, Scale, Table

SITES = ("ISBN-R", "ISBN-B", "I2CVB")
ROWS: dict[Row, str] = {
    ("Baseline", "BN"): "bn",
    ("DSBN", "BN"): "dsbn",
    ("MS-Net", "BN"): "ms-net",
    ("Ours (block1)", "CN"): "catenorm_1",
    ("Ours (block1-4)", "CN"): "catenorm_1-4",
}


def cells(scale: Scale) -> Iterator[Cell]:
    """The networks of Table 2."""
    yield from site_cells(scale, ROWS, SITES, "asd")
    if scale.name != "smoke":
        yield from organ_cells(scale, ROWS, ("AVG",), "prostate", "asd")


TABLE = Table(
    package=PACKAGE,
    name="table8",
    title="average surface distance by site; ours in mm, the paper's in voxels of the resampled grid",
    keys=("method", "norm"),
    columns=(*SITES, "AVG"),
    cells=cells,
    claims=tuple(Claim(row, other) for row in list(ROWS)[3:] for other in list(ROWS)[:3]),
    scales={"small": SMALL, "smoke": SMOKE},
    test=TEST,
    hours=HOURS,
    hours_from=f"{HOURS_FROM}; the networks are those of Table 2",
    higher_is_better=False,
)
