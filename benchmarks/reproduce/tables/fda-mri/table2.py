"""Table 2: surface Dice on six pairs of CC359 scanners, Fourier transfer against no adaptation and style transfer."""

from __future__ import annotations

from collections.abc import Iterator

from grids.fda_mri import HOURS, PACKAGE, PAIRS, PAPER, SMALL, SMOKE, over_pairs
from table import Cell, Claim, Row, Scale, Table

SEARCHES = {"3D": "table2_fda_3d", "2.5D": "table2_fda_25d", "2D": "table2_fda_2d"}
POLICIES = {"averaged optimal": "averaged", "optimal per pair": "per pair"}
FDA: dict[Row, tuple[str, str]] = {
    (f"FDA {search} beta {policy}",): (name, kind)
    for policy, kind in POLICIES.items()
    for search, name in SEARCHES.items()
}


def cells(scale: Scale) -> Iterator[Cell]:
    """Every pair, and the mean of the six."""
    return over_pairs(scale, {("No DA",): ("none", ""), ("CycleGAN",): ("cyclegan", ""), **FDA})


TABLE = Table(
    package=PACKAGE,
    name="table2",
    title="surface Dice on the target, by pair of scanners",
    keys=("method",),
    columns=(*PAIRS, "average"),
    cells=cells,
    claims=(
        *(Claim(row, other) for row in FDA for other in (("No DA",), ("CycleGAN",))),
        Claim(("FDA 3D beta averaged optimal",), ("FDA 2.5D beta averaged optimal",)),
        Claim(("FDA 3D beta averaged optimal",), ("FDA 2D beta averaged optimal",)),
    ),
    scales={
        "paper": f"{PAPER} CycleGAN is a standard one; the paper's is of the kind of StyleGAN2.",
        "small": f"{SMALL}Pairs by the paper's rule from the transfer matrix there. CycleGAN: a standard one of width 8, 200 steps.",
        "smoke": SMOKE,
    },
    hours=HOURS | {"train": 1.5},
    hours_from="five source networks of 10,000 steps at about 0.08 s, six CycleGANs of 60,000 steps at about 0.15 s; the choice of beta "
    "segments each validation scan 200 times",
    not_run={
        ("StyleSegor",): "not part of the package: it optimises each slice through VGG16 with weights from ImageNet",
        ("StyleGAN",): "not part of the package: days of training on a GPU for each pair, by code of other authors",
        ("Fast",): "not part of the package: it needs the published weights of another network",
    },
)
