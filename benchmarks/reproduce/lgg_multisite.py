"""Write the real set lgg_multisite (61 patients, five hospitals, T1 and FLAIR) as NIfTI volumes with brain masks.

    python benchmarks/reproduce/lgg_multisite.py --data-root DATA --out FOLDER

DATA (or the environment variable DART_DATA) holds lgg_multisite/lgg_multisite.npz. Its DATA.md names origin and licence
(CC BY-NC-SA 4.0); what is written here stays out of the repository.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import nibabel
import numpy as np

from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

PIXEL, SLICE_DISTANCE = 1.8, 12.0
"""Nominal, in mm: the publishers did not keep pixel sizes (0.8 to 1 mm before halving), and slices have gaps."""


def convert(data_root: Path, out: Path) -> dict[str, Path]:
    """Write the volumes and one datalist per contrast.

    Args:
        data_root: folder that holds lgg_multisite/.
        out: folder to write images/, masks/, t1.csv and flair.csv into.

    Returns:
        contrast -> datalist.
    """
    file = data_root / "lgg_multisite" / "lgg_multisite.npz"
    if not file.is_file():
        raise InputError("the real set is not there", where=file, remedy="give --data-root or set DART_DATA")
    data = np.load(file, allow_pickle=False)
    brain = np.unpackbits(data["brain"], axis=-1)[..., : data["t1"].shape[-1]]
    # Pictures are shown as radiologists do: columns run to the patient's left, rows to the back.
    affine = np.diag([-PIXEL, -PIXEL, SLICE_DISTANCE, 1.0])
    lists: dict[str, Path] = {}
    rows: dict[str, list[Row]] = {"t1": [], "flair": []}
    for patient in np.unique(data["patient"]):
        index = np.flatnonzero(data["patient"] == patient)
        index = index[np.argsort(data["slice"][index])]
        site = str(data["site_names"][data["site"][index[0]]])
        mask = out / "masks" / f"{patient}.nii.gz"
        _write(mask, brain[index].astype(np.uint8), affine)
        for contrast, contrast_rows in rows.items():
            slices = data[contrast][index]
            if not slices.any():
                continue
            image = out / "images" / f"{patient}_{contrast}.nii.gz"
            _write(image, slices, affine)
            contrast_rows.append(Row(image=image, mask=mask, subject=str(patient), site=site))
    for contrast, contrast_rows in rows.items():
        lists[contrast] = Datalist(tuple(contrast_rows)).write(out / f"{contrast}.csv")
    return lists


def _write(path: Path, slices: np.ndarray, affine: np.ndarray) -> None:
    """(slices, rows, columns) -> a NIfTI file whose axes run left, back, up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(slices.transpose(2, 1, 0)), affine), path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("DART_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.data_root is None:
        parser.error("give --data-root or set DART_DATA")
    for contrast, path in convert(Path(arguments.data_root), arguments.out).items():
        print(f"{contrast}: {path} ({len(Datalist.read(path))} scans)")


if __name__ == "__main__":
    main()
