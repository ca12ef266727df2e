"""What the paper compares: its runs, and its tables as printed."""

from __future__ import annotations

from adagrad_unet import settings as of
from dart_core.files import packaged_table

PRINTED_TABLES = ("table1", "table2", "table3")


def _run(optimizer: of.OptimizerName, epochs: int, augmentation: bool = True) -> of.Training:
    return of.Training(of.Optimisation(optimizer), epochs=epochs, augmentation=augmentation)


RUNS = {
    "S-1000": _run("sgd", 1000),
    "S-25": _run("sgd", 25),
    "S-50": _run("sgd", 50),
    "A-25": _run("adam", 25),
    "A-50": _run("adam", 50),
    "AG-25": _run("avagrad", 25),
    "AG-50": _run("avagrad", 50),
    "AG-1000": _run("avagrad", 1000),
    "S-1000-noAug": _run("sgd", 1000, augmentation=False),
    "S-25-noAug": _run("sgd", 25, augmentation=False),
    "A-25-noAug": _run("adam", 25, augmentation=False),
    "AG-25-noAug": _run("avagrad", 25, augmentation=False),
    "SGDm-25": _run("sgdm-10", 25),
    "SGDm-50": _run("sgdm-10", 50),
}
"""The columns of Tables 1 to 3, and the control that the paper lacks (specification 2.2, 4)."""


def printed_table(name: str) -> list[dict[str, str | float]]:
    """One of the paper's tables as printed, not measured here; one row per run.

    Args:
        name: "table1" (surface Dice on CC359 and, in columns `..._sig`, its asterisks), "table2" (Dice on M&Ms, columns
            <label>_<site>, and asterisks), "table3" (surface Dice on CC359 without augmentation).

    Returns:
        A dict for each row; columns of numbers are floats.

    Raises:
        ValueError: no such table.
    """
    return packaged_table("adagrad_unet", name, PRINTED_TABLES)
