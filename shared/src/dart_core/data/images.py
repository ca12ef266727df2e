"""Pictures as files: reading to 8-bit arrays and writing PNG.

DICOM files are known by their content and read by `dart_core.data.dicom`.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dart_core.data import dicom
from dart_core.errors import InputError, OutputError
from dart_core.files import atomic_write

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", *dicom.ENDINGS)
"""Of the files that count as pictures, in small or capital letters, where this machine's Pillow reads them."""


def read_image(path: str | os.PathLike[str], mode: Literal["RGB", "L"] = "RGB") -> NDArray[np.uint8]:
    """Read a picture (PNG, JPEG, TIFF, BMP, ..., DICOM) and turn it as its EXIF orientation says.

    16-bit grey is divided by 257, so that the whole 16-bit range becomes the whole 8-bit range. Transparency is dropped, and
    so are the further pictures in the JPEG file of a camera (MPO). The content counts, not the name's ending. A DICOM
    file passes through its own window (`dart_core.data.dicom.read_dicom`).

    Args:
        path: the file.
        mode: "RGB" gives (H, W, 3), "L" gives grey values (H, W) (luma of ITU-R 601 for a colour picture).

    Returns:
        uint8 array.

    Raises:
        InputError: file missing, truncated, no picture, several pictures in one file, more pixels than Pillow takes for
            safe, grey values beyond 16 bits, or a DICOM file without pydicom or without a decoder of its compression.
    """
    return np.array(open_image(path, mode), dtype=np.uint8)


def open_image(path: str | os.PathLike[str], mode: Literal["RGB", "L"] = "RGB") -> Image.Image:
    """What `read_image` reads, as Pillow's image: for those who go on with Pillow, which spares two copies."""
    path = Path(path)
    if not path.exists():
        raise InputError("file not found", where=path, remedy="check the path")
    if path.is_dir():
        raise InputError("this is a folder, not a file", where=path, remedy="give a picture file")
    if dicom.is_dicom(path):
        image = Image.fromarray(dicom.read_dicom(path))
        return image if image.mode == mode else image.convert(mode)
    try:
        with Image.open(path) as image:
            # Behind its picture, the JPEG of many a camera (MPO) holds a preview or a depth map.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise InputError(
                    f"the file holds {image.n_frames} pictures",  # type: ignore[attr-defined]
                    where=path,
                    remedy="save the one that is meant as a file of its own",
                )
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_eight_bits(path, image, mode)
    except UnidentifiedImageError as error:
        raise InputError("not a picture", where=path, remedy="give a PNG, JPEG, TIFF or DICOM file") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            "the picture is too large to be read safely", where=path, remedy="cut it into smaller pictures"
        ) from error
    except InputError:
        raise
    except (OSError, SyntaxError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise InputError("the picture is truncated or damaged", where=path, remedy="copy or export it again") from error


def find_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder and the folders in it, by their ending, sorted; hidden files and folders are left out.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        problem = "this is a file, not a folder" if folder.exists() else "folder not found"
        raise InputError(problem, where=folder, remedy="give a folder of pictures")
    readable = set(ENDINGS) & (Image.registered_extensions().keys() | set(dicom.ENDINGS))
    found = []
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(path, name) for name in names if not name.startswith(".") and Path(name).suffix.lower() in readable
        ]
    if not found:
        known = ", ".join(ending[1:] for ending in ENDINGS if ending in readable)
        raise InputError("holds no picture", where=folder, remedy=f"give a folder with files of these kinds: {known}")
    return sorted(found)


def write_image(path: str | os.PathLike[str], array: NDArray[Any], compression: int = 6) -> Path:
    """Write an array as PNG; the file appears whole or not at all.

    Args:
        path: a name that ends in .png.
        array: uint8 (H, W) or (H, W, 3), or bool (H, W) (true becomes 255).
        compression: effort of zlib, 0 to 9; textured pictures are hardly smaller with 6 than with 3, which is twice as fast.

    Raises:
        InputError: another shape or type.
        OutputError: another ending, or the file cannot be written (disk full, no permission).
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputError("the name of a picture must end in .png", where=path, remedy="rename the output")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)) or not array.size:
        raise InputError(
            f"an array of type {array.dtype} and shape {array.shape} is no picture",
            where=path,
            remedy="give uint8 of shape (H, W) or (H, W, 3)",
        )
    image = Image.fromarray(np.ascontiguousarray(array))
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", compress_level=compression)
    return path


def _to_eight_bits(path: Path, image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            kind = "are floating-point numbers" if image.mode == "F" else "go beyond 16 bits"
            raise InputError(f"the grey values {kind}", where=path, remedy="save it with 8 or 16 bits per channel")
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        image = Image.fromarray(grey)
    image.info.pop("transparency", None)  # of which Pillow would warn that it cannot be kept
    return image if image.mode == mode else image.convert(mode)
