"""Phantom abdomens of two scanners, tiny networks trained on them, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from catenorm.demo import write_phantoms
from catenorm.settings import Cases
from dart_core.testing import Finished, InProcess

SIDE = 32
TINY = ("--width", 4, "--batch-size", 1, "--steps", 3, "--warmup-steps", 2, "--log-every", 1, "--plateau-window", 2)
CPU = ("--device", "cpu", "--seed", 1)

catenorm = InProcess("catenorm")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `catenorm WORDS...` in this process."""
    return catenorm.captured(capsys)


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five abdomens of each of two scanners; three train, one validates, one tests."""
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), subjects=5, shape=(36, 28, 10))


@pytest.fixture(scope="session")
def cases(datalist: Path) -> Cases:
    """Six organs, slices of 32 pixels."""
    return Cases((datalist,), "ct-multi", size=SIDE, missing_organs="allow")


@pytest.fixture(scope="session")
def data(datalist: Path) -> tuple[object, ...]:
    """Flags of the same."""
    return ("--datalist", datalist, "--preprocessing", "ct-multi", "--size", SIDE, "--missing-organs", "allow")


@pytest.fixture(scope="session")
def tiny() -> tuple[object, ...]:
    """Flags of a training of five steps."""
    return (*TINY, *CPU)


@pytest.fixture(scope="session")
def trained(data: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of `train`, by method."""
    folder = tmp_path_factory.mktemp("trained")
    runs = {}
    for method in ("bn", "catenorm", "dsbn", "ms-net", "w-net"):
        runs[method] = folder / method
        more = ("--ms-net-warmup", 2) if method == "ms-net" else ()
        assert catenorm("train", *data, "--method", method, *TINY, *CPU, *more, "--out", runs[method]) == 0
    return runs
