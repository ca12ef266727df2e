"""aiva on real scans: brain masks of lgg_multisite, four hospitals in a ring, the target's masks never used in training.

    python benchmarks/reproduce/aiva_lgg.py --data-root DATA --work FOLDER [--seeds 3]

For every seed (which also draws the split of the patients): train a source network on each hospital, take it to the next
one by every method, score the target's test patients. Writes a record to benchmarks/results. Stops and resumes between any
two trainings; one process, one thread.

Learning rates of the sheet belong to 6,500 iterations of wide networks. Here each method's was chosen from RATES on a
pair of hospitals kept apart (TUNING), by the target's validation patients, as the paper keeps pairs apart for its number of
clusters; every method that trains keeps the network of the highest source score. Scale (the paper: width 16, 6,500 iterations, 25 pairs): see PRETRAINING, ADAPTATION, ALIGNMENT. T1 slices at 3.6 mm,
ten a patient with gaps of about 12 mm, so surface Dice is the mean over slices (2-D) at one pixel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lgg_multisite import PIXEL, convert
from study import origin, study_arguments, study_options, write_record

from aiva import settings as of
from aiva.adaptation import adapt
from aiva.commands import pretrain
from aiva.epoch import clusterings
from aiva.models import load_model, mask_of, probabilities
from dart_core import metrics
from dart_core.data.scans import Scan, load_scans, open_datalist, rows_of
from dart_core.evaluation import score
from dart_core.files import write_atomic
from dart_core.settings import RunSettings, ScanSettings

SITES = ("CS", "DU", "FG", "HT")
PAIRS = tuple(zip(SITES, (*SITES[1:], SITES[0]), strict=True))
"""Each hospital is once the source and once the target."""
TUNING = (("DU", "CS"),)
SPACING = (2 * PIXEL, 2 * PIXEL, 12.0)
TOLERANCE = 2 * PIXEL
PRETRAINING = of.Training(width=4, steps=300, batch_size=8, learning_rate=1e-2, evaluate_every=75, log_every=20)
ADAPTATION = of.Training(width=4, batch_size=8, evaluate_every=40, log_every=10)
STEPS = {"seg-jdot": 120, "adaptsegnet": 60, "aiva": 200}
"""Of these, aiva updates the network in about one of three from the 40th on; a step of AdaptSegNet takes three times as long."""
ALIGNMENT = of.Alignment(clusters=6, iterations_per_epoch=40, acc_amount=20)
BASELINES = of.Baselines(adabn="cumulative")
MILESTONES = (120,)
RATES = (1e-4, 1e-3)
TRAINED: tuple[of.Method, ...] = ("seg-jdot", "adaptsegnet", "aiva")
METHODS = ("none", "adabn", *TRAINED, "target")
"""target: the source network of the target hospital, trained with its masks; none: that of the source."""
BASELINE = "none"


class Study:
    """Where things lie, and scans by seed (split), site and role, read once."""

    def __init__(self, data_root: Path, work: Path) -> None:
        self.data_root, self.work = data_root, work
        self.scans = functools.cache(self._scans)

    def settings(self, seed: int) -> ScanSettings:
        """How the scans of a split are read."""
        folder = self.work / f"nifti-seed{seed}"
        if not (folder / "t1.csv").is_file():
            convert(self.data_root, folder, seed)
        return ScanSettings(folder / "t1.csv", preprocessing="plain", spacing=SPACING)

    def _scans(self, seed: int, site: str, split: str) -> list[Scan]:
        settings = self.settings(seed)
        return load_scans(rows_of(open_datalist(settings.datalist), [site], split), settings, need_mask=True)

    def source(self, seed: int, site: str) -> Path:
        """The source network of a hospital, trained or from before."""
        out = self.work / f"seed{seed}" / f"source-{site}"
        if not (out / "model.safetensors").is_file():
            quietly(
                pretrain, of.Pretrain(run_settings(out, seed), self.settings(seed), (site,), training=PRETRAINING), out
            )
        return out

    def adapted(self, seed: int, pair: tuple[str, str], method: str, rate: float | None) -> Path:
        """A run of `adapt`, done or from before."""
        source, target = pair
        if method in ("none", "target"):
            return self.source(seed, source if method == "none" else target)
        label = method if rate is None else f"{method}-{rate:g}"
        out = self.work / f"seed{seed}" / f"{source}-{target}-{label}"
        if (out / "model.safetensors").is_file():
            return out
        training = dataclasses.replace(ADAPTATION, learning_rate=rate, steps=STEPS.get(method))
        kind: Any = method
        command = of.Adapt(
            run_settings(out, seed), self.settings(seed), target, kind, self.source(seed, source), training,
            MILESTONES if method in STEPS else of.Adapt.milestones,
            ALIGNMENT if method == "aiva" else of.Alignment(), BASELINES if method == "adabn" else of.Baselines(),
        )  # fmt: skip
        quietly(adapt, command, out)
        return out

    def scores(self, folder: Path, seed: int, site: str, split: str) -> dict[str, list[float]]:
        """(surface Dice, Dice) by patient."""
        network, _ = load_model(folder)
        found = {}
        for scan in self.scans(seed, site, split):
            mask = mask_of(probabilities(network, scan, 1), prostate=False, largest=False)
            values = score(mask, scan.truth, scan.spacing, TOLERANCE, "2d")
            found[scan.subject] = [round(values[name], 5) for name in ("surface_dice", "dice")]
        return found


def run_settings(out: Path, seed: int) -> RunSettings:
    """A run that starts anew."""
    return RunSettings(out, seed=seed, channels_last=True, device="cpu", overwrite=out.exists())


def quietly(command: Any, settings: Any, out: Path) -> None:
    """Run a command of the package without its closing line; keep only what is needed of its folder."""
    with contextlib.redirect_stderr(io.StringIO()):
        command(settings)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def choose_rates(study: Study) -> tuple[dict[str, float], dict[str, Any]]:
    """The learning rate of each trained method, by the validation patients of the pair kept apart."""
    chosen, curves = {}, {}
    for method in TRAINED:
        means = {}
        for rate in RATES:
            values = []
            for pair in TUNING:
                out = study.adapted(0, pair, method, rate)
                values += [v[0] for v in study.scores(out, 0, pair[1], "val").values()]
            means[rate] = float(np.mean(values))
        chosen[method], curves[method] = max(means, key=lambda rate: means[rate]), means
        print(f"{method}: {means}", flush=True)
    return chosen, curves


def work_through(study: Study, seeds: Sequence[int], rates: dict[str, float]) -> dict[str, Any]:
    """Scores of every run: "seed/source/target/method" -> target and source scores."""
    file = study.work / "results.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    for seed in seeds:
        for pair in PAIRS:
            for method in METHODS:
                key = f"{seed}/{'/'.join(pair)}/{method}"
                if key in done:
                    continue
                out = study.adapted(seed, pair, method, rates.get(method))
                done[key] = {
                    "target": study.scores(out, seed, pair[1], "test"),
                    "source": study.scores(out, seed, pair[0], "test"),
                    "kept": load_model(out)[1].chosen,
                }
                if method == "aiva":
                    done[key]["matched_distance"] = [round(float(c["matched_distance"]), 4) for c in clusterings(out)]
                write_atomic(file, json.dumps(done))
        print(f"seed {seed}: done", flush=True)
    return done


def mean_of(scores: dict[str, list[float]], metric: int) -> float:
    """Mean over patients."""
    return float(np.nanmean([values[metric] for values in scores.values()]))


def summarise(done: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """Tables by pair and over pairs, with Wilcoxon's test against no adaptation over patients, each the mean of its seeds."""
    table: dict[str, Any] = {}
    for method in METHODS:
        row: dict[str, Any] = {}
        for where in ("target", "source"):
            for metric, name in enumerate(("surface_dice", "dice")):
                values = np.array(
                    [
                        [mean_of(done[f"{seed}/{'/'.join(pair)}/{method}"][where], metric) for pair in PAIRS]
                        for seed in seeds
                    ]
                )
                of_seeds = values.mean(1)
                row[f"{name}_on_{where}"] = {
                    "mean": round(float(of_seeds.mean()), 5),
                    "std_seeds": round(float(of_seeds.std(ddof=1)), 5),
                    "pairs": {
                        " -> ".join(pair): [round(float(v.mean()), 5), round(float(v.std(ddof=1)), 5)]
                        for pair, v in zip(PAIRS, values.T, strict=True)
                    },
                }
        if method != BASELINE:
            keys = [f"{seed}/{'/'.join(pair)}" for seed in seeds for pair in PAIRS]
            of_patient: dict[str, list[tuple[float, float]]] = {}
            for key in keys:
                none = done[f"{key}/{BASELINE}"]["target"]
                for patient, value in done[f"{key}/{method}"]["target"].items():
                    of_patient.setdefault(patient, []).append((value[0], none[patient][0]))
            means = np.array([np.mean(values, axis=0) for values in of_patient.values()])
            statistic, p = metrics.wilcoxon_signed_rank(means[:, 0], means[:, 1])
            row["against_none"] = {
                "n": len(means), "difference": round(float(np.mean(means[:, 0] - means[:, 1])), 5), "statistic": statistic,
                "p": p, "p_bonferroni": metrics.bonferroni(p, len(METHODS) - 1),
            }  # fmt: skip
        table[method] = row
    return table


def table_text(table: dict[str, Any]) -> str:
    """Surface Dice as Markdown."""
    names = [" → ".join(pair) for pair in PAIRS]
    lines = [
        "| method | " + " | ".join(names) + " | average | p against none | source |",
        "|---" * (len(names) + 4) + "|",
    ]
    for method, row in table.items():
        target, source = row["surface_dice_on_target"], row["surface_dice_on_source"]
        cells = [f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in target["pairs"].values()]
        p = f"{row['against_none']['p']:.3g}" if "against_none" in row else ""
        average = f"{100 * target['mean']:.1f} ± {100 * target['std_seeds']:.1f}"
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {average} | {p} | {100 * source['mean']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    arguments = study_arguments(study_options(__doc__, "aiva_lgg"))
    torch.set_num_threads(1)
    started, seeds = time.time(), range(arguments.seeds)
    arguments.work.mkdir(parents=True, exist_ok=True)
    study = Study(arguments.data_root, arguments.work)
    rates, curves = choose_rates(study)
    done = work_through(study, seeds, rates)
    spent = arguments.work / "minutes.json"
    minutes = (json.loads(spent.read_text()) if spent.is_file() else 0) + (time.time() - started) / 60
    write_atomic(spent, json.dumps(minutes))
    table = summarise(done, seeds)
    record = {
        **origin("aiva on lgg_multisite, brain masks (silver standard), T1"),
        "scale": {
            "pretraining": dataclasses.asdict(PRETRAINING), "adaptation": dataclasses.asdict(ADAPTATION),
            "steps": STEPS, "alignment": dataclasses.asdict(ALIGNMENT), "baselines": dataclasses.asdict(BASELINES),
            "milestones": MILESTONES, "seeds": len(seeds), "spacing": SPACING,
        },
        "learning_rates": {"chosen": rates, "tuning_pair": TUNING, "validation_surface_dice": curves},
        "metric": f"surface Dice, mean over slices (2-D), tolerance {TOLERANCE} mm = 1 pixel; mean over the pairs of each "
        "seed, then mean and sample standard deviation over seeds; each seed has its own split of the patients",
        "table": table,
        "minutes": round(minutes, 1),
        "results": done,
    }  # fmt: skip
    file = write_record(record, arguments.out, "aiva-lgg-multisite")
    print(table_text(table))
    print(file)


if __name__ == "__main__":
    main()
