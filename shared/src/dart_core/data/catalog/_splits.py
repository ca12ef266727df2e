"""Splits of data sets whose owners publish none: lists that authors give with their code, or a seeded draw."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dart_core.data.datalist import SPLITS
from dart_core.errors import InputError, SettingError

Lists = Mapping[str, str | os.PathLike[str]]
"""Split -> a text file with one picture per line: its name, then (after blanks, a tab or a comma) whatever else."""


def read_lists(lists: Lists) -> dict[str, str]:
    """Name of a picture, without folder and ending -> its split.

    Labels that stand behind the names are not looked at: the owners' tables have them.

    Raises:
        InputError: a list that cannot be read or is empty, or a picture in two of them.
        SettingError: an unknown split.
    """
    split_of: dict[str, str] = {}
    for split, file in lists.items():
        if split not in SPLITS:
            raise SettingError(f"a list for the split {split!r}", remedy=f"name lists {', '.join(SPLITS)}")
        path = Path(file)
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=path, remedy="check the file") from error
        except UnicodeDecodeError as error:
            raise InputError(f"cannot be read ({error})", where=path, remedy="give a list in plain UTF-8") from error
        names = [re.split(r"[\s,]", line.strip(), maxsplit=1)[0] for line in lines]
        if not any(names):
            raise InputError("the list is empty", where=path, remedy="write the name of a picture in each line")
        for line, name in enumerate(names, start=1):
            stem = Path(name).stem
            if stem and split_of.setdefault(stem, split) != split:
                raise InputError(
                    f"{name} is in the list of {split_of[stem]} too",
                    where=f"{path}, row {line}",
                    remedy="keep it in one",
                )
    return split_of


def draw_splits(strata: Mapping[str, str], test_share: float, val_share: float, seed: int) -> dict[str, str]:
    """Split units (patients, studies, pictures) at random, with the same shares in every stratum.

    Args:
        strata: unit -> stratum; the order does not matter.
        test_share: share of a stratum's units for the test, rounded.
        val_share: share of them for validation, rounded.
        seed: of the draw.

    Returns:
        unit -> train, val or test.

    Raises:
        SettingError: a negative share, or nothing left for training.
    """
    if min(test_share, val_share) < 0 or test_share + val_share >= 1:
        raise SettingError(
            f"shares of {test_share} for test and {val_share} for validation",
            remedy="give two shares from 0 that leave something to train on",
        )
    groups: dict[str, list[str]] = {}
    for unit, stratum in strata.items():
        groups.setdefault(stratum, []).append(unit)
    split_of: dict[str, str] = {}
    for number, stratum in enumerate(sorted(groups)):
        units = sorted(groups[stratum])
        order = np.random.default_rng([seed, number]).permutation(len(units))
        test = round(test_share * len(units))
        val = round(val_share * len(units))
        for place, i in enumerate(order):
            split_of[units[i]] = "test" if place < test else "val" if place < test + val else "train"
    return split_of
