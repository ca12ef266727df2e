from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.data.catalog import chexpert, rsna_pneumonia, vindr_cxr
from dart_core.data.catalog.radiographs import NAMES, open_radiographs, recognise, report_missing
from dart_core.errors import InputError, SettingError


def build(root: Path, name: str) -> Path:
    """The smallest folder of each kind: as its owners pack it, with one or two pictures."""
    tables: dict[str, str] = {}
    match name:
        case "chestxray14":
            tables["Data_Entry_2017_v2020.csv"] = "Image Index,Finding Labels,Patient ID\n1.png,Mass,1\n"
            pictures = ["images/1.png"]
        case "chexpert":
            header, cells = ",".join(["Path", "Sex", *chexpert.LABELS]), ",".join(["-1.0"] * 14)
            for table, patient in (("train", "patient00001"), ("valid", "patient00002")):
                path = f"CheXpert-v1.0-small/{table}/{patient}/study1/view1_frontal.jpg"
                tables[f"CheXpert-v1.0-small/{table}.csv"] = f"{header}\n{path},Male,{cells}\n"
            pictures = [text.splitlines()[1].split(",")[0] for text in tables.values()]
        case "shenzhen":
            pictures = ["ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png"]
        case "vindr-cxr":
            header, cells = ",".join(["image_id", *vindr_cxr.FINDINGS]), ",".join(["0"] * 28)
            tables["1.0.0/annotations/image_labels_test.csv"] = f"{header}\na,{cells}\n"
            pictures = ["1.0.0/test/a.dicom"]
        case "rsna-pneumonia":
            tables["stage_2_detailed_class_info.csv"] = f"patientId,class\na,{rsna_pneumonia.CLASSES[2]}\n"
            pictures = ["stage_2_train_images/a.dcm"]
        case "rsna-pe":
            header = "StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID,pe_present_on_image"
            tables["train.csv"] = f"{header}\ns,r,a,0\n"
            pictures = []
    for path, text in {**tables, **dict.fromkeys(pictures, "")}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_each_data_set_is_known_by_its_folder(tmp_path, name):
    build(tmp_path, name)
    assert recognise(tmp_path) == name
    if name == "rsna-pe":  # reading its slices is tested with the reader
        with pytest.raises(InputError, match="none of the slices"):
            open_radiographs(tmp_path)
    else:
        assert open_radiographs(tmp_path).sites == (name,)


def test_what_is_missing_of_a_published_folder(tmp_path):
    build(tmp_path, "vindr-cxr")
    table = tmp_path / "1.0.0/annotations/image_labels_test.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1].replace("a,", "b,", 1) + "\n")
    lines = report_missing(tmp_path)
    assert any("image_labels_test.csv: 1 of 2" in line for line in lines), lines
    assert "https://" in lines[-1]
    (tmp_path / "list.csv").write_text("image\nx.png\n")
    assert report_missing(tmp_path / "list.csv") == []


def test_choices(tmp_path):
    build(tmp_path, "chexpert")
    assert open_radiographs(tmp_path)[-1].split == "test"
    assert open_radiographs(tmp_path)[0].labels["Edema"] == "-1"
    assert open_radiographs(tmp_path, policy="zeros", test="none")[0].labels["Edema"] == "0"
    (tmp_path / "list.txt").write_text("1.png 0\n")
    with pytest.raises(SettingError, match="lists are for chestxray14"):
        open_radiographs(tmp_path, lists={"val": tmp_path / "list.txt"})
    other = build(tmp_path / "other", "chestxray14")
    assert [row.split for row in open_radiographs(other, lists={"val": tmp_path / "list.txt"})] == ["val"]


def test_datalists_and_other_folders(tmp_path):
    (tmp_path / "list.csv").write_text("image,site\na.png,here\n")
    assert open_radiographs(tmp_path / "list.csv").sites == ("here",)
    assert recognise(tmp_path / "list.csv") is None
    with pytest.raises(InputError, match=r"none of chestxray14, .*rsna-pe"):
        open_radiographs(tmp_path)
    with pytest.raises(InputError, match="not found"):
        open_radiographs(tmp_path / "no.csv")
