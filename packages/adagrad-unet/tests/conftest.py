"""Phantom heads and hearts, tiny trained runs, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from adagrad_unet import __version__
from adagrad_unet.cli import COMMANDS, DESCRIPTION
from dart_core.cli import main
from dart_core.data.phantoms import write_cardiac_mr, write_head_mr

SITES = ("ge3", "sm15", "ph3")
"""Source, and two targets that store their files otherwise."""
HEADS, HEARTS = (32, 40, 16), (40, 40, 6)
TINY = ("--slice-axis", "z", "--base-features", 4, "--max-pools", 2, "--batch-size", 4, "--epochs", 2, "--batches", 3,
        "--validation-batches", 1, "--log-every", 1, "--device", "cpu")  # fmt: skip
TINY_SPOT = ("--preprocessing", "plain", "--epochs", 2, "--batches", 3, "--batch-size", 2, "--patch", 32, "--width", 2,
             "--log-every", 1, "--device", "cpu")  # fmt: skip


class Finished(NamedTuple):
    """What a command gave back."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


def adagrad_unet(*words: object) -> int:
    return main("adagrad-unet", COMMANDS, __version__, DESCRIPTION, [str(word) for word in words])


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `adagrad-unet WORDS...` in this process."""

    def run(*words: object) -> Finished:
        capsys.readouterr()
        status = adagrad_unet(*words)
        return Finished(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five heads on each of three scanners; three train, one validates, one tests."""
    return write_head_mr(tmp_path_factory.mktemp("heads"), SITES, 5, HEADS)


@pytest.fixture(scope="session")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hearts of two vendors at two phases, with three labels; one each trains, validates and tests."""
    return write_cardiac_mr(tmp_path_factory.mktemp("hearts"), ("B", "C"), 3, HEARTS)


@pytest.fixture(scope="session")
def tiny() -> tuple[object, ...]:
    """Flags of a training of six steps."""
    return TINY


@pytest.fixture(scope="session")
def tiny_spot() -> tuple[object, ...]:
    """Flags of a `spottune` of six steps."""
    return TINY_SPOT


@pytest.fixture(scope="session")
def trained(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of `train` on the source by optimiser: avagrad and sgd."""
    folder = tmp_path_factory.mktemp("trained")
    for optimizer in ("avagrad", "sgd"):
        words = ("--datalist", heads, "--site", SITES[0], "--optimizer", optimizer, *TINY)
        assert adagrad_unet("train", *words, "--out", folder / optimizer) == 0
    return {optimizer: folder / optimizer for optimizer in ("avagrad", "sgd")}


@pytest.fixture(scope="session")
def heart_run(hearts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `train` with three labels, without augmentation."""
    out = tmp_path_factory.mktemp("heart") / "run"
    words = ("--datalist", hearts, "--site", "B", "--labels", "LV", "MYO", "RV", "--no-augmentation", *TINY)
    assert adagrad_unet("train", *words, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def spotted(heads: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two stages of `spottune`."""
    folder = tmp_path_factory.mktemp("spotted")
    words = ("--datalist", heads, *TINY_SPOT)
    assert adagrad_unet("spottune", *words, "--site", SITES[0], "--out", folder / "baseline") == 0
    tuned = ("--stage", "spottuned", "--model", folder / "baseline", "--slices", 7, "--interval", 5)
    assert adagrad_unet("spottune", *words, "--site", SITES[1], *tuned, "--out", folder / "tuned") == 0
    return {"baseline": folder / "baseline", "tuned": folder / "tuned"}
