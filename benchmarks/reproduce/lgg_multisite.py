"""Write the real set lgg_multisite (61 patients, five hospitals, T1 and FLAIR) as NIfTI volumes with brain and tumour masks.

    python benchmarks/reproduce/lgg_multisite.py --data-root DATA --out FOLDER [--split-seed 0]

DATA (or the environment variable DART_DATA) holds lgg_multisite/lgg_multisite.npz. Its DATA.md names origin and licence
(CC BY-NC-SA 4.0); what is written here stays out of the repository.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np

from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError

PIXEL, SLICE_DISTANCE = 1.8, 12.0
"""Nominal, in mm: the publishers did not keep pixel sizes (0.8 to 1 mm before halving), and slices have gaps."""

LISTS = ("t1", "flair", "t1_tumour", "flair_tumour")
"""Datalists: contrast, with brain masks (automatic) or tumour masks (drawn by hand)."""


def convert(data_root: Path, out: Path, split_seed: int | None = None) -> dict[str, Path]:
    """Write the volumes and a datalist per contrast and kind of mask.

    Args:
        data_root: folder that holds lgg_multisite/.
        out: folder to write images/, masks/, tumours/, and a CSV file for each of LISTS into.
        split_seed: fill a column split by `split_patients`; None: no such column.

    Returns:
        name (LISTS) -> datalist.
    """
    file = data_root / "lgg_multisite" / "lgg_multisite.npz"
    if not file.is_file():
        raise InputError("the real set is not there", where=file, remedy="give --data-root or set DART_DATA")
    data = np.load(file, allow_pickle=False)
    brain, tumour = (np.unpackbits(data[name], axis=-1)[..., : data["t1"].shape[-1]] for name in ("brain", "tumour"))
    patients = {
        str(name): str(data["site_names"][data["site"][data["patient"] == name][0]])
        for name in np.unique(data["patient"])
    }
    splits = {} if split_seed is None else split_patients(patients, split_seed)
    # Pictures are shown as radiologists do: columns run to the patient's left, rows to the back.
    affine = np.diag([-PIXEL, -PIXEL, SLICE_DISTANCE, 1.0])
    rows: dict[str, list[Row]] = {name: [] for name in LISTS}
    for patient, site in patients.items():
        index = np.flatnonzero(data["patient"] == patient)
        index = index[np.argsort(data["slice"][index])]
        masks = {"": out / "masks" / f"{patient}.nii.gz", "_tumour": out / "tumours" / f"{patient}.nii.gz"}
        _write(masks[""], brain[index].astype(np.uint8), affine)
        _write(masks["_tumour"], tumour[index].astype(np.uint8), affine)
        for contrast in ("t1", "flair"):
            slices = data[contrast][index]
            if not slices.any():
                continue
            image = out / "images" / f"{patient}_{contrast}.nii.gz"
            _write(image, slices, affine)
            for kind, mask in masks.items():
                split = splits.get(patient, "")
                rows[contrast + kind].append(Row(image=image, mask=mask, subject=patient, site=site, split=split))
    return {name: Datalist(tuple(listed)).write(out / f"{name}.csv") for name, listed in rows.items()}


def split_patients(sites: Mapping[str, str], seed: int) -> dict[str, str]:
    """Divide the patients of every site at random: a quarter for test, an eighth for validation, the others for training.

    Args:
        sites: patient -> site.
        seed: of the draw. A site's split does not depend on the other sites.

    Returns:
        patient -> train, val or test. A patient alone at its site is for test.
    """
    splits = {}
    for site in sorted(set(sites.values())):
        names = sorted(name for name, where in sites.items() if where == site)
        names = [names[i] for i in np.random.default_rng([seed, *site.encode()]).permutation(len(names))]
        test, validation = max(1, round(len(names) / 4)), round(len(names) / 8)
        for place, name in enumerate(names):
            splits[name] = "test" if place < test else "val" if place < test + validation else "train"
    return splits


def _write(path: Path, slices: np.ndarray, affine: np.ndarray) -> None:
    """(slices, rows, columns) -> a NIfTI file whose axes run left, back, up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(slices.transpose(2, 1, 0)), affine), path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=os.environ.get("DART_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split-seed", type=int, help="write a column split (train, val, test by patient)")
    arguments = parser.parse_args()
    if arguments.data_root is None:
        parser.error("give --data-root or set DART_DATA")
    for name, path in convert(Path(arguments.data_root), arguments.out, arguments.split_seed).items():
        print(f"{name}: {path} ({len(Datalist.read(path))} scans)")


if __name__ == "__main__":
    main()
