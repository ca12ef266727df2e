"""`sissi demo`: phantom cells written as real files, then every step through the code that a user's data takes."""

from __future__ import annotations

import json
import time
from pathlib import Path

from dart_core.cli import say
from dart_core.data.boxes import BoxedPicture, read_boxes
from dart_core.data.phantoms import write_cells
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, cpu_threads, flat_settings
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
# The paper's source has masks, which keep boxes tight when a picture is turned; this one has boxes alone, hence the ellipses.
RECIPE = of.Training(epochs=14, batch_size=2, learning_rate=0.02, zoom=(0.8, 1.25), turned="ellipse", log_every=2)
DETECTOR = of.DetectorSettings("small", size=SIDE)
RUNS: tuple[tuple[str, of.Correction], ...] = (
    ("never", of.Correction(start="never")),
    ("sissi", of.Correction("sissi-s", supervised=9)),
    ("a-sissi", of.Correction("a-sissi-s")),
)
"""Folder -> how labels are corrected; the first one not at all."""


@cpu_threads(1)  # for networks so small a second thread takes longer
def demo(command: of.Demo) -> None:
    """Train with imperfect boxes with and without their correction, detect, evaluate, and report."""
    started = time.monotonic()
    out = command.out
    claim_folder(out, flat_settings(command), overwrite=command.overwrite)
    lists = write_cells(out / "phantoms", pictures=PICTURES, size=FILE_SIDE, cells=CELLS, seed=command.seed)
    say(f"phantoms: {lists['phase']} (source), {lists['smear']} (target)")
    weak, circles = out / "phantoms" / "weak.csv", out / "phantoms" / "circle pipeline.csv"
    weak_label(of.WeakLabel(lists["smear"], weak, split="train"))  # its good boxes serve the test alone
    weak_label(of.WeakLabel(out / "phantoms" / "smear", circles))
    check_data(of.CheckData(weak))
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


def label_quality(out: Path, truth: list[BoxedPicture], weak: Path) -> list[tuple[str, int, float, float]]:
    """Labels at first and after each run's first and last correction, against the truth: name, boxes, AP50 and recall in per cent."""
    files = {"first labels": weak}
    for folder, correction in RUNS[1:]:
        labels = sorted((out / folder / LABELS).glob("*.csv"))
        files |= {f"{correction.name}, epoch {int(path.stem[-4:])}": path for path in labels[:1] + labels[-1:]}
    rows = []
    for name, path in files.items():
        labels_there = read_scored(path)
        found = measure(truth, labels_there)
        count = sum(len(labels_there.pictures[picture.image.name].boxes) for picture in truth)
        rows.append((name, count, round(found["AP50"], 1), round(found["recall"], 1)))
    return rows


def _report(command: of.Demo, good: Path, weak: Path, folders: tuple[Path, ...], seconds: float) -> None:
    """One page over all steps."""
    out = command.out
    truth = [picture for picture in read_boxes(good) if picture.split == "train"]
    report = Report("sissi demo", "A cell detector out of imperfect boxes, on phantom pictures", package=PACKAGE)
    report.text(
        f"The target: {len(truth)} made-up pictures of a stained smear, with the boxes of the circle pipeline, which finds round things "
        f"without knowing what a cell is: many boxes are wrong, and cells are missing. The source: as many pictures of another "
        f"made-up microscope with good boxes. A small detector learned from both, first with the boxes as they are, then with SISSI, "
        f"which corrects them: after some epochs the detector's own boxes in 20 views of each picture, fused, replace the labels, and "
        f"cells without a box are hidden. SISSI (S) starts after {RUNS[1][1].supervised} epochs, from the best of them; A+SISSI (S) when "
        f"the detector begins to memorise, which it may find too early where an epoch has so few pictures. The whole demo took "
        f"{seconds:.0f} s. Its numbers say that the program works, not how well the method does on your pictures."
    )
    report.section("The labels")
    rows = label_quality(out, truth, weak)
    report.table(
        ("labels", "boxes", "AP50 (%)", "recall (%)"), rows,
        f"Labels of the training pictures against the truth ({sum(len(p.boxes) for p in truth)} cells)",
    )  # fmt: skip
    report.text(
        "recall: share of the cells that a label overlaps by more than a half; AP50 also falls with every false label."
    )
    files = sorted((out / RUNS[1][0] / LABELS).glob("*.csv"))
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
    report.picture(label_sheet(sheet), f"Training pictures: true cells, first labels, labels after the last correction of {RUNS[1][1].name}, synthetic-like picture", "rows of phantom pictures with boxes")  # fmt: skip
    for folder, correction in RUNS:
        if correction.starts == "adele":
            metrics = json.loads((out / folder / METRICS).read_text(encoding="utf-8"))
            memorised = -1 if metrics["memorised_epoch"] is None else metrics["memorised_epoch"]
            curve_section(report, metrics["ap50_curve"], memorised, RECIPE.epochs)
    report.section("The detectors")
    report.text(
        "In test pictures, which no detector has seen. Beside them the boxes of the circle pipeline: what the detectors would be "
        "if they had learned their labels by heart."
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
    report.settings({"demo": command, "detector": DETECTOR, "training": RECIPE, **dict(RUNS[1:])})
    report.write(out / "report.html")
