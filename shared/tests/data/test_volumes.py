from __future__ import annotations

import gzip
import itertools
import os
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from dart_core.data.volumes import (
    Volume,
    read_grid,
    read_labels,
    read_mask,
    read_volume,
    resample,
    resample_to,
    scale_percentile,
    scale_z_score,
    write_volume,
    zoom,
    zoomed_grid,
)
from dart_core.errors import InputError, OutputError, SettingError

ALL_CODES = [
    "".join(codes) for order in itertools.permutations(("LR", "AP", "SI")) for codes in itertools.product(*order)
]


def affine_of(codes: str, spacing: tuple[float, ...], origin: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    """Affine of an array whose indices grow in these directions, with its first voxel at `origin`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, code in enumerate(codes):
        affine["RLAPSI".index(code) // 2, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    affine[:3, 3] = origin
    return affine


def stored_as(ras: np.ndarray, spacing: tuple[float, ...], codes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same scan, whose first RAS voxel is at (0, 0, 0), as a file stored with these axis codes."""
    order = ["RLAPSI".index(code) // 2 for code in codes]
    flipped = [axis for axis, code in enumerate(codes) if code not in "RAS"]
    origin = np.zeros(3)
    for axis in flipped:
        origin[order[axis]] = (ras.shape[order[axis]] - 1) * spacing[order[axis]]
    return np.flip(ras.transpose(order), flipped), affine_of(codes, tuple(spacing[i] for i in order), tuple(origin))


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None, **header: object) -> Path:
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    image.to_filename(path)
    return path


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA"])
def test_places_to_voxels(codes):
    volume = Volume(np.zeros((4, 5, 6)), affine_of(codes, (2.0, 0.5, 3.0), (10, -20, 30)))
    indices = np.array([[0, 0, 0], [1, 2, 3], [0.5, 0.25, 4]])
    places = indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    assert_allclose(volume.voxels(places), indices, atol=1e-12)
    assert_allclose(volume.voxels(places[1]), indices[1], atol=1e-12)
    assert volume.voxels(np.zeros((0, 3))).shape == (0, 3)


def random_array(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)


def one_line(error: pytest.ExceptionInfo[BaseException], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text


@settings(deadline=None, max_examples=50)
@given(
    codes=st.sampled_from(ALL_CODES),
    shape=st.tuples(*[st.integers(1, 7)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 5)] * 3),
    origin=st.tuples(*[st.floats(-100, 100)] * 3),
    angle=st.floats(-0.5, 0.5),
    units=st.sampled_from(["mm", "meter", "micron", "unknown"]),
    ending=st.sampled_from([".nii", ".nii.gz"]),
)
def test_a_written_file_has_orientation_affine_and_units_of_the_input(
    codes, shape, spacing, origin, angle, units, ending
):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ affine_of(codes, spacing, origin)
    stored = random_array(*shape)
    with tempfile.TemporaryDirectory() as folder:
        image = nibabel.Nifti1Image(stored, affine)
        image.header.set_xyzt_units(units)
        image.set_qform(affine, code="scanner")
        image.to_filename(Path(folder) / f"in{ending}")
        volume = read_volume(Path(folder) / f"in{ending}")
        written = write_volume(Path(folder) / f"out{ending}", volume.array, volume)
        before, after = nibabel.load(Path(folder) / f"in{ending}"), nibabel.load(written)
        assert_array_equal(after.affine, before.affine)
        assert_array_equal(after.get_fdata(), before.get_fdata())
        for key in ("sform_code", "qform_code", "xyzt_units", "srow_x", "quatern_b", "qoffset_x", "pixdim"):
            assert_array_equal(after.header[key], before.header[key])
        assert after.get_data_dtype() == np.float32
    assert volume.original_orientation == codes
    assert volume.orientation == "RAS"
    factor = {"mm": 1, "meter": 1000, "micron": 0.001, "unknown": 1}[units]
    # Reading in RAS: the same value lies at the same place in space.
    index = tuple(side // 2 for side in shape)
    place = before.affine @ (*index, 1)
    here = np.linalg.inv(volume.affine) @ (*(factor * place[:3]), 1)
    assert volume.array[tuple(np.rint(here[:3]).astype(int))] == stored[index]
    order = ["RLAPSI".index(code) // 2 for code in codes]
    axis_spacing = [spacing[order.index(axis)] for axis in range(3)]
    assert_allclose(volume.spacing, np.multiply(axis_spacing, factor), rtol=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR"])
def test_reading_reorients_by_hand_computed_rules(tmp_path, codes):
    array = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    path = save(tmp_path / "a.nii.gz", array, affine_of(codes, (1, 2, 3)))
    expected = {"RAS": array, "LPS": array[::-1, ::-1], "PSR": array[::-1].transpose(2, 0, 1)}[codes]
    assert_array_equal(read_volume(path).array, expected)
    assert_array_equal(read_volume(path, orientation=None).array, array)
    assert read_volume(path, orientation=None).orientation == codes
    assert read_volume(path, orientation="SPL").orientation == "SPL"
    assert read_volume(path).array.dtype == np.float32
    assert read_volume(path).array.flags.c_contiguous


def test_slope_and_intercept_are_applied(tmp_path):
    content = bytearray(save(tmp_path / "a.nii", np.full((2, 2, 2), 3, np.int16)).read_bytes())
    content[112:120] = np.array([10, -1], np.float32).tobytes()  # scl_slope, scl_inter
    (tmp_path / "b.nii").write_bytes(content)
    assert_array_equal(read_volume(tmp_path / "a.nii").array, 3)
    assert_array_equal(read_volume(tmp_path / "b.nii").array, 3 * 10 - 1)


def test_trailing_axes_of_length_one_are_dropped(tmp_path):
    array = random_array(3, 4, 5)
    volume = read_volume(save(tmp_path / "a.nii.gz", array[..., None]))
    assert_array_equal(volume.array, array)
    written = nibabel.load(write_volume(tmp_path / "b.nii.gz", volume.array, volume))
    assert written.shape == (3, 4, 5)


def test_a_scan_one_slice_thick_is_3d(tmp_path):
    assert read_volume(save(tmp_path / "a.nii", random_array(3, 4, 1))).array.shape == (3, 4, 1)


class TestBadFiles:
    def check(self, path: Path, *parts: object, **options: object) -> None:
        with pytest.raises(InputError) as error:
            read_volume(path, **options)
        one_line(error, path, *parts)

    def test_missing(self, tmp_path):
        self.check(tmp_path / "no.nii.gz", "not found")

    def test_folder(self, tmp_path):
        (tmp_path / "a.nii.gz").mkdir()
        self.check(tmp_path / "a.nii.gz", "folder")

    def test_other_ending(self, tmp_path):
        (tmp_path / "a.dcm").write_bytes(b"x")
        self.check(tmp_path / "a.dcm", ".nii.gz")

    def test_empty(self, tmp_path):
        (tmp_path / "a.nii.gz").write_bytes(b"")
        self.check(tmp_path / "a.nii.gz", "empty")

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    @pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
    def test_truncated(self, tmp_path, ending, share):
        whole = save(tmp_path / f"whole{ending}", random_array(20, 20, 20)).read_bytes()
        path = tmp_path / f"a{ending}"
        path.write_bytes(whole[: int(len(whole) * share)])
        self.check(path, "truncated or damaged", "again")

    def test_bit_flip_in_compressed_data(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", random_array(20, 20, 20))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        self.check(path, "damaged")

    def test_no_nifti(self, tmp_path):
        (tmp_path / "a.nii").write_bytes(b"P5 this is no nifti file" * 50)
        self.check(tmp_path / "a.nii", "not a NIfTI")
        (tmp_path / "b.nii.gz").write_bytes(gzip.compress(b"a tar, perhaps" * 50))
        self.check(tmp_path / "b.nii.gz", "not a NIfTI")
        (tmp_path / "c.nii").write_bytes((348).to_bytes(4, "little") + bytes(400))
        self.check(tmp_path / "c.nii")

    def test_compression_that_does_not_match_the_name(self, tmp_path):
        plain = save(tmp_path / "plain.nii", random_array(2, 2, 2)).read_bytes()
        (tmp_path / "a.nii.gz").write_bytes(plain)
        self.check(tmp_path / "a.nii.gz", "not gzip-compressed", "rename")
        (tmp_path / "b.nii").write_bytes(gzip.compress(plain))
        self.check(tmp_path / "b.nii", "gzip-compressed", "rename")

    @pytest.mark.parametrize("shape", [(3, 4, 5, 2), (3, 4, 5, 1, 3), (3, 4)])
    def test_not_three_dimensional(self, tmp_path, shape):
        self.check(save(tmp_path / "a.nii.gz", random_array(*shape)), " x ".join(map(str, shape)), "3-D")

    def test_colour_voxels(self, tmp_path):
        array = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
        self.check(save(tmp_path / "a.nii", array), "not numbers")

    def test_complex_voxels(self, tmp_path):
        self.check(save(tmp_path / "a.nii", np.ones((2, 2, 2), np.complex64)), "not numbers")

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_nan_and_infinite_voxels_give_count_and_first_index(self, tmp_path, value):
        array = random_array(4, 5, 6)
        array[1, 2, 3] = array[3, 0, 0] = value
        self.check(save(tmp_path / "a.nii.gz", array, affine_of("LPS", (1, 1, 1))), "2 voxels", "(1, 2, 3)")

    def test_value_beyond_float32(self, tmp_path):
        self.check(save(tmp_path / "a.nii", np.full((2, 2, 2), 1e300)), "8 voxels are NaN or infinite")

    def test_all_zero(self, tmp_path):
        self.check(save(tmp_path / "a.nii.gz", np.zeros((3, 3, 3), np.float32)), "zero")

    @pytest.mark.parametrize("step", [0.0, -1.0, np.nan, np.inf])
    def test_unusable_voxel_size(self, tmp_path, step):
        content = bytearray(save(tmp_path / "a.nii", random_array(3, 3, 3)).read_bytes())
        content[80:84] = np.float32(step).tobytes()  # pixdim[1]
        (tmp_path / "b.nii").write_bytes(content)
        self.check(tmp_path / "b.nii", "voxel size", str(step))

    @pytest.mark.parametrize("step", [0.0, np.nan])
    def test_collapsed_affine(self, tmp_path, step):
        content = bytearray(save(tmp_path / "a.nii", random_array(3, 3, 3)).read_bytes())
        content[280:284] = np.float32(step).tobytes()  # srow_x[0]
        (tmp_path / "b.nii").write_bytes(content)
        self.check(tmp_path / "b.nii", "affine")

    def test_impossible_size_in_the_header(self, tmp_path):
        content = bytearray(save(tmp_path / "a.nii", random_array(3, 3, 3)).read_bytes())
        content[42:48] = np.full(3, 32767, np.int16).tobytes()  # dim[1..3]
        (tmp_path / "b.nii").write_bytes(content)
        self.check(tmp_path / "b.nii")

    def test_smaller_than_asked(self, tmp_path):
        path = save(tmp_path / "a.nii", random_array(8, 9, 3))
        assert read_volume(path, minimum_size=3).array.shape == (8, 9, 3)
        assert read_volume(path, minimum_size=(8, 9, 1)).array.shape == (8, 9, 3)
        self.check(path, "8 x 9 x 3", "4 x 4 x 4", minimum_size=4)
        self.check(path, "8 x 10 x 1", minimum_size=(8, 10, 1))

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the super-user reads everything")
    def test_no_permission(self, tmp_path):
        path = save(tmp_path / "a.nii", random_array(2, 2, 2))
        path.chmod(0)
        self.check(path, "cannot be read")

    @pytest.mark.parametrize("codes", ["RA", "RRS", "XYZ", "ras", "RASL"])
    def test_unknown_orientation(self, tmp_path, codes):
        with pytest.raises(SettingError) as error:
            read_volume(save(tmp_path / "a.nii", random_array(2, 2, 2)), orientation=codes)
        one_line(error, codes, "RAS")


class TestMask:
    @given(image_codes=st.sampled_from(ALL_CODES), mask_codes=st.sampled_from(ALL_CODES))
    @settings(deadline=None, max_examples=30)
    def test_a_mask_in_any_orientation_lands_on_the_grid_of_its_scan(self, image_codes, mask_codes):
        ras = random_array(3, 4, 5)

        with tempfile.TemporaryDirectory() as folder:
            image = save(Path(folder) / "i.nii", *stored_as(ras, (1, 2, 3), image_codes))
            array, affine = stored_as(ras, (1, 2, 3), mask_codes)
            mask = save(Path(folder) / "m.nii", (array > 1.5).astype(np.uint8), affine)
            assert_array_equal(read_mask(mask, read_volume(image)), ras > 1.5)
            kept = read_volume(image, orientation=None)
            assert_array_equal(read_mask(mask, kept), kept.array > 1.5)

    def test_threshold_is_strict_and_an_empty_mask_is_allowed(self, tmp_path):
        volume = read_volume(save(tmp_path / "i.nii", random_array(1, 1, 4)))
        mask = save(tmp_path / "m.nii", np.array([[[0, 0.5, 0.50001, 7]]], np.float32))
        result = read_mask(mask, volume)
        assert_array_equal(result, [[[False, False, True, True]]])
        assert result.dtype == bool
        assert not read_mask(save(tmp_path / "e.nii", np.zeros((1, 1, 4), np.uint8)), volume).any()

    def test_other_shape(self, tmp_path):
        volume = read_volume(save(tmp_path / "i.nii", random_array(5, 4, 4)))
        path = save(tmp_path / "m.nii", np.ones((4, 4, 4), np.uint8))
        with pytest.raises(InputError) as error:
            read_mask(path, volume)
        one_line(error, path, "4 x 4 x 4", "i.nii", "5 x 4 x 4")

    @pytest.mark.parametrize(("shift", "fits"), [(0.0009, True), (0.0011, False), (10, False)])
    def test_other_grid(self, tmp_path, shift, fits):
        volume = read_volume(save(tmp_path / "i.nii", random_array(4, 4, 4)))
        affine = np.eye(4)
        affine[1, 3] = shift
        path = save(tmp_path / "m.nii", np.ones((4, 4, 4), np.uint8), affine)
        if fits:
            assert read_mask(path, volume).all()
        else:
            with pytest.raises(InputError) as error:
                read_mask(path, volume)
            one_line(error, path, "another grid", "mm")

    def test_nan(self, tmp_path):
        path = save(tmp_path / "m.nii", np.full((2, 2, 2), np.nan, np.float32))
        with pytest.raises(InputError):
            read_mask(path, None)


class TestWriting:
    def volume(self, codes: str = "LPS", shape: tuple[int, ...] = (3, 4, 5)) -> Volume:
        return Volume(random_array(*shape), np.diag([1.0, 2, 3, 1]), original_orientation=codes)

    @pytest.mark.parametrize("codes", ALL_CODES)
    def test_a_volume_made_in_memory(self, tmp_path, codes):
        volume = self.volume(codes)
        path = write_volume(tmp_path / "new" / "a.nii.gz", volume.array, volume)
        image = nibabel.load(path)
        assert "".join(nibabel.aff2axcodes(image.affine)) == codes
        assert image.header.get_xyzt_units()[0] == "mm"
        assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
        again = read_volume(path)
        assert_array_equal(again.array, volume.array)
        assert_allclose(again.affine, volume.affine, atol=1e-5)

    @pytest.mark.parametrize(
        ("array", "dtype", "stored"),
        [
            (np.array([0.25, 1.0], np.float32), None, np.float32),
            (np.array([0.25, 1.0], np.float64), None, np.float32),
            (np.array([0.25, 1.0], np.float64), np.float64, np.float64),
            (np.array([False, True]), None, np.uint8),
            (np.array([False, True]), bool, np.uint8),
            (np.array([3, 200], np.int16), None, np.int16),
            (np.array([3.0, 200.0], np.float32), np.uint8, np.uint8),
            (np.array([0.0, 1.0], np.float32), np.int16, np.int16),
        ],
    )
    def test_types(self, tmp_path, array, dtype, stored):
        like = Volume(array.reshape(1, 1, 2), np.eye(4))
        image = nibabel.load(write_volume(tmp_path / "a.nii", array.reshape(1, 1, 2), like, dtype=dtype))
        assert image.get_data_dtype() == stored
        assert_array_equal(image.get_fdata().ravel(), array.astype(float))

    def test_real_numbers_in_integers_get_a_slope(self, tmp_path):
        array = random_array(4, 4, 4)
        path = write_volume(tmp_path / "a.nii", array, Volume(array, np.eye(4)), dtype=np.int16)
        assert nibabel.load(path).get_data_dtype() == np.int16
        assert_allclose(read_volume(path).array, array, atol=1 / 65000)

    def test_type_that_nifti_cannot_hold(self, tmp_path):
        for array in (np.ones((1, 1, 1), np.complex64), np.full((1, 1, 1), "x")):
            with pytest.raises(InputError):
                write_volume(tmp_path / "a.nii", array, Volume(array, np.eye(4)))

    def test_display_range_of_the_input_is_not_kept(self, tmp_path):
        volume = read_volume(save(tmp_path / "a.nii", random_array(2, 2, 2), cal_max=900))
        header = nibabel.load(write_volume(tmp_path / "b.nii", volume.array, volume)).header
        assert header["cal_max"] == 0

    def test_a_resampled_volume_keeps_the_orientation_of_the_file(self, tmp_path):
        affine = affine_of("PSR", (1, 1, 1), (5, 6, 7))
        path = save(tmp_path / "a.nii.gz", random_array(6, 8, 4), affine)
        finer = resample(read_volume(path), 0.5)
        image = nibabel.load(write_volume(tmp_path / "b.nii.gz", finer.array, finer))
        assert "".join(nibabel.aff2axcodes(image.affine)) == "PSR"
        assert image.shape == (12, 16, 8)
        assert_allclose(image.header.get_zooms(), 0.5)
        again = read_volume(tmp_path / "b.nii.gz")
        assert_array_equal(again.array, finer.array)
        assert_allclose(again.affine, finer.affine, atol=1e-5)

    def test_the_input_may_be_gone(self, tmp_path):
        path = save(tmp_path / "a.nii", random_array(2, 3, 4), affine_of("LPS", (1, 2, 3)))
        affine = nibabel.load(path).affine
        volume = read_volume(path)
        path.unlink()
        assert_array_equal(nibabel.load(write_volume(tmp_path / "b.nii", volume.array, volume)).affine, affine)

    def test_the_input_may_be_replaced(self, tmp_path):
        path = save(tmp_path / "a.nii.gz", random_array(2, 3, 4))
        volume = read_volume(path)
        write_volume(path, volume.array + 1, volume)
        assert_array_equal(read_volume(path).array, volume.array + 1)

    def test_other_shape(self, tmp_path):
        with pytest.raises(InputError) as error:
            write_volume(tmp_path / "a.nii", np.ones((3, 4, 4)), self.volume())
        one_line(error, "a.nii", "3 x 4 x 4", "3 x 4 x 5")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("name", ["a.mgz", "a", "a.nii.zip", "a.gz"])
    def test_other_ending(self, tmp_path, name):
        with pytest.raises(OutputError) as error:
            write_volume(tmp_path / name, self.volume().array, self.volume())
        one_line(error, name, ".nii.gz")

    @pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
    def test_full_disk_leaves_what_was_there(self, tmp_path, ending, file_size_limit):
        path = tmp_path / f"a{ending}"
        path.write_bytes(b"old")
        volume = self.volume(shape=(40, 40, 40))
        with file_size_limit(4096), pytest.raises(OutputError) as error:
            write_volume(path, volume.array, volume)
        one_line(error, path, "disk is full", "free some space")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_file_in_place_of_the_folder(self, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(OutputError) as error:
            write_volume(tmp_path / "out" / "a.nii", self.volume().array, self.volume())
        one_line(error, "out", "in the way")


class TestResample:
    def ramp(self) -> Volume:
        """The value of each voxel is a linear function of its place in mm."""
        affine = np.array([[0, 2.0, 0, -5], [1.5, 0, 0, 3], [0, 0, -3.0, 40], [0, 0, 0, 1]])
        index = np.indices((20, 16, 12)).reshape(3, -1)
        place = affine[:3, :3] @ index + affine[:3, 3:]
        return Volume((place.T @ [1.0, 2.0, 3.0]).reshape(20, 16, 12).astype(np.float32), affine)

    @pytest.mark.parametrize("order", [1, 3])
    @pytest.mark.parametrize("spacing", [1.0, (3.0, 3.0, 3.0), (0.7, 2.5, 1.9)])
    def test_structures_keep_their_place_in_mm(self, order, spacing):
        volume = self.ramp()
        new = resample(volume, spacing, order)
        assert_allclose(new.spacing, np.broadcast_to(spacing, 3))
        index = np.indices(new.array.shape).reshape(3, -1)
        place = new.affine[:3, :3] @ index + new.affine[:3, 3:]
        expected = (place.T @ [1.0, 2.0, 3.0]).reshape(new.array.shape)
        away = tuple(slice(side // 3, -(side // 3)) for side in new.array.shape)  # the border is extrapolated flat
        assert_allclose(new.array[away], expected[away], atol=2e-2 if order == 3 else 2e-3)
        assert new.array.dtype == np.float32

    @given(
        shape=st.tuples(*[st.integers(1, 9)] * 3),
        old=st.tuples(*[st.floats(0.5, 3)] * 3),
        new=st.tuples(*[st.floats(0.5, 3)] * 3),
    )
    @settings(deadline=None, max_examples=40)
    def test_the_outer_face_stays_and_the_extent_differs_by_less_than_a_voxel(self, shape, old, new):
        volume = Volume(np.ones(shape, np.float32), np.diag([*old, 1.0]))
        result = resample(volume, new, order=1)
        corner = np.array([-0.5, -0.5, -0.5, 1])
        assert_allclose(result.affine @ corner, volume.affine @ corner, atol=1e-9)
        extent = np.multiply(result.array.shape, new) - np.multiply(shape, old)
        assert (np.abs(extent) <= np.maximum(0.5 * np.array(new), new - np.multiply(shape, old)) + 1e-9).all()
        assert_allclose(result.array, 1, atol=1e-6)

    def test_same_spacing_changes_nothing(self):
        volume = self.ramp()
        for order in (0, 1, 3):
            assert_allclose(resample(volume, volume.spacing, order).array, volume.array, atol=1e-3)

    def test_nearest_repeats_voxels(self):
        volume = Volume(np.array([[[1.0, 5.0]]], np.float32), np.eye(4))
        assert_array_equal(resample(volume, (1, 1, 0.5), order=0).array, [[[1, 1, 5, 5]]])

    def test_a_mask_is_interpolated_linearly_and_cut_at_a_half(self):
        mask = np.zeros((1, 1, 4), bool)
        mask[..., 2:] = True
        # Centres at 0.25 mm steps: -0.25, 0.25, ... ; linear values 0 .. 0.25, 0.75 .. 1 between voxels 1 and 2.
        result = resample(Volume(mask, np.eye(4)), (1, 1, 0.5), order=3)
        assert result.array.dtype == bool
        assert_array_equal(result.array, [[[0, 0, 0, 0, 1, 1, 1, 1]]])

    @pytest.mark.parametrize("spacing", [0, -1, (1, 1, np.nan), np.inf])
    def test_bad_spacing(self, spacing):
        with pytest.raises(SettingError, match="positive"):
            resample(self.ramp(), spacing)

    def test_bad_order(self):
        with pytest.raises(SettingError, match="order is 2"):
            resample(self.ramp(), 1, order=2)
        with pytest.raises(SettingError, match="order is 2"):
            resample_to(self.ramp(), self.ramp(), order=2)

    def test_onto_another_grid_and_zero_outside(self):
        volume = self.ramp()
        target_affine = volume.affine.copy()
        target_affine[:3, 3] += volume.affine[:3, 0] * 2  # two voxels further along the first axis
        like = Volume(np.zeros((20, 16, 12), np.float32), target_affine, Path("like.nii"), "LPS")
        moved = resample_to(volume, like)
        assert_allclose(moved.array[:18], volume.array[2:], atol=1e-4)
        assert_array_equal(moved.array[18:], 0)
        assert moved.path == Path("like.nii")
        assert_array_equal(moved.affine, target_affine)
        mask = resample_to(Volume(volume.array > 100, volume.affine), like).array
        assert_array_equal(mask[:18], volume.array[2:] > 100)
        assert not mask[18:].any()

    def test_there_and_back_over_another_orientation(self):
        smooth = np.exp(-((np.indices((21, 21, 21)) - 10) ** 2).sum(0) / 30).astype(np.float32)
        volume = Volume(smooth, np.eye(4))
        turned = Volume(np.zeros((30, 30, 30), np.float32), affine_of("SAL", (0.9, 0.8, 0.7), (20, -1, 0)))
        back = resample_to(resample_to(volume, turned, order=3), volume, order=3)
        assert_allclose(back.array[6:15, 6:15, 6:15], smooth[6:15, 6:15, 6:15], atol=5e-3)


class TestScaling:
    def test_percentiles_in_closed_form(self):
        # 0..100: the percentiles p are p itself, so 1..99 becomes 0..1.
        values = np.random.default_rng(0).permutation(np.arange(101.0)).reshape(1, 101, 1)
        expected = (np.clip(values, 1, 99) - 1) / 98
        result = scale_percentile(values)
        assert result.dtype == np.float32
        assert_allclose(result, expected, rtol=1e-6)
        # Linear interpolation: of [0, 10] the 25th percentile is 2.5.
        assert_allclose(scale_percentile([0.0, 10.0], low=25, high=75), [0, 1])
        assert_allclose(scale_percentile([0.0, 4.0, 10.0], low=25, high=75), [0, 2 / 5, 1], rtol=1e-6)

    @given(scale=st.floats(0.01, 1000), offset=st.floats(-1000, 1000), low=st.floats(0, 40), high=st.floats(60, 100))
    @settings(deadline=None)
    def test_gain_and_offset_do_not_matter_and_the_range_is_0_to_1(self, scale, offset, low, high):
        values = np.random.default_rng(1).normal(size=200)
        result = scale_percentile(values, low, high)
        assert result.min() == 0
        assert result.max() == 1
        assert_allclose(scale_percentile(scale * values + offset, low, high), result, atol=1e-5)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int16, np.uint8])
    def test_types(self, dtype):
        values = np.arange(101).astype(dtype)
        before = values.copy()
        assert scale_percentile(values).dtype == np.float32
        assert_allclose(scale_percentile(values), (np.clip(np.arange(101), 1, 99) - 1) / 98, atol=1e-6)
        assert_array_equal(values, before)

    @pytest.mark.parametrize("value", [0, 7, -3.5, 1e30])
    def test_constant_gives_zeros(self, value):
        constant = np.full((3, 4, 5), value, np.float32)
        assert_array_equal(scale_percentile(constant), np.zeros((3, 4, 5)))
        assert_array_equal(scale_z_score(constant), np.zeros((3, 4, 5)))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("scale", [scale_percentile, scale_z_score])
    def test_not_finite(self, scale, value):
        with pytest.raises(InputError, match="NaN or infinite"):
            scale([0.0, 1.0, value])

    @pytest.mark.parametrize("scale", [scale_percentile, scale_z_score])
    def test_empty(self, scale):
        with pytest.raises(InputError, match="empty"):
            scale(np.zeros((0, 3)))

    @pytest.mark.parametrize(("low", "high"), [(99, 1), (50, 50), (-1, 99), (1, 101)])
    def test_percentiles_out_of_order(self, low, high):
        with pytest.raises(SettingError, match="percentiles"):
            scale_percentile([0.0, 1.0], low, high)

    def test_z_score_in_closed_form(self):
        assert_allclose(scale_z_score([1.0, 3.0]), [-1, 1])
        values = np.array([[1.0, 3.0], [100.0, 5.0]])
        mask = np.array([[True, True], [False, False]])
        assert_allclose(scale_z_score(values, mask), [[-1, 1], [98, 3]])
        assert scale_z_score(values).dtype == np.float32

    def test_z_score_masks(self):
        with pytest.raises(InputError, match="shape"):
            scale_z_score(np.ones((2, 2)), np.ones(3, bool))
        with pytest.raises(InputError, match="empty"):
            scale_z_score(np.arange(3.0), np.zeros(3, bool))


# Frames, label maps, headers


def test_a_frame_of_a_4d_file(tmp_path):
    cine = random_array(3, 4, 5, 6)
    image = save(tmp_path / "cine.nii.gz", cine, affine_of("LPS", (2, 2, 8)))
    like = read_volume(image, frame=4)
    assert_array_equal(like.array, cine[::-1, ::-1, :, 4])
    assert like.orientation == "RAS"
    for frame, there in ((6, "0 to 5"), (-1, "0 to 5")):
        with pytest.raises(InputError) as error:
            read_volume(image, frame=frame)
        one_line(error, image, f"there is no frame {frame}; frames there: {there}")
    with pytest.raises(InputError) as error:
        read_volume(image)
    one_line(error, image, "an array of 3 x 4 x 5 x 6, not one 3-D volume")
    with pytest.raises(InputError, match="there is no frame 1; frames there: 0 to 0"):
        read_volume(save(tmp_path / "one.nii", random_array(3, 4, 5)), frame=1)
    # A mask may be as long as the cine, or drawn on the one frame alone.
    masks = (cine > 1.5).astype(np.uint8)
    long = save(tmp_path / "long.nii.gz", masks, affine_of("LPS", (2, 2, 8)))
    short = save(tmp_path / "short.nii.gz", masks[..., 4], affine_of("LPS", (2, 2, 8)))
    for path in (long, short):
        assert_array_equal(read_mask(path, like, frame=4), masks[::-1, ::-1, :, 4] == 1)
    with pytest.raises(InputError, match="not one 3-D volume"):
        read_mask(long, like)


def test_what_lies_on_a_frame_is_written_as_a_3d_file(tmp_path):
    affine = affine_of("LPS", (2, 2.5, 8), (3, 4, 5))
    image = save(tmp_path / "cine.nii.gz", random_array(3, 4, 5, 6), affine)
    volume = read_volume(image, frame=2)
    written = nibabel.load(write_volume(tmp_path / "mask.nii.gz", volume.array > 1.5, volume))
    assert written.shape == (3, 4, 5)
    assert_allclose(written.affine, affine)
    assert_array_equal(read_mask(tmp_path / "mask.nii.gz", volume), volume.array > 1.5)


def test_label_maps(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (3, 4, 5)).astype(np.int16)
    labels[0, 0, 0] = 32767
    image, affine = stored_as(random_array(3, 4, 5), (1, 2, 3), "PIL")
    like = read_volume(save(tmp_path / "image.nii.gz", image, affine))
    stored, affine = stored_as(labels, (1, 2, 3), "ASR")
    found = read_labels(save(tmp_path / "labels.nii.gz", stored.astype(np.int32), affine), like)
    assert found.dtype == np.int16
    assert_array_equal(found, labels)
    assert_array_equal(read_labels(tmp_path / "labels.nii.gz", None), labels)


@pytest.mark.parametrize("value", [0.5, -1, 32768, 2.0001])
def test_values_that_are_no_labels(value, tmp_path):
    labels = np.zeros((3, 4, 5), np.float32)
    labels[1, 2, 3] = value
    path = save(tmp_path / "labels.nii", labels)
    with pytest.raises(InputError) as error:
        read_labels(path, None)
    one_line(error, path, f"1 voxels hold no label, the first {value:g} at index (1, 2, 3)")
    if value < 0:
        assert not read_labels(path, None, negative_as_background=True).any()
    else:
        with pytest.raises(InputError):
            read_labels(path, None, negative_as_background=True)


def test_masks_of_one_structure(tmp_path):
    soft = np.zeros((3, 4, 5), np.float32)
    soft[0], soft[1], soft[2] = 0.2, 0.6, 1
    assert read_mask(save(tmp_path / "soft.nii", soft), None, one_label=True).any((1, 2)).tolist() == [
        False,
        True,
        True,
    ]
    assert read_mask(save(tmp_path / "byte.nii", soft.round() * 255), None, one_label=True)[2].all()
    assert not read_mask(save(tmp_path / "none.nii", soft * 0), None, one_label=True).any()
    path = save(tmp_path / "labels.nii", np.arange(60, dtype=np.float32).reshape(3, 4, 5) // 20)
    assert read_mask(path, None).sum() == 40
    with pytest.raises(InputError) as error:
        read_mask(path, None, one_label=True)
    one_line(error, path, "the mask holds the labels 1, 2; ")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_the_grid_of_a_file_without_its_voxels(ending, tmp_path):
    for codes in ("RAS", "PIL"):
        stored, affine = stored_as(random_array(3, 4, 5), (1, 2, 3), codes)
        path = save(tmp_path / f"image{ending}", stored, affine)
        for orientation in ("RAS", None):
            full, grid = read_volume(path, orientation), read_grid(path, orientation)
            assert grid.array.shape == full.array.shape
            assert_array_equal(grid.affine, full.affine)
            assert (grid.path, grid.original_orientation) == (full.path, full.original_orientation)
    big = nibabel.Nifti2Image(np.ones((3, 4, 5, 2), np.float32), np.diag([1, 2, 3, 1]))
    big.to_filename(path)
    assert read_grid(path, frame=1).spacing == (1, 2, 3)
    with pytest.raises(InputError, match="there is no frame 2"):
        read_grid(path, frame=2)


def test_the_grid_of_files_that_cannot_be_used(tmp_path):
    path = save(tmp_path / "image.nii", random_array(3, 4, 5))
    content = bytearray(path.read_bytes())
    content[80:84] = np.float32(0).tobytes()  # pixdim[1]
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"image\.nii: the voxel size in the header is \[0\.0, 1\.0, 1\.0\]; correct pixdim"
    ):
        read_grid(path)
    for damaged in (content[:200], b"text"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"image\.nii: "):
            read_grid(path)
    with pytest.raises(InputError, match="file not found"):
        read_grid(tmp_path / "none.nii")


# Resampling as SciPy's zoom


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*[st.integers(2, 30)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 2)] * 3),
    new=st.tuples(*[st.floats(0.5, 1.2)] * 3),
)
def test_zoom_is_scipys(shape, spacing, new):
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    factors = np.divide(spacing, new)
    assume((np.rint(np.array(shape) * factors) >= 2).all())
    volume = Volume(array, affine_of("RAS", spacing, (5, 6, 7)))
    found = zoom(volume, new)
    assert found.array.shape == tuple(round(side * factor) for side, factor in zip(shape, factors, strict=True))
    # SciPy's default fills the last slice with 0 where rounding puts it outside; what lies before is the same.
    inner = (slice(-1),) * 3
    assert_allclose(found.array[inner], ndimage.zoom(array, factors, order=3)[inner], atol=1e-5)
    # The outermost voxel centres stay, in the array and in the world.
    corners = np.ix_(*[(0, -1)] * 3)
    assert_allclose(found.array[corners], array[corners], atol=1e-4)
    for corner in ((0, 0, 0), (1, 1, 1)):
        ends = [[c * (side - 1) for c, side in zip(corner, a.shape, strict=True)] + [1] for a in (array, found.array)]
        assert_allclose(volume.affine @ ends[0], found.affine @ ends[1], atol=1e-9)
    grid = zoomed_grid(volume, new)
    assert grid.array.shape == found.array.shape
    assert_array_equal(grid.affine, found.affine)


def test_no_slice_is_lost_to_rounding():
    """254 voxels at 0.889 mm: SciPy's own border rule makes the last of 238 slices 0."""
    volume = Volume(np.ones((254, 2, 2), np.float32), affine_of("RAS", (0.889, 1, 1)))
    assert ndimage.zoom(volume.array, (0.889 / 0.95, 1, 1), order=3)[-1].max() == 0
    assert_allclose(zoom(volume, (0.95, 1, 1)).array, 1, rtol=1e-6)


def test_masks_are_zoomed_with_the_same_splines_and_true_from_one_half():
    mask = np.zeros((20, 6, 6), bool)
    mask[5:11] = True
    found = zoom(Volume(mask, affine_of("RAS", (1, 1, 1))), (0.7, 1, 1)).array
    assert found.dtype == bool
    assert_array_equal(found, ndimage.zoom(mask.astype(float), (1 / 0.7, 1, 1), order=3) >= 0.5)
    # Half way between a voxel inside and one outside the spline is exactly 0.5 by symmetry, and that is inside.
    step = np.repeat([True, False], 8)[:, None, None] & np.ones((1, 3, 3), bool)
    values = zoom(Volume(step, affine_of("RAS", (1, 1, 1))), (16 / 31, 1, 1)).array[:, 0, 0]
    assert values.sum() == 16


def test_nothing_to_zoom():
    volume = Volume(random_array(3, 4, 5), affine_of("RAS", (1, 0.95, 0.95)).astype(np.float32).astype(float))
    assert zoom(volume, (1, 0.95, 0.95)) is volume
    one = Volume(random_array(3, 4, 1), affine_of("RAS", (2, 2, 5)))
    assert zoom(one, (1, 1, 5)).array.shape == (6, 8, 1)


@pytest.mark.parametrize(
    ("shape", "new", "text"),
    [
        ((3, 4, 5), (1, 1, 100), "3 x 4 x 5 voxels of 1 x 1 x 1 mm would become 3 x 4 x 0"),
        ((3, 4, 5), (1, 1, 5), "would become 3 x 4 x 1"),
        ((3, 4, 1), (1, 1, 0.5), "would become 3 x 4 x 2"),
    ],
)
def test_grids_that_zoom_cannot_give(shape, new, text):
    with pytest.raises(InputError, match=f"{text}; check the voxel size in the header and --spacing"):
        zoom(Volume(random_array(*shape), np.eye(4)), new)
    with pytest.raises(SettingError, match="give positive numbers"):
        zoom(Volume(random_array(3, 4, 5), np.eye(4)), (1, 0, 1))


def test_resampling_to_a_grid_that_reaches_further():
    volume = Volume(np.full((2, 2, 2), 3, np.float32), np.eye(4))
    like = Volume(np.zeros((4, 2, 2), np.float32), np.eye(4))
    assert resample_to(volume, like).array[2:].max() == 0
    assert resample_to(volume, like, outside="nearest").array.min() == 3


def real_pairs() -> list[tuple[str, str]]:
    pairs = []
    root = Path(os.environ.get("DART_DATA", "."))
    for label in sorted((root / "volumes_mini").glob("*_label.nii.gz")):
        pairs.append((str(label).replace("_label.nii.gz", ".nii.gz"), str(label)))
    for folder, every in (("hippocampus_msd", 8), ("oasis30_2mm", 6)):
        for image in sorted((root / folder / "images").glob("*.nii.gz"))[::every]:
            pairs.append((str(image), str(image.parents[1] / "labels" / image.name)))
    return pairs


@pytest.mark.real
@pytest.mark.skipif("DART_DATA" not in os.environ, reason="DART_DATA does not say where the real data sets are")
def test_real_files_round_trip(tmp_path):
    pairs = real_pairs()
    assert len(pairs) > 20
    for image, label in pairs:
        volume = read_volume(image)
        mask = read_mask(label, volume)
        assert 0 < mask.mean() < 1
        assert volume.orientation == "RAS"
        scaled = scale_percentile(volume.array)
        assert (scaled.min(), scaled.max()) == (0, 1)
        before = nibabel.load(image)
        after = nibabel.load(write_volume(tmp_path / "out.nii.gz", volume.array, volume))
        assert_array_equal(after.affine, before.affine)
        assert_allclose(after.get_fdata().ravel(), before.get_fdata().ravel(), rtol=1e-6)
        masked = nibabel.load(write_volume(tmp_path / "mask.nii.gz", mask, volume))
        assert_array_equal(masked.get_fdata(), nibabel.load(label).get_fdata().reshape(masked.shape) > 0.5)
        spacing = max(volume.spacing)
        coarse = resample(Volume(mask, volume.affine), 2 * spacing)
        assert_allclose(coarse.spacing, 2 * spacing)
