"""SISSI on small real sets: smear_boxes_256 to bccd, and the fluorescence to the stained pictures of dsb2018_nuclei.

    python benchmarks/reproduce/sissi_cells.py --data-root DATA --work FOLDER [--seeds 3] [--smoke]

bccd (microscope B, of each picture the middle square, halved to 240 x 240 pixels: the detector's frame is square, and cells in a
picture of 640 x 480 pixels would be squeezed in it; white and red cells are one class, platelets do not count) is the target of
smear_boxes_256 (microscope A), with two kinds of weak labels: its own boxes degraded by a rule (each box goes with probability
0.5, the corners of the others move by a tenth of the side, and a tenth of false boxes is added), and those of the circle pipeline
(W1), which knows nothing of its boxes. The second pair is dsb2018_nuclei, fluorescence to purple on white, in quarters enlarged to
256 pixels (nuclei are small), degraded by the same rule; of the source, a quarter that validates may come from a picture of which
another quarter is learned from. Scored on the target's own boxes in test pictures, which no label and no
choice has seen. The first task also has the baselines that the paper lacks, and two rows in which the box of a turned picture's box is
that of the ellipse in it: the hull, which the paper takes where no mask gives the box, makes the boxes of round cells wider. A small detector, see `sissi.detectors.SmallBackbone`;
seeds change initial weights and batches, weak labels and pictures are the same for all. Every training is a run of `sissi train` and
`predict`; results are read back, so that the study resumes between any two of them (and within one). Writes a record to
benchmarks/results. --smoke times a few epochs and prints an estimate. --picture FILE.png draws the picture of the README.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from study import origin, study_arguments, study_options, write_record

from dart_core.data.boxes import CELL, BoxedPicture, read_boxes, select_classes, write_boxes
from dart_core.data.images import read_image, write_image
from dart_core.data.phantoms import degrade_boxes
from dart_core.files import write_atomic
from dart_core.settings import OutputSettings, RunSettings
from sissi import settings as of
from sissi.commands import label_picture
from sissi.evaluation import MEASURES, measure, over_seeds, read_scored
from sissi.figures import Look, label_sheet
from sissi.pictures import Files, synthetic
from sissi.prediction import predict
from sissi.training import LABELS, train

TRAIN, TEST, SOURCE, VALIDATION = 32, 40, 48, 10
"""Pictures of the target to train on and to test with, and of the source, of which so many validate."""
SIDE, BCCD_SIDE = 128, 240
"""Of the detector's frame, and of the squares out of bccd."""
RECIPE = of.Training(epochs=14, batch_size=2, learning_rate=0.02, zoom=(0.7, 1.4), examples=2)
SUPERVISED = 9
"""Epochs with the first labels where the validation loss chooses."""
MISSING, JITTER, FALSE = 0.5, 0.1, 0.1
METHODS: dict[str, tuple[of.Correction, of.Training]] = {
    **{of.NAMES[row]: (of.Correction(row, supervised=SUPERVISED), RECIPE) for row in of.ROWS},
    "mixed batch, no correction": (of.Correction(start="never"), RECIPE),
    "source only": (of.Correction(), replace(RECIPE, learn_from="source")),
    "A+SISSI (S), NMS": (of.Correction(fusion="nms"), RECIPE),
    "A+SISSI (S), one view": (of.Correction(views="one"), RECIPE),
    "A+SISSI (S), hard paste": (of.Correction(paste="hard"), RECIPE),
    "A+SISSI (S), ellipses": (of.Correction(), replace(RECIPE, turned="ellipse")),
    "mixed batch, no correction, ellipses": (of.Correction(start="never"), replace(RECIPE, turned="ellipse")),
}
EXTRA_ON = "bccd, degraded"
"""The task with all of them; the others have the paper's six rows and the mixed batch."""
FEW = (*of.NAMES.values(), "mixed batch, no correction")


# --- Data ------------------------------------------------------------------------------------------------------------


def boxes_within(boxes: np.ndarray, left: int, top: int, width: int, height: int) -> np.ndarray:
    """The boxes of a part of a picture, cut to it: those of which more than half lies in it."""
    moved = boxes - np.array([left, top, left, top])
    cut = moved.clip(0, [width, height, width, height])
    area, whole = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (cut, moved))
    return np.asarray(cut[area > 0.5 * whole])


def write_part(
    folder: Path, name: str, pictures: Sequence[BoxedPicture], splits: Sequence[str], side: int | None = None
) -> Path:
    """Copy pictures, or the square in their middle resized to `side`, with their boxes as the one class."""
    listed = []
    for picture, split in zip(pictures, splits, strict=True):
        image, boxes = read_image(picture.image), picture.boxes
        if side is not None:
            height, width = image.shape[:2]
            whole = min(height, width)
            left, top = (width - whole) // 2, (height - whole) // 2
            image = image[top : top + whole, left : left + whole]
            image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            boxes = boxes_within(boxes, left, top, whole, whole) * (side / whole)
        path = write_image(folder / name / f"{picture.image.stem}.png", image)
        listed.append(BoxedPicture(path, boxes, (CELL,) * len(boxes), split, name))
    return write_boxes(folder / f"{name}.csv", listed)


def quarters(pictures: Sequence[BoxedPicture], splits: Sequence[str], folder: Path) -> list[tuple[BoxedPicture, str]]:
    """The four quarters of each picture, enlarged twice, with the boxes of which more than half is inside; those with two or more."""
    found = []
    for picture, split in zip(pictures, splits, strict=True):
        image = read_image(picture.image)
        height, width = (side // 2 for side in image.shape[:2])
        for number, (top, left) in enumerate(((0, 0), (0, width), (height, 0), (height, width))):
            boxes = 2 * boxes_within(picture.boxes, left, top, width, height)
            if len(boxes) < 2:
                continue
            part = cv2.resize(
                image[top : top + height, left : left + width], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC
            )
            path = write_image(folder / f"{picture.image.stem}-{number}.png", part)
            found.append((BoxedPicture(path, boxes, (CELL,) * len(boxes)), split))
    return found


def degraded(good: Path, out: Path) -> Path:
    """The list with degraded boxes in the training pictures."""
    rng, found = np.random.default_rng(0), []
    for picture in read_boxes(good):
        if picture.split == "train":
            height, width = read_image(picture.image).shape[:2]
            boxes = degrade_boxes(picture.boxes, (height, width), rng, MISSING, JITTER, FALSE)
            picture = replace(picture, boxes=boxes, labels=(CELL,) * len(boxes), places=())
        found.append(picture)
    return write_boxes(out, found)


def circled(good: Path, out: Path) -> Path:
    """The list with boxes of the circle pipeline in the training pictures."""
    return write_boxes(out, [label_picture(p, "circles") if p.split == "train" else p for p in read_boxes(good)])


def prepare(data: Path, work: Path) -> dict[str, tuple[Path, Path, Path]]:
    """Source, weak target and good target of each task, written once."""
    folder = work / "data"
    names = {
        "bccd, degraded": ("smear", "bccd-degraded", "bccd"), "bccd, circles": ("smear", "bccd-circles", "bccd"),
        "dsb2018 stained, degraded": ("fluor", "stained-degraded", "stained"),
    }  # fmt: skip
    lists = {task: tuple(folder / f"{name}.csv" for name in parts) for task, parts in names.items()}
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        rng = np.random.default_rng(0)
        source = ["val"] * VALIDATION + ["train"] * (SOURCE - VALIDATION)
        smear = read_boxes(data / "smear_boxes_256" / "boxes.csv")
        write_part(folder, "smear", [smear[i] for i in rng.permutation(len(smear))[:SOURCE]], source)
        bccd = select_classes(read_boxes(data / "bccd" / "boxes.csv"), ignore=["Platelets"])
        parts = {split: [p for p in bccd if p.split == split] for split in ("train", "test")}
        chosen = [parts["train"][i] for i in rng.permutation(len(parts["train"]))[:TRAIN]]
        tests = [parts["test"][i] for i in rng.permutation(len(parts["test"]))[:TEST]]
        good = write_part(folder, "bccd", chosen + tests, ["train"] * len(chosen) + ["test"] * len(tests), BCCD_SIDE)
        degraded(good, folder / "bccd-degraded.csv")
        circled(good, folder / "bccd-circles.csv")
        with (data / "dsb2018_nuclei" / "index.csv").open(newline="") as file:
            modality = {row["image"]: row["modality"] for row in csv.DictReader(file)}
        nuclei = read_boxes(data / "dsb2018_nuclei" / "boxes.csv")
        fluor = [p for p in nuclei if modality[p.image.name] == "fluor"]
        stained = [p for p in nuclei if modality[p.image.name] == "purple_white"]
        parts = quarters(fluor, [""] * len(fluor), folder / "quarters")
        write_part(folder, "fluor", [parts[i][0] for i in rng.permutation(len(parts))[:SOURCE]], source)
        order = rng.permutation(len(stained))  # a picture's quarters are all for training or all for test
        names = ["train" if place < 0.6 * len(order) else "test" for place in range(len(order))]
        parts = quarters([stained[i] for i in order], names, folder / "quarters")
        kept = [
            part
            for split, count in (("train", TRAIN), ("test", TEST))
            for part in [p for p in parts if p[1] == split][:count]
        ]
        good = write_part(folder, "stained", [part[0] for part in kept], [part[1] for part in kept])
        degraded(good, folder / "stained-degraded.csv")
        write_atomic(folder / "done", "")
    return {task: (parts[0], parts[1], parts[2]) for task, parts in lists.items()}


# --- Runs ------------------------------------------------------------------------------------------------------------


def slug(text: str) -> str:
    """A text as part of a file name."""
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower())


def one_run(
    work: Path, task: str, lists: tuple[Path, Path, Path], method: str, seed: int, epochs: int | None = None
) -> dict[str, Any]:
    """Train, predict, score; or read back what was done."""
    folder = work / f"{slug(task)}-{slug(method)}-{seed}"
    if (folder / "result.json").is_file():
        done: dict[str, Any] = json.loads((folder / "result.json").read_text())
        return done
    started, (source, weak, good) = time.process_time(), lists
    correction, recipe = METHODS[method]
    recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
    if epochs is not None and correction.supervised:
        correction = replace(correction, supervised=epochs // 2)
    out = folder / "run"
    run = RunSettings(out, seed=seed, device="cpu", checkpoint_every=10_000, resume=(out / "config.yaml").is_file())
    data = of.DataSettings(source, weak, edges="clip", memory=True)
    train(of.Train(run, data, of.DetectorSettings("small", size=SIDE), correction, recipe))
    predict(of.Predict(good, OutputSettings(folder / "scores", overwrite=True), out, device="cpu"))
    truth = read_boxes(good)
    found = measure([p for p in truth if p.split == "test"], read_scored(folder / "scores"))
    metrics = json.loads((out / "metrics.json").read_text())
    labels = sorted((out / LABELS).glob("*.csv"))
    quality = {}
    for name, path in {"first": weak, **({"corrected once": labels[0], "last": labels[-1]} if labels else {})}.items():
        scores = measure([p for p in truth if p.split == "train"], read_scored(path))
        quality[name] = {"AP50": scores["AP50"], "recall": scores["recall"]}
    result = {
        "method": method, "reader": task, "seed": seed, **found, "labels": quality, "cycles": metrics["cycles"],
        "memorised_epoch": metrics["memorised_epoch"], "ap50_curve": metrics["ap50_curve"],
        "boxes": [metrics["boxes_at_first"], metrics["boxes_at_last"]], "seconds": round(time.process_time() - started, 1),
    }  # fmt: skip
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    write_atomic(folder / "result.json", json.dumps(result))
    return result


def weak_scores(tasks: Mapping[str, tuple[Path, Path, Path]]) -> list[dict[str, Any]]:
    """Weak labels scored directly: those that are learned from, and the circle pipeline in test pictures."""
    rows: list[dict[str, Any]] = []
    for task, (_, weak, good) in tasks.items():
        truth = read_boxes(good)
        training, tests = ([p for p in truth if p.split == split] for split in ("train", "test"))
        rows.append({"labels": f"{task}: training pictures", **measure(training, read_scored(weak))})
        if "circles" in task:
            file = weak.with_name("circles-of-test.csv")
            write_boxes(file, [label_picture(p, "circles") for p in tests])
            rows.append({"labels": "circle pipeline: test pictures of bccd", **measure(tests, read_scored(file))})
    return rows


def smoke(data: Path, work: Path, seeds: int) -> None:
    """Few epochs of three kinds of runs; prints how long the whole study takes."""
    work = work / "smoke"
    shutil.rmtree(work, ignore_errors=True)
    tasks = prepare(data, work)
    total, epochs = 0.0, 4
    for task, lists in tasks.items():
        seconds = {}
        for method in ("mixed batch, no correction", "Baseline", "SISSI (S)"):
            seconds[method] = one_run(work, task, lists, method, 0, epochs)["seconds"] / epochs
            print(f"{task}, {method}: {seconds[method]:.1f} s of CPU an epoch", flush=True)
        cycle = 2 * (max(seconds.values()) - seconds["mixed batch, no correction"])  # half of the epochs had one
        methods = METHODS if task == EXTRA_ON else FEW
        runs = len(methods) * seeds
        total += runs * RECIPE.epochs * (seconds["mixed batch, no correction"] + cycle / 2)
    print(f"{seeds} seeds: about {total / 60:.0f} minutes of CPU")


# --- Record ----------------------------------------------------------------------------------------------------------


def summarise(found: Sequence[dict[str, Any]], weak: Sequence[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """The record."""
    labels = []
    for row in over_seeds(found):
        group = [r for r in found if (r["method"], r["reader"]) == (row["method"], row["reader"])]
        for name in group[0]["labels"]:
            values = [r["labels"][name]["recall"] for r in group if name in r["labels"]]
            labels.append({"task": row["reader"], "method": row["method"], "labels": name, "runs": len(values), "recall": float(np.mean(values))})  # fmt: skip
    return {
        **origin("sissi: small detector, smear_boxes_256 to bccd (two kinds of weak labels), fluorescence to stained nuclei of dsb2018"),
        "scale": {
            "frame": SIDE, "squares_of_bccd": BCCD_SIDE, "supervised_epochs": SUPERVISED, "target": {"train": TRAIN, "test": TEST}, "source": SOURCE, "validation": VALIDATION, "seeds": seeds,
            "recipe": dataclasses.asdict(RECIPE), "degraded": {"missing": MISSING, "jitter": JITTER, "false": FALSE},
        },
        "metric": "COCO measures in per cent on the target's own boxes in test pictures, 400 detections; mean and sample standard "
        "deviation over seeds; recall: true boxes that any box overlaps by more than a half",
        "table": over_seeds(found),
        "weak_labels_scored_directly": list(weak),
        "labels": labels,
        "minutes_of_cpu": round(sum(row["seconds"] for row in found) / 60, 1),
        "results": list(found),
    }  # fmt: skip


def picture(work: Path, tasks: Mapping[str, tuple[Path, Path, Path]], out: Path) -> None:
    """Labels of two training pictures over the epochs, and what was learned from: A+SISSI (S), seed 0."""
    _, weak, good = tasks[EXTRA_ON]
    files = sorted((work / f"{slug(EXTRA_ON)}-{slug('A+SISSI (S)')}-0" / "run" / LABELS).glob("*.csv"))
    first, truth = read_boxes(weak), read_boxes(good)
    chosen = [read_boxes(path) for path in files[:1] + files[-1:]]
    rows = []
    for i in (1, 2):
        image = Files(False, "rgb")(truth[i].image)
        row = [
            Look("own boxes", image, {"reader": truth[i].boxes}),
            Look("weak labels", image, {"first": first[i].boxes}),
        ]
        row += [Look(f"labels of epoch {int(path.stem[-4:])}", image, {"corrected": lists[i].boxes}) for path, lists in zip(files[:1] + files[-1:], chosen, strict=True)]  # fmt: skip
        if chosen:
            row.append(Look("learned from", synthetic(image, chosen[-1][i].boxes, "strong"), {}))
        rows.append(row)
    label_sheet(rows).savefig(out, dpi=110)
    print(out)


def main() -> None:
    """Command line."""
    parser = study_options(__doc__, "sissi_cells", "time a few epochs and estimate the rest")
    parser.add_argument("--picture", type=Path, help="draw the README's picture into this .png after the runs")
    arguments = study_arguments(parser)
    torch.set_num_threads(1)
    data, work = arguments.data_root, arguments.work
    if arguments.smoke:
        smoke(data, work, arguments.seeds)
        return
    tasks, found = prepare(data, work), []
    for seed in range(arguments.seeds):
        for task, lists in tasks.items():
            for method in METHODS if task == EXTRA_ON else FEW:
                found.append(one_run(work, task, lists, method, seed))
                print(f"{task}, {method}, seed {seed}: AP50 {found[-1]['AP50']:.1f}", flush=True)
    record = summarise(found, weak_scores(tasks), arguments.seeds)
    file = write_record(record, arguments.out, "sissi-cells")
    print("| task | method | " + " | ".join(MEASURES) + " |\n|---|---" + "|---" * len(MEASURES) + "|")
    for row in record["table"]:
        cells = " | ".join(f"{row[name]:.1f} ± {row[f'{name} std'] or 0:.1f}" for name in MEASURES)
        print(f"| {row['reader']} | {row['method']} | {cells} |")
    if arguments.picture is not None:
        picture(work, tasks, arguments.picture)
    print(file)


if __name__ == "__main__":
    main()
