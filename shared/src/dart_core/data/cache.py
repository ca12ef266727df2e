"""A folder that keeps arrays which take long to compute and are read again and again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dart_core.errors import InputError, SettingError
from dart_core.files import atomic_write

_CHECK_BYTES = 4  # CRC-32 behind the array, where readers of .npy do not look


class ArrayCache:
    """Arrays on disk, found again by the files they come from and by how they were made.

    An entry is used only as long as its source files keep path, size and time of change, and its parameters stay the
    same; otherwise it is computed anew beside the old one. A damaged entry is computed again. Several processes may use
    one folder at once: entries appear whole, and nothing in them is ever executed.

    Args:
        folder: where the .npy files go; made when the first one is written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def path(
        self, parameters: Mapping[str, Any] | str, sources: Iterable[str | os.PathLike[str]], dtype: str = "float16"
    ) -> Path:
        """Name the file that holds, or will hold, the array that `get` gives for these arguments.

        Raises:
            InputError: a source file is missing.
            SettingError: parameters that JSON cannot express.
        """
        stamps = []
        for source in sources:
            absolute = os.path.abspath(source)
            try:
                status = os.stat(absolute)
            except OSError as error:
                raise InputError("file not found", where=source, remedy="check the path") from error
            stamps.append([absolute, status.st_size, status.st_mtime_ns])
        try:
            key = json.dumps([parameters, stamps, dtype], sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise SettingError(
                f"cache parameters cannot be written as JSON ({error})", remedy="give plain values"
            ) from error
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.npy"

    def get(
        self,
        parameters: Mapping[str, Any] | str,
        sources: Iterable[str | os.PathLike[str]],
        compute: Callable[[], NDArray[Any]],
        dtype: Literal["float16", "float32", "bool"] = "float16",
        memory_map: bool = False,
    ) -> NDArray[Any]:
        """Give the array from the cache, or compute it and keep it.

        The first call gives the same values as later ones: what was computed is rounded to `dtype` at once.

        Args:
            parameters: everything that the array depends on besides the files (step name, settings, version).
            sources: the files it is computed from.
            compute: makes the array when it is not there.
            dtype: how it is stored. float16 (half the space; 11 bits of precision, up to 65504) suits scaled images.
            memory_map: leave the array on disk, read-only, and read pages as they are touched; it then keeps `dtype`,
                and only its length is checked for damage.

        Returns:
            float32 (bool for dtype "bool"), or the stored type with `memory_map`.

        Raises:
            InputError: a source file is missing, or the values do not fit into `dtype`.
            OutputError: the cache folder cannot be written.
        """
        path = self.path(parameters, sources, dtype)
        stored = _load(path, dtype, memory_map)
        if stored is None:
            array = np.asarray(compute())
            with np.errstate(over="ignore"):
                stored = np.ascontiguousarray(array, dtype=dtype)
            if stored.dtype.kind == "f" and np.isfinite(array).all() and not np.isfinite(stored).all():
                raise InputError(
                    f"values up to {np.abs(array).max():g} do not fit into {dtype}",
                    where=path,
                    remedy="scale the array first, or store float32",
                )
            _store(path, stored)
            if memory_map:
                stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if memory_map or dtype == "bool":
            return stored
        return stored.astype(np.float32)


def _store(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    # The view is released here even when the disk is full: see save_checkpoint.
    with buffer.getbuffer() as content, atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.write(zlib.crc32(content).to_bytes(_CHECK_BYTES, "little"))


def _load(path: Path, dtype: str, memory_map: bool) -> NDArray[Any] | None:
    """Read an entry; None when it is missing or damaged."""
    try:
        if memory_map:
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            length = getattr(mapped, "offset", 0) + mapped.nbytes + _CHECK_BYTES
            return mapped if mapped.dtype == dtype and path.stat().st_size == length else None
        content = path.read_bytes()
        body = memoryview(content)[:-_CHECK_BYTES]
        if zlib.crc32(body) != int.from_bytes(content[-_CHECK_BYTES:], "little"):
            return None
        array: NDArray[Any] = np.load(io.BytesIO(body), allow_pickle=False)
        return array if array.dtype == dtype else None
    except (OSError, ValueError, EOFError):
        return None
