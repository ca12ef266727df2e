"""The command `check-data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from dart_core.cli import say
from dart_core.data.catalog import radiographs
from dart_core.data.datalist import Row, check
from dart_core.data.images import read_image
from dart_core.data.pictures import label_problems, sites_of
from dart_core.errors import DartError
from popar import settings as of
from popar.radiographs import kinds_of, open_datalist
from popar.recipes import UNCERTAIN, labelled_parts, recipe_of


def check_data(command: of.CheckData) -> int:
    """Print every problem of a datalist; 0 if there is none, else 2."""
    datalist = open_datalist(command.data, command.label)
    recipe = recipe_of(command.label, of.FineTuning())
    sides: Counter[tuple[int, ...]] = Counter()

    def open_row(row: Row) -> Iterator[tuple[str, DartError]]:
        try:
            sides[read_image(row.image, "L").shape] += 1
        except DartError as error:
            yield "image", error
        if command.labelled:
            certain = [name for name in recipe.labels if row.labels.get(name, "") not in UNCERTAIN]
            yield from label_problems(row, certain if command.label.target == "chexpert" else recipe.labels)

    found = [str(problem) for problem in check(datalist, open_row)]
    for line in radiographs.report_missing(command.data.datalist):
        print(f"note: {line}")
    for site in sites_of(datalist):
        rows = [row for row in datalist if (row.site or site) == site]
        counts = Counter(row.split or "no split" for row in rows)
        listed = ", ".join(f"{count} {split}" for split, count in counts.items())
        subjects = len({row.subject for row in rows if row.subject})
        print(f"site {site}: {len(rows)} pictures of {subjects or 'unknown'} subjects ({listed})")
    if sides:
        print(f"sizes: {kinds_of(sides)}; all are resized")
    if command.labelled and not found:
        try:
            parts = labelled_parts(datalist, command.label, recipe)
            for name, part in parts.items():
                truth, labels = part.pictures.truth, part.pictures.labels
                positives = ", ".join(f"{label} {int((truth[:, i] == 1).sum())}" for i, label in enumerate(labels))
                cells = {"uncertain": part.uncertain, "empty (unknown)": np.isnan(truth) & ~part.uncertain}
                told = "".join(f"; {int(where.sum())} {kind} cells" for kind, where in cells.items() if where.any())
                print(f"{name}: {len(part)} pictures; {positives}{told}")
        except DartError as error:
            found.append(str(error))
    for line in found:
        print(line)
    print(f"{len(datalist)} pictures: {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    if radiographs.recognise(command.data.datalist) == "rsna-pneumonia":
        say("note: these pictures are from ChestX-ray14; --exclude leaves them out of a pretraining there")
    return 2 if found else 0
