"""mmtl-octl on real radiographs: nih_cxr_1000 (adults, 14 labels) <-> pneumoniamnist (children, 1 label).

    python benchmarks/reproduce/mmtl_octl_cxr.py --data-root DATA --work FOLDER [--seeds 3] [--processes 1]

For every seed and direction: train a source classifier, give it a head for the target, fine-tune it with every method on
32, 128 and 512 target pictures, score the test pictures of both sets. A seed draws the split of nih_cxr_1000 by patient,
the order of the training pictures, first weights and batches. Writes a record to benchmarks/results. Resumes between any
two trainings.

Scale (the paper: DenseNet-121 with ImageNet's weights, pictures of 256, source 2,500 and target 2,400 steps of 32): see
SIZE, NETWORK, SOURCE, TUNE; first weights are random. The learning rate is ten times the paper's, for the short training;
it was set once, for all methods, and nothing was chosen on test pictures.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chest_xrays import convert
from study import origin, study_arguments, study_options, write_record
from torchvision.models import DenseNet

from dart_core import metrics
from dart_core.checkpoint import load_weights, save_weights
from dart_core.data.datalist import Datalist
from dart_core.files import write_atomic
from dart_core.run import Run
from dart_core.settings import RunSettings
from mmtl_octl import save_history
from mmtl_octl.aucs import auc_rows
from mmtl_octl.classifiers import Network, outputs_for, predict_classifier
from mmtl_octl.pictures import Pictures, read_pictures, split_pictures
from mmtl_octl.settings import Adaptation, Training
from mmtl_octl.tables import per_cent
from mmtl_octl.xray import ChestNet, adapt_classifier, pretrain_classifier, switches

SETS = ("nih_cxr_1000", "pneumoniamnist")
PAIRS = (SETS, SETS[::-1])
SIZE = 48
NETWORK: dict[str, Any] = {"growth": 8, "blocks": (6, 4, 4, 4), "stem": 16}
"""The first block is as deep as DenseNet-121's, so that FTF's 42 tensors end at the first transition here as well."""
POLICY_BLOCKS = (2, 2, 2, 2)
"""Of spottune's policy network, otherwise of the same widths (the paper's is a ResNet-50)."""
SOURCE = Training(
    epochs=5, batches=90, batch_size=16, learning_rate=1e-3, drop_epoch=None, optimizer="adam", log_every=30
)
TUNE = dataclasses.replace(SOURCE, epochs=10, batches=12)
AMOUNTS = (32, 128, 512)
METHODS: dict[str, Adaptation] = {
    "fta": Adaptation("fta"),
    "ftf": Adaptation("ftf"),
    "l2sp": Adaptation("l2sp"),
    "spottune": Adaptation("spottune"),
    "octl": Adaptation("octl"),
    "octl_as_run": Adaptation("octl", betas=(0.9, 0.999)),
    "mmtl": Adaptation("mmtl"),
    "scratch": Adaptation("target"),
}
"""octl has the betas of the paper's text, octl_as_run those of the authors' program; scratch is from random weights on the
same few pictures."""
BASELINE = "fta"
FREQUENT = 10
"""Test positives from which on a label counts for `frequent_auc`."""
SHARED = "Pneumonia"
"""The label that both sets have."""


def parts_of(work: Path, name: str, seed: int) -> dict[str, Pictures]:
    """Train, val and test of a set; the training pictures in the seed's order."""
    parts = split_pictures(read_pictures(Datalist.read(lists_folder(work, seed) / f"{name}.csv"), name), "patient")
    order = np.random.default_rng(seed).permutation(len(parts["train"]))
    return {**parts, "train": parts["train"].take(order)}


def lists_folder(work: Path, seed: int) -> Path:
    """Where the pictures and datalists of a seed lie."""
    return work / f"pictures-seed{seed}"


def run_settings(out: Path, seed: int) -> RunSettings:
    """A run that starts anew."""
    return RunSettings(out, seed=seed, channels_last=True, device="cpu", overwrite=True)


def source_network(folder: Path, seed: int, source: Pictures) -> ChestNet:
    """The source classifier, trained or read back; its optimiser's history lies beside its weights."""
    weights = folder / "model.safetensors"
    torch.manual_seed(seed)
    network = ChestNet({source.name: source.labels}, **NETWORK)
    if not weights.is_file():
        with Run(run_settings(folder, seed), SOURCE) as run:
            optimizer = pretrain_classifier(run, network, [source], SOURCE, SIZE)
        save_history(optimizer, network, folder / "history.safetensors")
        save_weights(weights, network, {})
        shutil.rmtree(folder / "checkpoints")
    load_weights(weights, network)
    return network


def with_target_head(network: ChestNet, target: Pictures, seed: int) -> ChestNet:
    """Append the target's head: the same random weights for all methods of a seed."""
    torch.manual_seed(seed)
    network.add_label_set(target.name, target.labels)
    return network


def scored(network: Network, pictures: Pictures) -> list[dict[str, Any]]:
    """AUC of every label of a set, by the set's own head."""
    outputs = predict_classifier(network, pictures, SIZE)[:, network.columns(pictures.name)]
    return auc_rows(pictures.labels, pictures.truth, outputs)


def tuned(
    folder: Path, seed: int, source: Pictures, target: Pictures, adaptation: Adaptation
) -> tuple[Network, dict[str, Any]]:
    """Fine-tune on the target pictures given; also the number of pictures and the seconds."""
    started = time.time()
    with Run(run_settings(folder / "run", seed), TUNE) as run:
        if adaptation.method == "target":
            torch.manual_seed(seed)
            network = ChestNet({target.name: target.labels}, **NETWORK)
        else:
            network = with_target_head(source_network(folder, seed, source), target, seed)
        policy = DenseNet(NETWORK["growth"], POLICY_BLOCKS, NETWORK["stem"], num_classes=2 * switches(network))
        adapted = adapt_classifier(
            run, network, target, [source], TUNE, adaptation, SIZE,
            folder / "history.safetensors" if adaptation.method == "octl" else None, policy=policy,
        )  # fmt: skip
    return adapted, {"images": len(target), "seconds": round(time.time() - started, 2)}  # type: ignore[return-value]


def work_through(work: Path, pair: tuple[str, str], seed: int) -> dict[str, Any]:
    """Everything of one direction and seed; what is done already is read back. "method/images" -> AUC of both sets."""
    torch.set_num_threads(1)
    source, target = (parts_of(work, name, seed) for name in pair)
    folder = work / f"{'-'.join(pair)}-seed{seed}"
    file = folder / "results.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def keep(key: str, find: Callable[[], dict[str, Any]]) -> None:
        if key not in done:
            done[key] = find()
            write_atomic(file, json.dumps(done))

    def unadapted() -> dict[str, Any]:
        network = source_network(folder, seed, source["train"])
        test = target["test"]
        place = outputs_for(network.label_sets, test.name, [SHARED])[SHARED]
        of_shared = predict_classifier(network, test, SIZE)[:, [place]]
        truth = test.truth[:, [test.labels.index(SHARED)]]
        network = with_target_head(network, target["train"], seed)
        return {
            "target": scored(network, test),
            "source": scored(network, source["test"]),
            "source_output": auc_rows([SHARED], truth, of_shared),
        }

    def adapted(method: str, images: int) -> dict[str, Any]:
        few = target["train"].take(range(images))
        network, about = tuned(folder, seed, source["train"], few, METHODS[method])
        kept = None if method == "scratch" else scored(network, source["test"])
        return {"target": scored(network, target["test"]), "source": kept, **about}

    keep("none/0", unadapted)
    for images in AMOUNTS:
        for method in METHODS:
            keep(f"{method}/{images}", lambda method=method, images=images: adapted(method, images))  # type: ignore[misc]
    print(f"{' -> '.join(pair)}, seed {seed}: done", flush=True)
    return done


# --- The record ------------------------------------------------------------------------------------------------------


def measures(table: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean AUC over the labels that have one, over those with enough positives, and of the shared label."""
    known = [row for row in table if row["auc"] is not None]
    often = [row["auc"] for row in known if row["positive"] >= FREQUENT]
    return {
        "mean_auc": float(np.mean([row["auc"] for row in known])),
        "frequent_auc": float(np.mean(often)),
        "shared_auc": next(row["auc"] for row in known if row["label"] == SHARED),
    }


Cells = dict[tuple[str, int], list[dict[str, float]]]
"""(method, images) -> the measures of each seed."""


def cells_of(found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], pair: tuple[str, str], where: str) -> Cells:
    """The measures of a direction on its target or its source."""
    cells: Cells = {}
    for done in found[pair]:
        for key, values in done.items():
            method, images = key.split("/")
            if values[where] is not None:
                cells.setdefault((method, int(images)), []).append(measures(values[where]))
    if where == "target":  # trained on all target pictures: the source network of the other direction, at home
        cells["all target pictures", 0] = [measures(done["none/0"]["source"]) for done in found[pair[::-1]]]
    return cells


def seed_rows(cells: Cells) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over seeds."""
    rows = []
    for (method, images), seeds in cells.items():
        row: dict[str, Any] = {"method": method, "images": images, "seeds": len(seeds)}
        for name in seeds[0]:
            values = [values[name] for values in seeds]
            row[name] = round(float(np.mean(values)), 5)
            row[f"{name}_std"] = round(float(np.std(values, ddof=1)), 5) if len(values) > 1 else None
        rows.append(row)
    return rows


def compared(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Mean difference and Wilcoxon's test."""
    statistic, p = metrics.wilcoxon_signed_rank(*zip(*pairs, strict=True))
    difference = float(np.mean([a - b for a, b in pairs]))
    return {"n": len(pairs), "difference": round(difference, 5), "statistic": statistic, "p": p}


def over_seeds_and_amounts(cells: Cells) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method against plain fine-tuning with the same pictures: pairs are seeds and amounts."""
    for method in METHODS:
        if method == BASELINE or (method, AMOUNTS[0]) not in cells:
            continue
        for name in ("mean_auc", "frequent_auc", "shared_auc"):
            pairs = [
                (ours[name], theirs[name])
                for images in AMOUNTS
                for ours, theirs in zip(cells[method, images], cells[BASELINE, images], strict=True)
            ]
            yield f"{method} - {BASELINE}, {name}", compared(pairs)


def over_seeds_and_labels(seeds: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same for each amount of target data: pairs are seeds and labels."""
    for images in AMOUNTS:
        for method in METHODS:
            if method == BASELINE:
                continue
            pairs = [
                (ours["auc"], theirs["auc"])
                for done in seeds
                for ours, theirs in zip(
                    done[f"{method}/{images}"]["target"], done[f"{BASELINE}/{images}"]["target"], strict=True
                )
                if ours["auc"] is not None
            ]
            yield f"{images} pictures, {method} - {BASELINE}", compared(pairs)


def summarise(found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], minutes: float) -> dict[str, Any]:
    """The record."""
    directions = {}
    for pair in PAIRS:
        on_target, on_source = cells_of(found, pair, "target"), cells_of(found, pair, "source")
        direct = [done["none/0"]["source_output"][0]["auc"] for done in found[pair]]
        directions[" -> ".join(pair)] = {
            "on_target": seed_rows(on_target),
            "on_source": seed_rows(on_source),
            "source_output_on_shared_label_of_target": [round(value, 5) for value in direct],
            "wilcoxon_on_target_over_seeds_and_amounts": dict(over_seeds_and_amounts(on_target)),
            "wilcoxon_on_source_over_seeds_and_amounts": dict(over_seeds_and_amounts(on_source)),
            "wilcoxon_on_target_over_seeds_and_labels": dict(over_seeds_and_labels(found[pair])),
        }
    return {
        **origin("mmtl-octl on chest radiographs, nih_cxr_1000 <-> pneumoniamnist", "one thread a process"),
        "scale": {
            "source": dataclasses.asdict(SOURCE), "fine_tuning": dataclasses.asdict(TUNE), "network": NETWORK,
            "policy_blocks": POLICY_BLOCKS, "pixels": SIZE, "seeds": len(found[PAIRS[0]]),
            "methods": {name: dataclasses.asdict(adaptation) for name, adaptation in METHODS.items()},
        },
        "metric": f"ROC-AUC of each label on the test pictures; mean_auc over the labels with both classes there, frequent_auc "
        f"over those with at least {FREQUENT} positives, shared_auc of {SHARED}; mean and sample standard deviation over "
        "seeds. Labels of a seed share pictures, and amounts share networks: tests over them take them for independent",
        "directions": directions,
        "minutes": round(minutes, 1),
        "results": {" -> ".join(pair): seeds for pair, seeds in found.items()},
    }  # fmt: skip


def table_text(record: Mapping[str, Any], direction: str, where: str, name: str) -> str:
    """One table as Markdown: methods in rows, amounts in columns."""
    rows = record["directions"][direction][where]
    lines = [f"| {direction}, {name} {where} | " + " | ".join(map(str, AMOUNTS)) + " |", "|---" * 4 + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        of = {row["images"]: per_cent(row[name], row[f"{name}_std"]) for row in rows if row["method"] == method}
        lines.append(f"| {method} | " + " | ".join(of.get(images, of.get(0, "")) for images in AMOUNTS) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Command line."""
    parser = study_options(__doc__, "mmtl_octl_cxr")
    parser.add_argument("--processes", type=int, default=1)
    arguments = study_arguments(parser)
    work, seeds, started = arguments.work, range(arguments.seeds), time.time()
    for seed in seeds:
        if not (lists_folder(work, seed) / f"{SETS[-1]}.csv").is_file():
            convert(arguments.data_root, lists_folder(work, seed), SIZE, seed)
    with ProcessPoolExecutor(arguments.processes) as pool:
        waiting = {(pair, seed): pool.submit(work_through, work, pair, seed) for seed in seeds for pair in PAIRS}
        found = {pair: [waiting[pair, seed].result() for seed in seeds] for pair in PAIRS}
    spent = work / "minutes.json"
    minutes = (json.loads(spent.read_text()) if spent.is_file() else 0) + (time.time() - started) / 60
    write_atomic(spent, json.dumps(minutes))
    record = summarise(found, minutes)
    file = write_record(record, arguments.out, "mmtl-octl-cxr")
    for direction in record["directions"]:
        for where in ("on_target", "on_source"):
            print(table_text(record, direction, where, "mean_auc"))
        if direction.endswith(SETS[0]):
            print(table_text(record, direction, "on_target", "frequent_auc"))
            print(table_text(record, direction, "on_target", "shared_auc"))
    print(file)


if __name__ == "__main__":
    main()
