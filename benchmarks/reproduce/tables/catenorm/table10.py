"""Table 10: Dice of six organs of BTCV and Pancreas-CT, the networks of Table 2."""

from __future__ import annotations

from collections.abc import Iterator

from grids.catenorm import HOURS, HOURS_FROM, PACKAGE, SMALL, SMOKE, TEST, organ_cells, site_cells
from table import Cell, Claim, Row, Scale, Table

SITES, ORGANS = ("BTCV", "TCIA"), ("AVG", "Spleen", "Kidney_L", "Gallbladder", "Liver", "Stomach", "Pancreas")
ROWS: dict[Row, str] = {
    ("Baseline", "BN"): "bn",
    ("DSBN", "BN"): "dsbn",
    ("MS-Net", "BN"): "ms-net",
    ("Ours(block1)", "CateNorm"): "catenorm_1",
    ("Ours(block1-4)", "CateNorm"): "catenorm_1-4",
}


def cells(scale: Scale) -> Iterator[Cell]:
    """Every method, site and organ; a repetition is a fold."""
    yield from site_cells(scale, ROWS, SITES, "dice")
    if scale.name != "smoke":
        yield from organ_cells(scale, ROWS, ORGANS, "abdomen", "dice")


TABLE = Table(
    package=PACKAGE,
    name="table10",
    title="Dice by abdominal site and organ, per cent",
    keys=("method", "norm"),
    columns=(*SITES, *ORGANS),
    cells=cells,
    claims=tuple(Claim(row, other) for row in list(ROWS)[3:] for other in list(ROWS)[:3]),
    scales={"small": f"{SMALL}Tumour and brain in the columns of Gallbladder and Liver.", "smoke": SMOKE},
    test=TEST,
    hours=HOURS,
    hours_from=f"{HOURS_FROM}; the networks are those of Table 2",
)
