"""skintone-debias on real dermoscopy: ham10000_sites, tone tertiles as the nuisance, one source site held out as test.

    python benchmarks/reproduce/skintone_debias_ham.py --data-root DATA --work FOLDER [--seeds 3] [--smoke]

For each held-out site (vidir_modern, rosendahl) and seed: train the baseline, the learning-rate control, LNTL, TABE and CLGR
on the other sites, score the held-out one. Malignant = melanoma, basal cell carcinoma, actinic keratosis. The nuisance is the
tertile, among the training pictures, of the individual typology angle that the package's labeller finds (neutral patches
rejected); groups of the test site are tertiles of its own angles. A fresh linear probe on the frozen features of training pictures
says how much of the tertile is left in them (balanced accuracy over five folds by stratified split; chance is 1/3). Writes a
record to benchmarks/results. Resumes between any two trainings. --smoke times one short training of each method and says how
long the whole would take.

Scale (the paper: ResNeXt-101 with ImageNet's weights, pictures of 256, batches of 64): see RECIPE; first weights are random, and
the learning rates are larger for it. They were set once, for all methods, and nothing was chosen on test pictures.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from study import origin, study_arguments, study_options, write_record

from dart_core.classification import binary_scores, compare_seeds, seed_table
from dart_core.data.datalist import Row
from dart_core.data.images import read_image
from dart_core.data.pictures import PictureFiles
from dart_core.data.slices import evaluating
from dart_core.files import write_atomic
from dart_core.run import Run
from dart_core.settings import RunSettings
from skintone_debias import label_skin_tone
from skintone_debias.cases import Cases
from skintone_debias.networks import LesionNet, Model, build
from skintone_debias.settings import Training, Unlearning
from skintone_debias.training import head_columns, train_network
from skintone_debias.views import score_rows

HELD_OUT = ("vidir_modern", "rosendahl")
SIDE = 64
RECIPE = Training(
    encoder="test_resnet", image_size=SIDE, epochs=30, batch_size=32, lr_base=0.01, lr_class=0.01, log_every=20
)
METHODS: dict[str, Unlearning] = {
    "none": Unlearning("none"),
    "lr-control": Unlearning("none", encoder_lr=RECIPE.lr_base + RECIPE.lr_class),
    "lntl": Unlearning("lntl"),
    "tabe": Unlearning("tabe"),
    "clgr": Unlearning("clgr"),
}
"""lr-control: the encoder's learning rate is the sum of tabe's two (paragraph 4.4)."""
NUISANCE, TERTILES = "tone", ("1 dark", "2 middle", "3 light")
SMOKE_EPOCHS = 2


def labelled(data: Path, work: Path) -> list[dict[str, Any]]:
    """The index with the labeller's angle of every picture; kept in the work folder."""
    file = work / "tones.json"
    if file.is_file():
        found: list[dict[str, Any]] = json.loads(file.read_text())
        return found
    rows = []
    with open(data / "index.csv", newline="", encoding="utf-8") as stream:
        for cells in csv.DictReader(stream):
            image = data / "images" / cells["image"]
            tone = label_skin_tone(read_image(image), reject_neutral=True, on_error=-1)
            known = tone is not None and not isinstance(tone, int) and np.isfinite(tone.ita)
            rows.append({**cells, "ita": float(tone.ita) if known else None})
    write_atomic(file, json.dumps(rows))
    return rows


def cases_of(rows: Sequence[Mapping[str, Any]], data: Path) -> Cases:
    """Pictures whose tone is known, with the tertile of their angle among themselves."""
    rows = [row for row in rows if row["ita"] is not None]
    angles = np.array([row["ita"] for row in rows])
    tertile = np.searchsorted(np.quantile(angles, [1 / 3, 2 / 3]), angles, side="right")
    found = tuple(
        Row(
            data / "images" / row["image"],
            subject=row["lesion_id"],
            site=row["site"],
            labels={"label": row["malignant"]},
        )
        for row in rows
    )
    labels = np.array([float(row["malignant"]) for row in rows], dtype=np.float32)
    return Cases(found, labels, tertile[:, None].astype(np.int64), {NUISANCE: list(TERTILES)})


def features_of(network: LesionNet, cases: Cases) -> NDArray[np.float32]:
    """Frozen features (n, K)."""
    files = PictureFiles(cases.rows, SIDE)
    with evaluating(network), torch.no_grad():
        parts = [
            network.encoder(
                network.normalised(torch.stack([files[i]["image"] for i in range(s, min(s + 64, len(files)))]))
            )
            for s in range(0, len(files), 64)
        ]
    return torch.cat(parts).numpy()


def probe(features: NDArray[np.float32], tertiles: NDArray[np.int64]) -> float:
    """Balanced accuracy of a fresh linear classifier of the tertile, by five-fold cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(model, features, tertiles, cv=folds, scoring="balanced_accuracy").mean())


def trained(folder: Path, cases: Cases, unlearning: Unlearning, recipe: Training, seed: int) -> LesionNet:
    """A network from random weights, the same for all methods of a seed."""
    heads = head_columns(unlearning, (NUISANCE,))
    model = Model(recipe.encoder, SIDE, False, unlearning.name, "label", {NUISANCE: list(TERTILES)}, heads, seed=seed)
    nothing = cases.take(())
    settings = RunSettings(folder, seed=seed, device="cpu", overwrite=True)
    with Run(settings, unlearning) as run:
        network = build(model)
        train_network(run, network, cases, nothing, model, unlearning, recipe)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return network


def scored(network: LesionNet, train: Cases, test: Cases) -> dict[str, Any]:
    """AUC on the held-out site and its tertiles, the gap, and what the probe finds."""
    scores, _ = score_rows(network, test.rows, SIDE, False)
    groups = {
        name: binary_scores(test.labels[mask], scores[mask])
        for k, name in enumerate(TERTILES)
        if (mask := test.nuisance[:, 0] == k).any()
    }
    aucs = [group["auc"] for group in groups.values() if group["auc"] is not None]
    return {
        **binary_scores(test.labels, scores),
        "gap": max(aucs) - min(aucs) if len(aucs) > 1 else None,
        "groups": groups,
        "probe": probe(features_of(network, train), train.nuisance[:, 0]),
    }


def work_through(work: Path, data: Path, held_out: str, seed: int, recipe: Training) -> dict[str, Any]:
    """Every method of one held-out site and seed; what is done already is read back."""
    torch.set_num_threads(1)
    rows = labelled(data, work)
    train = cases_of([row for row in rows if row["site"] != held_out], data)
    test = cases_of([row for row in rows if row["site"] == held_out], data)
    folder = work / f"{held_out}-seed{seed}"
    file = folder / "results.json"
    done: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def keep(key: str, find: Callable[[], dict[str, Any]]) -> None:
        if key not in done:
            started = time.process_time()
            found = find()
            done[key] = {**found, "seconds": round(time.process_time() - started, 1)}
            write_atomic(file, json.dumps(done))

    def run(method: str) -> dict[str, Any]:
        started = time.process_time()
        network = trained(folder / "run", train, METHODS[method], recipe, seed)
        seconds = round(time.process_time() - started, 1)
        return {**scored(network, train, test), "training_seconds": seconds}

    for method in METHODS:
        keep(method, lambda method=method: run(method))  # type: ignore[misc]
    print(f"{held_out}, seed {seed}: done", flush=True)
    return done


# --- The record ------------------------------------------------------------------------------------------------------


def results_of(found: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per network."""
    return [
        {
            "held_out": held_out, "seed": seed, "method": method, "auc": values["auc"], "gap": values["gap"],
            "probe": values["probe"],
            **{f"auc {name}": values["groups"].get(name, {}).get("auc") for name in TERTILES},
        }
        for (held_out, seed), done in found.items()
        for method, values in done.items()
    ]  # fmt: skip


def summarise(found: Mapping[tuple[str, int], Mapping[str, Any]], minutes: float) -> dict[str, Any]:
    """The record."""
    rows = results_of(found)
    measures = ("auc", *(f"auc {name}" for name in TERTILES), "gap", "probe")
    tables = {measure: seed_table(rows, ("held_out", "method"), measure) for measure in measures}
    tests = {
        f"{measure}, against {baseline}": compare_seeds(rows, baseline, ("held_out",), measure)
        for measure in ("auc", "gap", "probe")
        for baseline in ("none", "lr-control")
    }
    return {
        **origin("skintone-debias on ham10000_sites, tone tertiles, held-out source site", "one thread a process"),
        "scale": {
            "recipe": {key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(RECIPE).items()},
            "methods": {name: dataclasses.asdict(unlearning) for name, unlearning in METHODS.items()},
            "seeds": len({seed for _, seed in found}),
        },
        "metric": "ROC-AUC on the held-out site (mean of eight views) and on tertiles of its own angles; gap = largest less "
        "smallest of these; probe = balanced accuracy of a linear classifier of the tertile on frozen features of the training "
        "pictures, five-fold, chance 1/3; mean and sample standard deviation over seeds",
        "tables": tables,
        "tests": tests,
        "minutes_of_one_core": round(minutes, 1),
        "results": {f"{held_out}, seed {seed}": done for (held_out, seed), done in found.items()},
    }  # fmt: skip


def table_text(record: Mapping[str, Any], held_out: str) -> str:
    """One held-out site as Markdown."""
    heads = list(record["tables"])
    lines = [f"| {held_out} held out | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for method in METHODS:
        cells = []
        for measure in heads:
            row = next(r for r in record["tables"][measure] if (r["held_out"], r["method"]) == (held_out, method))
            mean, std = row["mean"], row["std"]
            cells.append("–" if mean is None else f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}"))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Command line."""
    parser = study_options(__doc__, "skintone_debias_ham", "time short trainings and estimate the whole")
    parser.add_argument("--processes", type=int, default=1)
    arguments = study_arguments(parser)
    data = arguments.data_root / "ham10000_sites"
    arguments.work.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    labelled(data, arguments.work)
    if arguments.smoke:
        labelling = time.process_time() - started
        recipe = dataclasses.replace(RECIPE, epochs=SMOKE_EPOCHS)
        folder = arguments.work / "smoke"
        shutil.rmtree(folder / f"{HELD_OUT[0]}-seed0", ignore_errors=True)
        folder.mkdir(exist_ok=True)
        shutil.copy(arguments.work / "tones.json", folder / "tones.json")
        done = work_through(folder, data, HELD_OUT[0], 0, recipe)
        training = sum(values["training_seconds"] for values in done.values())
        scoring = sum(values["seconds"] for values in done.values()) - training
        whole = (training * RECIPE.epochs / SMOKE_EPOCHS + scoring) * len(HELD_OUT) * arguments.seeds
        for method, values in done.items():
            print(f"{method}: {values['seconds']} s, AUC {values['auc']:.3f}, probe {values['probe']:.3f}")
        print(f"labelling {labelling:.0f} s; all trainings about {whole / 60:.0f} minutes of one core")
        return
    tasks = [(held_out, seed) for seed in range(arguments.seeds) for held_out in HELD_OUT]
    with ProcessPoolExecutor(arguments.processes) as pool:
        running = {task: pool.submit(work_through, arguments.work, data, *task, RECIPE) for task in tasks}
        found = {task: future.result() for task, future in running.items()}
    spent = sum(values["seconds"] for done in found.values() for values in done.values()) / 60
    record = summarise(found, spent)
    file = write_record(record, arguments.out, "skintone-debias-ham10000")
    for held_out in HELD_OUT:
        print(table_text(record, held_out))
    print(file)


if __name__ == "__main__":
    main()
