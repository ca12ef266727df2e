from __future__ import annotations

import os
import pickle
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from dart_core.data.catalog import tupac16
from dart_core.errors import InputError

TILES = {1: {"01.tif": [0, 0], "02.tif": [2000, 0], "03.tif": [0, 2000]}, 23: {"01.tif": [0, 0]}}
CELLS = [  # slide, class, x, y, deleted
    ("01_stitched1.tif", 1, 1999, 5, 0),
    ("01_stitched1.tif", 2, 2000, 5, 0),
    ("01_stitched1.tif", 2, 70, 3999, 0),
    ("23_stitched1.tif", 1, 10, 20, 0),
    ("24.tif", 1, 5656, 0, 0),
    ("24.tif", 2, 300, 4000, None),
    ("73.tif", 2, 77, 88, 0),
    ("73.tif", 1, 79, 88, 1),  # deleted
    ("73.tif", 3, 80, 88, 0),  # neither class
]


def labels(path: Path, cells=CELLS) -> Path:
    names = sorted({name for name, *_ in cells})
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            "CREATE TABLE Slides (uid INTEGER PRIMARY KEY, filename TEXT, width INTEGER);"
            "CREATE TABLE Annotations (uid INTEGER PRIMARY KEY, slide INTEGER, type INTEGER, agreedClass INTEGER,"
            " deleted INTEGER DEFAULT 0);"
            "CREATE TABLE Annotations_coordinates (uid INTEGER PRIMARY KEY, coordinateX INTEGER, coordinateY INTEGER,"
            " slide INTEGER, annoId INTEGER, orderIdx INTEGER);"
        )
        database.executemany("INSERT INTO Slides (uid, filename) VALUES (?, ?)", enumerate(names, start=1))
        for number, (name, kind, x, y, deleted) in enumerate(cells, start=1):
            slide = names.index(name) + 1
            database.execute("INSERT INTO Annotations VALUES (?, ?, 1, ?, ?)", (number, slide, kind, deleted))
            database.execute(
                "INSERT INTO Annotations_coordinates (coordinateX, coordinateY, slide, annoId) VALUES (?, ?, ?, ?)",
                (x, y, slide, number),
            )
        database.commit()
    return path


@pytest.fixture
def built(tmp_path: Path) -> tuple[Path, Path]:
    root = tmp_path / "pictures"
    for place in ("01/01", "01/02", "01/03", "23/01", "24/01", "73/01"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{place}.tif").write_bytes(b"II*\0")
    (tmp_path / tupac16.STITCH_FILE).write_bytes(pickle.dumps(TILES))
    return root, labels(tmp_path / "labels.sqlite")


def fails(call, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        call()
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


class TestIndex:
    def test_cells_in_their_pictures(self, built):
        root, file = built
        rows = tupac16.index(root, file)
        assert [
            (
                str(row.image.relative_to(root)),
                row.subject,
                row.site,
                *(row.labels[name] for name in ("label", "x", "y")),
            )
            for row in rows
        ] == [
            ("01/01.tif", "01", "centre1", "1", "1999", "5"),
            ("01/02.tif", "01", "centre1", "0", "0", "5"),
            ("01/03.tif", "01", "centre1", "0", "70", "1999"),
            ("23/01.tif", "23", "centre1", "1", "10", "20"),
            ("24/01.tif", "24", "centre2", "1", "5656", "0"),
            ("24/01.tif", "24", "centre2", "0", "300", "4000"),
            ("73/01.tif", "73", "centre3", "0", "77", "88"),
        ]
        assert [row.labels["slide"] for row in rows][:2] == ["01_01", "01_02"]

    def test_archives_as_they_unpack(self, built):
        root, file = built
        (root / "mitoses_image_data_part_1").mkdir()
        for case in ("01", "23"):
            (root / case).rename(root / "mitoses_image_data_part_1" / case)
        assert len(tupac16.index(root, file)) == 7

    def test_pictures_that_are_missing(self, built):
        root, file = built
        (root / "01/02.tif").unlink()
        (root / "73/01.tif").unlink()
        assert len(tupac16.index(root, file)) == 5
        lines = tupac16.report_missing(root, file)
        assert lines[0] == "centre3: 1 of 25 cases are missing: 73"
        assert "edition: unknown" in lines[1]
        assert "https://" in lines[2]

    def test_places_of_the_tiles_elsewhere(self, built):
        root, file = built
        beside = file.with_name(tupac16.STITCH_FILE)
        beside.rename(root / "places.p")
        assert len(tupac16.index(root, file, root / "places.p")) == 7
        fails(lambda: tupac16.index(root, file), tupac16.STITCH_FILE, "cannot be read", "github.com")

    def test_without_mosaics_no_places_are_needed(self, built, tmp_path):
        root, _ = built
        (tmp_path / tupac16.STITCH_FILE).unlink()
        file = labels(tmp_path / "two.sqlite", [cell for cell in CELLS if "stitched" not in cell[0]])
        assert len(tupac16.index(root, file)) == 3

    def test_centres_hold_73_cases(self):
        assert [case for cases in tupac16.CENTRES.values() for case in cases] == list(range(1, 74))
        assert [len(cases) for cases in tupac16.CENTRES.values()] == [23, 25, 25]

    @pytest.mark.parametrize(("name", "counts"), tupac16.EDITIONS.items())
    def test_editions(self, tmp_path, name, counts):
        cells = [("24.tif", kind, 1, 1, 0) for kind, count in zip((1, 2), counts, strict=True) for _ in range(count)]
        assert tupac16.edition(labels(tmp_path / "labels.sqlite", cells)) == name


class TestMistakes:
    def test_folders(self, built, tmp_path):
        root, file = built
        fails(lambda: tupac16.index(tmp_path / "no", file), "folder of TUPAC16 is missing")
        (tmp_path / "empty").mkdir()
        fails(lambda: tupac16.index(tmp_path / "empty", file), "no 01/01.tif")
        fails(lambda: tupac16.index(root, tmp_path / "no.sqlite"), "file of labels is missing")
        for path in list(root.rglob("01.tif")):
            if path.parent.name != "01":
                path.unlink()
        other = labels(tmp_path / "other.sqlite", [("24.tif", 1, 1, 1, 0)])
        fails(lambda: tupac16.index(root, other), "none of the labelled pictures is there")

    @pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to look like one" * 10])
    def test_no_database(self, built, tmp_path, content):
        (tmp_path / "bad.sqlite").write_bytes(content)
        fails(lambda: tupac16.index(built[0], tmp_path / "bad.sqlite"), "bad.sqlite", "not an SQLite file")
        assert (tmp_path / "bad.sqlite").read_bytes() == content

    @pytest.mark.parametrize("name", ["74.tif", "00.tif", "slide.svs", "1.tif"])
    def test_slides_that_are_no_case(self, built, tmp_path, name):
        file = labels(tmp_path / "bad.sqlite", [(name, 1, 1, 1, 0)])
        fails(lambda: tupac16.index(built[0], file), "label 1 is on the slide", name)

    def test_no_coordinates(self, built, tmp_path):
        file = labels(tmp_path / "bad.sqlite", [("24.tif", 1, None, 1, 0)])
        fails(lambda: tupac16.index(built[0], file), "label 1 has no coordinates")

    @pytest.mark.parametrize(("x", "y"), [(2000, 2000), (-1, 5), (4000, 0)])
    def test_outside_every_tile(self, built, tmp_path, x, y):
        file = labels(tmp_path / "bad.sqlite", [("01_stitched1.tif", 1, x, y, 0)])
        fails(lambda: tupac16.index(built[0], file), f"label 1 at ({x}, {y}) lies in 0 tiles of case 01")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


class TestStitching:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_every_protocol(self, tmp_path, protocol):
        # A name that is used twice is remembered by the pickle and fetched again.
        places = {**TILES, 2: {name: (70_000 + i, 2**40) for i, name in enumerate(TILES[1])}, 3: {}}
        (tmp_path / "a.p").write_bytes(pickle.dumps(places, protocol))
        expected = {case: {name: tuple(place) for name, place in tiles.items()} for case, tiles in places.items()}
        assert tupac16.read_stitching(tmp_path / "a.p") == expected

    def test_of_python_2(self, tmp_path):
        # pickle.dumps({1: {"01.tif": [0, 2000]}}) there, in its protocols 0 and 2.
        for content in (
            b"(dp0\nI1\n(dp1\nS'01.tif'\np2\n(lp3\nI0\naI2000\nass.",
            b"\x80\x02}q\x00K\x01}q\x01U\x0601.tifq\x02]q\x03(K\x00M\xd0\x07ess.",
        ):
            (tmp_path / "a.p").write_bytes(content)
            assert tupac16.read_stitching(tmp_path / "a.p") == {1: {"01.tif": (0, 2000)}}

    @pytest.mark.parametrize(
        "value", [Evil(), {1: Evil()}, {1: {"01.tif": [0, Evil()]}}, set(), {1: 2.5}, b"x", os.mkdir]
    )
    def test_nothing_is_unpickled(self, tmp_path, value, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.p").write_bytes(pickle.dumps(value))
        fails(lambda: tupac16.read_stitching(tmp_path / "a.p"), "does not hold the tiles' places as plain values")
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize(
        "content",
        [
            *(b"", b".", b"not a pickle", b"(((", b"\x80\x02]q\x00K\x01s.", b"\x80\x02h\x05."),
            *(pickle.dumps(TILES)[:-20], pickle.dumps([1, 2]), pickle.dumps({1: {"a": [1]}}), pickle.dumps({"a": {}})),
        ],
    )
    def test_damaged(self, tmp_path, content):
        (tmp_path / "a.p").write_bytes(content)
        fails(lambda: tupac16.read_stitching(tmp_path / "a.p"), "a.p: does not hold the tiles' places")

    def test_no_file(self, tmp_path):
        fails(lambda: tupac16.read_stitching(tmp_path / "a.p"), "cannot be read")
