"""Phantom heads and hearts, tiny trained runs, and the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from dart_core.data.phantoms import write_cardiac_mr, write_head_mr
from dart_core.testing import Finished, InProcess

nib: Any = nibabel
SITES = ("ge3", "sm15", "ph3")
"""Source, and two targets that store their files otherwise."""
HEADS, HEARTS = (32, 40, 16), (40, 40, 6)
TINY = ("--slice-axis", "z", "--base-features", 4, "--max-pools", 2, "--batch-size", 4, "--epochs", 2, "--batches", 3,
        "--validation-batches", 1, "--log-every", 1, "--device", "cpu")  # fmt: skip
TINY_SPOT = ("--preprocessing", "plain", "--epochs", 2, "--batches", 3, "--batch-size", 2, "--patch", 32,
             "--log-every", 1, "--device", "cpu")  # fmt: skip


class Files:
    """Writes small images and datalists."""

    @staticmethod
    def write(path: Path, array: np.ndarray, spacing=(1.0, 1.0, 1.0), codes: str = "RAS") -> Path:
        """An array in RAS order as a file stored in another orientation."""
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(np.ascontiguousarray(array), np.diag([*spacing, 1.0]))
        orientation = nib.orientations.axcodes2ornt(tuple(codes))
        nib.save(
            image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), orientation)),
            path,
        )
        return path

    @staticmethod
    def case(folder: Path, name: str, image: np.ndarray, labels: np.ndarray, **how: Any) -> dict[str, str]:
        Files.write(folder / f"{name}.nii.gz", image.astype(np.float32), **how)
        Files.write(folder / f"{name}_mask.nii.gz", labels.astype(np.uint8), **how)
        return {"image": f"{name}.nii.gz", "mask": f"{name}_mask.nii.gz"}

    @staticmethod
    def datalist(folder: Path, rows: list[dict[str, str]]) -> Path:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines = [",".join(columns), *(",".join(row.get(column, "") for column in columns) for row in rows)]
        path = folder / "list.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    @staticmethod
    def brain(rng: np.random.Generator, shape=(12, 16, 8)) -> tuple[np.ndarray, np.ndarray]:
        """An image that is zero in a margin of one voxel, with two labels."""
        image = np.zeros(shape)
        image[1:-1, 1:-1, 1:-1] = rng.uniform(1, 2, [side - 2 for side in shape])
        labels = np.zeros(shape)
        labels[3:8, 4:9, 2:6] = 1
        labels[4:6, 5:7, 3:5] = 2
        return image, labels


@pytest.fixture
def files() -> type[Files]:
    """Functions that write small images and datalists."""
    return Files


adagrad_unet = InProcess("adagrad-unet")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run `adagrad-unet WORDS...` in this process."""
    return adagrad_unet.captured(capsys)


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five heads on each of three scanners; three train, one validates, one tests."""
    return write_head_mr(tmp_path_factory.mktemp("heads"), SITES, 5, HEADS)


@pytest.fixture(scope="session")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four hearts of two vendors at two phases, with three labels; two train, one each validates and tests."""
    return write_cardiac_mr(tmp_path_factory.mktemp("hearts"), ("B", "C"), 4, HEARTS)


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
    assert adagrad_unet("spottune", *words, "--site", SITES[0], "--width", 2, "--out", folder / "baseline") == 0
    tuned = ("--stage", "spottuned", "--model", folder / "baseline", "--slices", 7, "--interval", 5)
    assert adagrad_unet("spottune", *words, "--site", SITES[1], *tuned, "--out", folder / "tuned") == 0
    return {"baseline": folder / "baseline", "tuned": folder / "tuned"}
