"""adagrad-unet on real scans: Tables 1 and 3 on lgg_multisite, one hospital as source, the others as targets.

    python benchmarks/reproduce/adagrad_unet_lgg.py --data-root DATA --work FOLDER [--seeds 3] [--processes 1] [--smoke]

Two tasks: brain masks (automatic, silver standard) on T1 with all runs of both tables, and tumour masks (manual) on FLAIR with
the runs of Table 1. Every run goes through the package's own commands: train, predict, and the scores of evaluate. Writes a
record to benchmarks/results. Stops and resumes at any point; --smoke does a few steps of everything and says how long it will take.

Scale (the paper: 29.5 million parameters, batches of 58, 250 batches an epoch, 25, 50 and 1000 epochs): see PLANNING and EPOCHS.
Names of runs keep the paper's letters; "long" and "short" stand where it has epochs. Ten slices a scan with gaps of about 12 mm,
so surface Dice is the mean over slices (2-D). Source, scale and settings were fixed before the first
full run, and long was then cut from 70 to 40 epochs for time; the control AG-inf was added after the first seed.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lgg_multisite import PIXEL, convert
from study import origin, study_arguments, study_options, write_record

from adagrad_unet import settings as of
from adagrad_unet.analysis import levelness
from adagrad_unet.commands import train
from adagrad_unet.evaluation import compare
from adagrad_unet.prediction import predict
from adagrad_unet.rows import select
from dart_core import metrics
from dart_core.evaluation import Result, score_folders
from dart_core.settings import OutputSettings, RunSettings

SOURCE, TARGETS = "CS", ("DU", "FG", "HT")
"""The first of the four large hospitals by name trains; EZ has one patient and is left out."""
NETWORK_PIXEL = 2 * PIXEL
PLANNING = of.Planning(slice_axis="z", pixel=(NETWORK_PIXEL, NETWORK_PIXEL), base_features=8, max_pools=3, batch_size=6)
BATCHES = 25
EPOCHS = {"short": 10, "long": 40}
RUNS: dict[str, dict[str, Any]] = {
    "S-long": {"optimizer": "sgd", "epochs": "long"},
    "S-short": {"optimizer": "sgd", "epochs": "short"},
    "A-short": {"optimizer": "adam", "epochs": "short"},
    "AG-short": {"optimizer": "avagrad", "epochs": "short"},
    "AG-long": {"optimizer": "avagrad", "epochs": "long"},
    "SGDm-short": {"optimizer": "sgdm-10", "epochs": "short"},
    "AG-inf-short": {"optimizer": "avagrad", "eps": 1e6, "epochs": "short"},
    "S-long-noAug": {"optimizer": "sgd", "epochs": "long", "augmentation": False},
    "S-short-noAug": {"optimizer": "sgd", "epochs": "short", "augmentation": False},
    "A-short-noAug": {"optimizer": "adam", "epochs": "short", "augmentation": False},
    "AG-short-noAug": {"optimizer": "avagrad", "epochs": "short", "augmentation": False},
}
TASKS = {"brain": tuple(RUNS), "tumour": tuple(name for name in RUNS if not name.endswith("noAug"))}
LISTS = {"brain": "t1", "tumour": "flair_tumour"}
TOLERANCE = NETWORK_PIXEL
"""Of the surface Dice in mm: one pixel of the network."""


def datalists(data_root: Path, work: Path) -> dict[str, Path]:
    """Task -> datalist of NIfTI volumes with masks."""
    lists = {task: work / f"{name}.csv" for task, name in LISTS.items()}
    if not all(path.is_file() for path in lists.values()):
        convert(data_root, work)
    return lists


def training(name: str, smoke: bool = False) -> of.Training:
    """The recipe of a run."""
    run = RUNS[name]
    return of.Training(
        of.Optimisation(run["optimizer"], eps=run.get("eps", 0.1)),
        epochs=2 if smoke else EPOCHS[run["epochs"]],
        batches=10 if smoke else BATCHES,
        validation_batches=0,
        augmentation=run.get("augmentation", True),
        log_every=1 if smoke else BATCHES,
    )


def one_run(work: Path, datalist: Path, task: str, name: str, seed: int, smoke: bool) -> dict[str, float]:
    """Train, segment all target patients and the source's test patients, score; gives the seconds of each."""
    folder = work / task / f"{name}-seed{seed}"
    file = folder / "scores.json"
    if file.is_file():
        return json.loads(file.read_text())["seconds"]  # type: ignore[no-any-return]
    torch.set_num_threads(1)
    started = time.monotonic()
    if not (folder / "run" / "model.safetensors").is_file():
        resume = (folder / "run" / "config.yaml").is_file()
        settings = RunSettings(
            folder / "run", resume=resume, device="cpu", channels_last=True, seed=seed, checkpoint_every=200
        )
        cases = of.Cases(datalist, SOURCE, cache=work / "cache")
        train(of.Train(settings, cases, PLANNING, training=training(name, smoke)))
    trained = time.monotonic()
    results: list[Result] = []
    for site in (SOURCE, *TARGETS):
        output = OutputSettings(folder / site, overwrite=(folder / site / "config.yaml").is_file())
        split: of.Split = "test" if site == SOURCE else "all"
        predict(of.Predict(output, datalist, folder / "run", site=site, split=split, name=name, device="cpu"))
        results += score_folders([output.out], tolerance=TOLERANCE, surface="2d", command="adagrad-unet")
    content = json.loads((folder / "run" / "metrics.json").read_text())
    record = {
        "scores": [
            {"site": r.pair[1], "subject": r.scan, "surface_dice": r.surface_dice, "dice": r.dice} for r in results
        ],
        "rates": content["rates"],
        "updates": content["updates"],
        "seconds": {"train": trained - started, "predict and score": time.monotonic() - trained},
    }
    file.write_text(json.dumps(record))
    print(f"{task} {name} seed {seed}: {record['seconds']}", flush=True)
    return record["seconds"]  # type: ignore[return-value]


def jobs(seeds: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """(task, run, seed); all runs of a seed before the next."""
    for task, names in TASKS.items():
        for seed in seeds:
            for name in names:
                yield task, name, seed


def main() -> None:
    """Command line."""
    parser = study_options(__doc__, "adagrad_unet_lgg", "a few steps of every run, into WORK-smoke; no record")
    parser.add_argument("--processes", type=int, default=1)
    arguments = study_arguments(parser)
    work = arguments.work.with_name(f"{arguments.work.name}-smoke") if arguments.smoke else arguments.work
    lists = datalists(arguments.data_root, work / "nifti")
    seeds = range(1 if arguments.smoke else arguments.seeds)
    started = time.monotonic()
    with ProcessPoolExecutor(arguments.processes) as pool:
        futures = {job: pool.submit(one_run, work, lists[job[0]], *job, arguments.smoke) for job in jobs(seeds)}
        seconds = {job: future.result() for job, future in futures.items()}
    if arguments.smoke:
        print(estimate(work, seconds, arguments.seeds))
        return
    record = summarise(work, lists, seeds)
    record["minutes"] = round((time.monotonic() - started) / 60, 1)
    record["core_minutes"] = round(sum(sum(each.values()) for each in seconds.values()) / 60, 1)
    path = write_record(record, arguments.out, "adagrad-unet-lgg-multisite")
    for task in TASKS:
        print(table_text(record, task))
    print(path)


def estimate(work: Path, seconds: dict[tuple[str, str, int], dict[str, float]], seeds: int) -> str:
    """Minutes of the whole study, from the median time of a step of each run and what does not depend on their number."""
    total = 0.0
    for (task, name, seed), each in seconds.items():
        lines = (work / task / f"{name}-seed{seed}" / "run" / "metrics.jsonl").read_text().splitlines()
        times = [json.loads(line)["time"] for line in lines if "loss" in line]
        step = float(np.median(np.diff(times)))
        total += (
            EPOCHS[RUNS[name]["epochs"]] * BATCHES * step
            + each["train"]
            - len(times) * step
            + each["predict and score"]
        )
    return f"about {total * seeds / 60:.0f} minutes on one core for {seeds} seeds"


def summarise(work: Path, lists: dict[str, Path], seeds: Sequence[int]) -> dict[str, Any]:
    """Mean over subjects and seeds per site and run; Wilcoxon's test over the subjects' means against S-long."""
    record: dict[str, Any] = {
        **origin("adagrad-unet on lgg_multisite: brain (silver standard, T1) and tumour (manual, FLAIR)", ""),
        "scale": {"planning": dataclasses.asdict(PLANNING), "batches": BATCHES, "epochs": EPOCHS, "seeds": len(seeds)},
        "metric": f"surface Dice, mean over slices (2-D), tolerance {TOLERANCE} mm = 1 pixel of the network; Dice of the volume",
        "test": "Wilcoxon signed-rank, two-sided, over the subjects' means over seeds, against S-long (noAug: S-long-noAug too); "
        "Bonferroni's factor = comparisons of one site",
        "source": SOURCE,
        "tasks": {},
    }
    for task, names in TASKS.items():
        results: list[Result] = []
        entry: dict[str, Any] = {"runs": {}, "comparisons": {}}
        for name in names:
            tables = [json.loads((work / task / f"{name}-seed{k}" / "scores.json").read_text()) for k in seeds]
            sites: dict[str, Any] = {}
            for site in (SOURCE, *TARGETS):
                values = _by_subject(tables, site)
                sites[site] = {metric: _spread(np.array(list(rows.values()))) for metric, rows in values.items()}
                sites[site]["subjects"] = {
                    subject: round(float(np.nanmean(row)), 4) for subject, row in values["surface_dice"].items()
                }
                for subject in values["dice"]:
                    means = {metric: float(np.nanmean(values[metric][subject])) for metric in values}
                    results.append(
                        Result(
                            (SOURCE, site), name, f"{site} {subject}", **means, image=work, mask=work, prediction=work
                        )
                    )
            targets = {
                metric: _spread(np.concatenate([_array(tables, s, metric) for s in TARGETS]))
                for metric in ("surface_dice", "dice")
            }
            entry["runs"][name] = {
                "sites": sites,
                "targets": targets,
                "rates": [table["rates"] for table in tables],
                "levelness": [
                    {form: levelness(layers) for form, layers in table["updates"].items()} for table in tables
                ],
            }
            if name in ("S-short", "AG-short", "SGDm-short", "A-short"):
                entry["runs"][name]["updates_mean_abs"] = {
                    layer: float(np.mean([table["updates"]["mean_abs"][layer] for table in tables]))
                    for layer in tables[0]["updates"]["mean_abs"]
                }
        entry["subjects"] = {
            "train": len(select(of.Cases(lists[task], SOURCE), "train")),
            **{site: len(entry["runs"][names[0]]["sites"][site]["subjects"]) for site in (SOURCE, *TARGETS)},
        }
        for metric in ("surface_dice", "dice"):
            entry["comparisons"][metric] = {
                baseline: compare([r for r in results if keep(r.method)], baseline, metric)  # type: ignore[arg-type]
                for baseline, keep in (
                    ("S-long", lambda name: not name.endswith("noAug")),
                    ("S-long-noAug", lambda name: name.endswith("noAug")),
                )
                if baseline in names
            }
            entry["comparisons"][metric]["all targets together"] = _pooled(results, names, metric)
        record["tasks"][task] = entry
    return record


def _by_subject(tables: Sequence[dict[str, Any]], site: str) -> dict[str, dict[str, list[float]]]:
    """metric -> subject -> score of each seed."""
    found: dict[str, dict[str, list[float]]] = {"surface_dice": {}, "dice": {}}
    for table in tables:
        for row in table["scores"]:
            if row["site"] == site:
                for metric, subjects in found.items():
                    subjects.setdefault(row["subject"], []).append(row[metric])
    return found


def _array(tables: Sequence[dict[str, Any]], site: str, metric: str) -> np.ndarray:
    return np.array(list(_by_subject(tables, site)[metric].values()))


def _spread(values: np.ndarray) -> dict[str, float]:
    """(subjects, seeds) -> mean, and standard deviations over subjects (means over seeds) and over seeds."""
    return {
        "mean": float(np.nanmean(values)),
        "std_subjects": float(np.nanstd(np.nanmean(values, 1))),
        "std_seeds": float(np.nanstd(np.nanmean(values, 0))),
    }


def _pooled(results: Sequence[Result], names: Sequence[str], metric: str) -> dict[str, dict[str, float]]:
    """Every run against S-long, and AG-short against the control, over the subjects of all targets."""
    scores = {
        name: {r.scan: getattr(r, metric) for r in results if r.method == name and r.pair[1] in TARGETS}
        for name in names
    }
    pairs = [(name, "S-long") for name in names if name != "S-long"] + [
        ("AG-short", "SGDm-short"),
        ("AG-short", "AG-inf-short"),
        ("AG-short", "A-short"),
    ]
    found = {}
    for ours, base in pairs:
        shared = [s for s in scores[ours] if s in scores[base] and np.isfinite(scores[ours][s] + scores[base][s])]
        a, b = [scores[ours][s] for s in shared], [scores[base][s] for s in shared]
        p = metrics.wilcoxon_signed_rank(a, b)[1]
        found[f"{ours} - {base}"] = {
            "difference": float(np.mean(a) - np.mean(b)), "p": p, "p_bonferroni": metrics.bonferroni(p, len(pairs)),
        }  # fmt: skip
    return found


def table_text(record: dict[str, Any], task: str) -> str:
    """The table of a task as Markdown: surface Dice, runs by row."""
    entry = record["tasks"][task]
    sites = (*TARGETS, SOURCE)
    lines = [
        f"| {task} | " + " | ".join((*TARGETS, f"{SOURCE} test", "mean of targets")) + " |",
        "|---" * (len(sites) + 2) + "|",
    ]
    starred = {
        (row["target"], row["method"])
        for rows in (entry["comparisons"]["surface_dice"].get(b, []) for b in ("S-long", "S-long-noAug"))
        for row in rows
        if row.get("significant")
    }
    for name, run in entry["runs"].items():
        cells = [
            f"{run['sites'][s]['surface_dice']['mean']:.3f}{'*' if (s, name) in starred else ''} ± "
            f"{run['sites'][s]['surface_dice']['std_subjects']:.3f}"
            for s in sites
        ]
        mean = np.mean([run["sites"][s]["surface_dice"]["mean"] for s in TARGETS])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {mean:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
