"""Phantom radiographs, a pretrained and a fine-tuned network, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dart_core.data.phantoms import write_chest_xrays
from dart_core.testing import Finished, InProcess

FINDINGS = ("Cardiomegaly", "Effusion")
VIT = ("--backbone", "vit_b", "--image-size", 32, "--network", "patch_size=8", "embed_dim=16", "depth=1", "num_heads=2")
SWIN = (
    "--backbone", "swin_b", "--image-size", 32, "--network", "patch_size=2", "embed_dim=8", "depths=1,1,2",
    "num_heads=1,2,2", "window_size=4",
)  # fmt: skip
PRETRAIN = ("--epochs", 2, "--batch-size", 8, "--examples", 2, "--log-every", 1, "--device", "cpu", "--seed", 0)  # fmt: skip
TUNE = ("--epochs", 2, "--batch-size", 8, "--log-every", 1, "--device", "cpu", "--seed", 0)


popar = InProcess("popar")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `popar WORDS...` in this process."""
    return popar.captured(capsys)


@pytest.fixture(scope="session")
def networks() -> dict[str, tuple[object, ...]]:
    """Flags of tiny backbones."""
    return {"vit": VIT, "swin": SWIN}


@pytest.fixture(scope="session")
def pretrain_words() -> tuple[object, ...]:
    """Flags of a tiny pretraining."""
    return PRETRAIN


@pytest.fixture(scope="session")
def tune_words() -> tuple[object, ...]:
    """Flags of a tiny fine-tuning."""
    return TUNE


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of 40 x 48 pixels with two findings."""
    return write_chest_xrays(tmp_path_factory.mktemp("phantoms"), "chestxray14", 30, FINDINGS, (40, 48))


@pytest.fixture(scope="session")
def pretrained(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of a pretrained ViT and Swin."""
    found = {}
    for name, network in (("vit", VIT), ("swin", SWIN)):
        found[name] = tmp_path_factory.mktemp("pretrained") / name
        assert (
            popar("pretrain", "--datalist", datalist, *network, *PRETRAIN, "--measure-every", 1, "--out", found[name])
            == 0
        )
    return found


@pytest.fixture(scope="session")
def tuned(datalist: Path, pretrained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a fine-tuned ViT."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    assert popar("fine-tune", "--datalist", datalist, "--init", pretrained["vit"], *TUNE, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def predicted(datalist: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its predictions."""
    out = tmp_path_factory.mktemp("predicted") / "scores"
    assert popar("predict", "--datalist", datalist, "--model", tuned, "--device", "cpu", "--out", out) == 0
    return out
