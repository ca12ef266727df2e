from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from dart_core.errors import InputError
from metamedseg import slices_by_volume
from metamedseg.datasets import draw_split, read_slices, read_slicing, write_index, write_slice


class TestNames:
    def test_numeric_order(self):
        names = ["la_003_slice10.npy", "la_003_slice2.npy", "la_004_slice7.npy", "la_003_slice1.npy"]
        assert slices_by_volume(names) == {
            "003": ["la_003_slice1.npy", "la_003_slice2.npy", "la_003_slice10.npy"],
            "004": ["la_004_slice7.npy"],
        }
        assert slices_by_volume(["spleen_2_slice3"]) == {"2": ["spleen_2_slice3"]}

    def test_volumes_of_several_kinds_are_kept_apart(self):
        assert slices_by_volume(["a_1_slice3", "b_1_slice3"]) == {"a_1": ["a_1_slice3"], "b_1": ["b_1_slice3"]}
        assert list(slices_by_volume(["7_slice3"])) == ["7"]
        with pytest.raises(InputError, match="'la_003' is no name of a slice"):
            slices_by_volume(["la_003"])


class TestSplit:
    @pytest.mark.parametrize(
        ("volumes", "train", "val", "test"), [(20, 14, 2, 4), (41, 28, 4, 9), (32, 22, 3, 7), (30, 21, 3, 6), (121, 86, 10, 25)]
    )  # fmt: skip
    def test_the_authors_counts(self, volumes, train, val, test):
        found = list(draw_split([f"v{i:03d}" for i in range(volumes)]).values())
        assert [found.count(name) for name in ("train", "val", "test")] == [train, val, test]

    @given(st.integers(3, 80))
    def test_is_scikit_learns(self, count):
        units = [f"v{i:03d}" for i in range(count)]
        rest, test = train_test_split(units, test_size=0.2, random_state=6)
        train, val = train_test_split(rest, test_size=0.1, random_state=6)
        expected = dict.fromkeys(train, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
        assert draw_split(units[::-1]) == expected

    def test_few(self):
        assert draw_split([]) == {}
        assert draw_split(["a"]) == {"a": "train"}
        assert sorted(draw_split(["a", "b"]).values()) == ["test", "train"]


def test_what_is_written_is_read(slices):
    sets = read_slices(slices)
    assert list(sets) == ["kidney_left", "kidney_right", "liver", "spleen"]
    assert {one.organ for one in sets.values()} == {"kidney", "liver", "spleen"}
    one = sets["liver"]
    assert [len(one.split(name)) for name in ("train", "val", "test")] == [12, 4, 8]
    assert len(one.volumes()) == 6
    for volume, places in one.volumes().items():
        assert [one.rows[place].number for place in places] == [8, 9, 10, 11]
        assert {one.rows[place].volume for place in places} == {volume}
    images, masks = one.stack([0, 3])
    assert images.shape == masks.shape == (2, 1, 16, 16)
    assert masks[0].sum() == one.rows[0].pixels
    assert read_slicing(slices) is None


def broken(tmp_path, part: str, values: np.ndarray) -> str:
    from metamedseg.datasets import SliceRow, SliceSet

    rows = []
    for number in range(2):
        write_slice(tmp_path / "a", f"v_slice{number}", np.zeros((4, 4)), np.eye(4, dtype=bool))
        rows.append(SliceRow(f"v_slice{number}", "v", number, "train", 4))
    write_index(tmp_path, [SliceSet("a", "a", tuple(rows), tmp_path / "a")])
    np.save(tmp_path / "a" / part / "v_slice1.npy", values)
    with pytest.raises(InputError) as error:
        read_slices(tmp_path)["a"].stack([0, 1])
    assert "\n" not in str(error.value)
    return str(error.value)


class TestMistakes:
    def test_slices(self, tmp_path):
        assert "the image of v_slice1 has shape (4, 6), others (4, 4)" in broken(tmp_path, "images", np.zeros((4, 6)))
        assert "the mask of v_slice1 has shape (5, 4)" in broken(tmp_path, "masks", np.zeros((5, 4)))
        assert "other values than 0 and 1" in broken(tmp_path, "masks", np.full((4, 4), 2))
        assert "no numbers" in broken(tmp_path, "images", np.full((4, 4), np.nan))
        assert "shape (4, 4, 1)" in broken(tmp_path, "images", np.zeros((4, 4, 1)))
        (tmp_path / "a/images/v_slice1.npy").write_bytes(b"x")
        with pytest.raises(InputError, match="is no slice"):
            read_slices(tmp_path)["a"].image(1)
        (tmp_path / "a/images/v_slice1.npy").unlink()
        with pytest.raises(InputError, match="is not there"):
            read_slices(tmp_path)["a"].image(1)

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("dataset,organ\n", "has no column name"),
            ("dataset,organ,name,volume,slice,split,pixels\n", "names no slice"),
            ("dataset,organ,name,volume,slice,split,pixels\na,a,v_slice1,v,x,train,3\n", "row 2"),
            ("dataset,organ,name,volume,slice,split,pixels\na,a,v_slice1,v,1,dev,3\n", "'dev'"),
        ],
    )
    def test_index(self, tmp_path, text, part):
        (tmp_path / "slices.csv").write_text(text)
        with pytest.raises(InputError, match=part):
            read_slices(tmp_path)

    def test_nothing_there(self, tmp_path):
        with pytest.raises(InputError, match=r"holds no slices\.csv"):
            read_slices(tmp_path)
