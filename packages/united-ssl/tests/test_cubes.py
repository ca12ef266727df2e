"""The crop rule and folders of cubes (specification 5, 9.10)."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from united_ssl import crop_accepted
from united_ssl.cubes import CubeRow, read_cubes, scale_hu, write_cubes, write_index


def test_crop_rule():
    air = np.full((4, 4, 11), -1000)
    assert crop_accepted(air, 8) == (True, 0.0)
    assert crop_accepted(np.zeros((4, 4, 11)), 8) == (False, 1.0)
    column = air.copy()
    column[0, 0] = 0
    assert crop_accepted(column, 8) == (True, 0.0625)
    assert crop_accepted(torch.from_numpy(column), 8) == (True, 0.0625)


def test_the_next_slice_counts_half_and_the_one_behind_it_nothing():
    for z, fraction in ((3, (1 + 0.5) / 8), (0, 1 / 8), (8, 0.5 / 8), (9, 0), (10, 0)):
        scan = np.full((1, 1, 11), -1000.0)
        scan[0, 0, z] = -150
        assert crop_accepted(scan, 8)[1] == fraction
    scan[0, 0, 3] = -150.5
    assert crop_accepted(scan, 8)[1] == 0


def test_the_limit_is_included():
    scan = np.full((20, 1, 2), -1000)
    scan[:3, 0, 0] = 0
    assert crop_accepted(scan, 1) == (True, 0.15)
    with pytest.raises(ValueError, match="too few slices"):
        crop_accepted(scan, 2)


def test_grey_values():
    assert scale_hu(np.array([-2000, -1000, 0, 1000, 3000])).tolist() == [0, 0, 0.5, 1, 1]


def test_round_trip(tmp_path):
    values = np.random.default_rng(0).random((3, 8, 16, 8))
    write_cubes(tmp_path / "a.npy", values, (values > 0.5))
    write_index(
        tmp_path, [CubeRow(tmp_path / "a.npy", i, "train", "s", "t", "1", "scan", ("1", "2", "3")) for i in range(3)]
    )
    cubes = read_cubes(tmp_path)
    assert cubes.shape == (8, 16, 8)
    assert len(cubes) == 3
    assert cubes.has_masks
    assert np.abs(cubes.cube(1)[0] - values[1]).max() <= 2.0**-12
    assert np.array_equal(cubes.mask(2), values[2] > 0.5)
    assert cubes.labels().tolist() == [1, 1, 1]
    assert cubes.rows[0].corner == ("1", "2", "3")


def test_the_files_of_models_genesis(tmp_path):
    for subset in (0, 4, 5, 6, 7):
        np.save(tmp_path / f"bat_32_s_64x64x32_{subset}.npy", np.zeros((2, 64, 64, 32), np.float32))
    splits = [row.split for row in read_cubes(tmp_path).rows]
    assert splits == ["train"] * 4 + ["val"] * 4 + ["test"] * 2


def test_the_files_of_transvw(tmp_path):
    np.save(tmp_path / "train_data1_vwGen_ex_ref_fold1.0.npy", np.zeros((4, 64, 64, 32, 1), np.float32))
    np.save(tmp_path / "train_label1_vwGen_ex_ref_fold1.0.npy", np.eye(5, dtype=int)[[3, 1, 4, 0]])
    np.save(tmp_path / "val_data1_vwGen_ex_ref_fold1.0.npy", np.zeros((2, 1, 64, 64, 32), np.float32))
    np.save(tmp_path / "val_label1_vwGen_ex_ref_fold1.0.npy", np.array([2, 0]))
    cubes = read_cubes(tmp_path)
    assert cubes.labels().tolist() == [3, 1, 4, 0, 2, 0]
    assert cubes.cube(5).shape == (1, 64, 64, 32)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "index.csv").write_text("file,place\n"), "has no column split"),
        (lambda f: (f / "index.csv").write_text("file,place,split\na.npy,x,train\n"), "row 2"),
        (lambda f: (f / "index.csv").write_text("file,place,split\na.npy,0,test1\n"), "row 2"),
        (lambda f: (f / "index.csv").write_text("file,place,split\na.npy,7,train\n"), "has no cube 7"),
        (lambda f: (f / "index.csv").write_text("file,place,split\nb.npy,0,train\n"), "b.npy: is not there"),
        (lambda f: (f / "index.csv").write_text("file,place,split\n"), "holds no cubes"),
        (lambda f: (f / "c.npy").write_bytes(b"\x93NUMPY" + bytes(20)), "is no file of cubes"),
        (lambda f: np.save(f / "c.npy", np.zeros((2, 8, 8))), "holds an array of shape (2, 8, 8)"),
        (lambda f: np.save(f / "c.npy", np.zeros((2, 16, 8, 8))), "cubes of several sizes"),
        (lambda f: np.save(f / "a.npy", np.zeros((2, 12, 8, 8))), "multiples of 8"),
        (lambda f: np.save(f / "a.masks.npy", np.zeros((1, 8, 8, 8))), "another shape"),
    ],
)
def test_refusals(spoil, words, tmp_path):
    from united_ssl.cubes import _opened

    write_cubes(tmp_path / "a.npy", np.zeros((2, 8, 8, 8)))
    write_index(tmp_path, [CubeRow(tmp_path / "a.npy", 0)])
    spoil(tmp_path)
    if (tmp_path / "c.npy").exists():
        write_index(tmp_path, [CubeRow(tmp_path / "a.npy", 0), CubeRow(tmp_path / "c.npy", 0)])
    _opened.cache_clear()
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        read_cubes(tmp_path)
    assert "\n" not in str(error.value)


def test_a_cube_that_is_no_number(tmp_path):
    values = np.zeros((1, 8, 8, 8))
    values[0, 1, 2, 3] = np.nan
    write_cubes(tmp_path / "a.npy", values)
    write_index(tmp_path, [CubeRow(tmp_path / "a.npy", 0)])
    with pytest.raises(ValueError, match="cube 0 holds voxels that are no numbers"):
        read_cubes(tmp_path).cube(0)
