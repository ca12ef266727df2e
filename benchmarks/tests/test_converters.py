"""The scripts that turn real sets into files, on made-up arrays of the same shape, and on the real sets where they are."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dart_core.data.catalog.chestxray14 import LABELS
from dart_core.data.datalist import Datalist, problems
from dart_core.data.images import read_image
from dart_core.data.volumes import read_mask, read_volume
from dart_core.errors import InputError, SettingError


def script(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "reproduce" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LGG, CHEST = script("lgg_multisite"), script("chest_xrays")
real = pytest.mark.skipif("DART_DATA" not in os.environ, reason="DART_DATA does not name the real sets")


def fake_lgg(root: Path) -> dict[str, np.ndarray]:
    """Eight patients of AA, one of BB without T1, five slices of 16 pixels each, the patients' slices mixed."""
    rng = np.random.default_rng(0)
    patients = [f"T_AA_{k}" for k in range(8)] + ["T_BB_0"]
    order = rng.permutation(np.arange(45))
    patient = np.repeat(patients, 5)[order]
    site = np.array([int("BB" in name) for name in patient])
    brain = np.zeros((45, 16, 16), np.uint8)
    brain[:, 3:13, 2:9] = 1
    tumour = np.zeros_like(brain)
    tumour[:, 4:7, 3:5] = 1
    t1 = rng.integers(1, 255, (45, 16, 16), dtype=np.uint8)
    t1[patient == "T_BB_0"] = 0
    data = {
        "t1": t1,
        "flair": rng.integers(1, 255, (45, 16, 16), dtype=np.uint8),
        "brain": np.packbits(brain, axis=-1),
        "tumour": np.packbits(tumour, axis=-1),
        "site": site,
        "site_names": np.array(["AA", "BB"]),
        "patient": patient,
        "slice": (np.tile(np.arange(5), 9) * 3)[order].astype(np.int16),
    }
    (root / "lgg_multisite").mkdir(parents=True)
    np.savez(root / "lgg_multisite" / "lgg_multisite.npz", **data)
    return data


class TestLgg:
    def test_volumes_masks_and_lists(self, tmp_path):
        data = fake_lgg(tmp_path)
        lists = LGG.convert(tmp_path, tmp_path / "out")
        assert tuple(lists) == LGG.LISTS
        assert [len(Datalist.read(path)) for path in lists.values()] == [8, 9, 8, 9]
        for name, path in lists.items():
            datalist = Datalist.read(path, required=("image", "mask", "subject", "site"))
            assert datalist.splits == ()
            assert problems(datalist, require_mask=True) == []
            row = datalist[2]
            index = np.flatnonzero(data["patient"] == row.subject)
            index = index[np.argsort(data["slice"][index])]
            volume = read_volume(row.image)
            # Columns run to the patient's left and rows to the back; in RAS both turn round.
            shown = volume.array[::-1, ::-1].transpose(2, 1, 0)
            assert_array_equal(shown, data[name.split("_")[0]][index])
            mask = read_mask(row.mask, volume)[::-1, ::-1].transpose(2, 1, 0)
            packed = data["tumour" if name.endswith("tumour") else "brain"][index]
            assert_array_equal(mask, np.unpackbits(packed, axis=-1).astype(bool))

    def test_split_by_patient(self, tmp_path):
        fake_lgg(tmp_path)
        lists = LGG.convert(tmp_path, tmp_path / "out", split_seed=3)
        flair = Datalist.read(lists["flair"], required=("split",))
        assert Counter((row.site, row.split) for row in flair) == {
            ("AA", "train"): 5,
            ("AA", "val"): 1,
            ("AA", "test"): 2,
            ("BB", "test"): 1,
        }
        split_of = {row.subject: row.split for row in flair}
        for path in lists.values():
            assert all(split_of[row.subject] == row.split for row in Datalist.read(path))
        patients = {f"p{k}": "AA" for k in range(16)}
        first = LGG.split_patients(patients, 0)
        assert Counter(first.values()) == {"train": 10, "val": 2, "test": 4}
        assert first != LGG.split_patients(patients, 1)
        assert first == {k: v for k, v in LGG.split_patients(patients | {"q": "CC"}, 0).items() if k != "q"}

    def test_not_there(self, tmp_path):
        with pytest.raises(InputError, match=r"lgg_multisite.npz: the real set is not there"):
            LGG.convert(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def fake_chest(root: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    names = np.array(sorted(LABELS))
    nih = {
        "images": rng.integers(0, 256, (30, 16, 16), dtype=np.uint8),
        "labels": rng.integers(0, 2, (30, 14), dtype=np.uint8),
        "names": np.array([f"{k:08d}_000.png" for k in range(30)]),
        "patient": np.repeat(np.arange(20), [2] * 10 + [1] * 10),
        "label_names": names,
    }
    pneumonia = {
        f"{split}_{what}": values
        for split, count in (("train", 5), ("val", 2), ("test", 3))
        for what, values in (
            ("images", rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)),
            ("labels", rng.integers(0, 2, (count, 1), dtype=np.uint8)),
        )
    }
    for folder, file, data in (("nih_cxr_1000", "nih_cxr_128", nih), ("pneumoniamnist", "pneumoniamnist", pneumonia)):
        (root / folder).mkdir(parents=True)
        np.savez(root / folder / f"{file}.npz", **data)
    return nih, pneumonia


class TestChest:
    def test_pictures_labels_and_splits(self, tmp_path):
        nih, pneumonia = fake_chest(tmp_path)
        lists = CHEST.convert(tmp_path, tmp_path / "out", size=None)
        adults = Datalist.read(lists["nih_cxr_1000"], required=("image", "subject", "site", "split", *LABELS))
        assert [row.image.name for row in adults] == nih["names"].tolist()
        assert [int(row.subject) for row in adults] == nih["patient"].tolist()
        for number, row in enumerate(adults):
            assert_array_equal(read_image(row.image, "L"), nih["images"][number])
            labels = dict(zip(nih["label_names"], nih["labels"][number], strict=True))
            assert row.labels == {name: str(labels[name]) for name in LABELS}
        # Three tenths of the patients; Datalist.read has refused a patient in both.
        assert len(adults.select(split="test").subjects) == 6
        children = Datalist.read(lists["pneumoniamnist"], required=("image", "subject", "site", "split", "Pneumonia"))
        assert [row.split for row in children] == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
        assert_array_equal(read_image(children[6].image, "L"), pneumonia["val_images"][1])
        assert [row.labels["Pneumonia"] for row in children[7:]] == [str(v[0]) for v in pneumonia["test_labels"]]

    @pytest.mark.parametrize("size", [4, 12])
    def test_size(self, tmp_path, size):
        nih, _ = fake_chest(tmp_path)
        for path in CHEST.convert(tmp_path, tmp_path / "out", size).values():
            assert read_image(Datalist.read(path)[0].image, "L").shape == (size, size)
        if size == 4:  # smaller pictures are averages
            expected = nih["images"][0].reshape(4, 4, 4, 4).mean((1, 3))
            found = read_image(tmp_path / "out" / "nih_cxr_1000" / "00000000_000.png", "L")
            assert np.abs(found - expected).max() <= 1

    def test_mistakes(self, tmp_path):
        with pytest.raises(InputError, match=r"nih_cxr_128.npz: the real set is not there"):
            CHEST.convert(tmp_path, tmp_path / "out")
        with pytest.raises(SettingError, match="size is -1"):
            CHEST.convert(tmp_path, tmp_path / "out", size=-1)
        assert not (tmp_path / "out").exists()


@real
@pytest.mark.real
def test_the_real_hospitals(tmp_path):
    lists = LGG.convert(Path(os.environ["DART_DATA"]), tmp_path, split_seed=0)
    assert [len(Datalist.read(path)) for path in lists.values()] == [60, 61, 60, 61]
    datalist = Datalist.read(lists["flair_tumour"])
    assert Counter(row.site for row in datalist) == {"CS": 16, "DU": 16, "EZ": 1, "FG": 12, "HT": 16}
    assert problems(datalist, require_mask=True) == []
    # Tumours are bright in FLAIR, in all but odd cases.
    brighter = 0
    for row in datalist:
        volume = read_volume(row.image)
        mask = read_mask(row.mask, volume)
        assert mask.any()
        brighter += volume.array[mask].mean() > volume.array[volume.array > 20].mean()
    assert brighter > 0.9 * len(datalist)
