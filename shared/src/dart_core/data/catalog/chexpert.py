"""CheXpert: 224,316 chest radiographs of 65,240 patients with 14 observations mined from reports.

Irvin J. et al., "CheXpert: a large chest radiograph dataset with uncertainty labels and expert comparison", AAAI 2019,
doi:10.1609/aaai.v33i01.3301590. The owners give it to registered users; nothing here downloads it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dart_core.data.catalog._pictures import check_root
from dart_core.data.catalog._splits import draw_splits
from dart_core.data.catalog._tables import read_rows
from dart_core.data.datalist import Datalist, Row
from dart_core.errors import InputError, SettingError
from dart_core.settings import UncertainLabels

if TYPE_CHECKING:
    import torch

LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 observations in the order of the owners' tables."""

ORIGIN = (
    "registered users download it (CheXpert-v1.0-small) from https://stanfordmlgroup.github.io/competitions/chexpert/;"
    " cite Irvin et al., AAAI 2019"
)

COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five observations that the owners' competition, and most papers, report."""

Policy = Literal["ones", "zeros", "keep"]
TestTable = Literal["none", "valid", "test"]

UNCERTAIN: dict[UncertainLabels, tuple[float, float]] = {
    "lsr-ones": (0.55, 0.85), "lsr-zeros": (0.0, 0.3), "ones": (1.0, 1.0), "zeros": (0.0, 0.0),
}  # fmt: skip
"""What an uncertain label becomes in training: a number drawn uniformly between these two (lsr: label smoothing
regularisation, Pham et al., Neurocomputing 2021, doi:10.1016/j.neucom.2020.03.127)."""

VAL_SHARE = 0.05
"""Of the patients of train.csv that are held out where valid.csv is the test."""

_SPLITS: dict[str, dict[str, str]] = {
    "none": {"train.csv": "train", "valid.csv": "val"},
    "valid": {"train.csv": "train", "valid.csv": "test"},
    "test": {"train.csv": "train", "valid.csv": "val", "test.csv": "test"},
}
"""Table -> split, by what is the test."""
_TABLES = ("train.csv", "valid.csv")
_PARTS = ("train", "valid", "test")
FOLDERS = ("", "CheXpert-v1.0-small", "CheXpert-v1.0")
"""Where the tables are, below the folder that a user gives."""
_PATIENT = re.compile(r"patient\d+")
_CELLS = {"": "0", "0": "0", "0.0": "0", "1": "1", "1.0": "1", "-1": "-1", "-1.0": "-1"}


def index(
    root: str | os.PathLike[str],
    policy: Policy = "ones",
    test: TestTable = "none",
    frontal: bool = False,
    seed: int = 0,
) -> Datalist:
    """List the pictures that are there, in the order of the tables.

    Layout: train.csv and valid.csv beside the folders train/ and valid/; test.csv and test/ where you have them. An
    observation that the report does not mention (an empty cell) counts as absent.

    Args:
        root: the folder CheXpert-v1.0-small or CheXpert-v1.0, or the one that holds it.
        policy: what an uncertain observation (-1) becomes: "ones" 1, "zeros" 0; "keep" leaves -1, for a method that
            draws a value each time.
        test: "none": valid.csv is for validation, and there is no test. "valid": valid.csv is the test, as in most
            papers, and a twentieth of the patients of train.csv, drawn with `seed`, is for validation. "test": test.csv, which
            the owners published later, is the test, and valid.csv is for validation.
        frontal: leave lateral views out.
        seed: of the draw of "valid".

    Returns:
        rows with image, subject (patient00001), site "chexpert", split and labels: one of LABELS each "0" or "1" (or "-1"),
        and view (AP, PA, ...), sex and age where the table gives them.

    Raises:
        InputError: another folder, a table that is missing or does not fit, no picture.
        SettingError: an unknown policy or test.
    """
    if policy not in ("ones", "zeros", "keep"):
        raise SettingError(f"no policy {policy!r} for uncertain labels", remedy="choose ones, zeros or keep")
    if test not in _SPLITS:
        raise SettingError(f"no test {test!r}", remedy=f"choose {', '.join(_SPLITS)}")
    folder = _folder(Path(root))
    if test != "none" and not (folder / f"{test}.csv").is_file():
        raise InputError(f"{test}.csv is missing", where=folder, remedy=f"add it or choose another test; {ORIGIN}")
    listed = [row for row in _rows(folder, policy, test) if not (frontal and row.labels.get("view") == "Lateral")]
    if test == "valid":
        patients = {row.subject: "" for row in listed if row.split == "train"}
        split_of = draw_splits(patients, 0.0, VAL_SHARE, seed)
        listed = [replace(row, split=split_of[row.subject] if row.split == "train" else row.split) for row in listed]
    rows = tuple(row for row in listed if row.image.is_file())
    if not rows:
        raise InputError(
            "none of the pictures in the tables is there", where=folder, remedy=f"check the path; {ORIGIN}"
        )
    return Datalist(rows, folder)


def draw_uncertain(
    labels: Any, policy: UncertainLabels, generator: torch.Generator | np.random.Generator | None = None
) -> NDArray[np.float64]:
    """Labels as a loss compares with: in the place of -1 stands what the policy draws, anew at each call.

    Args:
        labels: array of any shape; -1 is uncertain, everything else (nan too) stays.
        policy: a key of UNCERTAIN.
        generator: draws one number for each label, so that what one becomes does not depend on the others; None: PyTorch's own.

    Returns:
        float64 array of that shape.

    Raises:
        SettingError: an unknown policy.
    """
    if policy not in UNCERTAIN:
        raise SettingError(f"no policy {policy!r} for uncertain labels", remedy=f"give one of {', '.join(UNCERTAIN)}")
    values = np.asarray(labels, dtype=np.float64)
    low, high = UNCERTAIN[policy]
    if isinstance(generator, np.random.Generator):
        drawn = generator.uniform(low, high, values.shape)
    else:
        import torch

        share = torch.rand(values.shape, dtype=torch.float64, generator=generator).numpy()
        drawn = low + (high - low) * share
    return np.where(values == -1, drawn, values)


def report_missing(root: str | os.PathLike[str]) -> list[str]:
    """Say how many pictures of each table are missing, and where they come from; empty when all are there.

    Raises:
        InputError: another folder, or a table that does not fit.
    """
    folder = _folder(Path(root))
    rows = list(_rows(folder, "ones", "test"))
    lines = []
    for table in _SPLITS["test"]:
        if not (folder / table).is_file():
            if table in _TABLES:
                lines.append(f"{table} is missing")
            continue
        listed = [row.image for row in rows if row.source.name == table]
        missing = [image for image in listed if not image.is_file()]
        if missing:
            first = missing[0].relative_to(folder).as_posix()
            lines.append(f"{table}: {len(missing)} of {len(listed)} pictures are missing, the first is {first}")
    return [*lines, f"CheXpert: {ORIGIN}"] if lines else []


def _folder(root: Path) -> Path:
    check_root(root, "CheXpert", ORIGIN)
    for name in FOLDERS:
        if any((root / name / table).is_file() for table in _TABLES):
            return root / name
    raise InputError(
        "this is not a CheXpert folder (neither train.csv nor valid.csv)",
        where=root,
        remedy=f"give the folder that holds them; {ORIGIN}",
    )


def _rows(folder: Path, policy: Policy, test: TestTable) -> Iterator[Row]:
    for table, split in _SPLITS[test].items():
        path = folder / table
        if not path.is_file():
            continue
        for line, entry in read_rows(path, ("Path", *LABELS)):
            # Paths begin with the name of the owners' folder, whatever it is called here; those of test.csv do not always.
            parts = Path(entry["Path"]).parts
            parts = parts if parts and parts[0] in _PARTS else parts[1:]
            patient = next((part for part in parts if _PATIENT.fullmatch(part)), None)
            if patient is None:
                raise InputError(
                    f"the path {entry['Path']!r} names no patient",
                    where=f"{path}, row {line}, column Path",
                    remedy="paths are like CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg",
                )
            labels = {name: _label(path, line, name, entry[name], policy) for name in LABELS}
            about = {"view": _view(entry, parts[-1]), "sex": entry.get("Sex", ""), "age": entry.get("Age", "")}
            labels |= {name: value for name, value in about.items() if value}
            yield Row(
                folder.joinpath(*parts),
                subject=patient,
                site="chexpert",
                split=split,
                labels=labels,
                line=line,
                source=path,
            )


def _view(entry: dict[str, str], name: str) -> str:
    """AP, PA, ... or Lateral; test.csv has no column for it, but the name of the picture tells."""
    side = entry.get("Frontal/Lateral", "") or ("Lateral" if "lateral" in name.lower() else "")
    return side if side == "Lateral" else entry.get("AP/PA") or side


def _label(path: Path, line: int, column: str, text: str, policy: Policy) -> str:
    if text not in _CELLS:
        raise InputError(
            f"{text!r} is no label", where=f"{path}, row {line}, column {column}", remedy="cells are 1, 0, -1 or empty"
        )
    value = _CELLS[text]
    return {"ones": "1", "zeros": "0", "keep": "-1"}[policy] if value == "-1" else value
