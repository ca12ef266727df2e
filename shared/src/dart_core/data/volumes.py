"""Volumes as files: reading in a common orientation, resampling, scaling, and writing on the grid of the input.

NIfTI files are read here, MetaImage files (.mhd, .mha) and folders of DICOM slices by `dart_core.data.itk_volumes`; all are
written as NIfTI.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import warnings
import zlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from dart_core.data import itk_volumes
from dart_core.errors import InputError, OutputError, SettingError
from dart_core.files import atomic_write

# nibabel says it is typed, but these functions are not.
_orientations: Any = nibabel.orientations
_ENDINGS = (".nii.gz", ".nii")
_HEADER_BYTES = 540  # of NIfTI-2, the longer one
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan on its grid."""

    array: NDArray[Any]
    """Voxels (H, W, Z), float32 (bool for a mask)."""
    affine: NDArray[np.float64]
    """(4, 4): from voxel indices of `array` to mm in the scanner's right-anterior-superior space."""
    path: Path | None = None
    """The file it was read from; `write_volume` takes units and header fields from there."""
    original_orientation: str | None = None
    """Axis codes of the file ("LPS": indices grow to the left, back and top); None: those of `affine`."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along each axis of `array`."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def orientation(self) -> str:
        """Axis codes of `array`, "RAS" unless it was read otherwise."""
        return "".join(_orientations.aff2axcodes(self.affine))

    def voxels(self, places: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (..., 3), with fractions, of places (..., 3) in mm to the right, front and top."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(np.asarray(places, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3])


def read_volume(
    path: str | os.PathLike[str],
    orientation: str | None = "RAS",
    minimum_size: int | Sequence[int] | None = None,
    frame: int | None = None,
) -> Volume:
    """Read a 3-D volume as float32, with its intensity slope and intercept applied.

    Args:
        path: a .nii or .nii.gz file, a MetaImage (.mhd, .mha), or a folder with the slices of one DICOM series.
        orientation: axis codes that the array gets ("RAS": indices grow to the right, front and top). None keeps
            the order of the file.
        minimum_size: voxels that it must have along each axis after reorientation, one number or three.
        frame: the volume (from 0) to take out of a 4-D file, such as one phase of a heart beat. None wants a 3-D file.

    Raises:
        InputError: file missing, truncated or no volume, not 3-D, no such frame, NaN or infinite voxels, all zero,
            voxel size missing or unusable, scan smaller than `minimum_size`; of a DICOM folder also several series, or
            slices that are missing. One line with file and remedy.
    """
    path = Path(path)
    volume = _read(path, orientation, frame)
    if not volume.array.any():
        raise InputError("all voxels are zero", where=path, remedy="export the scan again or leave it out")
    if minimum_size is not None:
        smallest = tuple(np.broadcast_to(np.asarray(minimum_size), 3).tolist())
        if any(side < least for side, least in zip(volume.array.shape, smallest, strict=True)):
            raise InputError(
                f"the scan has {_times(volume.array.shape)} voxels, at least {_times(smallest)} are needed",
                where=path,
                remedy="resample it to a finer grid, ask for a smaller size, or leave it out",
            )
    return volume


def read_grid(path: str | os.PathLike[str], orientation: str | None = "RAS", frame: int | None = None) -> Volume:
    """Read only the header of a file: shape, affine and orientation as `read_volume` gives them, voxels all 0.

    The array takes no memory, and the voxels of the file are not looked at.

    Args:
        path: as for `read_volume`.
        orientation: axis codes that the array gets; None keeps the order of the file.
        frame: as for `read_volume`.

    Raises:
        InputError: as `read_volume`, as far as the header tells.
    """
    path = Path(path)
    if itk_volumes.is_itk(path):
        shape, affine = itk_volumes.read_header(path)
        stored: tuple[int, ...] = shape
    else:
        with _reading(path), _stream(path) as file:
            header = _header(path, file.read(_HEADER_BYTES))
            affine = _affine(path, header.get_best_affine(), header)
        stored = header.get_data_shape()
    shape = _shape(path, stored, frame)
    return _oriented(path, np.broadcast_to(np.float32(0), shape), affine, orientation)


def read_mask(
    path: str | os.PathLike[str], like: Volume | None, frame: int | None = None, one_label: bool = False
) -> NDArray[np.bool_]:
    """Read a mask onto the array grid of its scan.

    Args:
        path: as for `read_volume`; it may be stored in another orientation than the scan.
        like: the scan; None reads the mask in RAS without comparing grids.
        frame: the volume (from 0) to take out of a 4-D file; a 3-D file is taken as it is.
        one_label: several labels (such as 1, 2) in the file are an error, instead of being one mask together.

    Returns:
        bool (H, W, Z), true where the stored value is above 0.5. A mask may be empty.

    Raises:
        InputError: as `read_volume`, a shape or an affine other than the scan's (by more than 1e-3 mm), or several
            labels where one is asked for.
    """
    mask = _read_like(Path(path), like, frame).array
    inside = mask > 0.5
    if one_label and len(labels := np.unique(np.rint(mask[inside]))) > 1:
        listed = ", ".join(f"{label:g}" for label in labels[:9]) + (", ..." if len(labels) > 9 else "")
        raise InputError(
            f"the mask holds the labels {listed}",
            where=path,
            remedy="write a mask of one structure (0 and 1), or merge the labels",
        )
    return inside


def read_labels(
    path: str | os.PathLike[str], like: Volume | None, frame: int | None = None, negative_as_background: bool = False
) -> NDArray[np.int16]:
    """Read a map of labels onto the array grid of its scan.

    Args:
        path: as for `read_volume`; it may be stored in another orientation than the scan.
        like: the scan; None reads the labels in RAS without comparing grids.
        frame: the volume (from 0) to take out of a 4-D file; a 3-D file is taken as it is.
        negative_as_background: take stray values below 0 for 0, instead of refusing them.

    Returns:
        int16 (H, W, Z), 0 for background.

    Raises:
        InputError: as `read_mask`, or a value that is no whole number from 0 to 32767.
    """
    values = _read_like(Path(path), like, frame).array
    if negative_as_background:
        values = np.maximum(values, 0)
    labels: NDArray[np.int16] = np.clip(values, 0, np.iinfo(np.int16).max).astype(np.int16)
    wrong = np.flatnonzero(labels != values)
    if len(wrong):
        index = tuple(int(i) for i in np.unravel_index(wrong[0], values.shape))
        raise InputError(
            f"{len(wrong)} voxels hold no label, the first {values[index]:g} at index {index}",
            where=path,
            remedy="save the labels as whole numbers from 0 (resample label maps with nearest neighbours)",
        )
    return labels


def _read_like(path: Path, like: Volume | None, frame: int | None) -> Volume:
    """Read a mask or map of labels in the orientation of its scan, and compare the grids."""
    mask = _read(path, "RAS" if like is None else like.orientation, frame, frame_optional=True)
    if like is not None:
        image = "the image" if like.path is None else f"the image {like.path.name}"
        if mask.array.shape != like.array.shape:
            raise InputError(
                f"the mask has {_times(mask.array.shape)} voxels, {image} {_times(like.array.shape)}",
                where=path,
                remedy="give a mask drawn on this scan, or resample it onto the scan's grid",
            )
        difference = float(np.abs(mask.affine - like.affine).max())
        if difference > 1e-3:
            raise InputError(
                f"the mask lies on another grid than {image} (affines differ by up to {difference:.4g} mm)",
                where=path,
                remedy="give a mask drawn on this scan, or resample it onto the scan's grid",
            )
    return mask


def write_volume(
    path: str | os.PathLike[str], array: NDArray[Any], like: Volume, dtype: DTypeLike | None = None
) -> Path:
    """Write an array that lies on the grid of `like`, in the orientation, affine and units of the file `like` came from.

    The file appears whole or not at all.

    Args:
        path: a .nii or .nii.gz file.
        array: (H, W, Z), of the shape of `like.array`.
        like: the scan as it was read (or resampled; then the new grid is written, in the orientation of the file).
        dtype: how voxels are stored; None: float32 for real numbers, uint8 for bool, else that of `array`. Real numbers
            stored as integers get a slope and intercept.

    Raises:
        InputError: `array` has another shape than `like`, or a type that NIfTI cannot hold.
        OutputError: the name has another ending, or the file cannot be written (disk full, no permission).
    """
    path = Path(path)
    if not path.name.lower().endswith(_ENDINGS):
        raise OutputError("the name of a volume must end in .nii or .nii.gz", where=path, remedy="rename the output")
    if array.shape != like.array.shape:
        raise InputError(
            f"the array to write has shape {_times(array.shape)}, the scan {_times(like.array.shape)}",
            where=path,
            remedy="write an array on the grid of the scan",
        )
    stored, data_type = _storable(path, array, dtype)
    codes = like.original_orientation or like.orientation
    transform = _transform(like.affine, codes)
    affine = like.affine @ _orientations.inv_ornt_aff(transform, array.shape)
    stored = _orientations.apply_orientation(stored, transform)
    image_class, header, millimetres = _header_of(like.path)
    affine = np.diag([1 / millimetres] * 3 + [1.0]) @ affine
    if header is not None and np.allclose(affine, header.get_best_affine(), rtol=0, atol=1e-6):
        affine = header.get_best_affine()
    image = image_class(stored, affine, header)
    image.set_data_dtype(data_type)
    image.header["cal_max"] = image.header["cal_min"] = 0  # a display range of the input's intensities
    if header is None:
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
    content = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=1, mtime=0)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def resample(volume: Volume, spacing: float | Sequence[float], order: int = 3) -> Volume:
    """Resample to another voxel size; every structure keeps its position in mm.

    The outer faces of the first voxels stay where they are and each side gets round(side * old / new) voxels (at least
    one). There is no smoothing before a coarser grid; beyond the border the nearest voxel counts. A bool array is
    interpolated linearly, whatever `order`, and true above 0.5.

    Args:
        volume: array (H, W, Z), float32 or bool.
        spacing: the new voxel size in mm, one number or three.
        order: degree of the spline: 3 cubic, 1 linear, 0 nearest.

    Raises:
        SettingError: a spacing that is not positive and finite, or another order.
    """
    new = _positive(spacing)
    _check_order(order)
    scale = new / np.asarray(volume.spacing)
    shape = tuple(int(side) for side in np.maximum(1, np.rint(np.asarray(volume.array.shape) / scale)))
    to_volume = np.diag([*scale, 1.0])
    to_volume[:3, 3] = 0.5 * scale - 0.5
    array = _interpolate(volume.array, to_volume, shape, order, mode="nearest")
    return replace(volume, array=array, affine=volume.affine @ to_volume)


def zoom(volume: Volume, spacing: float | Sequence[float]) -> Volume:
    """Resample as SciPy's `zoom` with cubic splines does: the centres of the outermost voxels stay where they are.

    This is how the authors of CC359's segmentation papers bring scans to one voxel size (spottunet 5.1). Each side gets
    round(side * old / new) voxels, spread evenly from the first old voxel to the last, so that the voxel size that
    comes out differs from `spacing` by the rounding and by up to one part in the number of voxels; the affine tells it
    exactly. `resample` keeps the outer faces instead. A bool array goes through the same splines and is true from 0.5.

    Args:
        volume: array (H, W, Z), float32 or bool.
        spacing: the new voxel size in mm, one number or three.

    Raises:
        SettingError: a spacing that is not positive and finite.
        InputError: no or very few voxels are left along an axis, or a single one would have to become several.
    """
    from scipy import ndimage

    grid = zoomed_grid(volume, spacing)
    if grid is volume:
        return volume
    is_mask = volume.array.dtype == np.bool_
    array = volume.array.astype(np.float64)
    for axis, (old, new) in enumerate(zip(volume.array.shape, grid.array.shape, strict=True)):
        if old != new:
            # Spline interpolation is linear and goes axis by axis: a matrix product gives SciPy's values much faster.
            # Mirroring uses the same splines as SciPy's default and gives the same values inside, but where rounding
            # puts the last coordinate a hair outside the volume, the default would fill the last slice with 0.
            weights = ndimage.zoom(np.eye(old), (new / old, 1), order=3, mode="mirror")
            array = np.moveaxis(np.tensordot(weights, array, (1, axis)), 0, axis)
    return replace(grid, array=np.ascontiguousarray(array >= 0.5 if is_mask else array.astype(np.float32)))


def zoomed_grid(volume: Volume, spacing: float | Sequence[float]) -> Volume:
    """The grid that `zoom` gives, without its voxels (they take no memory); `volume` itself where nothing changes.

    Raises:
        SettingError: a spacing that is not positive and finite.
        InputError: as `zoom`.
    """
    old_shape = np.asarray(volume.array.shape)
    # Headers hold float32: what differs by less is the same voxel size.
    factors = np.asarray(volume.spacing) / _positive(spacing)
    factors[np.abs(factors - 1) < 1e-5] = 1
    if (factors == 1).all():
        return volume
    shape = np.rint(old_shape * factors).astype(int)
    if ((shape < 2) & (old_shape > 1)).any() or ((old_shape == 1) & (shape != 1)).any():
        old, new = _times(old_shape.tolist()), _times(shape.tolist())
        sizes = " x ".join(f"{side:.3g}" for side in volume.spacing)
        raise InputError(
            f"{old} voxels of {sizes} mm would become {new}",
            where=volume.path,
            remedy="check the voxel size in the header and --spacing",
        )
    steps = np.where(shape > 1, (old_shape - 1) / np.maximum(shape - 1, 1), 1.0)
    array = np.broadcast_to(np.float32(0), tuple(shape.tolist()))
    return replace(volume, array=array, affine=volume.affine @ np.diag([*steps, 1.0]))


def resample_to(volume: Volume, like: Volume, order: int = 1, outside: Literal["zero", "nearest"] = "zero") -> Volume:
    """Resample onto the grid of another volume by world coordinates.

    Args:
        volume: array (H, W, Z), float32 or bool (a mask is interpolated linearly and true above 0.5).
        like: gives shape, affine, and the file whose header `write_volume` follows.
        order: degree of the spline: 3 cubic, 1 linear, 0 nearest.
        outside: what counts where the first does not reach: 0, or its nearest voxel.

    Raises:
        SettingError: another order.
    """
    _check_order(order)
    to_volume = np.linalg.inv(volume.affine) @ like.affine
    mode = "constant" if outside == "zero" else "nearest"
    return replace(like, array=_interpolate(volume.array, to_volume, like.array.shape, order, mode))


def scale_percentile(array: ArrayLike, low: float = 1, high: float = 99) -> NDArray[np.float32]:
    """Clip to two percentiles (linear interpolation between voxels), subtract the minimum, divide by the maximum.

    Returns:
        float32 of the same shape in [0, 1]; a constant array gives zeros.

    Raises:
        InputError: NaN or infinite values.
        SettingError: percentiles out of order.
    """
    if not 0 <= low < high <= 100:
        raise SettingError(f"percentiles {low} and {high}", remedy="give 0 <= low < high <= 100")
    values = _finite(array)
    scaled = np.clip(values, *np.percentile(values, (low, high)).astype(values.dtype))
    scaled -= scaled.min()
    greatest = scaled.max()
    if greatest > 0:
        scaled /= greatest
    return np.asarray(scaled, dtype=np.float32)


def scale_z_score(array: ArrayLike, mask: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Subtract the mean and divide by the standard deviation (divisor N), both taken over `mask` or over all voxels.

    Returns:
        float32 of the same shape; where the standard deviation is 0, zeros.

    Raises:
        InputError: NaN or infinite values, a mask of another shape, or an empty mask.
    """
    values = _finite(array)
    if mask is not None and mask.shape != values.shape:
        raise InputError(f"the mask has shape {mask.shape}, the image {values.shape}", remedy="give a mask on its grid")
    inside = values if mask is None else values[mask.astype(bool)]
    if not inside.size:
        raise InputError("the mask to scale by is empty", remedy="give a mask that holds a voxel")
    if inside.min() == inside.max():  # the standard deviation would be a rounding error instead of 0
        return np.zeros(values.shape, dtype=np.float32)
    scaled = (values - inside.mean(dtype=np.float64)) / inside.std(dtype=np.float64)
    return np.asarray(scaled, dtype=np.float32)


def _positive(spacing: float | Sequence[float]) -> NDArray[np.float64]:
    """Three voxel sizes from one number or three."""
    new = np.broadcast_to(np.asarray(spacing, dtype=np.float64), 3)
    if not (np.isfinite(new).all() and (new > 0).all()):
        raise SettingError(f"spacing is {new.tolist()} mm", remedy="give positive numbers")
    return new


def _check_order(order: int) -> None:
    if order not in (0, 1, 3):
        raise SettingError(f"order is {order}", remedy="give 3 (cubic), 1 (linear) or 0 (nearest)")


def _interpolate(
    array: NDArray[Any], to_array: NDArray[np.float64], shape: tuple[int, ...], order: int, mode: str
) -> NDArray[Any]:
    """Sample at the indices `to_array @ (i, j, k, 1)`; a bool array linearly, true above 0.5."""
    from scipy import ndimage

    is_mask = array.dtype == np.bool_
    matrix = to_array[:3, :3]
    if np.array_equal(matrix, np.diag(np.diag(matrix))):
        matrix = np.diag(matrix)  # SciPy then goes axis by axis, which is much faster
    with warnings.catch_warnings():
        # Older SciPy reminds of what the 1-D form meant before version 0.18.
        warnings.filterwarnings("ignore", message="The behavior of affine_transform")
        sampled = ndimage.affine_transform(
            array.astype(np.float32),
            matrix,
            to_array[:3, 3],
            output_shape=shape,
            order=1 if is_mask else order,
            mode=mode,
        )
    return np.asarray(sampled > 0.5 if is_mask else sampled)


def _finite(array: ArrayLike) -> NDArray[np.floating[Any]]:
    values = np.asarray(array)
    if values.dtype.kind != "f" or values.dtype.itemsize < 4:
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError("the array holds NaN or infinite values", remedy="replace them before scaling")
    if not values.size:
        raise InputError("the array is empty", remedy="give at least one voxel")
    return values


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)


def _transform(affine: NDArray[np.float64], codes: str) -> NDArray[Any]:
    """Give nibabel's axis permutation and flips from the orientation of `affine` to `codes`."""
    if len(codes) != 3 or not all(any(code in pair for code in codes) for pair in ("LR", "AP", "SI")):
        raise SettingError(
            f"orientation {codes!r}", remedy="give three letters, one each of L or R, A or P, S or I, like RAS"
        )
    start = _orientations.io_orientation(affine)
    return np.asarray(_orientations.ornt_transform(start, _orientations.axcodes2ornt(tuple(codes))))


def _read(path: Path, orientation: str | None, frame: int | None = None, frame_optional: bool = False) -> Volume:
    if itk_volumes.is_itk(path):
        array, affine = itk_volumes.read(path)
        stored: tuple[int, ...] = array.shape
    else:
        image = _load(path)
        affine = _affine(path, image.affine, image.header)
        stored = image.shape
    if frame_optional and len(stored) == 3:
        frame = None
    shape = _shape(path, stored, frame)
    if not itk_volumes.is_itk(path):
        array = _voxels(path, image)
    array = array.reshape(shape) if frame is None else array.reshape((*shape, -1))[..., frame]
    finite = np.isfinite(array)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InputError(
            f"{int(finite.size - finite.sum())} voxels are NaN or infinite, the first at index {first}",
            where=path,
            remedy="replace them (for example by 0) and save the file again",
        )
    volume = _oriented(path, array, affine, orientation)
    return replace(volume, array=np.ascontiguousarray(volume.array))


def _shape(path: Path, stored: tuple[int, ...], frame: int | None) -> tuple[int, ...]:
    """The shape of the one volume that is meant."""
    shape = stored
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    frames = shape[3] if len(shape) == 4 and frame is not None else 1
    if len(shape) - (frames > 1) != 3 or 0 in shape:
        raise InputError(
            f"the file holds an array of {_times(stored)}, not one 3-D volume",
            where=path,
            remedy="save the one volume that is meant as a file of its own",
        )
    if frame is not None and not 0 <= frame < frames:
        raise InputError(f"there is no frame {frame}", where=path, remedy=f"frames there: 0 to {frames - 1}")
    return shape[:3]


def _oriented(path: Path, array: NDArray[Any], affine: NDArray[np.float64], orientation: str | None) -> Volume:
    codes = "".join(_orientations.aff2axcodes(affine))
    if orientation is not None and orientation != codes:
        transform = _transform(affine, orientation)
        affine = affine @ _orientations.inv_ornt_aff(transform, array.shape)
        array = _orientations.apply_orientation(array, transform)
    return Volume(array, affine, path, codes)


def _load(path: Path) -> Any:
    """Open a NIfTI file. It is decompressed to its end, because only there gzip notices damage."""
    with _reading(path):
        with _stream(path) as file:
            content = file.read()
        _header(path, content)
        return _image_class(path, content).from_bytes(content)


def _header(path: Path, content: bytes) -> Any:
    """The header of a file that begins with `content`."""
    with _reading(path):
        header_class = _image_class(path, content).header_class
        # Unchecked first, because nibabel's check replaces an unusable voxel size by 1 mm and says so only in its log.
        raw = header_class.from_fileobj(io.BytesIO(content), check=False)
        steps = np.asarray(raw["pixdim"][1:4], dtype=np.float64)
        if np.isfinite(steps).all() and (steps > 0).all():
            return header_class.from_fileobj(io.BytesIO(content))
    raise InputError(
        f"the voxel size in the header is {steps.tolist()}", where=path, remedy="correct pixdim in the header"
    )


@contextlib.contextmanager
def _reading(path: Path) -> Generator[None]:
    """Turn what goes wrong while a NIfTI file is opened into one line."""
    try:
        yield
    except InputError:
        raise
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path) from error
    except (nibabel.filebasedimages.ImageFileError, nibabel.wrapstruct.WrapStructError) as error:
        raise _damaged(path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=path, remedy="check the file") from error
    except (nibabel.spatialimages.HeaderDataError, ValueError) as error:
        raise InputError(f"the NIfTI header is damaged ({error})", where=path, remedy="export it again") from error


def _stream(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open for reading bytes, after looking at the name and at whether it tells the truth about compression."""
    if not path.exists():
        raise InputError("file not found", where=path, remedy="check the path")
    if not path.name.lower().endswith(_ENDINGS):
        raise InputError("not a NIfTI file by its name", where=path, remedy="convert it to .nii or .nii.gz")
    with open(path, "rb") as file:
        start = file.read(2)
    if not start:
        raise InputError("the file is empty", where=path, remedy="copy it again")
    compressed = path.name.lower().endswith(".gz")
    if (start == b"\x1f\x8b") != compressed:
        is_or_not = "not gzip-compressed" if compressed else "gzip-compressed"
        raise InputError(
            f"{is_or_not} although its name ends in {path.suffix}", where=path, remedy="rename or convert it"
        )
    return gzip.open(path) if compressed else open(path, "rb")


def _image_class(path: Path, content: bytes) -> Any:
    """Choose NIfTI-1 or NIfTI-2 by the first number, the size of the header, and its signature."""
    sizes = {int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big")}
    if 348 in sizes and content[344:347] in (b"n+1", b""):
        return nibabel.Nifti1Image
    if 540 in sizes and content[4:7] in (b"n+2", b""):
        return nibabel.Nifti2Image
    raise InputError("not a NIfTI file", where=path, remedy="convert it to .nii or .nii.gz")


def _damaged(path: Path) -> InputError:
    return InputError("the file is truncated or damaged", where=path, remedy="copy or export it again")


def _affine(path: Path, stored: NDArray[Any], header: Any) -> NDArray[np.float64]:
    affine = np.asarray(stored, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise InputError(
            "the affine in the header cannot be used (zero, NaN or collapsed axes)",
            where=path,
            remedy="correct sform and qform in the header",
        )
    return np.asarray(np.diag([_units(header)] * 3 + [1.0]) @ affine)


def _units(header: Any) -> float:
    return _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)


def _voxels(path: Path, image: Any) -> NDArray[np.float32]:
    kind = image.get_data_dtype()
    if kind.kind not in "iuf":
        raise InputError(f"the voxels are of type {kind}, not numbers", where=path, remedy="save real numbers")
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported as infinite
            return np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))
    except (EOFError, OSError, ValueError) as error:
        raise _damaged(path) from error
    except MemoryError as error:
        raise InputError(
            f"an array of {_times(image.shape)} does not fit into memory", where=path, remedy="check the header"
        ) from error


def _header_of(path: Path | None) -> tuple[Any, Any, float]:
    """Give image class, header and mm per unit of the file to write like; a fresh header in mm where it is gone."""
    if path is None or not path.exists() or itk_volumes.is_itk(path):
        return nibabel.Nifti1Image, None, 1.0
    image = _load(path)
    return type(image), image.header.copy(), _units(image.header)


def _storable(path: Path, array: NDArray[Any], dtype: DTypeLike | None) -> tuple[NDArray[Any], np.dtype[Any]]:
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if dtype is not None:
        wanted = np.dtype(np.uint8 if np.dtype(dtype) == np.bool_ else dtype)
    elif array.dtype.kind == "f":
        wanted = np.dtype(np.float32)
    else:
        wanted = array.dtype
    if wanted.kind not in "iuf" or array.dtype.kind not in "iuf" or wanted == np.float16:
        raise InputError(
            f"voxels of type {array.dtype} cannot be stored as {wanted}", where=path, remedy="store float32"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(wanted)
    # Numbers that the type holds exactly need no slope; nibabel computes one for the others.
    return (cast if wanted.kind == "f" or np.array_equal(cast, array) else array), wanted
