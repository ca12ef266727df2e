"""Phantom cells of two microscopes, a trained detector, and the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dart_core.data.boxes import read_boxes, write_boxes
from dart_core.data.phantoms import degrade_boxes, write_cells
from dart_core.testing import Finished, InProcess

SIDE = 64
TINY = (
    "--detector", "small", "--size", SIDE, "--batch-size", 2, "--learning-rate", 0.01, "--edges", "clip", "--log-every", 1,
    "--device", "cpu", "--seed", 0, "--examples", 1,
)  # fmt: skip


sissi = InProcess("sissi")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `sissi WORDS...` in this process."""
    return sissi.captured(capsys)


@pytest.fixture(scope="session")
def tiny() -> tuple[object, ...]:
    """Flags of a tiny training."""
    return TINY


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Lists of 12 pictures of 64 pixels each: phase, smear, and weak: the training part of smear with degraded boxes."""
    folder = tmp_path_factory.mktemp("cells")
    files = write_cells(folder, pictures=12, size=SIDE, cells=5)
    rng = np.random.default_rng(0)
    pictures = read_boxes(files["smear"])
    weak = [degrade_boxes(picture.boxes, (SIDE, SIDE), rng) if picture.split == "train" else picture.boxes for picture in pictures]  # fmt: skip
    listed = [replace(p, boxes=b, labels=("cell",) * len(b)) for p, b in zip(pictures, weak, strict=True)]
    return {**files, "weak": write_boxes(folder / "weak.csv", listed)}


@pytest.fixture(scope="session")
def data(cells: dict[str, Path]) -> tuple[object, ...]:
    """Flags of source and target."""
    return ("--source", cells["phase"], "--target", cells["weak"])


@pytest.fixture(scope="session")
def trained(data: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a tiny detector whose labels were corrected twice."""
    out = tmp_path_factory.mktemp("trained") / "run"
    words = ("--configuration", "sissi-s", "--epochs", 4, "--least-score", 0.01, "--skip-score", 0.01)
    assert sissi("train", *data, *TINY, *words, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def predicted(cells: dict[str, Path], trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its detections in the test pictures."""
    out = tmp_path_factory.mktemp("predicted") / "detections"
    assert sissi("predict", "--pictures", cells["smear"], "--model", trained, "--device", "cpu", "--out", out) == 0
    return out
