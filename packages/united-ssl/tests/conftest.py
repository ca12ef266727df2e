"""Cubes, scans, trained networks, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dart_core.data.phantoms import write_luna16
from dart_core.testing import Finished, InProcess
from united_ssl.cubes import CubeRow, write_cubes, write_index

TRAIN, VAL, TEST = 12, 4, 8
TINY = ("--width", 1, "--batch-size", 4, "--max-epochs", 2, "--log-every", 1, "--device", "cpu", "--seed", 0)


united_ssl = InProcess("united-ssl")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `united-ssl WORDS...` in this process."""
    return united_ssl.captured(capsys)


@pytest.fixture(scope="session")
def call() -> Callable[..., int]:
    """Run `united-ssl WORDS...` and give its exit status; for fixtures that live longer than one test."""
    return united_ssl


@pytest.fixture(scope="session")
def tiny() -> tuple[object, ...]:
    """Flags of a tiny training."""
    return TINY


def smooth(count: int, seed: int, side: int = 16) -> np.ndarray:
    """Cubes (count, side, side, side) of smooth noise in [0, 1]."""
    noise = np.random.default_rng(seed).random((count, side, side, side))
    blurred = np.stack([gaussian_filter(cube, 2) for cube in noise])
    return (blurred - blurred.min()) / np.ptp(blurred)


def write_folder(folder: Path, masks: bool = False, side: int = 16) -> Path:
    """Cubes of three splits; the label says which half of the cube is brighter, masks hold two classes."""
    rows = []
    for seed, (split, count) in enumerate((("train", TRAIN), ("val", VAL), ("test", TEST))):
        cubes = smooth(count, seed, side)
        labels = [i % 2 for i in range(count)]
        for cube, label in zip(cubes, labels, strict=True):
            cube[: side // 2] = np.clip(cube[: side // 2] + (0.4 if label else -0.4), 0, 1)
        found = (cubes > 0.5).astype(np.uint8) + (cubes > 0.7)
        write_cubes(folder / f"{split}.npy", cubes, found if masks else None)
        rows += [
            CubeRow(folder / f"{split}.npy", i, split, subject=f"{split}{i}", label=str(k))
            for i, k in enumerate(labels)
        ]
    write_index(folder, rows)
    return folder


@pytest.fixture(scope="session")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled cubes of 16 voxels; the labels serve as visual words too."""
    return write_folder(tmp_path_factory.mktemp("cubes") / "cubes")


@pytest.fixture(scope="session")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cubes of 16 voxels with masks of two classes."""
    return write_folder(tmp_path_factory.mktemp("masked") / "cubes", masks=True)


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cubes of 32 voxels, for the siamese network."""
    return write_folder(tmp_path_factory.mktemp("large") / "cubes", side=32)


@pytest.fixture(scope="session")
def luna16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight phantom CTs in the layout of LUNA16, one for each of the subsets 0 to 7."""
    return write_luna16(tmp_path_factory.mktemp("phantoms") / "luna16", 8, 8, (80, 80, 56))


@pytest.fixture(scope="session")
def pretrained(cubes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of jigsaw in three steps."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    words = ("--pretext", "jigsaw", "--permutations", 10, "--critic-steps", 2, *TINY)
    assert united_ssl("pretrain", "--cubes", cubes, *words, "--out", out) == 0
    return out
