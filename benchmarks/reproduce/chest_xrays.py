"""Write the real sets nih_cxr_1000 and pneumoniamnist as PNG files with datalists, one column per label.

    python benchmarks/reproduce/chest_xrays.py --data-root DATA --out FOLDER [--size 128]

DATA (or the environment variable DART_DATA) holds nih_cxr_1000/nih_cxr_128.npz (1,000 adults' radiographs of 128 pixels, 14
findings mined from reports) and pneumoniamnist/pneumoniamnist.npz (5,856 children's radiographs of 28 pixels, pneumonia or
not). Their DATA.md name origin and licence (NIH, without restriction; CC BY 4.0); what is written here stays out of the
repository.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dart_core.data.catalog.chestxray14 import LABELS
from dart_core.data.datalist import Datalist, Row
from dart_core.data.images import write_image
from dart_core.errors import InputError, SettingError

SETS = {"nih_cxr_1000": LABELS, "pneumoniamnist": ("Pneumonia",)}
"""The sets and their labels."""

TEST_SHARE = 0.3
"""Of the patients of nih_cxr_1000: with its few positives per label, less would leave labels without any in the test."""


def convert(data_root: Path, out: Path, size: int | None = 128, seed: int = 0) -> dict[str, Path]:
    """Write the pictures and a datalist per set.

    nih_cxr_1000 is split by patient, train and test. pneumoniamnist keeps its owners' train, val and test; who is in a
    picture is not known, so every picture counts as a patient of its own; pictures of one child may be in two parts.

    Args:
        data_root: folder that holds nih_cxr_1000/ and pneumoniamnist/.
        out: folder to write a folder per set and a CSV file per set into.
        size: side of the pictures; others are resized (bicubic when larger, averaged when smaller). None keeps 128 and 28.
        seed: of the split of nih_cxr_1000.

    Returns:
        set -> datalist.

    Raises:
        InputError: a set is not there.
        SettingError: a size below 1.
    """
    if size is not None and size < 1:
        raise SettingError(f"size is {size}", remedy="give a number of pixels, or none to keep the sizes")
    files = {
        "nih_cxr_1000": data_root / "nih_cxr_1000" / "nih_cxr_128.npz",
        "pneumoniamnist": data_root / "pneumoniamnist" / "pneumoniamnist.npz",
    }
    for file in files.values():
        if not file.is_file():
            raise InputError("the real set is not there", where=file, remedy="give --data-root or set DART_DATA")
    rows = {
        "nih_cxr_1000": _nih(files["nih_cxr_1000"], out / "nih_cxr_1000", size, seed),
        "pneumoniamnist": _pneumonia(files["pneumoniamnist"], out / "pneumoniamnist", size),
    }
    return {name: Datalist(tuple(listed)).write(out / f"{name}.csv") for name, listed in rows.items()}


def split_patients(patients: NDArray[np.int64], test_share: float, seed: int) -> dict[int, str]:
    """Draw the patients for test.

    Args:
        patients: (n,) the patient of each picture.
        test_share: part of the patients (not of the pictures).
        seed: of the draw.

    Returns:
        patient -> train or test.
    """
    names = np.random.default_rng(seed).permutation(np.unique(patients))
    test = round(test_share * len(names))
    return {int(name): "test" if place < test else "train" for place, name in enumerate(names)}


def _nih(file: Path, out: Path, size: int | None, seed: int) -> list[Row]:
    data = np.load(file, allow_pickle=False)
    splits = split_patients(data["patient"], TEST_SHARE, seed)
    column = {str(name): number for number, name in enumerate(data["label_names"])}
    rows = []
    for image, labels, name, patient in zip(
        data["images"], data["labels"], data["names"], data["patient"], strict=True
    ):
        rows.append(
            Row(
                image=write_image(out / str(name), resize(image, size)),
                subject=str(patient),
                site="nih_cxr_1000",
                split=splits[int(patient)],
                labels={label: str(int(labels[column[label]])) for label in LABELS},
            )
        )
    return rows


def _pneumonia(file: Path, out: Path, size: int | None) -> list[Row]:
    data = np.load(file, allow_pickle=False)
    rows = []
    for split in ("train", "val", "test"):
        for number, (image, label) in enumerate(zip(data[f"{split}_images"], data[f"{split}_labels"], strict=True)):
            name = f"{split}{number:05d}"
            rows.append(
                Row(
                    image=write_image(out / f"{name}.png", resize(image, size)),
                    subject=name,
                    site="pneumoniamnist",
                    split=split,
                    labels={"Pneumonia": str(int(label[0]))},
                )
            )
    return rows


def resize(image: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """Resize a square picture (n, n) to (size, size)."""
    if size is None or image.shape == (size, size):
        return image
    method = Image.Resampling.BICUBIC if size > image.shape[0] else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize((size, size), method))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("DART_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128, help="pixels; 0 keeps the sets' own (128 and 28)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.data_root is None:
        parser.error("give --data-root or set DART_DATA")
    for name, path in convert(Path(arguments.data_root), arguments.out, arguments.size or None, arguments.seed).items():
        rows = Datalist.read(path)
        parts = ", ".join(f"{split} {len(rows.select(split=split))}" for split in rows.splits)
        print(f"{name}: {path} ({parts})")


if __name__ == "__main__":
    main()
