"""`sissi demo`: phantom cells written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from dart_core.cli import say
from dart_core.data.boxes import BoxedPicture, read_boxes, write_boxes
from dart_core.data.phantoms import degrade_boxes, write_cells
from dart_core.report import Report
from dart_core.run import claim_folder, cpu_threads, flat_settings
from dart_core.settings import OutputSettings, RunSettings
from sissi import settings as of
from sissi.commands import check_data, weak_label
from sissi.detectors import PACKAGE
from sissi.evaluation import detection_sheet, evaluate, measure, over_seeds, read_scored, score_section
from sissi.figures import Look, label_sheet
from sissi.pictures import Files, synthetic
from sissi.prediction import predict
from sissi.training import LABELS, curve_section, train

PICTURES, FILE_SIDE, SIDE, CELLS = 30, 256, 128, 12
RECIPE = of.Training(epochs=14, batch_size=2, learning_rate=0.02, zoom=(0.8, 1.25), log_every=2)
DETECTOR = of.DetectorSettings("small", size=SIDE)
RUNS: tuple[tuple[str, of.Correction], ...] = (
    ("never", of.Correction(start="never")),
    ("sissi", of.Correction("a-sissi-s", memorisation=0.5)),
)
"""Folder -> how labels are corrected. The curve of a dozen epochs is too short for the paper's threshold."""
MISSING, JITTER, FALSE = 0.5, 0.08, 0.1


@cpu_threads(1)  # for networks so small a second thread takes longer
def demo(command: of.Demo) -> None:
    """Train with imperfect boxes with and without their correction, detect, evaluate, and report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    lists = write_cells(out / "phantoms", pictures=PICTURES, size=FILE_SIDE, cells=CELLS, seed=command.seed)
    weak = degraded_list(lists["smear"], out / "phantoms" / "weak.csv", command.seed)
    say(f"phantoms: {lists['phase']} (source, good boxes), {weak} (target, imperfect boxes)")
    check_data(of.CheckData(weak))
    circles = out / "phantoms" / "circle pipeline.csv"
    weak_label(of.WeakLabel(out / "phantoms" / "smear", circles))
    data = of.DataSettings(lists["phase"], weak, edges="clip", memory=True)
    scored: list[Path] = []
    for name, correction in RUNS:
        run = RunSettings(out / name, seed=command.seed, device="cpu")
        train(of.Train(run, data, DETECTOR, correction, RECIPE))
        predict(of.Predict(lists["smear"], OutputSettings(out / f"predict-{name}"), run.out, device="cpu"))
        scored.append(out / f"predict-{name}")
    scored.append(circles)
    evaluate(of.Evaluate(OutputSettings(out / "evaluation"), tuple(scored), (lists["smear"],)))
    _report(command, lists["smear"], weak, tuple(scored), time.monotonic() - started)
    say(f"demo finished in {time.monotonic() - started:.0f} s; open {out / 'report.html'}")


def degraded_list(good: Path, out: Path, seed: int) -> Path:
    """The same pictures, those of training with degraded boxes."""
    rng = np.random.default_rng(seed)
    found = []
    for picture in read_boxes(good):
        if picture.split == "train":
            boxes = degrade_boxes(picture.boxes, (FILE_SIDE, FILE_SIDE), rng, MISSING, JITTER, FALSE)
            picture = replace(picture, boxes=boxes, labels=("cell",) * len(boxes), places=())
        found.append(picture)
    return write_boxes(out, found)


def label_quality(out: Path, truth: list[BoxedPicture], weak: Path) -> list[tuple[str, int, float, float]]:
    """Labels at first and after each correction, against the truth: name, boxes, AP50 and recall in per cent."""
    rows = []
    for path in [weak, *sorted((out / LABELS).glob("*.csv"))]:
        labels = read_scored(path)
        found = measure(truth, labels)
        count = sum(len(labels.pictures[picture.image.name].boxes) for picture in truth)
        rows.append(("first labels" if path == weak else path.stem, count, found["AP50"], found["recall"]))
    return rows


def _report(command: of.Demo, good: Path, weak: Path, folders: tuple[Path, ...], seconds: float) -> None:
    """One page over all steps."""
    import json

    out = command.out
    truth = [picture for picture in read_boxes(good) if picture.split == "train"]
    sissi = json.loads((out / "sissi" / "metrics.json").read_text(encoding="utf-8"))
    report = Report("sissi demo", "A cell detector out of imperfect boxes, on phantom pictures", package=PACKAGE)
    report.text(
        f"The target: {len(truth)} made-up pictures of a stained smear, of whose cells {MISSING:.0%} have no box, while other boxes "
        f"are shifted or wrong. The source: as many pictures of another made-up microscope with good boxes. A small detector learned "
        f"from both, once with the boxes as they are and once with SISSI, which corrects them: after a few epochs the detector's own "
        f"boxes in 20 views of each picture, fused, replace the labels, and cells without a box are hidden. The whole demo took "
        f"{seconds:.0f} s. Its numbers say that the program works, not how well the method does on your pictures."
    )
    report.section("The labels")
    rows = label_quality(out / "sissi", truth, weak)
    report.table(
        ("labels", "boxes", "AP50 (%)", "recall (%)"), rows,
        f"Labels of the training pictures against the truth ({sum(len(p.boxes) for p in truth)} cells)",
    )  # fmt: skip
    report.text(
        "recall: share of the cells that a label overlaps by more than a half; AP50 also falls with every false label."
    )
    files = sorted((out / "sissi" / LABELS).glob("*.csv"))
    first = {picture.image.name: picture for picture in read_boxes(weak)}
    last = {picture.image.name: picture for picture in read_boxes(files[-1])} if files else first
    sheet = []
    for picture in truth[:3]:
        image, name = Files(False, "rgb")(picture.image), picture.image.name
        sheet.append([
            Look("truth", image, {"reader": picture.boxes}), Look("first labels", image, {"first": first[name].boxes}),
            Look("corrected", image, {"corrected": last[name].boxes}),
            Look("what is learned from", synthetic(image, last[name].boxes, "strong"), {}),
        ])  # fmt: skip
    report.picture(label_sheet(sheet), "Training pictures: true cells, first labels, corrected labels, synthetic-like picture", "rows of phantom pictures with boxes")  # fmt: skip
    curve_section(
        report, sissi["ap50_curve"], -1 if sissi["memorised_epoch"] is None else sissi["memorised_epoch"], RECIPE.epochs
    )
    report.section("The detectors")
    report.text(
        "In test pictures, which neither detector has seen. Beside them the boxes of the circle pipeline, which finds round things "
        "without learning and is meant to give first labels where there are none."
    )
    scored = [read_scored(folder) for folder in folders]
    test = [picture for picture in read_boxes(good) if picture.split == "test"]
    score_section(
        report, over_seeds([{"method": item.name, "reader": "truth", **measure(test, item)} for item in scored])
    )
    sheet_of_tests = detection_sheet(test, scored)
    if sheet_of_tests is not None:
        report.picture(sheet_of_tests, "Test pictures: true boxes (green) and detections with a score above 0.5 (orange)", "phantom pictures with boxes")  # fmt: skip
    report.section("Settings")
    report.settings({"demo": command, "detector": DETECTOR, "training": RECIPE, "correction": RUNS[1][1]})
    report.write(out / "report.html")
