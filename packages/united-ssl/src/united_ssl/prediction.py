"""The command `predict`: scores of cubes, masks and their overlap, or restorations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from dart_core.classification import group_table, write_predictions
from dart_core.cli import say
from dart_core.errors import InputError
from dart_core.files import relative, write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from united_ssl import settings as of
from united_ssl.cubes import Cubes, read_cubes, write_cubes
from united_ssl.figures import SHOWN, masks_figure, restored_figure
from united_ssl.measures import case_iou, pooled_iou
from united_ssl.method import fixed_views
from united_ssl.models import PACKAGE, Pretrained, Target, load_model
from united_ssl.tuning import apply, overlaps, predicted_labels

OVERLAPS = "overlaps.csv"
OVERLAP_COLUMNS = ("cube", "subject", "site", "split", "class", "intersection", "union")
MASKS, RESTORED, ORIGINAL = "masks.npy", "restored.npy", "original.npy"


def predict(command: of.Predict) -> None:
    """Apply a network to the cubes of a folder."""
    device = find_device(command.device)
    network, model = load_model(command.model, device)
    every = read_cubes(command.cubes)
    if every.shape != model.shape:
        raise InputError(
            f"the cubes have {' x '.join(map(str, every.shape))} voxels, those of the training had "
            f"{' x '.join(map(str, model.shape))}",
            where=command.cubes, remedy="prepare cubes of that size",
        )  # fmt: skip
    splits = {row.split for row in every.rows}
    fallback = isinstance(model, Pretrained) and command.split == "test" and "test" not in splits
    cubes = every if command.split == "all" else every.split("val" if fallback else command.split)
    if isinstance(model, Pretrained):
        _restore(command, network, model, cubes, device)
    elif model.task == "classification":
        _classify(command, network, model, cubes, device)
    else:
        _segment(command, network, model, cubes, device)
    out = command.output.out
    say(f"predictions: {out}   report: {out / 'report.html'}   next: {PACKAGE} evaluate --predictions {out} --out ...")


def _names(cubes: Cubes) -> list[str]:
    return [f"{row.file.stem}-{row.place}" for row in cubes.rows]


def _classify(command: of.Predict, network: nn.Module, model: Target, cubes: Cubes, device: torch.device) -> None:
    values = torch.cat(apply(network, cubes, command.batch_size, device))[:, 0].double()
    labels = cubes.labels().astype(float)
    labels[labels < 0] = np.nan
    if not np.isin(labels[~np.isnan(labels)], (0, 1)).all():
        raise InputError("some cubes have labels that are neither 0 nor 1", where=command.cubes, remedy="give 0 or 1")
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    scores = torch.sigmoid(values).numpy()
    rows = [
        {
            "image": row.file, "subject": row.subject, "site": row.site, "label": label, "score": score,
            "cube": row.place, "split": row.split, "logit": f"{value:.9g}",
        }
        for row, label, score, value in zip(cubes.rows, labels, scores, values.tolist(), strict=True)
    ]  # fmt: skip
    write_predictions(out, rows)
    table = group_table(labels, values.numpy(), [row.split for row in cubes.rows], 0.0)
    _finish(command, model, {"cubes": len(cubes), "auc": {row["group"]: row["auc"] for row in table}})
    report = Report("Predictions", f"{len(cubes)} cubes; {model.name}", package=PACKAGE)
    report.table(
        ("split", "positive", "negative", "AUC", "its error"),
        [[row[key] for key in ("group", "positives", "negatives", "auc", "auc_error")] for row in table],
        "Area under the ROC curve, with Hanley and McNeil's standard error",
    )
    _settings(command, report)


def _segment(command: of.Predict, network: nn.Module, model: Target, cubes: Cubes, device: torch.device) -> None:
    predicted = np.concatenate(
        [predicted_labels(part).numpy() for part in apply(network, cubes, command.batch_size, device)]
    )
    has_masks = cubes.has_masks
    lines: list[Sequence[Any]] = []
    counts = np.zeros((len(cubes), model.classes, 2), dtype=np.int64)
    for i, (row, name) in enumerate(zip(cubes.rows, _names(cubes), strict=True)):
        if has_masks:
            if (highest := int(cubes.mask(i).max())) > model.classes:
                raise InputError(
                    f"the mask of cube {row.place} of {row.file.name} has the label {highest}, and the network knows "
                    f"{model.classes}",
                    where=cubes.source,
                    remedy="give masks of the classes that it was trained on",
                )
            counts[i] = overlaps(predicted[i], cubes.mask(i), model.classes)
            lines += [
                (name, row.subject, row.site, row.split, k + 1, int(inter), int(union))
                for k, (inter, union) in enumerate(counts[i])
            ]
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    content: dict[str, Any] = {"cubes": len(cubes)}
    report = Report("Predictions", f"{len(cubes)} cubes; {model.name}", package=PACKAGE)
    if has_masks:
        write_csv(out / OVERLAPS, OVERLAP_COLUMNS, lines)
        rows = iou_rows(counts)
        content["iou"] = rows
        report.table(
            ("class", "pooled IoU", "mean IoU of cubes"), [[r["class"], r["pooled"], r["per_case"]] for r in rows],
            "Intersection over union: over all voxels of all cubes together, and as the mean over cubes",
        )  # fmt: skip
    if command.keep or not has_masks:
        import io

        buffer = io.BytesIO()
        np.save(buffer, predicted)
        write_atomic(out / MASKS, buffer.getvalue())
        write_csv(
            out / "masks.csv", ("place", "file", "cube", "scan", "x", "y", "z"),
            [(i, relative(row.file, out), row.place, row.scan, *row.corner) for i, row in enumerate(cubes.rows)],
        )  # fmt: skip
    _finish(command, model, content)
    shown = cubes.take(range(min(SHOWN, len(cubes))))
    truth = np.stack([cubes.mask(i) if has_masks else np.zeros_like(predicted[0]) for i in range(len(shown))])
    report.picture(
        masks_figure(shown.stack(range(len(shown))).numpy(), truth, predicted[: len(shown)]), "True outline green, predicted one red",
        "slices with outlines",
    )  # fmt: skip
    _settings(command, report)


def iou_rows(counts: Any) -> list[dict[str, Any]]:
    """IoU of each class, and the mean over classes where there are several.

    Args:
        counts: (n, classes, 2) intersections and unions.
    """
    values = np.asarray(counts)
    rows = [
        {
            "class": str(k + 1),
            "pooled": pooled_iou(values[:, k, 0], values[:, k, 1]),
            "per_case": float(case_iou(values[:, k, 0], values[:, k, 1]).mean()),
        }
        for k in range(values.shape[1])
    ]
    if len(rows) > 1:
        rows.append(
            {"class": "mean", **{key: float(np.mean([r[key] for r in rows])) for key in ("pooled", "per_case")}}
        )
    return rows


@torch.no_grad()
def _restore(command: of.Predict, network: nn.Module, model: Pretrained, cubes: Cubes, device: torch.device) -> None:
    if not model.restores:
        raise InputError(
            "this network was pretrained without restoration", where=command.model,
            remedy="give a run of --steps DR, DRA or joint, or fine-tune it first",
        )  # fmt: skip
    task = model.task()
    extra = {"pseudo": torch.zeros(len(cubes), dtype=torch.int64), "word": torch.zeros(len(cubes), dtype=torch.int64)}
    seen, target, restored = [], [], []
    for views in fixed_views(task, cubes, extra, command.batch_size, True, command.seed, device):
        restored.append(network(views.seen)[1].cpu())
        target.append(views.target.cpu())
        seen.append(views.seen[:SHOWN].cpu())
    found, wanted = torch.cat(restored), torch.cat(target)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    write_cubes(out / RESTORED, found[:, 0].numpy())
    write_cubes(out / ORIGINAL, wanted[:, 0].numpy())
    errors = (found - wanted).double()
    numbers = {"mse": float(errors.square().mean()), "mae": float(errors.abs().mean())}
    _finish(command, model, {"cubes": len(cubes), "network": str(command.model.resolve()), **numbers})
    report = Report("Restorations", f"{len(cubes)} cubes; {model.name}", package=PACKAGE)
    report.text(
        f"Mean squared error {numbers['mse']:.5f}, mean absolute error {numbers['mae']:.5f} of grey values in [0, 1]."
    )
    rows = {"target": wanted, "seen": torch.cat(seen)[:SHOWN], "restored": found}
    report.picture(
        restored_figure({name: value[:SHOWN].numpy() for name, value in rows.items()}),
        "Middle slices: what is to be restored, what the network sees, what it restores", "rows of slices",
    )  # fmt: skip
    _settings(command, report)


def _finish(command: of.Predict, model: Pretrained | Target, content: dict[str, Any]) -> None:
    about = {"model": dataclasses.asdict(model), "data": command.cubes.resolve().name, "split": command.split}
    text = json.dumps({**about, **content}, indent=2)
    write_atomic(command.output.out / METRICS, text + "\n")


def _settings(command: of.Predict, report: Report) -> None:
    report.section("Settings")
    report.settings(command)
    report.write(command.output.out / "report.html")
