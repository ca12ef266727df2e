"""Table 1: AUC for metastases on patches of four laboratories of Camelyon17 that training on a fifth, RUMC, has not seen."""

from __future__ import annotations

from collections.abc import Iterator

from grids.stain_aglr import COUNTS, METHODS, PACKAGE, SCALES, SEEDS, claims, mean_of, scored
from stain_aglr_patches import UNSEEN
from table import Cell, Scale, Table

LABORATORIES = ("CWZ", "RST", "UMCU", "LPON")
MEAN = "MEAN_auc"
COLUMNS = (*(f"{name}_auc" for name in LABORATORIES), MEAN)


def cells(scale: Scale) -> Iterator[Cell]:
    """A repetition is a seed; all columns come from one run."""
    sites = {f"{name}_auc": (name,) for name in LABORATORIES} | {MEAN: LABORATORIES}
    if scale.name != "paper":
        sites = scale.pick(paper={}, small={MEAN: (UNSEEN,)}, smoke={COLUMNS[0]: LABORATORIES[:1]})
    for method, flag in METHODS.items():
        runs = [[scored(scale, "table1", flag, seed)] for seed in scale.seeds(SEEDS)]
        for column, names in sites.items():
            yield Cell((method,), column, runs, mean_of(names))


TABLE = Table(
    package=PACKAGE,
    name="table1",
    title="AUC for metastases in laboratories that training has not seen, Camelyon17",
    keys=("method",),
    columns=COLUMNS,
    cells=cells,
    claims=claims(COLUMNS, not_against_stst="CWZ_auc"),
    scales={
        **SCALES,
        "small": SCALES["small"] + "camelyon_mini: tumour and normal patches of 32 fields of unknown laboratories, split by field, so "
        f"that there is no change of laboratory; its test fields stand for {MEAN}.",
    },
    hours={"patches": 3, "train": 1.5, "predict": 0.1, "evaluate": 0.01},
    hours_from="about 30 epochs of 380 steps of 2 x 64 patches of 256 pixels at 0.25 s; GANs 365,000 steps at 0.04 s; cutting and "
    "Vahadane are work of the processor",
    not_run=COUNTS,
)  # fmt: skip
