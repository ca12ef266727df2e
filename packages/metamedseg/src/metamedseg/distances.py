"""Distances between organs (Fig. 3), and the command `distances` (specification 7)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.cli import say
from dart_core.errors import InputError
from dart_core.files import write_atomic, write_csv
from dart_core.metrics import to_numpy
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from metamedseg import settings as of
from metamedseg.datasets import SliceSet, read_slices
from metamedseg.figures import heat_map
from metamedseg.slices import minmax

SEED = 6
MOST = 200
"""Slices of a data set that `distances` draws pairs from; more would only cost memory."""


def organ_distances(
    images: Mapping[str, Any], pairs: int | Sequence[tuple[int, int]] | None = None, seed: int = SEED
) -> NDArray[np.float64]:
    """Mean Euclidean distance between images of two organs, for every two organs.

    Args:
        images: organ -> (n, h, w), all of one size, usually scaled to [0, 1]; arrays or tensors.
        pairs: None: all pairs; a number: so many random pairs for each two organs; or pairs (i, j) of image numbers, taken
            for every two organs. The two images of a pair differ where both are of one organ.
        seed: of random pairs.

    Returns:
        (k, k) in the order of `images`, symmetric: the square root of the sum of squared differences over all pixels, mean
        over pairs; nan on the diagonal of an organ with one image.

    Raises:
        InputError: images of unequal size, or none.
    """
    names = list(images)
    flat: list[NDArray[np.float64]] = []
    sizes: list[tuple[int, ...]] = []
    for name in names:
        values = to_numpy(images[name]).astype(np.float64)
        if values.ndim != 3 or not len(values):
            raise InputError(f"images of {name} have shape {values.shape}", remedy="give (n, h, w), n at least 1")
        if sizes and values.shape[1:] != sizes[0]:
            raise InputError(
                f"images of {name} are {values.shape[1:]}, those of {names[0]} {sizes[0]}",
                remedy="resize them to one size",
            )
        sizes.append(values.shape[1:])
        flat.append(values.reshape(len(values), -1))
    result = np.full((len(names), len(names)), np.nan)
    for i in range(len(names)):
        for j in range(i, len(names)):
            rows, columns = _pairs(len(flat[i]), len(flat[j]), i == j, pairs, np.random.default_rng([seed, i, j]))
            if len(rows):
                found = [np.linalg.norm(flat[i][a] - flat[j][b]) for a, b in zip(rows, columns, strict=True)]
                result[i, j] = result[j, i] = np.mean(found)
    return result


def _pairs(
    n: int, m: int, same: bool, pairs: int | Sequence[tuple[int, int]] | None, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if isinstance(pairs, int):
        if same and n < 2:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        rows = rng.integers(n, size=pairs)
        if same:
            return rows, (rows + rng.integers(1, n, size=pairs)) % n
        return rows, rng.integers(m, size=pairs)
    if pairs is None:
        rows, columns = (part.ravel() for part in np.indices((n, m)))
    else:
        rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    kept = rows != columns if same else np.ones(len(rows), dtype=bool)
    return rows[kept], columns[kept]


def distances(command: of.Distances) -> None:
    """Write distances.csv and report.html with the heat map."""
    sets = read_slices(command.slices)
    rng = np.random.default_rng(command.seed)
    images = {name: _scaled(one, rng) for name, one in sets.items()}
    values = organ_distances(images, command.pairs, command.seed)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    names = list(images)
    rows = [
        (name, *(None if np.isnan(v) else round(float(v), 4) for v in line))
        for name, line in zip(names, values, strict=True)
    ]
    write_csv(out / "distances.csv", ("dataset", *names), rows)
    means = {
        name: round(float(np.nanmean(np.delete(values[i], i))), 4) if len(names) > 1 else None
        for i, name in enumerate(names)
    }
    write_atomic(out / METRICS, json.dumps({"mean_distance_to_others": means}, indent=2) + "\n")
    report = Report("Distances between data sets", f"{command.pairs} random pairs of slices each", package="metamedseg")
    report.text(
        "Mean Euclidean distance between two slices, each scaled to [0, 1], over all pixels. On the diagonal the two slices are "
        "of the same data set. The paper (Fig. 3) reads from such a map which targets are far from the sources: from low to "
        "high cardiac, spleen, prostate."
    )
    report.picture(heat_map(names, values), "Mean distance of pairs of slices", "heat map of distances")
    report.table(
        ("data set", "mean distance to the others"),
        sorted(means.items(), key=lambda item: item[1] or 0),
        "From near to far",
    )
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    say(f"distances: {out / 'distances.csv'}   report: {out / 'report.html'}")


def _scaled(one: SliceSet, rng: np.random.Generator) -> NDArray[np.float32]:
    places = range(len(one)) if len(one) <= MOST else sorted(rng.choice(len(one), MOST, replace=False).tolist())
    return np.stack([minmax(image[0]) for image in one.stack(places)[0].numpy()])
