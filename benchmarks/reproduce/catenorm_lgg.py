"""catenorm on real scans: brain and tumour of lgg_multisite, four hospitals trained together, against BN, IN, GN and DSBN.

    python benchmarks/reproduce/catenorm_lgg.py --data-root DATA --work FOLDER [--seeds 3] [--smoke]

FLAIR slices of 128 pixels, halved to 64, with two classes beside the background: brain (silver standard, automatic) and tumour (drawn by
hand). A seed draws first weights, batches, and the split of every hospital's patients (a quarter is for test). For each seed batch
norm, instance norm and group norm are warmed up by themselves; then each goes on for as many steps, and CateNorm (block 1, and
blocks 1-4) and DSBN go on from batch norm's warm-up: every method has the same number of iterations. (An iteration of CateNorm has two optimiser
steps, as in the paper.) The last network is scored, by
hospital: Dice and average surface distance of both classes in 3-D, without the outermost slices, paired with batch norm over test
patients (Wilcoxon; a patient that several seeds test counts once, by its mean). Writes a record to benchmarks/results. Stops and resumes
between any two trainings and within one; one process, one thread. --smoke times a few steps of everything and prints an estimate.

Scale (the paper: width 32, 384 pixels, 9000 + 9000 iterations): see WIDTH, SIDE, TRAINING; nothing was chosen on test patients.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from lgg_multisite import convert
from study import origin, study_arguments, study_options, write_record

from catenorm import settings as of
from catenorm.evaluation import Score, read_folder, score_folder, summarise
from catenorm.prediction import predict
from catenorm.training import train
from dart_core import metrics
from dart_core.data.datalist import Datalist
from dart_core.files import write_atomic
from dart_core.settings import OutputSettings, RunSettings

SITES = ("CS", "DU", "FG", "HT")
LABELS = ("brain", "tumour")
SIDE, WIDTH = 64, 8
TRAINING = of.Training(
    steps=400, warmup_steps=0, batch_size=2, learning_rate=1e-3, plateau_window=50, log_every=20, flip="on"
)
"""Of the warm-up and of what follows it alike. Heads are nearly symmetric, so that slices are flipped and shifted too."""
PLAIN: tuple[of.Method, ...] = ("bn", "in", "gn")
METHODS = {
    **{name: (of.Network(name, width=WIDTH), name) for name in PLAIN},
    "dsbn": (of.Network("dsbn", width=WIDTH), "bn"),
    "catenorm 1": (of.Network("catenorm", width=WIDTH, blocks=(1,)), "bn"),
    "catenorm 1-4": (of.Network("catenorm", width=WIDTH), "bn"),
}
"""Name -> network, and whose warm-up it starts from."""
BASELINE = "bn"
SEED = ", seed "
"""Between a patient and the seed, in the names of the record's cases."""


def datalist(data_root: Path, folder: Path, seed: int) -> Path:
    """FLAIR volumes with one map of labels each: 1 brain, 2 tumour."""
    file = folder / "brain_and_tumour.csv"
    if file.is_file():
        return file
    lists = convert(data_root, folder, seed)
    tumours = {row.image: row.mask for row in Datalist.read(lists["flair_tumour"])}
    rows = []
    for row in Datalist.read(lists["flair"]):
        assert row.mask is not None  # every scan has both
        brain, tumour = (nibabel.load(path) for path in (row.mask, tumours[row.image]))
        label = np.where(np.asarray(tumour.dataobj) > 0, 2, np.asarray(brain.dataobj) > 0).astype(np.uint8)
        path = folder / "labels" / row.mask.name
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(label, brain.affine), path)
        # No patient is chosen by results; the split has no use for a validation part here.
        split = "train" if row.split == "val" else row.split
        rows.append(dataclasses.replace(row, mask=path, split=split))
    return Datalist(tuple(rows)).write(file)


class Study:
    """Where things lie; every result is a folder that is made once."""

    def __init__(self, data_root: Path, work: Path, training: of.Training = TRAINING) -> None:
        self.data_root, self.work, self.training = data_root, work, training

    def cases(self, seed: int) -> of.Cases:
        """How the scans of a split are read."""
        listed = datalist(self.data_root, self.work / f"nifti-seed{seed}", seed)
        return of.Cases((listed,), sites=SITES, labels=LABELS, size=SIDE, missing_organs="allow")

    def trained(self, seed: int, name: str, network: of.Network, start: Path | None) -> Path:
        """A run of `train`, done or from before."""
        out = self.work / f"seed{seed}" / name.replace(" ", "-")
        if not (out / "report.html").is_file():
            # A run that was stopped goes on; one that was killed before its first checkpoint starts anew.
            resume = any((out / "checkpoints").glob("*")) if out.exists() else False
            run = RunSettings(
                out, resume=resume, overwrite=out.exists() and not resume, device="cpu", seed=seed, channels_last=True,
                checkpoint_every=100,
            )  # fmt: skip
            training = dataclasses.replace(self.training, warm_start=start)
            started = time.process_time()
            quietly(train, of.Train(run, self.cases(seed), network, training, name))
            write_atomic(out / "seconds.json", json.dumps(time.process_time() - started))
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return out

    def predicted(self, seed: int, name: str) -> Path:
        """A run of `predict` on the test patients, done or from before."""
        network, warm = METHODS[name]
        plain = of.Network(warm, width=WIDTH)  # type: ignore[arg-type]
        start = self.trained(seed, f"warm-up-{warm}", plain, None)
        model = self.trained(seed, name, network, start)
        out = self.work / f"seed{seed}" / f"predict-{name.replace(' ', '-')}"
        if not (out / "report.html").is_file():
            quietly(predict, of.Predict(OutputSettings(out, overwrite=out.exists()), model, device="cpu"))
        return out

    def scores(self, seed: int, name: str) -> list[Score]:
        """Both classes of every test patient; patients of different seeds are told apart."""
        found = score_folder(read_folder(self.predicted(seed, name)))
        return [dataclasses.replace(score, case=f"{score.case}{SEED}{seed}") for score in found]


def quietly(command: Any, settings: Any) -> None:
    """Run a command of the package without its closing line."""
    with contextlib.redirect_stderr(io.StringIO()):
        command(settings)


def tables(scores: Sequence[Score], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of `summarise`, with mean and sample standard deviation over seeds, and p-values corrected for their number.

    A patient may be for test in several seeds: differences and p-values are over patients, each the mean of its seeds.
    """
    rows = summarise(scores, BASELINE)
    by_patient = [dataclasses.replace(score, case=score.case.partition(SEED)[0]) for score in scores]
    for row, patients in zip(rows, summarise(by_patient, BASELINE), strict=True):
        row |= {"patients": patients["cases"]} | {key: patients[key] for key in ("difference", "p") if key in patients}
    tested = [row for row in rows if "p" in row]
    for row in tested:
        row["p_bonferroni"] = float(metrics.bonferroni(row["p"], len(tested)))
    for row in rows:
        of_seeds = [
            next(
                one["dice"]
                for one in summarise([s for s in scores if s.case.endswith(f"{SEED}{seed}")], BASELINE)
                if one["method"] == row["method"]
            )
            for seed in seeds
        ]
        row["dice_seeds"] = [round(value, 3) for value in of_seeds]
        row["dice_std_seeds"] = float(np.std(of_seeds, ddof=1)) if len(of_seeds) > 1 else None
    return rows


def table_text(rows: Sequence[dict[str, Any]]) -> str:
    """For the README."""
    lines = [
        "| method | " + " | ".join(SITES) + " | brain | tumour | average Dice | ASD (mm) | against bn |",
        "|---" * (len(SITES) + 6) + "|",
    ]
    for row in rows:
        sites = " | ".join(f"{row['dice_sites'][site]:.2f}" for site in SITES)
        organs = " | ".join(f"{row['dice_organs'][name]:.2f}" for name in LABELS)
        std = "" if row["dice_std_seeds"] is None else f" ± {row['dice_std_seeds']:.2f}"
        compared = f"{row['difference']:+.2f}, p = {row['p_bonferroni']:.2g}" if "p" in row else ""
        lines.append(
            f"| {row['method']} | {sites} | {organs} | {row['dice']:.2f}{std} | {row['asd']:.2f} | {compared} |"
        )
    return "\n".join(lines)


def smoke(data_root: Path, work: Path, seeds: int) -> None:
    """A few steps of everything; prints how long the whole study may take."""
    folder = work / "smoke"
    shutil.rmtree(folder, ignore_errors=True)
    study = Study(data_root, folder, dataclasses.replace(TRAINING, steps=10))
    total = 0.0
    study.trained(0, "first", of.Network("bn", width=WIDTH), None)  # imports and files, once for the whole study
    for name in METHODS:
        started = time.process_time()  # the estimate is for a core that nobody else uses
        study.predicted(0, name)
        seconds = time.process_time() - started
        steps = [
            json.loads((folder / "seed0" / run / "seconds.json").read_text())
            for run in (name.replace(" ", "-"), *([f"warm-up-{name}"] if name in PLAIN else []))
        ]
        total += seconds + sum(steps) * (TRAINING.steps / 10 - 1)
        print(f"{name}: {' and '.join(f'{value:.1f}' for value in steps)} s for 10 steps and reading", flush=True)
    print(f"at most {seeds * total / 60:.0f} minutes on a core that nobody else uses (reading counted with every step)")


def main() -> None:
    """Command line."""
    arguments = study_arguments(
        study_options(__doc__, "catenorm_lgg", "time ten steps of everything and estimate the rest")
    )
    torch.set_num_threads(1)
    data_root, seeds = arguments.data_root, range(arguments.seeds)
    if arguments.smoke:
        smoke(data_root, arguments.work, arguments.seeds)
        return
    study = Study(data_root, arguments.work)
    scores: list[Score] = []
    for seed in seeds:
        for name in METHODS:
            scores += study.scores(seed, name)
            print(f"seed {seed}, {name}: done", flush=True)
    rows = tables(scores, seeds)
    seconds = sum(json.loads(file.read_text()) for file in arguments.work.glob("seed*/*/seconds.json"))
    record = {
        **origin("catenorm on lgg_multisite, brain (silver standard) and tumour, FLAIR, four hospitals together"),
        "scale": {
            "width": WIDTH, "side": SIDE, "warm-up and training, each": dataclasses.asdict(TRAINING), "seeds": len(seeds),
            "starts_from": {name: warm for name, (_, warm) in METHODS.items()},
        },
        "metric": "Dice in per cent and directed average surface distance in mm (nominal 3.6 x 3.6 x 12), 3-D, largest component of "
        "each class, without the first and the last slice; average: mean over classes of the mean over hospitals of the mean over "
        "test patients (all seeds pooled; each seed has its own split); difference and p: over "
        "patients, each the mean of the seeds that test it; two-sided Wilcoxon against batch norm, Bonferroni over methods",
        "table": rows,
        "training_minutes": round(seconds / 60, 1),
        "scores": [dataclasses.asdict(score) for score in scores],
    }  # fmt: skip
    path = write_record(record, arguments.out, "catenorm-lgg-multisite")
    print(table_text(rows))
    print(path)


if __name__ == "__main__":
    main()
