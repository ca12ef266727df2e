"""`stain-aglr patches` on slides that these tests write: tiled TIFFs with a pyramid, outlines as XML or as a mask."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dart_core.cli import main
from dart_core.data.datalist import Datalist
from dart_core.data.images import read_image
from dart_core.data.slides import write_slide
from stain_aglr import __version__
from stain_aglr import patches as module
from stain_aglr.cli import COMMANDS, DESCRIPTION

SIZE = 64
WIDTH, HEIGHT = 10 * SIZE + 44, 7 * SIZE
"""The last column of patches reaches 20 pixels beyond the slide."""
TISSUE = (2, 1, 11, 6)
"""Left, top, right and bottom in patches; cut off by the slide's right edge."""
TUMOUR = (3, 2, 6, 4)
SLIDES = {  # name -> site
    **{f"patient_{60 + i:03d}_node_{'342'[i]}": "RUMC" for i in range(3)},
    "patient_004_node_4": "CWZ",
    "patient_099_node_4": "LPON",
}


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str]]:
    capsys.readouterr()
    status = main("stain-aglr", COMMANDS, __version__, DESCRIPTION, ["patches", *map(str, words)])
    return status, capsys.readouterr().err.splitlines()


def pixels(seed: int, tissue: bool = True) -> np.ndarray:
    rng = np.random.default_rng(seed)
    slide = rng.integers(236, 244, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    if tissue:
        left, top, right, bottom = (SIZE * side for side in TISSUE)
        slide[top:bottom, left:right] = rng.integers(0, 20, slide[top:bottom, left:right].shape) + np.array(
            (160, 80, 150)
        )
    return slide


def outlines(box: tuple[float, ...] = TUMOUR, group: str = "metastases") -> str:
    left, top, right, bottom = (SIZE * side for side in box)
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(corners))
    annotation = f'<Annotation Type="Polygon" PartOfGroup="{group}"><Coordinates>{points}</Coordinates></Annotation>'
    return f"<ASAP_Annotations><Annotations>{annotation}</Annotations></ASAP_Annotations>"


def mask(value: int = 1) -> np.ndarray:
    left, top, right, bottom = (SIZE * side for side in TUMOUR)
    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    array[top:bottom, left:right] = value
    array[top : top + SIZE, right : right + SIZE] = 2  # normal tissue of ASAP's masks
    return array


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides")
    for folder in ("images", "annotations", "masks"):
        (root / folder).mkdir()
    for seed, name in enumerate(SLIDES):
        write_slide(root / "images" / f"{name}.tif", pixels(seed), tile=64)
        (root / "annotations" / f"{name}.xml").write_text(outlines())
    return root


@pytest.fixture
def with_report() -> None:
    """Tests that look at the report ask for this."""


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk; pictures only where they are looked at."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    if "with_report" not in request.fixturenames:
        monkeypatch.setattr("stain_aglr.overviews.write_report", lambda *arguments: None)


@pytest.fixture
def camelyon(built: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(built, tmp_path / "CAMELYON17"))


def labels_of(rows: Any, slide: str) -> dict[tuple[int, int], str]:
    """(column, row) of the grid -> label."""
    own = [row.labels for row in rows if row.labels["slide"] == slide]
    return {(int(about["x"]) // SIZE, int(about["y"]) // SIZE): about["label"] for about in own}


EXPECTED = {
    (x, y): str(int(TUMOUR[0] <= x < TUMOUR[2] and TUMOUR[1] <= y < TUMOUR[3]))
    for x in range(TISSUE[0], TISSUE[2])
    for y in range(TISSUE[1], TISSUE[3])
}


class TestSlides:
    def test_every_patch_of_the_grid(self, with_report, built, tmp_path, capsys):
        status, lines = run(capsys, "--slides", built, "--out", tmp_path / "out", "--size", SIZE, "--no-balance")
        assert status == 0
        assert len(lines) == 1
        rows = Datalist.read(tmp_path / "out/datalist.csv", required=("image", "label", "slide", "x", "y", "split"))
        for seed, name in enumerate(SLIDES):
            assert labels_of(rows, name) == EXPECTED
            slide = np.pad(pixels(seed), ((0, SIZE), (0, 0), (0, 0)), mode="reflect")
            for row in [row for row in rows if row.labels["slide"] == name]:
                x, y = int(row.labels["x"]), int(row.labels["y"])
                patch = read_image(row.image)
                inside = slide[y : y + SIZE, x : x + SIZE]
                beyond = SIZE - inside.shape[1]
                assert (patch == np.pad(inside, ((0, 0), (0, beyond), (0, 0)), mode="reflect")).all()
        assert {(row.site, row.subject) for row in rows} == {(site, name[:11]) for name, site in SLIDES.items()}
        split_of = {row.labels["slide"]: row.split for row in rows}
        assert sorted(split_of[name] for name in SLIDES if SLIDES[name] == "RUMC") == ["train", "train", "val"]
        assert all(split_of[name] == "test" for name in SLIDES if SLIDES[name] != "RUMC")
        assert (tmp_path / "out/report.html").is_file()
        assert {path.stem for path in (tmp_path / "out/overviews").iterdir()} == set(SLIDES)

    def test_balance_and_limit(self, built, tmp_path, capsys):
        words = ("--slides", built, "--size", SIZE, "--out")
        assert run(capsys, *words, tmp_path / "a")[0] == 0
        counts = Counter((row.site, row.labels["label"]) for row in Datalist.read(tmp_path / "a/datalist.csv"))
        assert counts == {(site, label): 6 * n for site, n in (("RUMC", 3), ("CWZ", 1), ("LPON", 1)) for label in "01"}
        assert run(capsys, *words, tmp_path / "b", "--limit", 4)[0] == 0
        rows = Datalist.read(tmp_path / "b/datalist.csv")
        assert Counter((row.site, row.labels["label"]) for row in rows) == dict.fromkeys(counts, 4)
        assert run(capsys, *words, tmp_path / "c", "--limit", 4, "--seed", 1)[0] == 0
        assert {row.image.name for row in rows} != {
            row.image.name for row in Datalist.read(tmp_path / "c/datalist.csv")
        }

    @pytest.mark.parametrize("value", [1, 255])
    def test_masks_as_outlines(self, camelyon, tmp_path, capsys, value):
        name = "patient_004_node_4"
        (camelyon / "annotations" / f"{name}.xml").unlink()
        write_slide(camelyon / "masks" / f"{name}_mask.tif", mask(value), tile=64)
        assert run(capsys, "--slides", camelyon, "--out", tmp_path / "out", "--size", SIZE, "--no-balance")[0] == 0
        assert labels_of(Datalist.read(tmp_path / "out/datalist.csv"), name) == EXPECTED

    def test_another_level(self, built, tmp_path, capsys):
        words = ("--slides", built, "--out", tmp_path / "out", "--size", SIZE // 2, "--level", 1, "--no-balance")
        assert run(capsys, *words)[0] == 0
        rows = Datalist.read(tmp_path / "out/datalist.csv")
        assert labels_of(rows, "patient_060_node_3") == EXPECTED
        first = next(row for row in rows if row.labels["slide"] == "patient_060_node_3")
        x, y = int(first.labels["x"]), int(first.labels["y"])
        four = pixels(0)[y : y + SIZE, x : x + SIZE].reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert np.abs(read_image(first.image) - four).max() <= 0.5

    def test_holes_and_rims(self, camelyon, tmp_path, capsys):
        # A hole takes one patch out of the tumour; a tumour that enters a patch, but not its middle, makes it neither.
        name = "patient_004_node_4"
        hole = outlines((4, 2, 5, 3), "normal").split("<Annotations>")[1].split("</Annotations>")[0]
        text = outlines((3, 2, 6.25, 4)).replace("</Annotations>", f"{hole}</Annotations>")
        (camelyon / "annotations" / f"{name}.xml").write_text(text)
        assert run(capsys, "--slides", camelyon, "--out", tmp_path / "out", "--size", SIZE, "--no-balance")[0] == 0
        found = labels_of(Datalist.read(tmp_path / "out/datalist.csv"), name)
        expected = {place: label for place, label in EXPECTED.items() if place not in ((6, 2), (6, 3))}
        assert found == {**expected, (4, 2): "0"}

    def test_a_datalist(self, built, tmp_path, capsys):
        table = tmp_path / "slides.csv"
        cells = [f"{built}/images/{name}.tif,{built}/annotations/{name}.xml" for name in SLIDES]
        table.write_text("image,mask\n" + "\n".join(cells) + "\n")
        assert run(capsys, "--slides", table, "--out", tmp_path / "a", "--size", SIZE)[0] == 0
        rows = Datalist.read(tmp_path / "a/datalist.csv")
        assert (rows.sites, rows.splits) == ((), ())
        sites = [f"{cell},{site},s{i}" for i, (cell, site) in enumerate(zip(cells, SLIDES.values(), strict=True))]
        table.write_text("image,mask,site,subject\n" + "\n".join(sites) + "\n")
        assert run(capsys, "--slides", table, "--out", tmp_path / "b", "--size", SIZE, "--site", "CWZ")[0] == 0
        splits = {(row.site, row.split) for row in Datalist.read(tmp_path / "b/datalist.csv")}
        assert splits == {("CWZ", "train"), ("RUMC", "test"), ("LPON", "test")}
        table.write_text("image,mask,site,split\n" + "\n".join(f"{cell},x,val" for cell in cells) + "\n")
        assert run(capsys, "--slides", table, "--out", tmp_path / "c", "--size", SIZE)[0] == 0
        assert {row.split for row in Datalist.read(tmp_path / "c/datalist.csv")} == {"val"}
        status, lines = run(capsys, "--slides", table, "--out", tmp_path / "d", "--site", "x")
        assert status == 2
        assert "names the splits, so that --site has nothing to split" in lines[0]

    def test_names_of_slides(self, tmp_path):
        table = tmp_path / "slides.csv"
        table.write_text("image,site\na/1.tif,A\nb/1.tif,B\nb/2.tif,B\n")
        assert module.slide_names(Datalist.read(table)) == ["A_1", "B_1", "2"]
        table.write_text("image\na/1.tif\nb/1.tif\n")
        with pytest.raises(ValueError, match=r"b/1.tif|two slides have the name 1"):
            module.slide_names(Datalist.read(table))


def spoil_nothing(folder: Path, name: str) -> None:
    (folder / "annotations" / f"{name}.xml").unlink()


def spoil_xml(folder: Path, name: str) -> None:
    path = folder / "annotations" / f"{name}.xml"
    path.write_text(path.read_text()[:-30])


def spoil_place(folder: Path, name: str) -> None:
    (folder / "annotations" / f"{name}.xml").write_text(outlines((30, 2, 40, 4)))


def spoil_tissue(folder: Path, name: str) -> None:
    write_slide(folder / "images" / f"{name}.tif", pixels(0, tissue=False), tile=64)


def spoil_slide(folder: Path, name: str) -> None:
    path = folder / "images" / f"{name}.tif"
    os.truncate(path, path.stat().st_size // 2)


def spoil_tile(folder: Path, name: str) -> None:
    path = folder / "images" / f"{name}.tif"
    content = bytearray(path.read_bytes())
    # In level 0, the first three quarters of the file; the look at low resolution reads level 2.
    start = len(content) * 3 // 10
    content[start : start + 40_000] = bytes(40_000)
    path.write_bytes(content)


def spoil_mask(folder: Path, name: str) -> None:
    (folder / "annotations" / f"{name}.xml").unlink()
    write_slide(folder / "masks" / f"{name}_mask.tif", mask()[:-40], tile=64)


def spoil_grid(folder: Path, name: str) -> None:
    (folder / "annotations" / f"{name}.xml").write_text(outlines((3, 2, 6, 4), "normal"))
    slide = pixels(0, tissue=False)
    slide[:20, :20] = np.array((160, 80, 150))
    write_slide(folder / "images" / f"{name}.tif", slide, tile=64)


BAD = {
    spoil_nothing: "no annotation; name its outlines or its mask in the column mask",
    spoil_xml: "the outlines are damaged",
    spoil_place: "an outline lies outside the slide of 684 x 448 pixels (at 1920, 128)",
    spoil_tissue: "no tissue on this slide",
    spoil_slide: "not a slide, or truncated",
    spoil_tile: "the slide is damaged near",
    spoil_mask: "the mask has 684 x 408 pixels, the slide 684 x 448",
    spoil_grid: "no patch of 64 pixels has tumour in its middle or 20% tissue",
}


class TestMistakes:
    @pytest.mark.parametrize("spoil", BAD)
    def test_the_other_slides_go_on(self, spoil, camelyon, tmp_path, capsys):
        name = "patient_004_node_4"
        spoil(camelyon, name)
        out = tmp_path / "out"
        status, lines = run(capsys, "--slides", camelyon, "--out", out, "--size", SIZE, "--no-balance")
        assert status == 0
        assert len(lines) == 2
        assert BAD[spoil] in lines[0]
        assert name in lines[0]
        rows = Datalist.read(out / "datalist.csv")
        assert {row.labels["slide"] for row in rows} == set(SLIDES) - {name}
        assert not (out / "patches" / name).exists()
        table = (out / "slides.csv").read_text().splitlines()
        assert len(table) == 6
        assert table[-1].startswith(f"{name},patient_004,CWZ,,0,0,")
        assert BAD[spoil] in table[-1].replace('"', "")

    @pytest.mark.parametrize("spoil", BAD)
    def test_nothing_left(self, spoil, camelyon, tmp_path, capsys):
        for name in SLIDES:
            spoil(camelyon, name)
        out = tmp_path / "out"
        status, lines = run(capsys, "--slides", camelyon, "--out", out, "--size", SIZE, "--no-balance")
        assert status == 2
        assert len(lines) == 6
        assert "no slide gives a patch (" in lines[-1]
        assert BAD[spoil] in lines[-1]
        assert not (out / "patches").exists() or not any((out / "patches").iterdir())
        if spoil is not spoil_tile:  # which only shows when patches are cut
            assert not out.exists()

    def test_no_tumour_at_a_site(self, camelyon, tmp_path, capsys):
        (camelyon / "annotations/patient_004_node_4.xml").write_text(outlines(group="normal"))
        status, lines = run(capsys, "--slides", camelyon, "--out", tmp_path / "out", "--size", SIZE)
        assert status == 0
        assert lines[0] == "CWZ: no patch with tumour, so none without; --no-balance takes those"
        assert (
            "patient_004_node_4,patient_004,CWZ,,0,0,no patch was chosen" in (tmp_path / "out/slides.csv").read_text()
        )

    def test_settings(self, built, tmp_path, capsys):
        words = ("--slides", built, "--out", tmp_path / "out")
        for flags, problem in (
            (("--size", 8), "--size is 8; give at least 16"),
            (("--size", 0), "--size is 0; give at least 16"),
            (("--level", -1), "--level is -1; give at least 0"),
            (("--workers", 0), "--workers is 0; give at least 1"),
            (("--tissue", 0), "--tissue is 0; give a share above 0, at most 1"),
            (("--tissue", 2), "--tissue is 2; give a share above 0"),
            (("--resume", "--overwrite"), "--resume and --overwrite contradict each other"),
            (("--resume",), "no run to resume here"),
            (("--site", "RUMCC"), "no row has site 'RUMCC'"),
            (("--level", 3), "has no level 3; its levels are 0 to 2"),
            (("--labels", "a.sqlite", "--limit", 5), "--limit is for slides; --labels takes all labelled cells"),
            (("--labels", "a.sqlite", "--no-balance"), "--balance is for slides"),
        ):
            status, lines = run(capsys, *words, *flags)
            assert status == 2
            assert problem in lines[-1]
            assert not (tmp_path / "out").exists()
        status, lines = run(capsys, "--slides", tmp_path / "none", "--out", tmp_path / "out")
        assert (status, len(lines)) == (2, 1)
        assert "datalist not found" in lines[0]

    def test_output_that_is_there(self, built, tmp_path, capsys):
        out = tmp_path / "out"
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
        words = ("--slides", built, "--out", out, "--size", SIZE)
        for flags in ((), ("--overwrite",)):
            status, lines = run(capsys, *words, *flags)
            assert status == 2
            assert "not empty, and what it holds is no run" in lines[-1]
        (out / "thesis.txt").unlink()
        assert run(capsys, *words)[0] == 0
        status, lines = run(capsys, *words)
        assert status == 2
        assert "holds a run already; --resume continues it, --overwrite replaces it" in lines[-1]
        assert run(capsys, *words, "--overwrite")[0] == 0


class TestResume:
    def test_after_a_full_disk(self, built, tmp_path, capsys, monkeypatch):
        words = ("--slides", built, "--size", SIZE, "--workers", 1, "--out")
        assert run(capsys, *words, tmp_path / "whole")[0] == 0
        write_image, written = module.write_image, []

        def full(path: Path, array: np.ndarray, effort: int) -> Path:
            if len(written) == 17:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(path)
            return write_image(path, array, effort)

        monkeypatch.setattr(module, "write_image", full)
        status, lines = run(capsys, *words, tmp_path / "out")
        assert status == 2
        assert "the disk is full" in lines[-1]
        assert len(list((tmp_path / "out/patches").rglob("*.png"))) == 17
        assert not (tmp_path / "out/datalist.csv").exists()
        (written[0].parent / ".tmp-0123.png").write_bytes(b"half")
        before = {path: path.stat().st_mtime_ns for path in written}
        monkeypatch.setattr(module, "write_image", write_image)
        status, lines = run(capsys, *words, tmp_path / "out", "--resume", "--size", 2 * SIZE)
        assert status == 2
        assert "size was 64 when the run started and is 128 now" in lines[-1]
        assert run(capsys, *words, tmp_path / "out", "--resume")[0] == 0
        # What was there stayed, and the result is that of a run without a break.
        assert {path: path.stat().st_mtime_ns for path in written} == before
        whole, resumed = (
            {path.relative_to(folder): path.read_bytes() for path in (folder / "patches").rglob("*") if path.is_file()}
            for folder in (tmp_path / "whole", tmp_path / "out")
        )
        assert whole == resumed
        for name in ("datalist.csv", "slides.csv", "metrics.json"):
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()

    def test_threads_change_nothing(self, built, tmp_path, capsys):
        for workers in (1, 3):
            words = ("--slides", built, "--out", tmp_path / str(workers), "--size", SIZE, "--workers", workers)
            assert run(capsys, *words)[0] == 0
        one, three = ((tmp_path / name / "datalist.csv").read_bytes() for name in "13")
        assert one == three


CELLS = [  # slide, class, x, y
    *(("01_stitched1.tif", 1, 1990, 5), ("01_stitched1.tif", 2, 2003, 700), ("01_stitched1.tif", 2, 2003, 700)),
    *(("02_stitched1.tif", 1, 30, 40), ("30.tif", 1, 200, 100), ("30.tif", 2, 199, 149), ("60.tif", 2, 0, 0)),
]


@pytest.fixture
def tupac(tmp_path: Path) -> tuple[Path, Path]:
    root = tmp_path / "tupac"
    rng = np.random.default_rng(0)
    for place, shape in {"01/01": (2000, 2000), "01/02": (2000, 2000), "02/01": (300, 200), "30/01": (150, 201),
                         "60/01": (90, 80)}.items():  # fmt: skip
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (*(side // 10 + 1 for side in shape), 3), dtype=np.uint8)
        array = small.repeat(10, 0).repeat(10, 1)[: shape[0], : shape[1]]
        Image.fromarray(array).save(root / f"{place}.tif")
    file = tmp_path / "labels.sqlite"
    names = sorted({name for name, *_ in CELLS})
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE Slides (uid, filename)")
        database.execute("CREATE TABLE Annotations (uid, slide, deleted, agreedClass)")
        database.execute("CREATE TABLE Annotations_coordinates (annoId, slide, coordinateX, coordinateY)")
        database.executemany("INSERT INTO Slides VALUES (?, ?)", enumerate(names))
        for number, (name, kind, x, y) in enumerate(CELLS):
            database.execute("INSERT INTO Annotations VALUES (?, ?, 0, ?)", (number, names.index(name), kind))
            database.execute("INSERT INTO Annotations_coordinates VALUES (?, 0, ?, ?)", (number, x, y))
        database.commit()
    places = {1: {"01.tif": [0, 0], "02.tif": [2000, 0]}, 2: {"01.tif": [0, 0]}}
    (tmp_path / "TUPACStitchInformation.p").write_bytes(pickle.dumps(places))
    return root, file


class TestCells:
    def test_around_every_cell(self, with_report, tupac, tmp_path, capsys):
        root, file = tupac
        status, lines = run(capsys, "--slides", root, "--labels", file, "--out", tmp_path / "out")
        assert (status, len(lines)) == (0, 1)
        rows = Datalist.read(tmp_path / "out/datalist.csv", required=("image", "label", "split"))
        assert [
            (row.site, row.subject, row.labels["slide"], row.labels["label"], row.labels["x"], row.labels["y"])
            for row in rows
        ] == [
            ("centre1", "01", "01_01", "1", "1990", "5"),
            ("centre1", "01", "01_02", "0", "3", "700"),
            ("centre1", "01", "01_02", "0", "3", "700"),
            ("centre1", "02", "02_01", "1", "30", "40"),
            ("centre2", "30", "30_01", "1", "200", "100"),
            ("centre2", "30", "30_01", "0", "199", "149"),
            ("centre3", "60", "60_01", "0", "0", "0"),
        ]
        for row in rows:
            image, patch = read_image(root / f"{row.labels['slide'].replace('_', '/')}.tif"), read_image(row.image)
            assert patch.shape == (128, 128, 3)
            padded = np.pad(image, ((64, 64), (64, 64), (0, 0)), mode="reflect")
            x, y = int(row.labels["x"]), int(row.labels["y"])
            assert (patch == padded[y : y + 128, x : x + 128]).all()
        split_of = {row.subject: row.split for row in rows}
        assert sorted((split_of["01"], split_of["02"])) == ["train", "val"]
        assert split_of["30"] == split_of["60"] == "test"

    def test_a_damaged_picture(self, tupac, tmp_path, capsys):
        root, file = tupac
        os.truncate(root / "30/01.tif", 1000)
        status, lines = run(capsys, "--slides", root, "--labels", file, "--out", tmp_path / "out")
        assert status == 0
        assert len(lines) == 2
        assert "30/01.tif: " in lines[0]
        assert len(Datalist.read(tmp_path / "out/datalist.csv")) == 5

    def test_a_cell_outside_its_picture(self, tupac, tmp_path, capsys):
        root, file = tupac
        Image.new("RGB", (150, 150)).save(root / "30/01.tif")
        status, lines = run(capsys, "--slides", root, "--labels", file, "--out", tmp_path / "out")
        assert status == 0
        assert "30/01.tif: a labelled cell at (200, 100) lies outside the picture of 150 x 150 pixels" in lines[0]

    def test_mistakes(self, tupac, tmp_path, capsys):
        root, file = tupac
        status, lines = run(capsys, "--slides", root, "--labels", root / "01/01.tif", "--out", tmp_path / "out")
        assert (status, len(lines)) == (2, 1)
        assert "not an SQLite file of the alternative labels" in lines[0]
        (tmp_path / "TUPACStitchInformation.p").write_bytes(b"")
        status, lines = run(capsys, "--slides", root, "--labels", file, "--out", tmp_path / "out")
        assert (status, len(lines)) == (2, 1)
        assert "does not hold the tiles' places" in lines[0]
        assert not (tmp_path / "out").exists()

    def test_the_augmented_edition_is_pointed_out(self, tupac, tmp_path, capsys, monkeypatch):
        root, file = tupac
        monkeypatch.setattr(module.tupac16, "EDITIONS", {"augmented": (3, 4)})
        status, lines = run(capsys, "--slides", root, "--labels", file, "--out", tmp_path / "out")
        assert status == 0
        assert "this is the augmented edition, not the one of the paper's tables" in lines[0]


@pytest.mark.real
@pytest.mark.skipif("DART_DATA" not in os.environ, reason="DART_DATA does not say where the real data sets are")
def test_real_tissue(tmp_path, capsys):
    # Sixteen fields of CAMELYON side by side on glass, as one slide with its mask.
    fields = np.load(Path(os.environ["DART_DATA"]) / "camelyon_mini/camelyon_mini.npz")
    slide, truth = np.full((1152, 1216, 3), 242, np.uint8), np.zeros((1152, 1216), np.uint8)
    for number in range(16):
        top, left = (64 + 256 * place for place in divmod(number, 4))
        slide[top : top + 256, left : left + 256] = fields["images"][number]
        truth[top : top + 256, left : left + 256] = fields["masks"][number]
    write_slide(tmp_path / "slide.tif", slide)
    write_slide(tmp_path / "mask.tif", truth)
    (tmp_path / "slides.csv").write_text("image,mask\nslide.tif,mask.tif\n")
    words = ("--slides", tmp_path / "slides.csv", "--out", tmp_path / "out", "--size", SIZE, "--no-balance")
    assert run(capsys, *words)[0] == 0
    rows = Datalist.read(tmp_path / "out/datalist.csv")
    assert len(rows) > 150
    for row in rows:
        x, y = int(row.labels["x"]), int(row.labels["y"])
        assert 64 <= x < 1088
        assert 64 <= y < 1088
        part = truth[y : y + SIZE, x : x + SIZE]
        # The mask is looked at in cells of 5 pixels: a speck may fall between their middles.
        assert part[21:43, 21:43].any() if row.labels["label"] == "1" else part.mean() < 0.02
