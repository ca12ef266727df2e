"""The folder of Camelyon17-WILDS as a datalist."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from dart_core.cli import main
from dart_core.data.phantoms.histology import histology_patch
from stain_aglr import __version__
from stain_aglr.cli import COMMANDS, DESCRIPTION
from stain_aglr.datasets import open_patches, site_parts


@pytest.fixture
def wilds(tmp_path: Path) -> Path:
    """Three slides of the training centre and one of another, with two patches each."""
    folder = tmp_path / "camelyon17_v1.0"
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for slide, (patient, centre, laboratory) in enumerate(
        [(4, 0, "CWZ"), (60, 3, "RUMC"), (61, 3, "RUMC"), (62, 3, "RUMC")]
    ):
        name = f"patient_{patient:03d}_node_0"
        (folder / "patches" / name).mkdir(parents=True)
        for tumour in (0, 1):
            picture = Image.fromarray(histology_patch(patient, laboratory, bool(tumour), 96)).convert("RGBA")
            picture.save(folder / "patches" / name / f"patch_{name}_x_{32 * tumour}_y_64.png")
            lines.append(f"{len(lines) - 1},{patient:03d},0,{32 * tumour},64,{tumour},{slide},{centre},0")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_it_is_split_by_slide(wilds: Path) -> None:
    parts, drawn = site_parts(open_patches(wilds), "RUMC", "subject")
    assert drawn is None  # WILDS names the splits
    assert {name: len(part) for name, part in parts.items()} == {"train": 4, "val": 2, "test": 0}
    assert len(open_patches(wilds.parent)) == 8


def test_check_data(wilds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check-data", "--datalist", str(wilds), "--site", "RUMC"]
    status = main("stain-aglr", COMMANDS, __version__, DESCRIPTION, words)
    out = capsys.readouterr().out
    assert status == 0, out
    assert "8 patches: no problem" in out


def test_another_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no dataset\.json"):
        open_patches(tmp_path)
