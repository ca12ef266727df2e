from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from dart_core import evaluation, metrics
from dart_core.data.datalist import Datalist, Row
from dart_core.data.scans import load_scan
from dart_core.errors import InputError, OutputError
from dart_core.evaluation import (
    COLUMNS,
    Result,
    read_predictions,
    score,
    score_folders,
    summarise,
    summarise_pairs,
    write_prediction,
    write_predictions,
)
from dart_core.settings import EvaluationSettings, OutputSettings, ScanSettings

SPACING = (1.2, 0.9, 2.5)
SHAPE = (16, 18, 8)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0])).to_filename(path)
    return path


def box(start: int, stop: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:12, start:stop, 2:6] = 1
    return mask


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three patients at each of two sites, as image, mask, site."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for site in ("A", "B"):
        for number in range(3):
            name = f"{site}{number}"
            image = np.random.default_rng(number).random(SHAPE).astype(np.float32) + box(4, 12 + number)
            rows.append(
                Row(
                    save(folder / f"{name}.nii.gz", image.astype(np.float32)),
                    save(folder / f"{name}_mask.nii.gz", box(4, 12 + number)),
                    name,
                    site,
                    "test",
                )
            )
    Datalist(tuple(rows)).write(folder / "list.csv")
    return folder / "list.csv"


def predict(folder: Path, datalist: Path, site: str, method: str, width: int, source: str = "A", **settings) -> Path:
    """Predictions that are too narrow by the same amount, as a package's command would write them."""
    rows = []
    for row in Datalist.read(datalist).select(site=site):
        scan = load_scan(row, ScanSettings(datalist, **{"preprocessing": "plain", **settings}), need_mask=True)
        values = scan.truth.copy()
        if width:
            last = np.flatnonzero(values.any((0, 2)))[-1]
            values[:, last - width + 1 :] = False
        rows.append(write_prediction(folder, scan, scan.name, values, source_site=source, method=method))
    write_predictions(folder, rows)
    return folder


def result(scan: str, surface: float, dice: float = 0.5, method: str = "none", pair=("A", "B"), **more) -> Result:
    return Result(pair, method, scan, surface, dice, Path("i"), Path("m"), Path("p"), **more)


# Scores


def test_score_is_that_of_the_metrics():
    truth, prediction = box(4, 12) == 1, box(4, 10) == 1
    found = score(prediction, truth, SPACING, 1.0)
    assert found["surface_dice"] == metrics.surface_dice(prediction, truth, SPACING, 1.0)
    assert found["dice"] == pytest.approx(2 * 6 / 14)
    assert score(truth, truth, SPACING) == {"surface_dice": 1, "dice": 1}
    nothing = truth & False
    assert score(nothing, truth, SPACING) == {"surface_dice": 0, "dice": 0}
    empty = score(nothing, nothing, SPACING)
    assert np.isnan(empty["surface_dice"])
    assert empty["dice"] == 1


def test_two_dimensional_surface_dice_is_the_mean_over_slices_with_anything():
    truth, prediction = box(4, 12) == 1, box(4, 12) == 1
    prediction[..., 5] = False  # nothing predicted in the last of four slices
    prediction[:, 10:, 4] = False
    middle = metrics.surface_dice(prediction[..., 4], truth[..., 4], SPACING[:2], 1.0)
    assert 0 < middle < 1
    assert score(prediction, truth, SPACING, 1.0, "2d")["surface_dice"] == pytest.approx((1 + 1 + middle + 0) / 4)
    assert np.isnan(score(truth & False, truth & False, SPACING, 1.0, "2d")["surface_dice"])


# Files


def test_predictions_are_written_and_scored(data, tmp_path):
    folder = predict(tmp_path / "p", data, "B", "fta", 2)
    with open(folder / "predictions.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == COLUMNS
    assert [(row["subject"], row["site"], row["source_site"], row["method"]) for row in rows] == [
        (f"B{n}", "B", "A", "fta") for n in range(3)
    ]
    assert (folder / rows[0]["image"]).resolve() == (data.parent / "B0.nii.gz").resolve()
    for number, found in enumerate(score_folders([folder], command="x")):
        truth, prediction = box(4, 12 + number) == 1, box(4, 10 + number) == 1
        assert (found.pair, found.method, found.scan) == (("A", "B"), "fta", f"B{number}")
        assert found.dice == pytest.approx(metrics.dice(prediction, truth))
        assert found.surface_dice == pytest.approx(metrics.surface_dice(prediction, truth, SPACING, 1.0))
    wider = score_folders([folder], tolerance=1.8)
    assert all(found.surface_dice == 1 for found in wider)
    slices = score_folders([folder], surface="2d")
    assert slices[0].surface_dice == metrics.surface_dice(box(4, 10)[..., 3], box(4, 12)[..., 3], SPACING[:2], 1.0)


def test_probabilities_are_cut_at_one_half(data, tmp_path):
    row = Datalist.read(data)[0]
    scan = load_scan(row, ScanSettings(data, "plain"))
    values = np.where(scan.truth, 0.5, 0.4).astype(np.float32)
    values[5, 5, 3] = 0.51
    written = write_prediction(tmp_path, scan, "x", values, source_site="A", method="m")
    assert np.argwhere(nibabel.load(tmp_path / written["prediction"]).get_fdata()).tolist() == [[5, 5, 3]]
    labels = np.where(scan.truth, 2, 0).astype(np.uint8)
    written = write_prediction(tmp_path, scan, "y", labels, source_site="A", method="m")
    assert set(np.unique(nibabel.load(tmp_path / written["prediction"]).get_fdata())) == {0, 2}
    assert "preprocessed_mask" not in written


def test_scores_on_the_grid_the_network_worked_on(data, tmp_path):
    """The papers score the resampled masks, with the voxel size that was asked for."""
    folder = predict(tmp_path / "p", data, "B", "fta", 3, preprocessing="cc359")
    row = next(row for row in Datalist.read(data) if row.subject == "B0")
    scan = load_scan(row, ScanSettings(data), need_mask=True)
    prediction = scan.truth.copy()
    prediction[:, np.flatnonzero(prediction.any((0, 2)))[-3:]] = False
    expected = score(prediction, scan.truth, (1.0, 0.95, 0.95))
    found = score_folders([folder], grid="preprocessed")[0]
    assert (found.surface_dice, found.dice) == (expected["surface_dice"], expected["dice"])
    own = score_folders([folder])[0]
    there = nibabel.load(folder / "B0_mask.nii.gz").get_fdata()
    assert own.dice == metrics.dice(there == 1, box(4, 12) == 1) != found.dice
    # Scans that were not resampled have one grid only.
    plain = predict(tmp_path / "q", data, "B", "fta", 3)
    assert [r.dice for r in score_folders([plain], grid="preprocessed")] == [r.dice for r in score_folders([plain])]


def test_one_grid_for_all(data, tmp_path):
    """Scores on the network's grid and on the file's do not stand side by side, and other masks are not passed over."""
    folder = predict(tmp_path / "p", data, "B", "fta", 3, preprocessing="cc359")
    same = score_folders([folder], data, grid="preprocessed")
    assert [r.dice for r in same] == [r.dice for r in score_folders([folder], grid="preprocessed")]
    plain = predict(tmp_path / "q", data, "B", "none", 0)
    with pytest.raises(InputError, match=r"is not there on the network's grid.*--grid file"):
        score_folders([folder, plain], grid="preprocessed")
    empty = save(tmp_path / "empty.nii.gz", box(4, 4))
    other = Datalist(tuple(dataclasses.replace(row, mask=empty) for row in Datalist.read(data)), data)
    listed = other.write(tmp_path / "other.csv")
    with pytest.raises(InputError, match=r"empty\.nii\.gz is not there on the network's grid"):
        score_folders([folder], listed, grid="preprocessed")
    assert [r.dice for r in score_folders([folder], listed)] == [0, 0, 0]


def test_slices_left_out(data, tmp_path):
    """aiva 6.1: the prostate's Dice looks at slices 1 to Z - 3 only."""
    folder = predict(tmp_path / "p", data, "A", "none", 0)
    path = folder / "A0_mask.nii.gz"
    mask = nibabel.load(path).get_fdata().astype(np.uint8)
    mask[0, 0, [0, 6, 7]] = 1
    save(path, mask)
    assert score_folders([folder])[0].dice < 1
    assert score_folders([folder], leave_out=(1, 2))[0].dice == 1
    assert score_folders([folder], leave_out=(0, 2))[0].dice < 1


def test_masks_of_several_structures_at_two_phases(tmp_path):
    """M&Ms: labels 1 to 3, frames of one 4-D file; a heart's two phases are averaged first (adagrad-unet 6)."""
    labels = np.zeros((*SHAPE, 5), np.uint8)
    labels[..., 0], labels[..., 3] = box(4, 10), box(4, 12) * 2
    nibabel.Nifti1Image(labels + np.float32(1), np.diag([*SPACING, 1])).to_filename(tmp_path / "a_sa.nii.gz")
    nibabel.Nifti1Image(labels, np.diag([*SPACING, 1])).to_filename(tmp_path / "a_sa_gt.nii.gz")
    rows = []
    for frame in (0, 3):
        row = Row(tmp_path / "a_sa.nii.gz", tmp_path / "a_sa_gt.nii.gz", "a", "D", labels={"frame": str(frame)})
        scan = load_scan(row, ScanSettings(tmp_path, "prostate"))
        predicted = labels[..., frame].copy()
        predicted[predicted == 2] = 3
        rows.append(write_prediction(tmp_path / "p", scan, f"a_{frame}", predicted, source_site="B", method="m"))
    write_predictions(tmp_path / "p", rows)
    results = score_folders([tmp_path / "p"], labels={"LV": 1, "MYO": 2, "RV": 3})
    assert {(r.structure, r.frame): r.dice for r in results} == {
        ("LV", 0): 1, ("MYO", 0): 1, ("RV", 0): 1, ("LV", 3): 1, ("MYO", 3): 0, ("RV", 3): 0,
    }  # fmt: skip
    summary = {row["structure"]: row for row in summarise(results)}
    assert {name: (row["scans"], row["dice"]) for name, row in summary.items()} == {
        "LV": (1, 1), "MYO": (1, 0.5), "RV": (1, 0.5),
    }  # fmt: skip
    # Without names every label is foreground.
    assert [r.dice for r in score_folders([tmp_path / "p"])] == [1, 1]
    evaluation.write_scores(tmp_path / "scores.csv", results)
    header, first = (tmp_path / "scores.csv").read_text().splitlines()[:2]
    assert header == "source,target,method,scan,structure,frame,surface_dice,dice"
    assert first.startswith("B,D,m,a,LV,0,")
    evaluation.comparison_figure(results)


def test_masks_from_another_datalist(data, tmp_path):
    listed = Datalist.read(data)
    naked = Datalist(tuple(dataclasses.replace(row, mask=None) for row in listed)).write(tmp_path / "naked.csv")
    rows = []
    for row in Datalist.read(naked).select(site="A"):
        scan = load_scan(row, ScanSettings(naked, "plain"))
        values = np.zeros(SHAPE, bool)
        rows.append(write_prediction(tmp_path / "p", scan, scan.name, values, source_site="", method="none"))
    write_predictions(tmp_path / "p", rows)
    with pytest.raises(InputError, match=r"predictions\.csv, row 2: no mask to score against; give --datalist"):
        score_folders([tmp_path / "p"])
    found = score_folders([tmp_path / "p"], data)
    assert [r.mask.name for r in found] == ["A0_mask.nii.gz", "A1_mask.nii.gz", "A2_mask.nii.gz"]
    assert found[0].pair == ("source", "A")


HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEADER + "\n", "lists no prediction; run `aiva predict` again"),
        (HEADER.replace("method", "m") + "\na,b,c,d,e,f,g\n", "has no column method; run `aiva predict` again"),
        (HEADER + "\na,b,c\n", "row 2: the row is damaged; run `aiva predict` again"),
        (HEADER + "\na,b,c,d,e,f,g,h\n", "row 2: the row is damaged"),
        (HEADER + "\n,b,c,d,e,f,g\n", "row 2: the row is damaged"),
        (HEADER + ",frame\na,b,c,d,e,f,g,one\n", "row 2: the row is damaged"),
        (
            HEADER + ",preprocessed_prediction,preprocessed_mask,preprocessed_spacing\na,b,c,d,e,f,g,h,i,1 2\n",
            "row 2: the row is damaged",
        ),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read (No such file or directory); give a folder that `aiva predict` wrote"),
    ],
)
def test_tables_that_cannot_be_read(text, words, tmp_path):
    if text is not None:
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "predictions.csv").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_predictions(tmp_path, "aiva")
    assert words in str(error.value)
    assert str(tmp_path / "predictions.csv") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_package_with_columns_of_its_own(tmp_path):
    columns = (*COLUMNS[:-1], "mode", "beta")
    (tmp_path / "predictions.csv").write_text(",".join(columns) + "\ni,m,p,s,B,A,fda,0.1\ni,m,p,s,B,A,fda,much\n")

    def method(row):
        return f"{row['mode']} {float(row['beta']):g}"

    with pytest.raises(InputError, match="row 3: the row is damaged"):
        read_predictions(tmp_path, "x", columns, method)
    (tmp_path / "predictions.csv").write_text(",".join(columns) + "\ni,m,p,s,B,A,fda,0.10\n")
    (prediction,) = read_predictions(tmp_path, "x", columns, method)
    assert prediction.method == "fda 0.1"
    assert prediction.prediction == tmp_path / "p"


# Summaries


def test_summary_by_hand():
    nan = float("nan")
    results = [
        *(result(f"s{i}", s, d) for i, (s, d) in enumerate([(0.2, 0.5), (0.4, 0.7), (nan, 1.0), (0.6, 0.6)])),
        *(result(f"s{i}", s, d, "aiva") for i, (s, d) in enumerate([(0.3, 0.6), (0.6, 0.9), (nan, 1.0), (0.5, 0.8)])),
        result("s0", 0.9, 0.9, "other"),
        result("s0", 0.1, 0.2, "none", ("B", "A")),
    ]
    none, aiva, other, back = summarise(results)
    assert [(row["source"], row["target"], row["method"]) for row in (none, aiva, other, back)] == [
        ("A", "B", "none"), ("A", "B", "aiva"), ("A", "B", "other"), ("B", "A", "none"),
    ]  # fmt: skip
    assert (none["scans"], none["both_empty"]) == (4, 1)
    assert none["surface_dice"] == pytest.approx(0.4)
    assert none["surface_dice_std"] == pytest.approx(np.std([0.2, 0.4, 0.6]))
    assert none["dice"] == pytest.approx(0.7)
    assert summarise(results, ddof=1)[0]["surface_dice_std"] == pytest.approx(0.2)
    assert "p_wilcoxon" not in none
    assert aiva["difference_to_none"] == pytest.approx(np.mean([0.1, 0.2, -0.1]))
    expected = stats.wilcoxon([0.3 - 0.2, 0.6 - 0.4, 0.5 - 0.6]).pvalue
    assert aiva["p_wilcoxon"] == pytest.approx(expected)
    assert aiva["dice_difference_to_none"] == pytest.approx(np.mean([0.1, 0.2, 0.0, 0.2]))
    assert aiva["dice_p_wilcoxon"] == pytest.approx(stats.wilcoxon([0.1, 0.2, 0.2]).pvalue)
    assert "p_wilcoxon" not in other  # one patient is no sample
    assert other["surface_dice_std"] == 0
    assert summarise(results, ddof=1)[2]["surface_dice_std"] is None
    assert "difference_to_aiva" in summarise(results, "aiva")[0]


def test_all_masks_empty():
    (row,) = summarise([result("a", float("nan"), 1.0), result("b", float("nan"), 1.0)])
    assert (row["surface_dice"], row["surface_dice_std"], row["both_empty"], row["dice"]) == (None, None, 2, 1)
    assert "surface Dice –" in evaluation.summary_line(row)


def test_several_results_of_a_patient_count_once():
    """Three seeds of one method: the mean over patients, with each patient's seeds averaged first."""
    results = [result("a", value) for value in (0.1, 0.2, 0.3)] + [result("b", 0.6)]
    (row,) = summarise(results)
    assert (row["scans"], row["surface_dice"]) == (2, pytest.approx(0.4))


def test_summary_over_pairs():
    results = [
        result(f"{method}{i}", value, value / 2, method, pair)
        for pair, values in ((("A", "B"), (0.2, 0.4)), (("A", "C"), (0.6, 1.0)), (("B", "C"), (0.3, 0.3)))
        for i, value in enumerate(values)
        for method in ("none", "fta")
    ]
    results = [dataclasses.replace(r, surface_dice=r.surface_dice + 0.1 * (r.method == "fta")) for r in results]
    none, fta = summarise_pairs(results, ddof=1)
    assert (none["method"], none["pairs"]) == ("none", 3)
    means = [0.3, 0.8, 0.3]
    assert none["surface_dice"] == pytest.approx(np.mean(means))
    assert none["surface_dice_std"] == pytest.approx(np.std(means, ddof=1))
    assert fta["difference_to_none"] == pytest.approx(0.1)
    assert fta["p_wilcoxon"] == pytest.approx(0.25)  # three of three pairs better


# The command


def test_the_whole_command(data, tmp_path, capsys):
    folders = tuple(
        predict(tmp_path / f"{method}-{site}", data, site, method, width, source, preprocessing="cc359")
        for method, width in (("none", 3), ("aiva", 0))
        for site, source in (("B", "A"), ("A", "B"))
    )
    command = EvaluationSettings(OutputSettings(tmp_path / "out"), folders)
    evaluation.evaluate(command, "dart-core", sections=lambda report, results: report.section(f"{len(results)} own"))
    out = tmp_path / "out"
    content = json.loads((out / "metrics.json").read_text())
    assert [(row["source"], row["target"], row["method"]) for row in content["results"]] == [
        ("A", "B", "none"), ("A", "B", "aiva"), ("B", "A", "none"), ("B", "A", "aiva"),
    ]  # fmt: skip
    assert (content["tolerance"], content["baseline"]) == (1, "none")
    none, aiva = content["over_pairs"]
    assert aiva["surface_dice"] == 1
    assert none["surface_dice"] < 1
    # Three of three patients better, and two of two pairs.
    assert (content["results"][1]["p_wilcoxon"], aiva["p_wilcoxon"]) == (0.25, 0.5)
    with open(out / "scores.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 12
    assert_allclose(
        np.mean([float(row["dice"]) for row in table if (row["method"], row["target"]) == ("none", "B")]),
        content["results"][0]["dice"],
        atol=1e-6,
    )
    text = (out / "report.html").read_text(encoding="utf-8")
    for words in ("12 own", "Over pairs", "population standard deviation", "Wilcoxon", "B2", "data:image/png"):
        assert words in text
    assert (out / "config.yaml").is_file()
    captured = capsys.readouterr()
    assert "A -> B  aiva                     surface Dice 1.000 ± 0.000  Dice 1.000 ± 0.000  (3 scans)" in captured.out
    assert captured.err == f"report: {out / 'report.html'}\n"
    with pytest.raises(OutputError, match="--overwrite"):
        evaluation.evaluate(command, "dart-core")
    again = dataclasses.replace(command, output=OutputSettings(out, overwrite=True), grid="file", surface="2d")
    evaluation.evaluate(again, "dart-core")
    assert json.loads((out / "metrics.json").read_text())["surface"] == "2d"


def test_a_broken_folder_leaves_the_old_results(data, tmp_path):
    (tmp_path / "out").mkdir()
    command = EvaluationSettings(OutputSettings(tmp_path / "out"), (tmp_path / "none",))
    with pytest.raises(InputError, match="give a folder that `aiva predict` wrote"):
        evaluation.evaluate(command, "aiva")
    assert list((tmp_path / "out").iterdir()) == []
