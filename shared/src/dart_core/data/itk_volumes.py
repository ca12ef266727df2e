"""Volumes that are no NIfTI files: MetaImage (.mhd with .raw, .mha) and folders of DICOM slices, through SimpleITK.

`dart_core.data.volumes` reads these files like others; this module only looks at what SimpleITK passes over in silence, such
as a voxel size that is not there (it becomes 1 mm) or slices that are missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.data.dicom import is_dicom
from dart_core.errors import InputError

ENDINGS = (".mhd", ".mha")

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK counts mm to the left and to the back
_TYPES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "DOUBLE": 8}
_LONGEST_HEADER = 1 << 16
_UNEVEN = 0.02
"""Of the distance between slices: how much single distances may differ from it."""


def is_itk(path: Path) -> bool:
    """Whether a path is read here: a MetaImage file by its name, or a folder."""
    return path.name.lower().endswith(ENDINGS) or path.is_dir()


def read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Voxels (x, y, z) as stored, with DICOM's slope and intercept applied, and the affine to mm in RAS.

    Raises:
        InputError: a file that is missing, truncated or no volume, a voxel size that is missing or not positive; of a folder:
            none or several series, slices without position, missing slices.
    """
    with _reading(path) as itk:
        if path.is_dir():
            names, shape, affine = _folder_header(itk, path)
            image = itk.ReadImage(names)
        else:
            _check_metaimage(path)
            reader = _reader(itk, path)
            shape, affine = _header(path, reader)
            image = reader.Execute()
        # Voxels in numbers of 8 or 16 bits are read as such and widened once.
        voxels = itk.GetArrayViewFromImage(image).T
        if voxels.shape != shape:  # colour, or several frames in one file
            raise InputError("does not hold one 3-D volume of grey values", where=path, remedy="save that one alone")
        return np.ascontiguousarray(voxels, dtype=np.float32), affine


def read_header(path: Path) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape (x, y, z) and affine to mm in RAS, without reading voxels.

    Raises:
        InputError: as `read`, as far as headers tell.
    """
    with _reading(path) as itk:
        if path.is_dir():
            return _folder_header(itk, path)[1:]
        _check_metaimage(path)
        return _header(path, _reader(itk, path))


def series_tags(folder: Path, tags: Sequence[str]) -> list[str]:
    """Texts of some DICOM tags ("0020|000e") in the first readable slice of a folder; a tag that is not there is empty.

    Raises:
        InputError: no DICOM file in the folder.
    """
    with _reading(folder) as itk:
        for file in sorted(folder.iterdir()):
            reader = itk.ImageFileReader()
            reader.SetFileName(str(file))
            reader.SetImageIO("GDCMImageIO")
            try:
                reader.ReadImageInformation()
            except RuntimeError:
                continue
            return [_tag(reader, tag) for tag in tags]
    raise InputError("holds no DICOM file", where=folder, remedy="copy the series again")


@contextlib.contextmanager
def _reading(path: Path) -> Generator[Any]:
    """SimpleITK, silent, with what it raises as one line."""
    if not path.exists():
        raise InputError("file not found", where=path, remedy="check the path")
    try:
        import SimpleITK
    except ModuleNotFoundError as error:
        raise InputError(
            "MetaImage files and DICOM folders are read with SimpleITK, which is not installed",
            where=path,
            remedy="pip install 'dart-core[ct]'",
        ) from error
    itk: Any = SimpleITK
    warned = itk.ProcessObject.GetGlobalWarningDisplay()
    itk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield itk
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=path, remedy="check the file") from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[-1].partition("): ")[2] or lines[-1] if lines else "no reason given"
        raise InputError(f"cannot be read ({said})", where=path, remedy="copy or export it again") from error
    except MemoryError as error:
        raise InputError("does not fit into memory", where=path, remedy="check the header") from error
    finally:
        itk.ProcessObject.SetGlobalWarningDisplay(warned)


def _reader(itk: Any, path: Path | str) -> Any:
    """A reader that has read the header of a file."""
    reader = itk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _header(path: Path, reader: Any) -> tuple[tuple[int, ...], NDArray[np.float64]]:
    """Shape and affine of what a reader knows."""
    if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
        raise InputError("does not hold one 3-D volume of grey values", where=path, remedy="save that one alone")
    axes = np.array(reader.GetDirection()).reshape(3, 3) * reader.GetSpacing()
    if abs(np.linalg.det(axes)) < 1e-12:
        raise InputError("the axes in the header collapse", where=path, remedy="correct TransformMatrix in the header")
    return tuple(reader.GetSize()), _affine(axes, reader.GetOrigin())


def _affine(axes: NDArray[np.float64], origin: Sequence[float]) -> NDArray[np.float64]:
    """(4, 4) to RAS from the steps (3, 3) along each axis, in columns, and the place of the first voxel, in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = origin
    return np.asarray(_TO_RAS @ affine)


# --- MetaImage -------------------------------------------------------------------------------------------------------


def _check_metaimage(path: Path) -> None:
    entries, length = _metaimage_header(path)
    dimensions = entries.get("NDims", "")
    if dimensions != "3":
        raise InputError(f"NDims is {dimensions or 'missing'}, not 3", where=path, remedy="save one 3-D volume")
    sides = _numbers(path, entries, "DimSize")
    if min(sides) < 1 or any(side != int(side) for side in sides):
        raise InputError(f"DimSize is {entries['DimSize']}", where=path, remedy="give three whole numbers of voxels")
    key = "ElementSpacing" if "ElementSpacing" in entries else "ElementSize"
    if key not in entries:
        raise InputError(
            "the voxel size is missing (no ElementSpacing)",
            where=path,
            remedy="add its three numbers in mm to the header",
        )
    if min(_numbers(path, entries, key)) <= 0:
        raise InputError(
            f"the voxel size in the header is {entries[key]}", where=path, remedy=f"correct {key} in the header"
        )
    kind = entries.get("ElementType", "").removeprefix("MET_")
    channels = entries.get("ElementNumberOfChannels", "1")
    if kind not in _TYPES and kind not in ("LONG", "ULONG", "LONG_LONG", "ULONG_LONG"):
        raise InputError(
            f"ElementType is {kind or 'missing'}", where=path, remedy="save real numbers, such as MET_SHORT"
        )
    data = entries.get("ElementDataFile", "")
    if not data:
        raise InputError("no ElementDataFile", where=path, remedy="export the volume again")
    if data.upper().startswith("LIST") or "%" in data:
        return  # a file for each slice: SimpleITK looks for them
    local = data.upper() == "LOCAL"
    voxels = path if local else path.parent / data
    if not voxels.is_file():
        raise InputError(f"the file of its voxels, {data}, is missing", where=path, remedy="copy both files")
    if entries.get("CompressedData", "False").lower() != "true" and kind in _TYPES and channels == "1":
        expected = int(np.prod(sides)) * _TYPES[kind]
        there = voxels.stat().st_size - (length if local else 0)
        if there < expected:
            raise InputError(
                f"the voxels are truncated ({there} of {expected} bytes{'' if local else f' in {data}'})",
                where=path,
                remedy="copy the file again",
            )


def _metaimage_header(path: Path) -> tuple[dict[str, str], int]:
    """Key -> text, and how many bytes the header has."""
    with open(path, "rb") as file:
        start = file.read(_LONGEST_HEADER)
    if not start:
        raise InputError("the file is empty", where=path, remedy="copy it again")
    entries: dict[str, str] = {}
    length = 0
    for line in start.splitlines(keepends=True):
        key, equals, value = line.partition(b"=")
        if not equals:
            break
        length += len(line)
        entries[key.decode("ascii", "replace").strip()] = value.decode("utf-8", "replace").strip()
        if key.strip() == b"ElementDataFile":
            break
    if "ObjectType" not in entries and "NDims" not in entries:
        raise InputError("not a MetaImage file", where=path, remedy="give the .mhd file, or convert it to .nii.gz")
    return entries, length


def _numbers(path: Path, entries: dict[str, str], key: str) -> list[float]:
    try:
        values = [float(text) for text in entries.get(key, "").split()]
    except ValueError:
        values = []
    if len(values) != 3 or not np.isfinite(values).all():
        raise InputError(
            f"{key} is {entries.get(key) or 'missing'}", where=path, remedy="correct its three numbers in the header"
        )
    return values


# --- DICOM -----------------------------------------------------------------------------------------------------------


def _series(itk: Any, folder: Path) -> list[str]:
    """The files of the one series in a folder, as far as they can be ordered by position."""
    found = itk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if not found:
        raise InputError(
            "the folder holds no DICOM series", where=folder, remedy="give a NIfTI or MetaImage file, or a DICOM folder"
        )
    if len(found) > 1:
        raise InputError(
            f"the folder holds {len(found)} DICOM series", where=folder, remedy="give each a folder of its own"
        )
    names = list(itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), found[0]))
    for file in sorted(folder.iterdir()):
        if str(file) not in names and is_dicom(file):  # it is left out in silence
            raise InputError("the slice is truncated or damaged", where=file, remedy="copy or export it again")
    if len(names) == 1:
        raise InputError(
            "the folder holds a single slice, which has no distance to a next one",
            where=folder,
            remedy="copy the whole series",
        )
    return names


def _folder_header(itk: Any, folder: Path) -> tuple[list[str], tuple[int, ...], NDArray[np.float64]]:
    """The slices from the feet up, or however their normal points, shape and affine."""
    names = _series(itk, folder)
    places = []
    for name in names:
        reader = _reader(itk, name)
        for tag, what in (("0028|0030", "voxel size (PixelSpacing)"), ("0020|0032", "position (ImagePositionPatient)")):
            if not _tag(reader, tag):
                raise InputError(f"the slice has no {what}", where=Path(name), remedy="export the series again")
        places.append(reader.GetOrigin())
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    along = np.asarray(places) @ direction[:, 2]
    if (np.diff(along) < 0).any():  # two slices at one place: the files then come by name
        order = np.argsort(along, kind="stable")
        along, names, places = along[order], [names[i] for i in order], [places[i] for i in order]
    steps = np.diff(along)
    step = float(np.median(steps))
    wrong = np.flatnonzero(np.abs(steps - step) > _UNEVEN * abs(step))
    if step == 0 or len(wrong):
        place = int(wrong[0]) if len(wrong) else 0
        raise InputError(
            f"the slices are not evenly spaced: {steps[place]:.4g} mm behind slice {place + 1} ({Path(names[place]).name}),"
            f" {step:.4g} mm elsewhere",
            where=folder,
            remedy="add the missing slices, remove those that are there twice, or leave the series out",
        )
    # In a series with a tilted gantry, slices follow each other not along the normal but along their positions.
    axes = direction * reader.GetSpacing()
    axes[:, 2] = (np.asarray(places[-1]) - places[0]) / (len(places) - 1)
    return names, (*reader.GetSize()[:2], len(names)), _affine(axes, places[0])


def _tag(reader: Any, tag: str) -> str:
    return str(reader.GetMetaData(tag)).strip() if reader.HasMetaDataKey(tag) else ""
