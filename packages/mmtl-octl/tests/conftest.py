"""Phantom scans, tiny source networks, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dart_core.data.datalist import Row
from dart_core.data.phantoms import write_head_mr, write_prostate_mr
from dart_core.data.scans import Scan
from dart_core.data.volumes import Volume
from dart_core.testing import Finished, InProcess

SOURCE, TARGET = "sm3", "ge15"
SHAPE = (32, 40, 8)
RECIPE = ("--epochs", 3, "--batches", 2, "--batch-size", 4, "--log-every", 1, "--device", "cpu")


mmtl_octl = InProcess("mmtl-octl")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `mmtl-octl WORDS...` in this process."""
    return mmtl_octl.captured(capsys)


@pytest.fixture(scope="session")
def recipe() -> tuple[object, ...]:
    """Flags of a training of six steps."""
    return RECIPE


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five heads on each of two scanners; three train, one validates, one tests."""
    return write_head_mr(tmp_path_factory.mktemp("heads"), (SOURCE, TARGET), 5, SHAPE)


@pytest.fixture(scope="session")
def heads(datalist: Path) -> tuple[object, ...]:
    """Flags that read the heads."""
    return ("--datalist", datalist, "--preprocessing", "plain")


@pytest.fixture(scope="session")
def prostates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five patients at each of three sites; three train, one validates, one tests."""
    return write_prostate_mr(tmp_path_factory.mktemp("prostates"), ("RUNMC", "BMC", "UCL"), 5, (32, 32, 10))


@pytest.fixture(scope="session")
def source_model(heads: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A source network with history for each optimiser."""
    runs = {}
    for optimizer in ("sgd", "adam"):
        runs[optimizer] = tmp_path_factory.mktemp("source") / optimizer
        words = ("--source", SOURCE, "--width", 2, "--optimizer", optimizer, "--out", runs[optimizer])
        assert mmtl_octl("pretrain", *heads, *RECIPE, *words) == 0
    return runs


@pytest.fixture(scope="session")
def make_scan() -> Callable[..., Scan]:
    """A scan of random numbers without files: (subject, shape, site)."""

    def make(subject: str, shape: tuple[int, int, int] = (16, 24, 6), site: str = "a") -> Scan:
        rng = np.random.default_rng(list(f"{site}{subject}".encode()))
        mask = np.zeros(shape, bool)
        mask[4:12, 6:18, 1:-1] = True
        volume = (mask + 0.3 * rng.random(shape)).astype(np.float32)
        grid = Volume(volume, np.eye(4))
        row = Row(Path(f"{subject}.nii.gz"), Path(f"{subject}_mask.nii.gz"), subject, site, "train")
        return Scan(row, volume, mask, grid, grid, (1.0, 1.0, 1.0))

    return make
