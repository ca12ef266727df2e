"""Phantom scans, a tiny trained run, the command, and the specification's Fourier transfer in plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from dart_core.data.phantoms import write_head_mr
from dart_core.testing import Finished, InProcess

SITES = ("sm15", "ge3", "sm3")
"""Source, target on the same grid in another orientation, target on another grid."""
SHAPE = (48, 56, 12)
TINY = ("--width", 2, "--epochs", 2, "--iterations", 3, "--batch-size", 2, "--crop-size", 48, "--device", "cpu")


class Trained(NamedTuple):
    """What `train` and `bank` wrote for the first site."""

    run: Path
    bank: Path


fda_mri = InProcess("fda-mri")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `fda-mri WORDS...` in this process."""
    return fda_mri.captured(capsys)


@pytest.fixture(scope="session")
def datalist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five heads on each of three scanners; three train, one validates, one tests."""
    return write_head_mr(tmp_path_factory.mktemp("phantoms"), SITES, 5, SHAPE)


@pytest.fixture(scope="session")
def tiny_training() -> tuple[object, ...]:
    """Flags of a training of six steps."""
    return TINY


@pytest.fixture(scope="session")
def trained(datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    scans = ("--datalist", datalist, "--site", SITES[0])
    assert fda_mri("train", *scans, *TINY, "--out", folder / "run") == 0
    assert fda_mri("bank", *scans, "--out", folder / "bank.safetensors") == 0
    return Trained(folder / "run", folder / "bank.safetensors")


@pytest.fixture(scope="session")
def numpy_transfer() -> Callable[..., Any]:
    """Specification 2.1 step by step, for one slice."""
    return _numpy_transfer


def _numpy_transfer(
    t: np.ndarray,
    s: np.ndarray,
    beta: float,
    output: str = "authors",
    average_styles: bool = False,
    phase: bool = False,
    window: str = "circle",
) -> np.ndarray:
    h, w = t.shape
    styles = [np.fft.fftshift(np.fft.fft2(style)) for style in (s if average_styles else [s])]
    spectrum = np.fft.fftshift(np.fft.fft2(t))
    y, x = np.ogrid[:h, :w]
    inside = np.sqrt((y - h // 2) ** 2 + (x - w // 2) ** 2) < beta * min(h, w)
    if window == "authors_rectangle":
        b = int(beta * min(h, w))
        inside = np.zeros((h, w), bool)
        inside[h // 2 - b : h // 2 + b, w // 2 - b : w // 2 + b] = True
    if phase:
        mixed = np.where(inside, np.mean(styles, axis=0), spectrum)
    else:
        amplitude = np.where(inside, np.mean(np.abs(styles), axis=0), np.abs(spectrum))
        mixed = amplitude * np.exp(1j * np.angle(spectrum))
    new = np.fft.ifft2(np.fft.ifftshift(mixed))
    if output == "authors":
        return np.asarray(np.abs(new) / np.abs(new).max())
    return np.asarray(new.real if output == "formula" else new.real.clip(0, 1))
