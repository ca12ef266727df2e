"""Collections of chest radiographs, told apart by what their folders hold, so that a command takes any of them as it is."""

from __future__ import annotations

import os
from pathlib import Path

from dart_core.data.catalog import chestxray14, chexpert, rsna_pe, rsna_pneumonia, shenzhen, vindr_cxr
from dart_core.data.catalog._splits import Lists
from dart_core.data.datalist import Datalist
from dart_core.errors import InputError, SettingError

NAMES = ("chestxray14", "chexpert", "shenzhen", "vindr-cxr", "rsna-pneumonia", "rsna-pe")
"""The data sets; each is the site of its rows."""

_WITH_LISTS = ("chestxray14", "shenzhen", "rsna-pneumonia")


def recognise(folder: str | os.PathLike[str]) -> str | None:
    """Which of NAMES a folder holds; None: none of them."""
    folder = Path(folder)
    if not folder.is_dir():
        return None
    if any(folder.glob("Data_Entry_2017*.csv")):
        return "chestxray14"
    if any(any((folder / place).glob("annotations/image_labels_t*.csv")) for place in vindr_cxr.FOLDERS):
        return "vindr-cxr"
    if any((folder / place / "stage_2_detailed_class_info.csv").is_file() for place in ("", rsna_pneumonia.FOLDER)):
        return "rsna-pneumonia"
    if any(_first_column(folder / place / "train.csv") == "StudyInstanceUID" for place in ("", rsna_pe.FOLDER)):
        return "rsna-pe"
    if any((folder / place / table).is_file() for place in chexpert.FOLDERS for table in ("train.csv", "valid.csv")):
        return "chexpert"
    if any(any(folder.glob(f"{place}CHNCXR_*")) for place in ("", "*/", "*/*/")):
        return "shenzhen"
    return None


def open_radiographs(
    path: str | os.PathLike[str],
    policy: chexpert.Policy = "keep",
    test: chexpert.TestTable = "valid",
    frontal: bool = False,
    lists: Lists | None = None,
    seed: int = 0,
) -> Datalist:
    """Read a datalist, or the folder of one of NAMES as its owners publish it.

    Every data set comes with splits into train, val and test, except that ChestX-ray14 has no validation part without
    `lists`, and no split at all without test_list.txt.

    Args:
        path: a CSV file, a dataset.json, or a folder.
        policy: of CheXpert, what an uncertain observation becomes.
        test: of CheXpert, which table is the test.
        frontal: of CheXpert, leave lateral views out.
        lists: of ChestX-ray14, Shenzhen and RSNA Pneumonia, lists of authors: split -> text file.
        seed: of the splits that are drawn where owners publish none.

    Raises:
        InputError: none of these, or a folder that does not fit.
        SettingError: lists for another data set.
    """
    path = Path(path)
    found = recognise(path)
    if lists is not None and found not in _WITH_LISTS:
        raise SettingError("lists for a data set that has none", remedy=f"lists are for {', '.join(_WITH_LISTS)}")
    match found:
        case "chestxray14":
            return chestxray14.index(path, lists)
        case "chexpert":
            return chexpert.index(path, policy, test, frontal, seed)
        case "shenzhen":
            return shenzhen.index(path, lists, seed)
        case "vindr-cxr":
            return vindr_cxr.index(path, seed=seed)
        case "rsna-pneumonia":
            return rsna_pneumonia.index(path, lists, seed)
        case "rsna-pe":
            return rsna_pe.index(path, seed=seed)
    if path.is_dir() and not (path / "dataset.json").is_file():
        raise InputError(
            f"the folder is none of {', '.join(NAMES)}",
            where=path,
            remedy="give a CSV datalist, or a folder as its owners publish it",
        )
    return Datalist.read(path)


def report_missing(path: str | os.PathLike[str]) -> list[str]:
    """Say which pictures of a published folder are not there, and where they come from; empty for whole sets and for datalists.

    Raises:
        InputError: a folder that does not fit.
    """
    modules = (chestxray14, chexpert, shenzhen, vindr_cxr, rsna_pneumonia, rsna_pe)
    found = recognise(path)
    return [] if found is None else dict(zip(NAMES, modules, strict=True))[found].report_missing(path)


def _first_column(table: Path) -> str:
    try:
        with open(table, encoding="utf-8-sig", errors="replace") as file:
            return file.readline(4096).split(",")[0].strip()
    except OSError:
        return ""
