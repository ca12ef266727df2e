"""The commands `check-data`, `train`, `predict` and `export`: read and check everything, then claim the output, then work."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from dart_core.checkpoint import WEIGHTS, weights_file
from dart_core.classification import MEASURES, auc_text, binary_scores, group_table, scores_section, write_predictions
from dart_core.cli import say
from dart_core.data.datalist import Datalist, Row, check
from dart_core.data.images import read_image
from dart_core.errors import DartError, InputError, SettingError
from dart_core.export import check_file, export_onnx
from dart_core.figures import training_curves
from dart_core.files import write_atomic
from dart_core.metrics import auc_standard_error
from dart_core.report import Report
from dart_core.run import METRICS, Run, claim_folder, find_device, flat_settings
from skintone_debias import settings as of
from skintone_debias.cases import (
    Cases,
    cell_of,
    check_training,
    has_column,
    label_of,
    nuisance_of,
    ordered,
    read_cases,
    site_rows,
    take_fold,
)
from skintone_debias.datalists import open_cases
from skintone_debias.networks import BEST, LesionNet, Model, build, load_model, save_model
from skintone_debias.recipes import PACKAGE, RECIPES
from skintone_debias.training import Best, head_columns, train_network, validate
from skintone_debias.views import score_rows

SMALLEST = 32
"""Side in pixels under which a picture is a problem."""

# --- check-data ------------------------------------------------------------------------------------------------------


def check_data(command: of.CheckData) -> int:
    """Print every problem of a datalist; 0 if there is none, else 2."""
    cases = command.cases
    datalist = open_cases(cases.datalist)
    rows = site_rows(datalist, cases.sites)
    # A test set needs no nuisance, and none of the published ones but Fitzpatrick17k has it.
    training = any(row.split != "test" for row in rows)
    needed = (cases.label, *(cases.nuisance if training else ()))
    columns = [name for name in needed if not has_column(rows, name)]
    found = [f"{datalist.source}: has no column {name!r}" for name in columns]

    def open_row(row: Row) -> Iterator[tuple[str, DartError]]:
        try:
            height, width, _ = read_image(row.image).shape
            if min(height, width) < SMALLEST:
                problem = f"the picture has {width} x {height} pixels"
                yield "image", InputError(problem, remedy=f"give at least {SMALLEST} on each side")
        except DartError as error:
            yield "image", error
        if cases.label not in columns:
            try:
                label_of(row, cases.label, needed=row.split != "test")
            except InputError as error:
                yield cases.label, InputError(error.problem, remedy=error.remedy)
        for name in cases.nuisance:
            try:
                nuisance_of(row, name)
            except InputError as error:
                yield name, InputError(error.problem, remedy=error.remedy)

    found += [str(problem) for problem in check(Datalist(tuple(rows), datalist.source), open_row)]
    if training and not found:
        try:
            _, left_out = read_cases(datalist, cases, unlearn=True)
            if left_out:
                print(f"{left_out} training pictures without {' or '.join(cases.nuisance)} will be left out")
        except DartError as error:
            found.append(str(error))
    _print_counts(rows, cases)
    for line in found:
        print(line)
    print(f"{len(rows)} pictures: {len(found) or 'no'} problem{'s' * (len(found) != 1)}")
    return 2 if found else 0


def _print_counts(rows: Sequence[Row], cases: of.CaseSettings) -> None:
    """Pictures and malignant ones, by split and by value of the nuisance; and groups whose AUC will be undefined."""
    malignant = ("1", "1.0")
    for split in ordered(row.split or "train" for row in rows):
        part = [row for row in rows if (row.split or "train") == split]
        sites = Counter(row.site or "no site" for row in part)
        count = sum(row.labels.get(cases.label) in malignant for row in part)
        print(f"{split}: {len(part)} pictures, {count} malignant; {_listed(sites)}")
        for name in cases.nuisance:
            values = Counter(_value(row, name) for row in part)
            print(f"{split}, {name}: {_listed({value: values[value] for value in ordered(values)})}")
            alone = [
                v
                for v in ordered(values)
                if len({r.labels.get(cases.label) for r in part if _value(r, name) == v}) == 1
            ]
            if alone and split != "train":
                print(f"{split}, {name}: no AUC for {', '.join(alone)} alone, which has one class only")


def _value(row: Row, column: str) -> str:
    return cell_of(row, column) or "unknown"


def _listed(counts: Counter[str] | dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


# --- train -----------------------------------------------------------------------------------------------------------


def train(command: of.Train) -> None:
    """Train a classifier."""
    recipe, settings = command.unlearning, command.cases
    datalist = open_cases(settings.datalist)
    parts, left_out = read_cases(datalist, settings, unlearn=bool(RECIPES[recipe.debias].heads))
    cases, validation = parts["train"], parts["val"]
    if command.training.fold is not None:
        cases, validation = take_fold(cases, command.training.fold, command.training.folds, command.run.seed)
        cases = _within(cases)
        where = f"{datalist.source}, without fold {command.training.fold}"
        check_training(cases, settings.label, head_columns(recipe, settings.nuisance), where)
    model = _model(command, cases)
    _check_before(command, cases, model)
    if left_out:
        say(f"warning: {left_out} training pictures without {' or '.join(settings.nuisance)} are left out")
    with Run(command.run, command) as run:
        network = build(model, command.training.weights)
        if command.training.weights is None and run.is_main:
            say("warning: no --weights; the encoder starts from random weights, unlike the paper's")
        best = train_network(run, network, cases, validation, model, recipe, command.training)
        if not run.is_main:
            return
        save_model(run.out / WEIGHTS, network, model)
        _save_best(run.out / BEST, network, best, model)
        _report(run, command, network, cases, validation, model, best, left_out)
    say(f"network: {run.out}   report: {run.out / 'report.html'}   next: {PACKAGE} predict --model {run.out} --datalist {settings.datalist} --out ...")  # fmt: skip


def _within(cases: Cases) -> Cases:
    """The values of the nuisance that are there, without those that a fold took away."""
    keep = {
        name: [v for v, n in zip(values, cases.counts(name), strict=True) if n] for name, values in cases.values.items()
    }
    table = [[values.index(str(nuisance_of(row, name))) for name, values in keep.items()] for row in cases.rows]
    return dataclasses.replace(
        cases, values=keep, nuisance=np.array(table, dtype=np.int64).reshape(len(cases), len(keep))
    )


def _model(command: of.Train, cases: Cases) -> Model:
    training = command.training
    heads = head_columns(command.unlearning, command.cases.nuisance)
    return Model(
        training.encoder, training.side, training.square, command.unlearning.name, command.cases.label,
        {name: cases.values[name] for name in dict.fromkeys(heads)}, heads, command.unlearning.deep_heads,
        command.run.seed, ordered(row.site for row in cases.rows if row.site), training.fold, len(cases),
    )  # fmt: skip


def _check_before(command: of.Train, cases: Cases, model: Model) -> None:
    """Find out what does not fit before the output folder is claimed."""
    if len(cases) < command.training.batch_size:
        raise SettingError(
            f"--batch-size is {command.training.batch_size}, and there are {len(cases)} training pictures",
            remedy=f"give --batch-size {len(cases)} or fewer",
        )
    if command.training.weights is not None:
        build(model, command.training.weights)
    else:
        with torch.device("meta"):
            build(model)


def _save_best(path: Path, network: LesionNet, best: Best, model: Model) -> None:
    if best.weights:
        last = {key: value.clone() for key, value in network.state_dict().items()}
        network.load_state_dict(best.weights)
        save_model(path, network, model)
        network.load_state_dict(last)


def _auc_error(auc: float, validation: Cases) -> float | None:
    """Hanley and McNeil's standard error; None for an AUC of 1, 0 or nan, as in `dart_core.classification.binary_scores`."""
    positives = int(validation.labels.sum())
    return float(auc_standard_error(auc, positives, len(validation) - positives)) if 0 < auc < 1 else None


def _report(
    run: Run, command: of.Train, network: LesionNet, cases: Cases, validation: Cases, model: Model, best: Best,
    left_out: int,
) -> None:  # fmt: skip
    """metrics.json and report.html of a training."""
    content = {
        "pictures": len(cases),
        "malignant": int(cases.labels.sum()),
        "left_out": left_out,
        "validation_pictures": len(validation),
        "steps": run.step,
        "nuisance": {name: dict(zip(v, cases.counts(name).tolist(), strict=True)) for name, v in cases.values.items()},
    }
    if len(validation):
        loss, auc = validate(network, validation, model, command.training.batch_size)
        error = _auc_error(auc, validation)
        content |= {"validation_loss": loss, "validation_auc": auc, "validation_auc_error": error}
    if best.weights:
        error = _auc_error(best.score, validation)
        content |= {"best_epoch": best.epoch, "best_validation_auc": best.score, "best_validation_auc_error": error}
    run.finish(content)
    report = Report(f"Training: {model.method}", f"{len(cases)} pictures, {model.encoder}", package=PACKAGE)
    report.section("Training")
    training_curves(
        report,
        run.out,
        {"loss_first": "first phase: main loss and what is added to it"},
        "loss",
        "Loss of the first phase",
    )
    heads = {"loss_auxiliary": "type head", "loss_auxiliary_0": "first head", "loss_auxiliary_1": "second head"}
    guessing = " and ".join(
        f"{math.log(len(cases.values[name])):.2f} for {name}" for name in dict.fromkeys(model.heads)
    )
    training_curves(
        report, run.out, heads, "loss",
        "Loss of the heads that look for the nuisance; where it is unlearnt the loss should not fall far below that of guessing "
        f"({guessing})",
    )  # fmt: skip
    training_curves(report, run.out, {"validation_auc": "validation"}, "AUC", "AUC on the validation pictures by epoch")
    for name, values in cases.values.items():
        report.table(
            (name, "pictures", "malignant"),
            [
                (value, int((column == k).sum()), int(cases.labels[column == k].sum()))
                for column in [cases.nuisance[:, list(cases.values).index(name)]]
                for k, value in enumerate(values)
            ],
            f"Training pictures by {name}",
        )
    report.section("Settings")
    report.settings(command)
    report.write(run.out / "report.html")


# --- predict ---------------------------------------------------------------------------------------------------------


def predict(command: of.Predict) -> None:
    """Score pictures."""
    network, model = load_model(command.model, find_device(command.device))
    datalist = open_cases(command.datalist)
    rows = site_rows(datalist, command.sites)
    if command.split != "all":
        rows = [row for row in rows if (row.split or "train") == command.split]
    if not rows:
        raise InputError(
            f"holds no picture with split {command.split}",
            where=datalist.source,
            remedy="give another --split (all takes every picture)",
        )
    labels = [label_of(row, model.label, needed=False) for row in rows]
    for row in rows:  # a broken last file must not waste the work on the others
        read_image(row.image)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    scores, _ = score_rows(network, rows, model.image_size, model.square, command.views, command.batch_size)
    write_predictions(out, _prediction_rows(rows, labels, scores.tolist(), model))
    table = group_table(labels, scores, [row.site or "all" for row in rows])
    content = {
        "pictures": len(rows),
        "views": command.views,
        "weights": weights_file(command.model).stem,
        "sites": {row["group"]: {key: row[key] for key in MEASURES} for row in table},
        "model": dataclasses.asdict(model),
    }
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Predictions", f"{len(rows)} pictures, {model.method}", package=PACKAGE)
    report.section("Scores")
    whole = {"group": "all", **binary_scores(labels, scores)}
    shown = [*table, whole] if len(table) > 1 else table
    scores_section(report, shown, {"group": "site"}, "Scores on these pictures; classes at a score of 0.5")
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for line in shown:
        print(f"{line['group']}: {line['positives']} malignant, {line['negatives']} benign, {auc_text(line)}")
    say(f"scores: {out}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --predictions {out} --out ...")


def _prediction_rows(
    rows: Sequence[Row], labels: Sequence[float], scores: Sequence[float], model: Model
) -> Iterable[dict[str, object]]:
    """Rows of predictions.csv, with all that the datalist says of a picture."""
    own = {"image", "subject", "site", "score", "label"}
    for row, label, score in zip(rows, labels, scores, strict=True):
        further = {name: cell for name, cell in row.labels.items() if name not in own and name != model.label}
        yield {
            "image": row.image, "subject": row.subject, "site": row.site, "label": label, "score": score, **further,
        }  # fmt: skip


# --- export ----------------------------------------------------------------------------------------------------------


def export(command: of.Export) -> None:
    """Write encoder and main head as ONNX and compare them with PyTorch."""
    check_file(command.out, ".onnx", command.overwrite)
    network, model = load_model(command.model)
    side = model.image_size
    worst = export_onnx(network, command.out, [(n, 3, side, side) for n in (1, 3)], outputs=["logit"])
    say(
        f"{command.out}: written; image (batch, 3, {side}, {side}) in [0, 1] -> logit (batch,); largest difference to "
        f"PyTorch {worst:.1e} of the largest logit"
    )
