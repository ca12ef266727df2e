"""Volumes and files of slices to data sets, against the volumes themselves."""

from __future__ import annotations

import json
import shutil

import nibabel
import numpy as np
import pytest
from numpy.testing import assert_allclose

from dart_core.data.phantoms import write_decathlon
from dart_core.errors import InputError
from metamedseg import kept_slices, normalise_nonzero, resize_mask, resize_slice
from metamedseg.datasets import read_channel, read_slices, read_slicing
from metamedseg.preparing import volume_of
from metamedseg.regions import TASKS, organ_task
from metamedseg.slices import authors_picture, minmax


def prepared(command, data, out, *words):
    finished = command("prepare", "--data", data, "--out", out, "--size", 16, *words)
    assert finished.status == 0, finished.err
    return read_slices(out)


class TestRegions:
    def test_twenty_four_data_sets(self):
        names = [name for task in TASKS.values() for region in task.regions for name in region.datasets.values()]
        assert len(names) == len(set(names)) == 24
        assert {task.organ for task in TASKS.values()} == {
            "brain", "heart", "hippocampus", "prostate", "lung", "pancreas", "vessel", "spleen", "colon",
        }  # fmt: skip
        thresholds = {r.label: r.threshold for r in TASKS["Task01_BrainTumour"].regions}
        assert thresholds == {1: 1000, 2: 400, 3: 600}

    def test_labels_of_the_decathlon_fit_and_others_do_not(self, tmp_path):
        real = {
            "Task01_BrainTumour": ({1: "edema", 2: "non-enhancing tumor", 3: "enhancing tumour"}, 4),
            "Task02_Heart": ({1: "left atrium"}, 1),
            "Task04_Hippocampus": ({1: "Anterior", 2: "Posterior"}, 1),
            "Task05_Prostate": ({1: "PZ", 2: "TZ"}, 2),
            "Task06_Lung": ({1: "cancer"}, 1),
            "Task07_Pancreas": ({1: "pancreas", 2: "cancer"}, 1),
            "Task08_HepaticVessel": ({1: "Vessel", 2: "Tumour"}, 1),
            "Task09_Spleen": ({1: "spleen"}, 1),
            "Task10_Colon": ({1: "colon cancer primaries"}, 1),
        }
        assert real.keys() == TASKS.keys()
        for name, (labels, channels) in real.items():
            assert organ_task(name, labels, ("x",) * channels, tmp_path) is TASKS[name]
        with pytest.raises(InputError, match="label 1 of Task05_Prostate is 'TZ'"):
            organ_task("Task05_Prostate", {1: "TZ", 2: "PZ"}, ("T2", "ADC"), tmp_path)
        with pytest.raises(InputError, match="has 1 channels, 4 are needed"):
            organ_task("Task01_BrainTumour", real["Task01_BrainTumour"][0], ("FLAIR",), tmp_path)

    def test_other_folders(self, tmp_path):
        task = organ_task("Task77_My Organ", {0: "background", 1: "Left part", 2: "b"}, ("T1", "T2"), tmp_path)
        assert task.organ == "my_organ"
        assert [dict(region.datasets) for region in task.regions] == [
            {0: "my_organ_left_part_t1", 1: "my_organ_left_part_t2"}, {0: "my_organ_b_t1", 1: "my_organ_b_t2"},
        ]  # fmt: skip
        assert organ_task("liver", {1: "x"}, ("CT",), tmp_path).regions[0].datasets == {0: "liver"}
        with pytest.raises(InputError, match="no label but the background"):
            organ_task("liver", {0: "x"}, ("CT",), tmp_path)


class TestVolumes:
    def test_every_slice_is_what_the_volume_says(self, command, volumes, tmp_path):
        sets = prepared(command, volumes, tmp_path / "out", "--threshold", 6)
        assert sorted(sets) == [
            *(f"kidneys_{side}_kidney_{mode}" for side in ("left", "right") for mode in ("t1", "t2")), "spleen",
        ]  # fmt: skip
        assert {sets[name].organ for name in sets} == {"kidneys", "spleen"}
        one = sets["kidneys_left_kidney_t2"]
        folder = volumes / "Task51_Kidneys"
        expected = []
        for number in range(3):
            label = np.asarray(nibabel.load(folder / f"labelsTr/kidneys_{number:03d}.nii.gz").dataobj)
            counts = (label == 2).sum((0, 1))
            expected += [(f"kidneys_{number:03d}", int(z)) for z in np.flatnonzero(counts >= 6)]
        assert [(row.volume, row.number) for row in one.rows] == expected
        row = one.rows[0]
        image = np.asarray(nibabel.load(folder / f"imagesTr/{row.volume}.nii.gz").dataobj)[..., 1].astype(np.float32)
        found = resize_slice(normalise_nonzero(image)[..., row.number], 16)
        assert_allclose(one.image(0)[0], found, atol=2e-3)  # stored in half precision
        assert one.mask(0).sum() == row.pixels > 0
        assert read_slicing(tmp_path / "out").size == 16
        assert [read_channel(tmp_path / "out", name) for name in sorted(sets)] == [0, 1, 0, 1, 0]
        # A split is drawn over the volumes of a data set. The channels of a region have the same ones, and thus one split;
        # another region, which may lack some of them, has a split of its own.
        other = sets["kidneys_left_kidney_t1"]
        assert other.rows == one.rows

    @pytest.mark.parametrize(("normalisation", "rule"), [("minmax_slice", minmax), ("authors_png", authors_picture)])
    def test_other_normalisations(self, normalisation, rule, command, volumes, tmp_path):
        sets = prepared(
            command, volumes / "Task09_Spleen", tmp_path / "out", "--threshold", 6, "--normalisation", normalisation
        )
        one = sets["spleen"]
        row = one.rows[0]
        image = np.asarray(nibabel.load(volumes / f"Task09_Spleen/imagesTr/{row.volume}.nii.gz").dataobj)
        found = rule(resize_slice(image[..., row.number].astype(np.float32), 16))
        assert_allclose(one.image(0)[0], found, atol=2e-3)

    def test_ct_may_be_clipped(self, command, volumes, tmp_path):
        low = {}
        for flag in ((), ("--clip-ct",)):
            words = ("--threshold", 6, "--normalisation", "minmax_slice", *flag)
            sets = prepared(command, volumes / "Task09_Spleen", tmp_path / f"out{len(flag)}", *words)
            low[flag] = sets["spleen"].image(0)
        assert (low[()] != low[("--clip-ct",)]).any()

    def test_a_region_that_is_gone_after_resizing(self, command, volumes, tmp_path):
        """One voxel between the pixels of the smaller slice: kept by the native threshold, with an empty mask."""
        folder = shutil.copytree(volumes / "Task09_Spleen", tmp_path / "Task09_Spleen")
        path = folder / "labelsTr/spleen_000.nii.gz"
        image = nibabel.load(path)
        label = np.asarray(image.dataobj).copy()
        label[..., 0] = 0
        label[1, 2, 0] = 1
        nibabel.Nifti1Image(label, image.affine).to_filename(path)
        assert 0 in kept_slices(label, 1, 1)
        assert not resize_mask(label[..., 0] == 1, 16).any()
        one = prepared(command, folder, tmp_path / "out", "--threshold", 1)["spleen"]
        assert min(row.pixels for row in one.rows) > 0
        assert ("spleen_000", 0) not in {(row.volume, row.number) for row in one.rows}
        all_slices = prepared(command, folder, tmp_path / "all", "--threshold", 0)["spleen"]
        assert len(all_slices) == 3 * 12

    @pytest.mark.parametrize("normalisation", ["zscore", "authors_png"])
    def test_a_threshold_after_resizing_counts_the_mask_in_use(self, normalisation, command, volumes, tmp_path):
        words = ("--threshold-stage", "resized", "--mask-cut", 0.95, "--normalisation", normalisation)
        some = prepared(command, volumes / "Task09_Spleen", tmp_path / "some", "--threshold", 1, *words)["spleen"]
        sizes = sorted(row.pixels for row in some.rows)
        for least in sorted(set(sizes))[::4]:
            out = tmp_path / f"out{least}"
            one = prepared(command, volumes / "Task09_Spleen", out, "--threshold", least, *words)["spleen"]
            assert sorted(row.pixels for row in one.rows) == [size for size in sizes if size >= least]

    def test_masks_of_the_authors_are_cut_at_a_share_of_their_maximum(self, command, volumes, tmp_path):
        folder = shutil.copytree(volumes / "Task09_Spleen", tmp_path / "Task09_Spleen")
        for path in folder.glob("labelsTr/*.nii.gz"):
            image = nibabel.load(path)
            label = np.zeros(image.shape, np.uint8)
            label[1, 3:15] = 1  # between the pixels of the smaller slice
            nibabel.Nifti1Image(label, image.affine).to_filename(path)
        words = ("--threshold", 1, "--normalisation", "authors_png", "--mask-cut", 0.4235)
        one = prepared(command, folder, tmp_path / "out", *words)["spleen"]
        resized = resize_slice((label[..., 0] == 1).astype(float), 16)
        assert resized.max() < 0.4235
        assert len(one) == 3 * 12
        for place in range(len(one)):
            assert (one.mask(place)[0] == (resized > 0.4235 * resized.max())).all()

    def test_the_liver_is_no_source_of_the_decathlon(self, command, volumes, tmp_path):
        root = shutil.copytree(volumes, tmp_path / "msd")
        liver = write_decathlon(root, "Task03_Liver", ("liver",), ("CT",), 3, (24, 20, 12))
        finished = command("prepare", "--data", root, "--out", tmp_path / "out", "--size", 16, "--threshold", 6)
        assert finished.status == 0, finished.err
        assert "liver" not in read_slices(tmp_path / "out")
        assert finished.err.count("Task03_Liver is left out") == 1
        assert "Task03_Liver is left out" in command("check-data", "--data", root).err
        alone = command("prepare", "--data", liver, "--out", tmp_path / "alone", "--size", 16, "--threshold", 6)
        assert (alone.status, list(read_slices(tmp_path / "alone"))) == (0, ["liver"])
        assert "left out" not in alone.err

    def test_split_by_slice(self, command, volumes, tmp_path):
        words = ("--threshold", 6, "--split-unit", "slice")
        one = prepared(command, volumes / "Task09_Spleen", tmp_path / "out", *words)["spleen"]
        assert len(one.split("test")) == -(-len(one) // 5)
        assert set(one.split("test").volumes()) & set(one.split("train").volumes())


class TestMistakes:
    """One line, status 2, and no folder left behind."""

    def fails(self, command, data, out, *parts: str, words=("--threshold", 6)):
        finished = command("prepare", "--data", data, "--out", out, "--size", 16, *words)
        assert finished.status == 2
        for part in parts:
            assert part in finished.last_line
        assert not out.exists()

    @pytest.fixture
    def spleen(self, volumes, tmp_path):
        return shutil.copytree(volumes / "Task09_Spleen", tmp_path / "Task09_Spleen")

    def change(self, folder, number: int, rule) -> None:
        path = folder / f"labelsTr/spleen_{number:03d}.nii.gz"
        image = nibabel.load(path)
        nibabel.Nifti1Image(rule(np.asarray(image.dataobj)), image.affine).to_filename(path)

    def test_a_label_that_is_not_in_dataset_json(self, command, spleen, tmp_path):
        self.change(spleen, 2, lambda label: (label * 3).astype(np.uint8))
        self.fails(command, spleen, tmp_path / "out", "spleen_002.nii.gz", "the label 3 is not in dataset.json")
        finished = command("check-data", "--data", spleen)
        assert finished.status == 2
        assert "the label 3 is not in dataset.json" in finished.out

    def test_an_organ_that_is_missing_in_a_case(self, command, spleen, tmp_path):
        self.change(spleen, 1, np.zeros_like)
        self.fails(command, spleen, tmp_path / "out", "spleen_001.nii.gz", "holds no label at all")

    def test_stray_labels_below_0_are_background(self, command, spleen, tmp_path):
        """Volume 243 of the Decathlon's Task04 has some."""
        words = ("--size", 16, "--threshold", 6)
        assert command("prepare", "--data", spleen, *words, "--out", tmp_path / "clean").status == 0
        self.change(spleen, 1, lambda label: np.where(label == 0, np.int16(-2), label.astype(np.int16)))
        assert command("check-data", "--data", spleen).status == 0
        finished = command("prepare", "--data", spleen, *words, "--out", tmp_path / "out")
        assert finished.status == 0, finished.err
        clean, stray = (read_slices(tmp_path / name)["spleen"] for name in ("clean", "out"))
        assert stray.rows == clean.rows
        for place in range(len(clean)):
            np.testing.assert_array_equal(stray.mask(place), clean.mask(place))

    def test_a_region_that_is_too_small_everywhere(self, command, spleen, tmp_path):
        self.fails(
            command, spleen, tmp_path / "out", "no slice of spleen", "lower --threshold", words=("--threshold", 400)
        )
        self.fails(command, spleen, tmp_path / "out", "no slice of spleen", words=())  # the paper's 600 pixels

    def test_a_region_that_is_missing_in_a_case_is_left_out(self, command, volumes, tmp_path):
        folder = shutil.copytree(volumes / "Task51_Kidneys", tmp_path / "kidneys")
        path = folder / "labelsTr/kidneys_001.nii.gz"
        image = nibabel.load(path)
        label = np.asarray(image.dataobj).copy()
        label[label == 2] = 0
        nibabel.Nifti1Image(label, image.affine).to_filename(path)
        finished = command("prepare", "--data", folder, "--out", tmp_path / "out", "--size", 16, "--threshold", 6)
        assert finished.status == 0
        assert "kidneys_left_kidney_t1: 1 of 3 volumes hold no slice with enough of it" in finished.err

    def test_labels_of_another_task(self, command, spleen, tmp_path):
        content = json.loads((spleen / "dataset.json").read_text())
        (spleen / "dataset.json").write_text(json.dumps({**content, "labels": {"0": "background", "1": "liver"}}))
        self.fails(command, spleen, tmp_path / "out", "label 1 of Task09_Spleen is 'liver', not 'spleen'")

    def test_files(self, command, spleen, tmp_path):
        (spleen / "imagesTr/spleen_002.nii.gz").write_bytes(b"x")
        self.fails(command, spleen, tmp_path / "out", "spleen_002.nii.gz")
        (spleen / "imagesTr/spleen_002.nii.gz").unlink()
        self.fails(command, spleen, tmp_path / "out", "is listed and missing")
        self.fails(command, tmp_path / "no", tmp_path / "out", "missing")
        self.fails(command, spleen / "imagesTr", tmp_path / "out", "dataset.json")

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            (lambda text: text[: len(text) // 2], "dataset.json"),
            (lambda text: "[]", "dataset.json"),
            (lambda text: text.replace('"training"', '"lessons"'), "training"),
            (lambda text: text.replace('"labels"', '"marks"'), "'labels' is no list of names by number"),
            (lambda text: text.replace('"modality"', '"mode"'), "'modality' is no list of names by number"),
        ],
    )
    def test_a_damaged_dataset_json(self, change, part, command, spleen, tmp_path):
        path = spleen / "dataset.json"
        path.write_text(change(path.read_text()))
        self.fails(command, spleen, tmp_path / "out", "dataset.json", part)
        checked = command("check-data", "--data", spleen)
        assert checked.status == 2
        assert part in checked.out

    def test_two_folders_with_one_name(self, command, volumes, tmp_path):
        for name in ("Task51_Kidneys", "Task52_Kidneys"):
            shutil.copytree(volumes / "Task51_Kidneys", tmp_path / "data" / name)
        self.fails(command, tmp_path / "data", tmp_path / "out", "two tasks give a data set kidneys_right_kidney_t1")


def write_npz(path, **changes):
    """Ten slices of five volumes."""
    images = np.random.default_rng(0).integers(0, 255, (10, 20, 20)).astype(np.uint8)
    masks = np.zeros((10, 20, 20), np.uint8)
    masks[:, 5:12, 5:12] = 1
    names = np.array([f"10{i // 2}_{20 + i}.jpg" for i in range(10)])
    np.savez(path, **{"images": images, "masks": masks, "names": names, **changes})
    return path


class TestFilesOfSlices:
    def test_rows(self, command, tmp_path):
        write_npz(tmp_path / "kidney_CT.npz")
        sets = prepared(command, tmp_path, tmp_path / "out")
        (one,) = sets.values()
        assert (one.name, one.organ, len(one), len(one.volumes())) == ("kidney_CT", "kidney", 10, 5)
        assert one.rows[0].name == "100_slice20"
        assert command("check-data", "--data", tmp_path).status == 0
        assert command("check-data", "--data", tmp_path / "out").status == 0

    def test_no_volume_gives_slices_like_these(self, command, tmp_path):
        """Each was normalised by itself, so that predict --volumes must refuse."""
        write_npz(tmp_path / "kidney_CT.npz")
        prepared(command, tmp_path, tmp_path / "out")
        assert read_slicing(tmp_path / "out") is None
        content = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert content["datasets"][0]["slices"] == 10

    def test_a_region_that_is_gone_after_resizing(self, command, tmp_path):
        masks = np.zeros((10, 20, 20), np.uint8)
        masks[:, 5:12, 5:12] = 1
        masks[3] = 0
        masks[3, 9, 2] = 1
        assert not resize_mask(masks[3], 16).any()
        write_npz(tmp_path / "kidney.npz", masks=masks)
        one = prepared(command, tmp_path, tmp_path / "out")["kidney"]
        assert (len(one), min(row.pixels for row in one.rows) > 0) == (9, True)
        one = prepared(command, tmp_path, tmp_path / "all", "--threshold", 0)["kidney"]
        assert sorted(row.pixels for row in one.rows)[0] == 0

    def test_names(self):
        assert volume_of("la_003_1049.jpg") == ("la_003", 1049)
        assert volume_of("10003_spleen_26.jpg") == ("10003_spleen", 26)
        assert volume_of("105006.jpg") == ("105", 6)
        assert volume_of("a_slice7") == ("a", 7)
        assert volume_of("one") == ("one", 0)

    @pytest.mark.parametrize(
        ("changes", "part"),
        [
            ({"masks": np.zeros((10, 20, 20), np.uint8)}, "the mask is empty"),
            ({"masks": np.full((10, 20, 20), 255, np.uint8)}, "the mask holds 255"),
            ({"masks": np.zeros((10, 20, 18), np.uint8)}, "do not fit each other"),
            ({"images": np.full((10, 20, 20), np.nan)}, "no numbers"),
            ({"names": np.array(["1_1"] * 10)}, "the slice 1_1 is there twice"),
            ({"images": np.array([np.zeros((3, 3)), np.zeros((4, 4))], dtype=object)}, "slices of unequal size"),
        ],
    )
    def test_mistakes(self, changes, part, command, tmp_path):
        write_npz(tmp_path / "kidney.npz", **changes)
        finished = command("prepare", "--data", tmp_path, "--out", tmp_path / "out", "--size", 16)
        assert finished.status == 2
        assert part in finished.line
        assert not (tmp_path / "out").exists()
        checked = command("check-data", "--data", tmp_path)
        assert checked.status == 2
        assert part in checked.out

    def test_a_file_of_something_else(self, command, tmp_path):
        np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
        assert "holds no array 'images'" in command("prepare", "--data", tmp_path, "--out", tmp_path / "o").line
        (tmp_path / "x.npz").write_bytes(b"nothing")
        assert "is no file of slices" in command("prepare", "--data", tmp_path, "--out", tmp_path / "o").line
