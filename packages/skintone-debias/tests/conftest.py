"""The command, and pictures of skin with hairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dart_core.data.phantoms import write_skin_lesions
from dart_core.testing import Finished, InProcess

skintone_debias = InProcess("skintone-debias")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `skintone-debias WORDS...` in this process."""
    return skintone_debias.captured(capsys)


@pytest.fixture(scope="session")
def skin() -> Callable[..., NDArray[np.uint8]]:
    """Skin of one colour under uneven light with crossing hairs: (seed, hairs, colour, height, width)."""

    def make(
        seed: int = 0,
        hairs: int = 12,
        colour: tuple[int, int, int] = (210, 170, 140),
        height: int = 256,
        width: int = 256,
    ) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        light = 1 + 0.1 * np.sin(np.linspace(0, 3, width)) * np.cos(np.linspace(0, 2, height))[:, None]
        noise = rng.normal(0, 1.5, (height, width, 3))
        picture: Any = np.clip(light[..., None] * np.array(colour) + noise, 0, 255).astype(np.uint8)
        for _ in range(hairs):
            ends = rng.integers(-20, max(height, width) + 20, (2, 2)).tolist()
            shade = rng.integers(20, 90, 3).tolist()
            cv2.line(picture, ends[0], ends[1], shade, int(rng.integers(1, 5)), cv2.LINE_AA)
        return np.asarray(picture)

    return make


@pytest.fixture(scope="session")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve lesions at each of two made-up sites: twelve train, four validate, eight test."""
    return write_skin_lesions(tmp_path_factory.mktemp("lesions"), ("A", "B"), 12, 32)


@pytest.fixture(scope="session")
def recipe() -> tuple[object, ...]:
    """Flags of a training of six steps."""
    return (
        "--encoder", "test_resnet", "--image-size", 32, "--epochs", 2, "--batch-size", 4, "--log-every", 1, "--device", "cpu",
    )  # fmt: skip


@pytest.fixture(scope="session")
def networks(lesions: Path, recipe: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained networks: baseline and clgr, two seeds each."""
    runs = {}
    for debias in ("none", "clgr"):
        for seed in (0, 1):
            out = tmp_path_factory.mktemp("networks") / "run"
            words = ["train", "--datalist", lesions, *recipe, "--debias", debias, "--seed", seed, "--out", out]
            assert skintone_debias(*words) == 0
            runs[f"{debias}-{seed}"] = out
    return runs
