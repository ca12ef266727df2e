"""Phantom patches, a trained classifier, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dart_core.cli import main
from dart_core.data.phantoms import write_histology
from stain_aglr import __version__
from stain_aglr.cli import COMMANDS, DESCRIPTION

HOME, OTHER = "RUMC", "CWZ"
RECIPE = (
    "--site", HOME, "--width", 2, "--batch-size", 8, "--max-epochs", 2, "--log-every", 1, "--device", "cpu", "--seed", 0,
)  # fmt: skip


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


def stain_aglr(*words: object) -> int:
    return main("stain-aglr", COMMANDS, __version__, DESCRIPTION, [str(word) for word in words])


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `stain-aglr WORDS...` in this process."""

    def run(*words: object) -> Finished:
        capsys.readouterr()
        status = stain_aglr(*words)
        return Finished(status, *capsys.readouterr())

    return run


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
