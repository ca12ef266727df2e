"""A phantom stream of three stages, small pools, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dart_core.data.phantoms import write_hippocampus_stream
from dart_core.testing import Finished, InProcess

SHAPE = (16, 24, 16)
NETWORK = ("--base-features", 2, "--max-pools", 1, "--batch-size", 2, "--covariance", "shrunk")
TINY = ("--epochs", 1, "--batches", 3, "--log-every", 1, "--device", "cpu", "--seed", 1)

odex = InProcess("odex")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `odex WORDS...` in this process."""
    return odex.captured(capsys)


@pytest.fixture(scope="session")
def tiny() -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Flags of the first stage of a small network, and of a training of three steps."""
    return NETWORK, TINY


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of three stages of seven cases (five train, one val, one test) that shift from one source to another."""
    lists = write_hippocampus_stream(tmp_path_factory.mktemp("stream"), 3, 7, SHAPE)
    return [path.parent for path in lists]


@pytest.fixture(scope="session")
def learned(stages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Path]]:
    """Run folders of a method after each of so many stages; made once."""
    made: dict[Any, list[Path]] = {}

    def learn(method: str = "odex", count: int = 3, *flags: object) -> list[Path]:
        key = (method, *flags)
        runs = made.setdefault(key, [])
        folder = runs[0].parent if runs else tmp_path_factory.mktemp(method)
        for number in range(len(runs), count):
            start = ("--pool", runs[-1]) if runs else ("--method", method, *NETWORK, *flags)
            out = folder / f"run-{number + 1}"
            assert odex("learn", "--stage", stages[number], *start, *TINY, "--out", out) == 0
            runs.append(out)
        return runs[:count]

    return learn
