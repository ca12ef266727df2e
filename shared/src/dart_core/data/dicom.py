"""Single pictures and CT slices from DICOM files, through pydicom (extra `dart-core[dicom]`).

Files are told by their content, not by their names: the letters DICM stand behind the first 128 bytes.
"""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dart_core.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS = (".dcm", ".dicom")
"""Usual endings of DICOM files."""
Function = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a DICOM file by its content; a file that cannot be opened is none."""
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """A picture as its file wants it shown, in 8 bits.

    Grey values pass through the modality's table or slope, then through the file's own table or first window (VOI), without
    one from the darkest to the brightest pixel; MONOCHROME1, where high values are dark, is inverted. Colour stays as it is.

    Args:
        path: a DICOM file with one frame.

    Returns:
        uint8 (H, W), or (H, W, 3) of a colour picture.

    Raises:
        InputError: pydicom or a decoder is missing, several frames, no picture, file truncated or damaged.
    """
    path = Path(path)
    data, stored = _read(path)
    from pydicom.pixels import processing

    kind = str(data.get("PhotometricInterpretation") or "MONOCHROME2")
    if kind == "PALETTE COLOR":
        return _eight_bits(_processed(path, processing.apply_color_lut, stored, data)[..., :3])
    if stored.ndim == 3:
        return _eight_bits(stored)
    values = _processed(path, processing.apply_modality_lut, stored, data)
    if data.get("VOILUTSequence"):
        table = data.VOILUTSequence[0]
        last = 2.0 ** int(table.LUTDescriptor[2]) - 1 if "LUTDescriptor" in table else 255.0
        grey = _rounded(_processed(path, processing.apply_voi, values, data) * (255 / last))
    else:
        window = _own_window(data) or _whole_window(values, stored, data.get("PixelPaddingValue"))
        grey = apply_window(values, *window)
    return 255 - grey if kind == "MONOCHROME1" else grey


def read_hounsfield(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """The Hounsfield units of one CT slice.

    Args:
        path: a DICOM file with one frame.

    Returns:
        float32 (H, W).

    Raises:
        InputError: as `read_dicom`, or the file names no slope and intercept.
    """
    path = Path(path)
    data, stored = _read(path)
    if stored.ndim != 2 or data.get("RescaleSlope") is None or data.get("RescaleIntercept") is None:
        raise InputError(
            "the file does not say how its values become Hounsfield units (RescaleSlope, RescaleIntercept)",
            where=path,
            remedy="give slices of a CT as the scanner exported them",
        )
    return stored.astype(np.float32) * np.float32(data.RescaleSlope) + np.float32(data.RescaleIntercept)


def apply_window(
    values: NDArray[Any], centre: float, width: float, function: Function = "LINEAR_EXACT"
) -> NDArray[np.uint8]:
    """Grey values 0 to 255 of a window (DICOM PS3.3, C.11.2.1).

    Args:
        values: of any shape and real type.
        centre: of the window.
        width: of the window: above 0, of "LINEAR" at least 1.
        function: "LINEAR_EXACT" from centre - width / 2 to centre + width / 2, "LINEAR" with the half units that DICOM's default has,
            or "SIGMOID".

    Raises:
        ValueError: the width is too small.
    """
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise ValueError(f"a {function} window of width {width} is too narrow")
    x = np.asarray(values, dtype=np.float64)
    if function == "LINEAR":
        # Of width 1 it is a step.
        share = (x - (centre - 0.5)) / (width - 1) + 0.5 if width > 1 else (x > centre - 0.5).astype(np.float64)
    elif function == "LINEAR_EXACT":
        share = (x - centre) / width + 0.5
    else:
        share = 1 / (1 + np.exp(np.clip(-4 * (x - centre) / width, -700, 700)))
    return _rounded(255 * share)


def _read(path: Path) -> tuple[Dataset, NDArray[Any]]:
    """Header and stored values (H, W), or (H, W, 3) in RGB."""
    try:
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise InputError(
            "this is a DICOM file, and pydicom is not installed", where=path, remedy="pip install 'dart-core[dicom]'"
        ) from error
    try:
        with _silence():
            data = pydicom.dcmread(path)
    except OSError as error:
        raise InputError(
            "the DICOM file cannot be read", where=path, remedy="check the path and copy it again"
        ) from error
    except Exception as error:  # whatever a damaged header leads to
        raise InputError(
            f"the DICOM file is damaged or none ({error})", where=path, remedy="copy or export it again"
        ) from error
    if "TransferSyntaxUID" not in getattr(data, "file_meta", {}):
        raise InputError("the DICOM file is truncated or damaged", where=path, remedy="copy or export it again")
    frames = data.get("NumberOfFrames") or 1
    if frames > 1:
        raise InputError(
            f"the DICOM file holds {frames} frames",
            where=path,
            remedy="save the one that is meant as a file of its own",
        )
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise InputError(
            "the DICOM file holds no picture, or was cut off before it",
            where=path,
            remedy="give the images of the series, and copy them whole",
        )
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and int(data.get("Rows") or 0) * int(data.get("Columns") or 0) > 2 * most:
        raise InputError(
            "the picture is too large to be read safely", where=path, remedy="cut it into smaller pictures"
        )
    try:
        with _silence():
            return data, pixel_array(data)
    except (RuntimeError, NotImplementedError) as error:
        # The decoders that could are named behind the first line.
        syntax = data.file_meta.TransferSyntaxUID.name
        raise InputError(
            f"the picture is compressed ({syntax}), and no decoder reads it: {str(error).splitlines()[0]}",
            where=path,
            remedy="copy it again, or save it uncompressed (gdcmconv --raw)",
        ) from error
    except Exception as error:
        raise InputError(
            "the picture in the DICOM file is truncated or damaged", where=path, remedy="copy or export it again"
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without pydicom's remarks on odd values, which many a good file holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _own_window(data: Dataset) -> tuple[float, float, Function] | None:
    """The file's first window: centre, width and function; None if it has none that can be used."""
    centre, width = (_first(data.get(name)) for name in ("WindowCenter", "WindowWidth"))
    named = str(data.get("VOILUTFunction") or "LINEAR")
    function: Function = "SIGMOID" if named == "SIGMOID" else "LINEAR_EXACT" if named == "LINEAR_EXACT" else "LINEAR"
    least = 1 if function == "LINEAR" else math.ulp(0)
    return (centre, width, function) if math.isfinite(centre) and least <= width < math.inf else None


def _whole_window(values: NDArray[Any], stored: NDArray[Any], padding: Any) -> tuple[float, float, Function]:
    """From the darkest to the brightest value beside the padding; one value alone becomes black."""
    seen = values if padding is None else values[stored != padding]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)
    return ((low + high) / 2, high - low, "LINEAR_EXACT") if high > low else (high + 1, 1.0, "LINEAR_EXACT")


def _first(value: Any) -> float:
    """Of one number or several; nan of none."""
    if hasattr(value, "__iter__") and not isinstance(value, str):
        value = next(iter(value), None)
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _processed(path: Path, function: Any, values: NDArray[Any], data: Dataset) -> NDArray[Any]:
    """What one of pydicom's functions makes of values; its errors name the file."""
    try:
        found: NDArray[Any] = function(values, data)
    except Exception as error:
        raise InputError(
            f"the DICOM file's tables do not fit its picture ({error})", where=path, remedy="export it again"
        ) from error
    return found


def _eight_bits(colour: NDArray[Any]) -> NDArray[np.uint8]:
    if colour.dtype == np.uint8:
        return colour
    return ((colour.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _rounded(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
