"""Bottleneck features of all slices on disk, as float16: memory stays small however many slices there are.

16,000 slices of 131,072 numbers are 4.2 GB in the run's folder. Only which slices were seen is part of a checkpoint. That is
enough: a resumed run writes again, with the same values, whatever was written after the checkpoint, as long as no row is
written between a clustering and the checkpoint that follows it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dart_core.errors import CheckpointError, OutputError
from dart_core.files import output_errors

LARGEST = float(np.finfo(np.float16).max)


class FeatureStore:
    """One float16 row per slice, in a file. A context manager; entering it makes the file, leaving it closes it.

    Args:
        path: the file; its folder is made.
        slices: number of slices of the site.
        shape: shape of one slice's feature.
    """

    def __init__(self, path: Path, slices: int, shape: Sequence[int]) -> None:
        self.path, self.slices, self.shape = path, slices, tuple(shape)
        self.seen = np.zeros(slices, dtype=bool)
        self._row_bytes = 2 * int(np.prod(self.shape))
        self._file: FileIO | None = None

    @property
    def nbytes(self) -> int:
        """Size of the file when every slice has been seen."""
        return self.slices * self._row_bytes

    def __enter__(self) -> FeatureStore:
        with output_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self.path, "r+" if self.path.exists() else "w+")
            # Rows that were never written read as zeros and take no room on most file systems.
            self._file.truncate(self.nbytes)
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        """Delete the file."""
        self.__exit__()
        self.path.unlink(missing_ok=True)

    def put(self, index: Tensor, features: Tensor) -> None:
        """Store features; of a slice that comes again the latest ones count.

        Written by ordinary writes, not through a memory map, so that a full disk is an error and not the end of the process.

        Args:
            index: (B,) slices.
            features: (B, ...) of the shape of the store, without gradient.

        Raises:
            OutputError: the disk is full.
        """
        assert self._file is not None
        if tuple(features.shape[1:]) != self.shape:
            raise ValueError(f"features have shape {tuple(features.shape)}, the store holds {self.shape}")
        rows = features.detach().float().clamp(-LARGEST, LARGEST).half().cpu().numpy()
        with output_errors(self.path):
            for place, row in zip(index.tolist(), rows, strict=True):
                self._file.seek(place * self._row_bytes)
                data = memoryview(row.tobytes())
                while len(data):
                    data = data[self._file.write(data) :]
                self.seen[place] = True

    def clear(self) -> None:
        """Forget all slices."""
        self.seen[:] = False

    def rows(self) -> FeatureRows:
        """The features of the slices seen, in the order of the slices."""
        return FeatureRows(self, np.flatnonzero(self.seen))

    def state_dict(self) -> dict[str, Any]:
        """Which slices were seen. Brings the rows to the disk, so that they are there when the checkpoint is."""
        if self._file is not None:
            with output_errors(self.path):
                os.fsync(self._file.fileno())
        return {"seen": torch.from_numpy(self.seen.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on which slices were seen; their rows must be in the file.

        Raises:
            CheckpointError: another number of slices.
        """
        seen = state["seen"].numpy()
        if seen.shape != self.seen.shape:
            raise CheckpointError(
                f"holds features of {len(seen)} slices, the scans have {self.slices}",
                where=self.path,
                remedy="resume with the scans the run started with",
            )
        self.seen[:] = seen


class FeatureRows:
    """Some rows of a store, read when they are asked for."""

    def __init__(self, store: FeatureStore, index: NDArray[np.int64]) -> None:
        self._store, self.index = store, index
        self.shape = (len(index), *store.shape)
        self.dtype = np.dtype(np.float16)

    def __getitem__(self, place: slice) -> NDArray[np.float16]:
        """(rows, ...) float16."""
        chosen = self.index[place]
        if len(chosen) == 0:
            return np.empty((0, *self._store.shape), np.float16)
        file = np.memmap(self._store.path, np.float16, "r", shape=(self._store.slices, *self._store.shape))
        return np.asarray(file[chosen])


def check_room(stores: Sequence[FeatureStore]) -> None:
    """Refuse to start where the features will not fit onto the disk.

    Raises:
        OutputError: too little space.
    """
    folder = stores[0].path.parent
    while not folder.exists():
        folder = folder.parent
    held = sum(store.path.stat().st_blocks * 512 for store in stores if store.path.exists() and os.name == "posix")
    needed, free = sum(store.nbytes for store in stores), shutil.disk_usage(folder).free + held
    if needed > free:
        raise OutputError(
            f"the features of all slices take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            where=stores[0].path.parent,
            remedy="free some space, or write to another disk",
        )
