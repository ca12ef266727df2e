"""mmtl-octl on real scans: brain masks of lgg_multisite, four hospitals in a ring, 1, 2 and 4 target patients.

    python benchmarks/reproduce/mmtl_octl_lgg.py --data-root DATA --work FOLDER [--seeds 3] [--limit-minutes M]

For every seed (which also draws the split of the patients) and optimiser: train a source network on each hospital, take
it to the next one with every method, score the target's and the source's test patients. Writes a record to
benchmarks/results. Stops and resumes between any two trainings; one process, one thread.

Scale (the paper: width 16, 6,000 steps of 16 patches of 256, 30 pairs): see SOURCE, TUNE, PAIRS. T1 slices at 3.6 mm, ten
a patient with gaps of about 12 mm, so surface Dice is the mean over slices (2-D) at one pixel. Learning rates were set
once, for the short training, and are the same for all methods; nothing was chosen on test patients.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lgg_multisite import PIXEL, convert
from study import origin, study_arguments, study_options, write_record
from torch import nn

from dart_core import metrics
from dart_core.checkpoint import load_weights, save_weights
from dart_core.data.scans import Scan, load_scans, open_datalist, rows_of
from dart_core.evaluation import score
from dart_core.files import write_atomic
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings, ScanSettings
from mmtl_octl import save_history
from mmtl_octl.method import SEGMENTATION, fine_tune, train_source
from mmtl_octl.pools import first_patients, make_pool, training_batches
from mmtl_octl.prediction import segment
from mmtl_octl.settings import Adaptation, OptimizerName, Training
from mmtl_octl.tables import Entry, amount_text, per_cent, seed_table

SITES = ("CS", "DU", "FG", "HT")
PAIRS = tuple(zip(SITES, (*SITES[1:], SITES[0]), strict=True))
"""Each hospital is once the source and once the target."""
SPACING = (2 * PIXEL, 2 * PIXEL, 12.0)
TOLERANCE = 2 * PIXEL
RATES: dict[OptimizerName, float] = {"sgd": 1e-2, "adam": 1e-3}
SOURCE = Training(width=4, epochs=12, batches=18, batch_size=8, drop_epoch=9, patch_size=48, log_every=20)
TUNE = dataclasses.replace(SOURCE, epochs=6, batches=14, drop_epoch=4)
"""Few long epochs: the last one, in which MMTL's batches are pure target, must be long enough for batch norm's running
statistics (momentum 0.1) to follow."""
METHODS: dict[str, Adaptation] = {
    "fta": Adaptation("fta"),
    "fta_mu099": Adaptation("fta", momentum=0.99),
    "ftf": Adaptation("ftf"),
    "l2sp": Adaptation("l2sp"),
    "spottune": Adaptation("spottune"),
    "octl": Adaptation("octl"),
    "mmtl": Adaptation("mmtl"),
    "scratch": Adaptation("target"),
}
"""scratch: from random weights on the same few slices; target: from random weights on all target patients (SOURCE)."""
GRID: dict[OptimizerName, dict[int, tuple[str, ...]]] = {
    "sgd": {1: tuple(METHODS), 2: ("fta", "octl", "mmtl"), 4: tuple(METHODS)},
    "adam": {1: ("fta", "l2sp", "octl", "mmtl")},
}
BASELINE = "fta"
"""What the tests compare with: every method uses the same target data as plain fine-tuning."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One fine-tuning."""

    seed: int
    optimizer: OptimizerName
    pair: tuple[str, str]
    patients: int
    method: str

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return "/".join(map(str, (self.seed, self.optimizer, *self.pair, self.patients, self.method)))


class Data:
    """Preprocessed scans by seed (split), site and role, read once."""

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

    def patients(self, seed: int, site: str, count: int) -> list[Scan]:
        """The first `count` training patients."""
        scans = self.scans(seed, site, "train")
        rows = first_patients([scan.row for scan in scans], count)
        return [scan for scan in scans if scan.row in rows]


def run_settings(out: Path, seed: int) -> RunSettings:
    """A run that starts anew."""
    return RunSettings(out, seed=seed, channels_last=True, device="cpu", overwrite=True)


def source_folder(work: Path, seed: int, optimizer: str, site: str) -> Path:
    """Where a source network lies."""
    return work / f"source-seed{seed}-{optimizer}-{site}"


def train_one_source(data: Data, work: Path, seed: int, optimizer: OptimizerName, site: str) -> None:
    """Train a source network, and write its weights and its optimiser's history."""
    folder = source_folder(work, seed, optimizer, site)
    if (folder / "model.safetensors").is_file():
        return
    settings = data.settings(seed)
    training = dataclasses.replace(SOURCE, optimizer=optimizer, learning_rate=RATES[optimizer])
    pool = make_pool(data.scans(seed, site, "train"), settings, seed)
    with Run(run_settings(folder, seed), training) as run:
        network = ResidualUNet2d(width=SOURCE.width)
        batches = training_batches(None, pool, training, settings, seed, "target")
        trained = train_source(run, network, batches, SEGMENTATION, training)
    save_history(trained, network, folder / "history.safetensors")
    save_weights(folder / "model.safetensors", network, {})
    shutil.rmtree(folder / "checkpoints")


def load_source(work: Path, seed: int, optimizer: str, site: str) -> ResidualUNet2d:
    """A source network as it was at the end of its training."""
    network = ResidualUNet2d(width=SOURCE.width)
    load_weights(source_folder(work, seed, optimizer, site) / "model.safetensors", network)
    return network


def scored(network: nn.Module, scans: Sequence[Scan]) -> dict[str, list[float]]:
    """(surface Dice, Dice) of every scan by patient."""
    found = {}
    for scan in scans:
        values = score(segment(network, scan, 1) > 0.5, scan.truth, scan.spacing, TOLERANCE, "2d")
        found[scan.subject] = [round(values[name], 5) for name in ("surface_dice", "dice")]
    return found


def both_sites(network: nn.Module, data: Data, seed: int, pair: tuple[str, str]) -> dict[str, Any]:
    """Scores on the target's and on the source's test patients."""
    source, target = pair
    return {
        "target": scored(network, data.scans(seed, target, "test")),
        "source": scored(network, data.scans(seed, source, "test")),
    }


def fine_tune_one(data: Data, work: Path, job: Job) -> dict[str, Any]:
    """Fine-tune and score."""
    source, target = job.pair
    settings, adaptation = data.settings(job.seed), METHODS[job.method]
    training = dataclasses.replace(TUNE, optimizer=job.optimizer, learning_rate=RATES[job.optimizer])
    pool = make_pool(data.patients(job.seed, target, job.patients), settings, job.seed)
    mixed = job.method == "mmtl"
    other = make_pool(data.scans(job.seed, source, "train"), settings, job.seed) if mixed else None
    batches = training_batches(other, pool, training, settings, job.seed, "paper" if mixed else "target")
    history = source_folder(work, job.seed, job.optimizer, source) / "history.safetensors"
    started = time.time()
    with Run(run_settings(work / "run", job.seed), training) as run:
        if adaptation.method == "target":
            network: nn.Module = ResidualUNet2d(width=TUNE.width)
        else:
            network = load_source(work, job.seed, job.optimizer, source)
        network = fine_tune(
            run, network, batches, SEGMENTATION, training, adaptation, history if job.method == "octl" else None
        )
    seconds = time.time() - started
    return {**both_sites(network, data, job.seed, job.pair), "slices": pool.size, "seconds": round(seconds, 2)}


def jobs_of(seeds: Sequence[int]) -> Iterator[Job]:
    """All fine-tunings; a stop leaves whole seeds behind."""
    for seed in seeds:
        for optimizer, amounts in GRID.items():
            for pair in PAIRS:
                for patients, methods in amounts.items():
                    for method in methods:
                        yield Job(seed, optimizer, pair, patients, method)


def work_through(data: Data, work: Path, seeds: Sequence[int], end: float) -> dict[str, Any] | None:
    """Do what is not done yet; None when the time is up."""
    file = work / "results.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def keep(key: str, values: dict[str, Any]) -> None:
        done[key] = values
        write_atomic(file, json.dumps(done))

    for seed in seeds:
        for optimizer in GRID:
            for site in SITES:
                if time.time() > end:
                    return None
                train_one_source(data, work, seed, optimizer, site)
            for pair in PAIRS:
                key = f"{seed}/{optimizer}/{'/'.join(pair)}/0/none"
                if key not in done:
                    keep(key, both_sites(load_source(work, seed, optimizer, pair[0]), data, seed, pair))
                key = f"{seed}/{optimizer}/{'/'.join(pair)}/0/target"
                if key not in done:
                    keep(key, both_sites(load_source(work, seed, optimizer, pair[1]), data, seed, pair))
        for job in jobs_of([seed]):
            if job.key in done:
                continue
            if time.time() > end:
                return None
            keep(job.key, fine_tune_one(data, work, job))
        print(f"seed {seed}: done", flush=True)
    return done


def entries(done: Mapping[str, Any], where: str, metric: int) -> list[Entry]:
    """Mean over patients of one metric (0 surface Dice, 1 Dice) for every network."""
    found = []
    for key, values in done.items():
        seed, optimizer, source, target, patients, method = key.split("/")
        scores = [scan[metric] for scan in values[where].values()]
        amount = (int(patients), 1)
        slices = values.get("slices", 0)
        found.append(Entry(method, optimizer, int(seed), (source, target), amount, slices, float(np.nanmean(scores))))
    return found


def comparisons(found: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """Wilcoxon's test of every method against plain fine-tuning with the same data, over pairs and seeds."""
    values: dict[tuple[str, tuple[int, int], str], dict[Any, float]] = {}
    for e in found:
        values.setdefault((e.optimizer, e.amount, e.method), {})[e.pair, e.seed] = e.value
    compared = {}
    for (optimizer, amount, method), ours in values.items():
        amounts = [amount] if amount[0] else [(patients, 1) for patients in GRID[optimizer]]  # type: ignore[index]
        for other in amounts:
            theirs = values.get((optimizer, other, BASELINE))
            if theirs is None or method == BASELINE or ours.keys() != theirs.keys():
                continue
            pairs = [(ours[key], theirs[key]) for key in ours]
            statistic, p = metrics.wilcoxon_signed_rank(*zip(*pairs, strict=True))
            difference = float(np.mean([a - b for a, b in pairs]))
            name = f"{optimizer}, {other[0]} patients, {method} - {BASELINE}"
            compared[name] = {"difference": round(difference, 5), "n": len(pairs), "statistic": statistic, "p": p}
    return compared


def summarise(done: Mapping[str, Any], seeds: Sequence[int], minutes: float) -> dict[str, Any]:
    """The record."""
    tables: dict[str, Any] = {}
    for where in ("target", "source"):
        for metric, name in enumerate(("surface_dice", "dice")):
            rows = []
            for cell in seed_table(entries(done, where, metric)):
                std = None if cell.std is None else round(cell.std, 5)
                rows.append({**dataclasses.asdict(cell), "mean": round(cell.mean, 5), "std": std})
            tables[f"{name}_on_{where}"] = rows
    return {
        **origin("mmtl-octl on lgg_multisite, brain masks (silver standard), T1"),
        "scale": {
            "source": dataclasses.asdict(SOURCE), "fine_tuning": dataclasses.asdict(TUNE), "learning_rates": RATES,
            "pairs": [" -> ".join(pair) for pair in PAIRS], "seeds": len(seeds), "spacing": SPACING,
        },
        "metric": f"surface Dice, mean over slices (2-D), tolerance {TOLERANCE} mm = 1 pixel; mean over the pairs of each "
        "seed, then mean and sample standard deviation over seeds; each seed has its own split of the patients",
        "tables": tables,
        "wilcoxon_over_pairs_and_seeds": {
            f"surface_dice_on_{where}": comparisons(entries(done, where, 0)) for where in ("target", "source")
        },
        "minutes": round(minutes, 1),
        "results": done,
    }  # fmt: skip


def table_text(record: Mapping[str, Any], table: str) -> str:
    """One of the record's tables as Markdown: methods in rows, amounts of target data in columns."""
    rows = record["tables"][table]
    lines = []
    for optimizer in GRID:
        chosen = [row for row in rows if row["optimizer"] == optimizer]
        amounts = sorted({tuple(row["amount"]) for row in chosen})
        names = [amount_text(amount) if amount[0] else "no target data, or all" for amount in amounts]
        lines += [f"| {table}, {optimizer} | " + " | ".join(names) + " |", "|---" * (len(amounts) + 1) + "|"]
        for method in dict.fromkeys(row["method"] for row in chosen):
            found = {tuple(row["amount"]): row for row in chosen if row["method"] == method}
            cells = [per_cent(found[a]["mean"], found[a]["std"]) if a in found else "" for a in amounts]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = study_options(__doc__, "mmtl_octl_lgg")
    parser.add_argument("--limit-minutes", type=float, default=float("inf"), help="stop after this time; run it again")
    arguments = study_arguments(parser)
    torch.set_num_threads(1)
    work, seeds, started = arguments.work, range(arguments.seeds), time.time()
    work.mkdir(parents=True, exist_ok=True)
    data = Data(arguments.data_root, work)
    done = work_through(data, work, seeds, started + 60 * arguments.limit_minutes)
    spent = work / "minutes.json"
    minutes = (json.loads(spent.read_text()) if spent.is_file() else 0) + (time.time() - started) / 60
    write_atomic(spent, json.dumps(minutes))
    if done is None:
        print(f"stopped after {minutes:.1f} minutes; run it again to go on")
        return
    record = summarise(done, seeds, minutes)
    file = write_record(record, arguments.out, "mmtl-octl-lgg-multisite")
    for table in ("surface_dice_on_target", "surface_dice_on_source", "dice_on_target"):
        print(table_text(record, table))
    print(file)


if __name__ == "__main__":
    main()
