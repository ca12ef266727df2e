"""Text beside Table 5: Frechet distance of restored to original cubes before and after adversarial learning (TransVW)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from grids.united_ssl import HOURS, HOURS_FROM, PACKAGE, SCALES, cubes, pretrained
from table import Cell, Claim, Scale, Table, config

from dart_core.experiment import Job, Word

EXTRACTOR = "weights/inception_v3.safetensors"
ROWS = {"restoration after (D)+R": "DR", "restoration after ((D)+R)+A": "DRA"}


def distance(place: int) -> Callable[[Path], float]:
    """Reads that of one of the networks that were evaluated together."""

    def read(folder: Path) -> float:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["restorations"]
        return float(found[place]["fid"])

    return read


def cells(scale: Scale) -> Iterator[Cell]:
    """Both are evaluated together, with the same features. Small and smoke: those of the first network's encoder."""
    words: list[Word] = ["evaluate", "--config", config(PACKAGE, "table5_evaluate"), "--predictions"]
    for step in ROWS.values():
        network = pretrained(scale, "transvw", step)
        words.append(
            Job(PACKAGE, ("predict", "--model", network, "--cubes", cubes(scale, "transvw")), f"{step}, restored")
        )
    words += ["--extractor", scale.set(EXTRACTOR)] if scale.name == "paper" else []
    evaluated = Job(PACKAGE, tuple(words), "Frechet distances")
    for place, row in enumerate(ROWS):
        yield Cell((row,), "FID", [[evaluated]], distance(place))


TABLE = Table(
    package=PACKAGE,
    name="table5_text",
    title="Frechet distance between restored and original cubes",
    keys=("setting",),
    columns=("FID",),
    cells=cells,
    claims=(Claim(("restoration after ((D)+R)+A",), ("restoration after (D)+R",)),),
    scales={
        **SCALES,
        "paper": f"{SCALES['paper']} {EXTRACTOR}: weights of Inception v3. The paper names neither features nor pretext task.",
    },
    hours=HOURS,
    hours_from=HOURS_FROM,
    higher_is_better=False,
)
