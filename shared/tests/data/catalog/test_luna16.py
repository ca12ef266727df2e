from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from dart_core.data.catalog import luna16
from dart_core.data.datalist import Datalist
from dart_core.data.phantoms import lung_ct, write_luna16
from dart_core.data.volumes import read_volume
from dart_core.errors import InputError

SHAPE = (32, 32, 24)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    return write_luna16(tmp_path_factory.mktemp("luna16"), scans=11, subsets=10, shape=SHAPE)


def build(root: Path, subsets: int = 10) -> Path:
    """Empty files in place of the scans: two per subset."""
    for subset in range(subsets):
        (root / f"subset{subset}").mkdir(parents=True)
        for k in range(2):
            for ending in (".mhd", ".raw"):
                (root / f"subset{subset}" / f"1.3.6.{subset}.{k}{ending}").touch()
    (root / "annotations.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3.6.0.0,-100.5,60,-210.25,6.5\n"
    )
    (root / "candidates_V2.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,class\n1.3.6.0.0,1,2,3,0\n1.3.6.0.0,-4,5,6,1\n"
    )
    return root


def fails(call, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        call()
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    def test_subsets_decide_the_split(self, tmp_path):
        datalist = luna16.index(build(tmp_path))
        assert len(datalist) == 20
        splits = {row.labels["subset"]: row.split for row in datalist}
        assert [splits[str(k)] for k in range(10)] == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
        assert datalist[0].image == tmp_path / "subset0/1.3.6.0.0.mhd"
        assert datalist[0].subject == "1.3.6.0.0"
        assert datalist.sites == ("luna16",)
        again = Datalist.read(datalist.write(tmp_path / "list.csv"), required=("image", "split", "subset"))
        assert [row.labels for row in again] == [row.labels for row in datalist]

    def test_623_of_888_scans_pretrain(self):
        # The paper's number of scans in subsets 0 to 6.
        assert sum(luna16.COUNTS) == 888
        assert sum(luna16.COUNTS[k] for k in (*luna16.SPLITS["train"], *luna16.SPLITS["val"])) == 623

    def test_archives_unpacked_into_folders_of_their_own(self, tmp_path):
        build(tmp_path, 1)
        (tmp_path / "subset1/subset1").mkdir(parents=True)
        for ending in (".mhd", ".raw"):
            (tmp_path / f"subset1/subset1/1.3.6.9{ending}").touch()
        assert [row.labels["subset"] for row in luna16.index(tmp_path)] == ["0", "0", "1"]

    def test_half_downloaded(self, tmp_path):
        build(tmp_path)
        (tmp_path / "subset3/1.3.6.3.1.raw").unlink()
        assert len(luna16.index(tmp_path)) == 19
        (tmp_path / "candidates_V2.csv").unlink()
        lines = luna16.report_missing(tmp_path)
        assert lines[0] == "subset0: 87 of 89 scans are missing"
        assert lines[3] == "subset3: 88 of 89 scans are missing"
        assert lines[10] == "the voxels (.raw) of 1 scans are missing, the first is 1.3.6.3.1"
        assert lines[11] == "candidates_V2.csv is missing"
        assert "CC BY" in lines[12]

    def test_mistakes(self, tmp_path):
        fails(lambda: luna16.index(tmp_path / "no"), "missing", "Setio")
        fails(lambda: luna16.index(tmp_path), "not the folder of LUNA16", "subset0")
        build(tmp_path, 2)
        for path in tmp_path.rglob("*.raw"):
            path.unlink()
        fails(lambda: luna16.index(tmp_path), "none of the .raw files")
        (tmp_path / "subset1/1.3.6.0.0.mhd").touch()
        fails(lambda: luna16.index(tmp_path), "1.3.6.0.0 is there twice")


class TestTables:
    def test_places_are_in_the_axes_of_volumes(self, tmp_path):
        build(tmp_path)
        nodules = luna16.read_nodules(tmp_path)["1.3.6.0.0"]
        assert_allclose(nodules.places, [[100.5, -60, -210.25]])
        assert_allclose(nodules.diameters, [6.5])
        candidates = luna16.read_candidates(tmp_path)["1.3.6.0.0"]
        assert_allclose(candidates.places, [[-1, -2, 3], [4, -5, 6]])
        assert candidates.labels.tolist() == [0, 1]

    def test_the_older_candidates_where_there_are_no_others(self, tmp_path):
        build(tmp_path)
        (tmp_path / "CSVFILES").mkdir()
        (tmp_path / "candidates_V2.csv").rename(tmp_path / "CSVFILES/candidates.csv")
        assert len(luna16.read_candidates(tmp_path)["1.3.6.0.0"].labels) == 2

    @pytest.mark.parametrize(
        ("table", "old", "new", "parts"),
        [
            ("annotations.csv", "6.5", "0", ("row 2, column diameter_mm", "0 mm")),
            ("annotations.csv", "6.5", "", ("row 2, column diameter_mm", "empty")),
            ("annotations.csv", "-100.5", "left", ("row 2, column coordX", "'left' is no number")),
            ("annotations.csv", "1.3.6.0.0", "", ("row 2, column seriesuid", "empty")),
            ("annotations.csv", "coordX", "x", ("no column 'coordX'",)),
            ("candidates_V2.csv", "6,1", "6,2", ("row 3, column class", "'2'")),
            ("candidates_V2.csv", "6,1", "nan,1", ("row 3, column coordZ", "'nan'")),
        ],
    )
    def test_cells(self, tmp_path, table, old, new, parts):
        build(tmp_path)
        text = (tmp_path / table).read_text()
        assert old in text
        (tmp_path / table).write_text(text.replace(old, new))
        read = luna16.read_nodules if table == "annotations.csv" else luna16.read_candidates
        fails(lambda: read(tmp_path), table, *parts)

    def test_no_tables(self, tmp_path):
        build(tmp_path, 1)
        (tmp_path / "annotations.csv").unlink()
        fails(lambda: luna16.read_nodules(tmp_path), "annotations.csv is missing")


class TestPhantoms:
    def test_nodules_lie_in_the_scans_where_the_table_says(self, tree):
        pytest.importorskip("SimpleITK")
        nodules, candidates = luna16.read_nodules(tree), luna16.read_candidates(tree)
        datalist = luna16.index(tree)
        assert len(datalist) == 11
        assert set(nodules) == set(candidates) == set(datalist.subjects)
        row = datalist[0]
        volume, scan = read_volume(row.image), lung_ct(1000, "GE", SHAPE)
        places = nodules[row.subject].places
        assert_allclose(places, [nodule.centre for nodule in scan.nodules], atol=1e-3)
        indices = np.rint(volume.voxels(places)).astype(int)
        assert ((indices >= 0) & (indices < volume.array.shape)).all()

    def test_no_quoting_is_needed(self, tree):
        with open(tree / "candidates_V2.csv", newline="") as file:
            assert {len(row) for row in csv.reader(file)} == {5}
