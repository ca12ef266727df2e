"""Folders of slices and of volumes, trained networks, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dart_core.data.phantoms import write_decathlon
from dart_core.testing import Finished, InProcess
from metamedseg.datasets import SliceRow, SliceSet, draw_split, write_index, write_slice

SIZE = 16
SETS = {"liver": "liver", "kidney_left": "kidney", "kidney_right": "kidney", "spleen": "spleen"}
TINY = ("--width", 2, "--shots", 3, "--per-epoch", 2, "--inner-epochs", 1, "--meta-epochs", 2, "--device", "cpu")

metamedseg = InProcess("metamedseg")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `metamedseg WORDS...` in this process."""
    return metamedseg.captured(capsys)


@pytest.fixture(scope="session")
def tiny() -> tuple[object, ...]:
    """Flags of a tiny meta-training."""
    return TINY


def write_blobs(folder: Path, sets: dict[str, str], volumes: int = 6, size: int = SIZE) -> Path:
    """Slices of bright or dark discs in smooth noise, one kind of disc per data set."""
    written = []
    for number, (name, organ) in enumerate(sets.items()):
        rng = np.random.default_rng(number)
        split_of = draw_split([f"{organ}_{volume:03d}" for volume in range(volumes)])
        rows = []
        for volume, split in split_of.items():
            for z in range(4):
                image = gaussian_filter(rng.normal(size=(size, size)), 1) * 2
                y, x = np.mgrid[:size, :size] - rng.uniform(size / 3, 2 * size / 3, (2, 1, 1))
                mask = np.hypot(y, x) < rng.uniform(2, 4)
                image[mask] += (2, -2, 3, 2.5)[number]
                write_slice(folder / name, f"{volume}_slice{z + 8}", image, mask)
                rows.append(SliceRow(f"{volume}_slice{z + 8}", volume, z + 8, split, int(mask.sum())))
        written.append(SliceSet(name, organ, tuple(rows), folder / name))
    write_index(folder, written)
    return folder


@pytest.fixture(scope="session")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of slices of four data sets of three organs."""
    return write_blobs(tmp_path_factory.mktemp("slices") / "slices", SETS)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantom tasks in the layout of the Decathlon."""
    folder = tmp_path_factory.mktemp("volumes") / "msd"
    write_decathlon(folder, "Task51_Kidneys", ("right_kidney", "left_kidney"), ("T1", "T2"), 3, (24, 20, 12))
    write_decathlon(folder, "Task09_Spleen", ("spleen",), ("CT",), 3, (24, 20, 12), first=50)
    return folder


@pytest.fixture(scope="session")
def initialisation(slices: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of meta-train without spleen."""
    out = tmp_path_factory.mktemp("initialisation") / "run"
    assert metamedseg("meta-train", "--slices", slices, "--exclude", "spleen", *TINY, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def tuned(slices: Path, initialisation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fine-tune on spleen with two selections."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    words = ("--shots", 4, "--epochs", 2, "--selections", 1, 6, "--device", "cpu")
    start = ("--slices", slices, "--target", "spleen", "--init", initialisation)
    assert metamedseg("fine-tune", *start, *words, "--out", out) == 0
    return out
