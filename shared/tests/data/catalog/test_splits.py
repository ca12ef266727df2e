from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_core.data.catalog._splits import draw_splits, read_lists
from dart_core.errors import InputError, SettingError


class TestLists:
    def test_names_without_folder_and_ending(self, tmp_path):
        (tmp_path / "a.txt").write_text("00000001_000.png 0 1 0\n00000002_000.png\t1\n\n", newline="")
        (tmp_path / "b.txt").write_text("train_jpeg/0005.jpeg 0 1\r\nCHNCXR_0001_0.png,0\r\n", newline="")
        split_of = read_lists({"train": tmp_path / "a.txt", "test": tmp_path / "b.txt"})
        assert split_of == {
            "00000001_000": "train",
            "00000002_000": "train",
            "0005": "test",
            "CHNCXR_0001_0": "test",
        }

    def test_mistakes(self, tmp_path):
        (tmp_path / "a.txt").write_text("x.png 0\ny.png 1\n")
        (tmp_path / "b.txt").write_text("z.png 0\ny.png 1\n")
        (tmp_path / "empty.txt").write_text("\n\n")
        (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
        for lists, pattern in (
            ({"train": "a.txt", "test": "b.txt"}, r"b\.txt, row 2: y\.png is in the list of train too"),
            ({"train": "no.txt"}, r"no\.txt: cannot be read"),
            ({"train": "empty.txt"}, r"empty\.txt: the list is empty"),
            ({"train": "bytes.txt"}, r"bytes\.txt: cannot be read"),
        ):
            with pytest.raises(InputError, match=pattern):
                read_lists({split: tmp_path / name for split, name in lists.items()})
        with pytest.raises(SettingError, match="'valid'"):
            read_lists({"valid": tmp_path / "a.txt"})


class TestDraw:
    @given(
        counts=st.dictionaries(st.sampled_from("abc"), st.integers(0, 40), min_size=1),
        test=st.floats(0, 0.5),
        val=st.floats(0, 0.4),
        seed=st.integers(0, 99),
    )
    def test_every_unit_once_with_the_shares_of_each_stratum(self, counts, test, val, seed):
        strata = {f"{name}{i}": name for name, count in counts.items() for i in range(count)}
        split_of = draw_splits(strata, test, val, seed)
        assert split_of.keys() == strata.keys()
        for name, count in counts.items():
            found = Counter(split_of[unit] for unit in strata if strata[unit] == name)
            assert found["test"] == round(test * count)
            assert found["val"] == min(round(val * count), count - round(test * count))
        shuffled = dict(reversed(strata.items()))
        assert draw_splits(shuffled, test, val, seed) == split_of

    def test_the_seed_decides(self):
        strata = dict.fromkeys(map(str, range(40)), "")
        assert draw_splits(strata, 0.5, 0.0, 0) != draw_splits(strata, 0.5, 0.0, 1)

    @pytest.mark.parametrize(("test", "val"), [(-0.1, 0.5), (0.5, 0.5), (0.2, -1)])
    def test_shares(self, test, val):
        with pytest.raises(SettingError, match="shares"):
            draw_splits({"a": ""}, test, val, 0)
