"""Table 7: average surface distance on two abdominal sites, by site and organ."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import HOURS, HOURS_FROM, PACKAGE, SMALL, SMOKE, TEST, organ_cells, site_cells
from table import Cell, Claim, Row, Scale, Table

SITES, ORGANS = ("BTCV", "TCIA"), ("AVG", "Spleen", "Kid_L", "Gall", "Liver", "Stom", "Panc")
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
        yield from organ_cells(scale, ROWS, ORGANS, "abdomen", "asd")


TABLE = Table(
    package=PACKAGE,
    name="table7",
    title="average surface distance by site and organ; ours in mm, the paper's in voxels of the resampled grid",
    keys=("method", "forward"),
    columns=(*SITES, *ORGANS),
    cells=cells,
    claims=tuple(Claim(row, other) for row in list(ROWS)[3:] for other in list(ROWS)[:3]),
    scales={"small": SMALL, "smoke": SMOKE},
    test=TEST,
    hours=HOURS,
    hours_from=f"{HOURS_FROM}; the networks are those of Table 2",
    higher_is_better=False,
)
