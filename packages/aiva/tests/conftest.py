"""Phantom scans of three scanners, a tiny source network, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aiva.slices import Slices
from dart_core.data.phantoms import write_head_mr, write_prostate_mr
from dart_core.data.scans import load_scans, open_datalist, rows_of
from dart_core.settings import ScanSettings
from dart_core.testing import Finished, InProcess

SITES = ("sm15", "ge3", "sm3")
"""Source, target, and a second source."""
SHAPE = (48, 56, 12)
TINY = ("--width", 2, "--steps", 6, "--batch-size", 2, "--evaluate-every", 3, "--log-every", 1, "--device", "cpu")
ALIGNMENT = ("--clusters", 3, "--perplexity", 8, "--iterations-per-epoch", 7, "--acc-amount", 3)


aiva = InProcess("aiva")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `aiva WORDS...` in this process."""
    return aiva.captured(capsys)


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five heads on each of three scanners; three train, one validates, one tests."""
    return write_head_mr(tmp_path_factory.mktemp("phantoms"), SITES, 5, SHAPE)


@pytest.fixture(scope="session")
def prostates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pelvises of each of two sites."""
    return write_prostate_mr(tmp_path_factory.mktemp("prostates"), ("RUNMC", "UCL"), 5, (48, 48, 10))


@pytest.fixture(scope="session")
def tiny() -> tuple[object, ...]:
    """Flags of a training of six steps."""
    return TINY


@pytest.fixture(scope="session")
def alignment() -> tuple[object, ...]:
    """Flags of AIVA for trainings of some 20 steps."""
    return ALIGNMENT


@pytest.fixture(scope="session")
def source_model(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of `pretrain` on the first site."""
    out = tmp_path_factory.mktemp("pretrained") / "run"
    scans = ("--datalist", datalist, "--preprocessing", "plain", "--source", SITES[0])
    assert aiva("pretrain", *scans, *TINY, "--out", out) == 0
    return out


@pytest.fixture(scope="session")
def pair(datalist: Path) -> tuple[Slices, Slices]:
    """Labelled slices of the source and slices of the target, 36 of each, in patches of 48."""
    settings = ScanSettings(datalist, "plain")
    listed = open_datalist(datalist)
    source, target = (load_scans(rows_of(listed, [site], "train"), settings) for site in SITES[:2])
    return Slices(source, settings, 48), Slices(target, settings, 48, labelled=False)
