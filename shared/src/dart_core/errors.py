"""Errors that speak to the user: what is wrong, where, and what to do about it.

Every error a person can cause by their input is a `DartError`. The command line prints it as one line and
exits with `exit_status`; `--debug` shows the traceback.
"""

from __future__ import annotations

import os


class DartError(Exception):
    """One clear line about something the user can put right.

    Args:
        problem: what is wrong, as a clause without a full stop ("mask has shape (4, 4), the image (5, 4)").
        where: the file (with row or key where there is one) that it is about, printed in front.
        remedy: what to do, printed behind.
    """

    exit_status = 2

    def __init__(self, problem: str, *, where: str | os.PathLike[str] | None = None, remedy: str | None = None) -> None:
        self.problem = problem
        self.where = None if where is None else os.fspath(where)
        self.remedy = remedy
        line = problem if self.where is None else f"{self.where}: {problem}"
        line = line if remedy is None else f"{line}; {remedy}"
        super().__init__(" ".join(line.split()))


class InputError(DartError, ValueError):
    """A file, array or datalist that cannot be used as it is."""


class SettingError(DartError, ValueError):
    """A flag or YAML key that is unknown, of the wrong type, or contradicts another."""


class CheckpointError(DartError, ValueError):
    """A checkpoint or weight file that is damaged, unsafe, or belongs to another network."""


class DeviceError(DartError):
    """A device that was asked for and is not there."""


class OutputError(DartError):
    """An output folder or file that cannot be written without losing something."""


class Interrupted(DartError):
    """Ctrl-C or SIGTERM arrived; what there was to save has been saved.

    Args:
        problem: what was stopped and where it stands.
        signal_number: 2 for Ctrl-C (exit status 130), 15 for SIGTERM (143).
        remedy: how to go on.
    """

    def __init__(self, problem: str, *, signal_number: int, remedy: str | None = None) -> None:
        super().__init__(problem, remedy=remedy)
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number
