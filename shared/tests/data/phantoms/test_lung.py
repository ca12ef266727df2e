from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from dart_core.data.datalist import Datalist, problems
from dart_core.data.phantoms import CT_SCANNERS, LungCT, lung_ct, write_luna16, write_lung_ct
from dart_core.data.phantoms.lung import LABELS
from dart_core.data.volumes import read_labels, read_mask, read_volume
from dart_core.errors import SettingError

SMALL = (64, 64, 40)
SITES = tuple(CT_SCANNERS)


def litres(scan: LungCT, *labels: int) -> float:
    return float(np.isin(scan.labels, labels).sum() * np.prod(scan.spacing) / 1e6)


def voxel(scan: LungCT, place: np.ndarray | tuple[float, float, float]) -> tuple[int, ...]:
    index = np.linalg.inv(scan.affine) @ [*place, 1.0]
    return tuple(round(i) for i in index[:3].tolist())


class TestScan:
    @given(subject=st.integers(0, 10_000), site=st.sampled_from(SITES), seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=10)
    def test_a_chest_is_a_plausible_chest(self, subject, site, seed):
        scan = lung_ct(subject, site, SMALL, seed)
        assert scan.image.shape == scan.labels.shape == SMALL
        assert (scan.image.dtype, scan.labels.dtype) == (np.int16, np.uint8)
        assert scan.image.min() >= (-2000 if CT_SCANNERS[site].padding else -1024)
        # Adult lungs in inspiration hold 3 to 8 litres, and the right one is not the smaller one; livers weigh 1 to 2.5 kg, and
        # the scan does not reach all of it.
        assert 2.5 < litres(scan, 1, 3, 4) < 8.5
        assert 0.4 < litres(scan, 2) < 2.5
        inner = ndimage.binary_erosion(np.isin(scan.labels, (1, 4)), iterations=1)
        assert -900 < np.median(scan.image[inner]) < -780
        liver = ndimage.binary_erosion(scan.labels == 2, iterations=2)
        assert 40 < np.median(scan.image[liver]) < 130
        assert np.percentile(scan.image, 99.5) > 250  # bone
        # The liver is below the right lung.
        right, _, height = np.argwhere(scan.labels == 2).mean(0)
        assert right > SMALL[0] / 2
        assert height < np.argwhere(scan.labels == 1)[:, 2].mean()

    def test_two_lungs(self):
        scan = lung_ct(1, "Siemens", (96, 96, 60))
        pieces, count = ndimage.label(np.isin(scan.labels, (1, 3, 4)))
        sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1]
        assert sizes[:2].sum() > 0.97 * sizes.sum()
        assert sizes[1] > 0.5 * sizes[0]
        assert count < 40

    def test_the_same_call_gives_the_same_scan_and_other_calls_do_not(self):
        scan, again = lung_ct(3, "GE", SMALL), lung_ct(3, "GE", SMALL)
        assert_array_equal(scan.image, again.image)
        assert_array_equal(scan.labels, again.labels)
        for other in (lung_ct(4, "GE", SMALL), lung_ct(3, "GE", SMALL, seed=1)):
            assert (other.labels != scan.labels).mean() > 0.01
            assert [n.centre for n in other.nodules] != [n.centre for n in scan.nodules]

    def test_a_subject_is_the_same_on_every_scanner_and_grid(self):
        scans = [lung_ct(5, site, SMALL) for site in SITES] + [lung_ct(5, "GE", (48, 56, 64))]
        for scan in scans[1:]:
            assert [(n.centre, n.diameter, n.kind) for n in scan.nodules] == [
                (n.centre, n.diameter, n.kind) for n in scans[0].nodules
            ]
            assert_array_equal(scan.lookalikes, scans[0].lookalikes)
            assert_allclose(litres(scan, 1, 3, 4), litres(scans[0], 1, 3, 4), rtol=0.03)

    def test_grids_are_anisotropic_and_differ(self):
        spacings = {lung_ct(0, site, (64, 64, 32)).spacing for site in SITES}
        assert len(spacings) == 4
        assert all(z > 1.3 * x and x == y for x, y, z in spacings)

    def test_scanners_differ_in_noise_contrast_and_padding(self):
        scans = {site: lung_ct(2, site, SMALL) for site in SITES}

        def noise(site: str) -> float:
            inner = ndimage.binary_erosion(scans[site].labels == 2, iterations=2)
            return float(scans[site].image[inner].std())

        assert noise("Toshiba") > 1.3 * noise("Siemens")
        corner = {site: scans[site].image[0, 0, 0] for site in SITES}
        assert corner["GE"] == -2000
        assert all(corner[site] > -1100 for site in SITES if site != "GE")

        def heart(site: str) -> float:
            return float(np.percentile(scans[site].image[20:40, 30:44, 12:20], 90))

        assert heart("Philips") > heart("Siemens") + 80

    def test_mistakes(self):
        with pytest.raises(SettingError, match=r"'Canon'.*GE, Siemens"):
            lung_ct(0, "Canon")
        with pytest.raises(SettingError, match="at least 16"):
            lung_ct(0, "GE", (64, 64, 8))
        with pytest.raises(SettingError, match="-1 emboli"):
            lung_ct(0, "GE", SMALL, emboli=-1)


class TestNodules:
    def test_there_are_one_to_five_of_6_to_24_mm_in_the_lungs(self):
        kinds: Counter[str] = Counter()
        for subject in range(12):
            scan = lung_ct(subject, "GE", (32, 32, 24))
            assert 1 <= len(scan.nodules) <= 5
            for nodule in scan.nodules:
                assert 6 <= nodule.diameter <= 24
                kinds[nodule.kind] += 1
        assert min(kinds[kind] for kind in ("solid", "ground glass", "pleural")) > 0

    def test_their_voxels_are_where_and_as_large_as_the_table_says(self):
        seen = 0
        for subject in range(3):
            scan = lung_ct(subject, "Siemens", (112, 112, 100))
            pieces, _ = ndimage.label(scan.labels == 3)
            for nodule in scan.nodules:
                if nodule.kind == "pleural" or nodule.diameter < 9:
                    continue
                seen += 1
                piece = pieces == pieces[voxel(scan, nodule.centre)]
                assert pieces[voxel(scan, nodule.centre)] > 0
                volume = piece.sum() * np.prod(scan.spacing)
                assert_allclose(volume, np.pi / 6 * nodule.diameter**3, rtol=0.25)
                middle = scan.affine[:3, :3] @ np.argwhere(piece).mean(0) + scan.affine[:3, 3]
                assert_allclose(middle, nodule.centre, atol=1.5)
                value = scan.image[voxel(scan, nodule.centre)]
                assert value > (-700 if nodule.kind == "ground glass" else -150)
        assert seen >= 2

    def test_lookalikes_are_vessels_away_from_nodules(self):
        scan = lung_ct(6, "Siemens", (96, 96, 80))
        assert len(scan.lookalikes) >= 12
        bright = 0
        for place in scan.lookalikes:
            assert all(np.linalg.norm(np.subtract(n.centre, place)) > 15 for n in scan.nodules)
            i, j, k = voxel(scan, place)
            bright += scan.image[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2].max() > -500
        assert bright > 0.8 * len(scan.lookalikes)


class TestEmboli:
    def test_a_clot_is_a_dark_spot_in_a_bright_artery(self):
        without, scan = lung_ct(4, "Siemens", (96, 96, 60)), lung_ct(4, "Siemens", (96, 96, 60), emboli=3)
        assert (without.labels == 5).sum() == 0
        clot = scan.labels == 5
        assert clot.sum() > 10
        ring = ndimage.binary_dilation(clot, iterations=2) & ~clot
        assert np.median(scan.image[clot]) < 170
        assert np.percentile(scan.image[ring], 85) > np.median(scan.image[clot]) + 40
        assert [n.centre for n in scan.nodules] == [n.centre for n in without.nodules]

    def test_more_clots_fill_more(self):
        sizes = [int((lung_ct(4, "GE", (96, 96, 60), emboli=k).labels == 5).sum()) for k in (0, 1, 4)]
        assert sizes[0] == 0 < sizes[1] < sizes[2]


class TestNifti:
    def test_files_conventions_and_datalist(self, tmp_path):
        path = write_lung_ct(tmp_path, subjects_per_site=3, shape=(32, 32, 24), seed=4, emboli=(0, 2))
        datalist = Datalist.read(path, required=("image", "mask", "subject", "site", "split", "emboli"))
        assert datalist.sites == SITES
        assert len(datalist.subjects) == len(datalist) == 12
        assert problems(datalist, require_mask=True) == []
        assert [row.labels["emboli"] for row in datalist][:3] == ["0", "2", "0"]
        with open(tmp_path / "annotations.csv", newline="") as file:
            table = list(csv.DictReader(file))
        for row in datalist:
            scan = lung_ct(
                int(row.subject.removeprefix("phantom")), row.site, (32, 32, 24), 4, int(row.labels["emboli"])
            )
            volume = read_volume(row.image)
            assert_array_equal(volume.array, scan.image)
            assert_allclose(volume.affine, scan.affine, atol=1e-4)
            assert volume.original_orientation == CT_SCANNERS[row.site].orientation
            assert_array_equal(read_labels(row.mask, volume), scan.labels)
            listed = [line for line in table if line["seriesuid"] == row.subject]
            assert_allclose([float(line["diameter_mm"]) for line in listed], [n.diameter for n in scan.nodules])
            assert_allclose(
                [[-float(line["coordX"]), -float(line["coordY"]), float(line["coordZ"])] for line in listed],
                [n.centre for n in scan.nodules],
                atol=1e-3,
            )

    @pytest.mark.parametrize("number", sorted(LABELS))
    def test_masks_of_one_structure(self, tmp_path, number):
        path = write_lung_ct(tmp_path, ("GE",), 1, (48, 48, 32), structure=LABELS[number], emboli=(2,))
        row = Datalist.read(path)[0]
        expected = lung_ct(1000, "GE", (48, 48, 32), emboli=2).labels == number
        assert expected.any()
        assert_array_equal(read_mask(row.mask, read_volume(row.image)), expected)

    def test_mistakes(self, tmp_path):
        for arguments, pattern in (
            ({"sites": ("x",)}, "no scanner 'x'"),
            ({"sites": ()}, "no site or no subject"),
            ({"subjects_per_site": 0}, "no site or no subject"),
            ({"structure": "heart"}, "no structure 'heart'"),
            ({"emboli": ()}, "no number of emboli"),
            ({"shape": (4, 4, 4)}, "of shape"),
        ):
            with pytest.raises(SettingError, match=pattern):
                write_lung_ct(tmp_path / "x", **arguments)
        assert not (tmp_path / "x").exists()


def header(path: Path) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in path.read_text().splitlines())


class TestLuna16:
    def test_tree_and_tables(self, tmp_path):
        write_luna16(tmp_path, scans=5, subsets=3, shape=(32, 32, 24))
        files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mhd"))
        assert Counter(name.split("/")[0] for name in files) == {"subset0": 2, "subset1": 2, "subset2": 1}
        assert all((tmp_path / name).with_suffix(".raw").stat().st_size == 2 * 32 * 32 * 24 for name in files)
        series = {Path(name).stem for name in files}
        tables = {}
        for name in ("annotations", "candidates", "candidates_V2"):
            with open(tmp_path / f"{name}.csv", newline="") as file:
                tables[name] = list(csv.DictReader(file))
            assert {row["seriesuid"] for row in tables[name]} == series
        counts = {name: Counter(row.get("class") for row in rows) for name, rows in tables.items()}
        assert counts["candidates"]["1"] == counts["candidates_V2"]["1"] == len(tables["annotations"])
        assert counts["candidates_V2"]["0"] >= 2 * counts["candidates"]["0"] > 0

    def test_voxels_lie_where_the_header_says(self, tmp_path):
        write_luna16(tmp_path, scans=1, subsets=1, shape=(64, 60, 40))
        (path,) = tmp_path.rglob("*.mhd")
        lines = header(path)
        scan = lung_ct(1000, "GE", (64, 60, 40))
        assert lines["DimSize"] == "64 60 40"
        assert lines["ElementType"] == "MET_SHORT"
        stored = np.fromfile(path.with_suffix(".raw"), "<i2").reshape(40, 60, 64)  # x runs fastest
        offset, spacing = (np.array(lines[key].split(), float) for key in ("Offset", "ElementSpacing"))
        with open(tmp_path / "annotations.csv", newline="") as file:
            for row, nodule in zip(csv.DictReader(file), scan.nodules, strict=True):
                place = np.array([float(row[f"coord{axis}"]) for axis in "XYZ"])
                i, j, k = np.rint((place - offset) / spacing).astype(int)
                assert stored[k, j, i] == scan.image[voxel(scan, nodule.centre)]

    def test_mistakes(self, tmp_path):
        for scans, subsets in ((0, 1), (1, 0), (1, 11)):
            with pytest.raises(SettingError, match="1 to 10 subsets"):
                write_luna16(tmp_path / "x", scans, subsets)
        assert not (tmp_path / "x").exists()
