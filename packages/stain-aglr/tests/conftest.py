"""Phantom patches, a trained classifier, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dart_core.data.phantoms import write_histology
from dart_core.testing import Finished, InProcess

HOME, OTHER = "RUMC", "CWZ"
RECIPE = (
    "--site", HOME, "--width", 2, "--batch-size", 8, "--max-epochs", 2, "--log-every", 1, "--device", "cpu", "--seed", 0,
)  # fmt: skip


stain_aglr = InProcess("stain-aglr")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `stain-aglr WORDS...` in this process."""
    return stain_aglr.captured(capsys)


@pytest.fixture(scope="session")
def recipe() -> tuple[object, ...]:
    """Flags of a tiny training."""
    return RECIPE


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 patches of 32 pixels from each of two laboratories."""
    return write_histology(tmp_path_factory.mktemp("phantoms"), (HOME, OTHER), 24, 32)


@pytest.fixture(scope="session")
def trained(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a classifier."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert stain_aglr("train", "--datalist", datalist, *RECIPE, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def predicted(datalist: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its predictions, with features."""
    out = tmp_path_factory.mktemp("predicted") / "scores"
    assert (
        stain_aglr("predict", "--datalist", datalist, "--model", trained, "--features", "--device", "cpu", "--out", out)
        == 0
    )
    return out
