from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dart_core.data.catalog import wilds_camelyon17 as wilds
from dart_core.data.datalist import Datalist
from dart_core.data.images import read_image
from dart_core.errors import InputError

SLIDES = [("004", 4, 0, 0), ("020", 4, 1, 1), ("040", 2, 2, 2), *((f"{60 + i:03d}", 1, 3, 3 + i) for i in range(10))]


def build(root: Path, zeros: bool = True) -> Path:
    """Two patches per slide, one of them tumour; PNG with transparency, as the owners' script writes."""
    folder = root / "camelyon17_v1.0"
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for patient, node, centre, slide in SLIDES:
        name = f"patient_{patient}_node_{node}"
        (folder / "patches" / name).mkdir(parents=True)
        for tumour in (0, 1):
            x, y = 3328 + 32 * tumour, 21792
            pixels = np.full((96, 96, 4), (200, 100 + tumour, 180, 255), np.uint8)
            Image.fromarray(pixels).save(folder / "patches" / name / f"patch_{name}_x_{x}_y_{y}.png")
            written = patient if zeros else str(int(patient))
            lines.append(f"{len(lines) - 1},{written},{node},{x},{y},{tumour},{slide},{centre},{tumour}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def fails(root: Path, *parts: object) -> None:
    with pytest.raises(InputError) as error:
        wilds.index(root)
    for part in parts:
        assert str(part) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zeros", [True, False])
def test_patches_by_centre(tmp_path, zeros):
    datalist = wilds.index(build(tmp_path, zeros))
    assert len(datalist) == 26
    assert datalist.sites == ("CWZ", "RST", "UMCU", "RUMC")
    first, second = datalist[:2]
    assert (first.subject, first.site, first.split) == ("patient_004", "CWZ", "test")
    assert first.labels == {"label": "0", "slide": "patient_004_node_4", "x": "3328", "y": "21792"}
    assert second.labels["label"] == "1"
    assert read_image(second.image)[0, 0].tolist() == [200, 101, 180]


def test_the_training_centre_is_split_by_slide(tmp_path):
    datalist = wilds.index(build(tmp_path))
    assert {row.split for row in datalist if row.site != "RUMC"} == {"test"}
    split_of = {row.labels["slide"]: row.split for row in datalist if row.site == "RUMC"}
    assert sorted(split_of.values()) == ["train"] * 8 + ["val"] * 2
    assert all(row.split == split_of[row.labels["slide"]] for row in datalist if row.site == "RUMC")
    other = {row.labels["slide"]: row.split for row in wilds.index(tmp_path, seed=1) if row.site == "RUMC"}
    assert other != split_of
    assert sorted(other.values()) == sorted(split_of.values())


def test_it_is_a_datalist(tmp_path):
    datalist = wilds.index(build(tmp_path) / "camelyon17_v1.0")
    again = Datalist.read(datalist.write(tmp_path / "list.csv"), required=("image", "label"))
    assert [(row.split, row.labels) for row in again] == [(row.split, row.labels) for row in datalist]


def test_only_patches_that_are_there(tmp_path):
    build(tmp_path)
    next((tmp_path / "camelyon17_v1.0/patches/patient_004_node_4").iterdir()).unlink()
    assert len(wilds.index(tmp_path)) == 25
    lines = wilds.report_missing(tmp_path)
    assert lines[0] == "patient_004_node_4: 1 of 2 patches are missing"
    assert "https://" in lines[1]


def test_nothing_missing(tmp_path):
    assert wilds.report_missing(build(tmp_path)) == []


class TestMistakes:
    def test_folders(self, tmp_path):
        fails(tmp_path / "no", "missing", "Koh")
        fails(tmp_path, "no metadata.csv", "camelyon17_v1.0")

    @pytest.mark.parametrize(
        ("old", "new", "parts"),
        [
            ("0,004,4,3328,21792,0,0,0,0", "0,004,4,3328,21792,2,0,0,0", ("row 2, column tumor", "'2' is no label")),
            (
                "0,004,4,3328,21792,0,0,0,0",
                "0,004,4,3328,21792,0,0,5,0",
                ("row 2, column center", "unknown centre '5'"),
            ),
            ("tumor", "tumour", ("no column 'tumor'",)),
        ],
    )
    def test_tables_that_do_not_fit(self, tmp_path, old, new, parts):
        table = build(tmp_path) / "camelyon17_v1.0/metadata.csv"
        assert old in table.read_text()
        table.write_text(table.read_text().replace(old, new))
        fails(tmp_path, *parts)

    def test_no_patches(self, tmp_path):
        build(tmp_path)
        (tmp_path / "camelyon17_v1.0/patches").rename(tmp_path / "elsewhere")
        fails(tmp_path, "none of the patches in the table is there")

    def test_centres(self, tmp_path):
        with pytest.raises(InputError, match="1 names for 5 centres"):
            wilds.index(build(tmp_path), centres=("one",))
