"""Phantom radiographs, a pre-trained and a fine-tuned network, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dart_core.data.phantoms import write_chest_xrays
from dart_core.testing import Finished, InProcess

LABELS = ("Cardiomegaly", "Effusion")
NETWORK = ("--patch-size", 2, "--embed-dim", 8, "--depths", 1, 1, "--num-heads", 1, 2, "--window-size", 2)
PRETRAIN = (
    "--size", 16, "--cell", 4, *NETWORK, "--epochs", 2, "--batch-size", 8, "--warmup", 0, "--log-every", 1, "--show-every", 1,
    "--device", "cpu", "--seed", 0,
)  # fmt: skip
TUNE = (
    "--image-size", 16, "--epochs", 2, "--batch-size", 8, "--learning-rate", 0.05, "--log-every", 1, "--device", "cpu",
    "--seed", 0,
)  # fmt: skip


benchmark_transformers = InProcess("benchmark-transformers")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `benchmark-transformers WORDS...` in this process."""
    return benchmark_transformers.captured(capsys)


@pytest.fixture(scope="session")
def small() -> dict[str, tuple[object, ...]]:
    """Flags of a tiny network, pre-training and fine-tuning."""
    return {"network": NETWORK, "pretrain": PRETRAIN, "fine-tune": TUNE}


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 radiographs of 24 pixels with two labels and splits."""
    return write_chest_xrays(tmp_path_factory.mktemp("phantoms"), "chestxray14", 40, LABELS, (24, 24))


@pytest.fixture(scope="session")
def pretrained(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a Swin that SimMIM pre-trained."""
    out = tmp_path_factory.mktemp("pretrained") / "simmim"
    assert benchmark_transformers("pretrain", "--pictures", datalist, *PRETRAIN, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def tuned(datalist: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of its fine-tuning, two trials."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    words = ("--datalist", datalist, "--weights", pretrained, *TUNE, "--trials", 2, "--out", out)
    assert benchmark_transformers("fine-tune", *words) == 0
    return out


@pytest.fixture(scope="session")
def predicted(datalist: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its predictions."""
    out = tmp_path_factory.mktemp("predicted") / "scores"
    words = ("--datalist", datalist, "--model", tuned, "--device", "cpu", "--out", out)
    assert benchmark_transformers("predict", *words) == 0
    return out
