"""The command `evaluate`: AUC and IoU over seeds, label savings (Fig. 4), what the adversary adds (Fig. 3), Frechet distances."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dart_core.classification import binary_scores, compare_seeds, read_predictions, seed_table
from dart_core.cli import say
from dart_core.errors import InputError
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report, mean_and_spread
from dart_core.run import METRICS, claim_folder, find_device, flat_settings
from united_ssl import settings as of
from united_ssl.cubes import CubeRow, Cubes
from united_ssl.figures import increments_figure, label_curves, restored_figure
from united_ssl.measures import curve_saving, frechet_distance
from united_ssl.models import PACKAGE, Pretrained, Target, load_model
from united_ssl.prediction import ORIGINAL, OVERLAPS, RESTORED, iou_rows
from united_ssl.tables import PRETEXT_NAMES, printed_rows, significance
from united_ssl.tasks import pooled_features

SCORES = "scores.csv"
MEASURES = {"auc": "AUC", "iou": "IoU"}
INCEPTION_SIDE = 299
_SLICES = 32
"""Slices that an extractor gets at once."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One folder of `predict`."""

    folder: Path
    model: Pretrained | Target
    content: dict[str, Any]

    @property
    def kind(self) -> str:
        """classification, segmentation or restoration."""
        return "restoration" if isinstance(self.model, Pretrained) else self.model.task


def evaluate(command: of.Evaluate) -> None:
    """Compare predictions of one or more networks."""
    scored = [read_scored(folder) for folder in command.predictions]
    results = [row for one in scored if one.kind != "restoration" for row in target_rows(one)]
    device = find_device(command.device)
    restorations = [one for one in scored if one.kind == "restoration"]
    extract = extractor(command.extractor, device) if command.extractor and restorations else None
    distances = restoration_rows(restorations, extract, device)
    full = [
        row for row in results if row["fraction"] == max(r["fraction"] for r in results if r["task"] == row["task"])
    ]
    over_seeds = {
        measure: seed_table([row for row in full if measure in row], ("task", "method"), measure)
        for measure in MEASURES
    }
    compared = {
        measure: significance(
            compare_seeds([row for row in full if measure in row], command.baseline, ("task",), measure)
        )
        for measure in MEASURES
    }
    savings = [row for measure in MEASURES for row in saving_rows(results, command.baseline, measure)]
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    columns = ("task", "method", "fraction", "seed", "auc", "iou", "iou_per_case", "cubes", "folder")
    write_csv(out / SCORES, columns, [[row.get(name) for name in columns] for row in results])
    content = {
        "over_seeds": {k: v for k, v in over_seeds.items() if v}, "compared": {k: v for k, v in compared.items() if v},
        "label_savings": savings, "restorations": distances,
    }  # fmt: skip
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Evaluation", f"{len(scored)} predictions", package=PACKAGE)
    sections(report, command, results, full, distances, restorations)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for measure, rows in over_seeds.items():
        names = [f"{row['task']}, {row['method']}" for row in rows]
        for name, row in zip(names, rows, strict=True):
            spread = mean_and_spread(row["mean"], row["std"])
            print(
                f"{name:<{max(map(len, names))}}  {MEASURES[measure]} {spread}  ({row['seeds']} seed{'s' * (row['seeds'] != 1)})"
            )
    for row in distances:
        print(f"{row['method']}: Frechet distance {row['fid']:.4g} ({row['features']}), MSE {row['mse']:.5f}")
    say(f"scores: {out / SCORES}   report: {out / 'report.html'}")


def read_scored(folder: Path) -> Scored:
    """What `predict` wrote.

    Raises:
        InputError: something is missing or does not fit.
    """
    try:
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        model, _ = content["model"], content["data"]
        model["shape"] = tuple(model["shape"])
        found: Pretrained | Target = Target(**model) if model["kind"] == "target" else Pretrained(**model)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"cannot be read as predictions of {PACKAGE} ({error})", where=folder,
            remedy=f"give a folder of `{PACKAGE} predict`",
        ) from error  # fmt: skip
    return Scored(folder, found, content)


def target_rows(one: Scored) -> list[dict[str, Any]]:
    """The scores of one fine-tuned network on its test cubes: AUC; or IoU of each class, pooled and as mean over cubes.

    The folder of the cubes names the target, so that several of them can be shown beside each other.

    Raises:
        InputError: no test cube was predicted, or a file that is missing or damaged.
    """
    model = one.model
    assert isinstance(model, Target)
    base = {"method": model.name, "seed": model.seed, "fraction": model.fraction, "folder": str(one.folder)}
    if model.task == "classification":
        predictions = read_predictions(one.folder, PACKAGE)
        test = _test_cubes(one, predictions.column("split"))
        logits = np.array(predictions.column("logit"), dtype=float)
        return [
            {
                **base,
                "cubes": int(test.sum()),
                "task": f"{one.content['data']}: classification",
                "auc": binary_scores(predictions.labels[test], logits[test], 0.0)["auc"],
            }
        ]
    counts, splits = read_overlaps(one.folder, model.classes)
    test = _test_cubes(one, splits)
    rows = iou_rows(counts[test])
    last = rows[-1]
    task = f"{one.content['data']}: segmentation" + (", mean over classes" if len(rows) > 1 else "")
    return [{**base, "cubes": int(test.sum()), "task": task, "iou": last["pooled"], "iou_per_case": last["per_case"]}]


def _test_cubes(one: Scored, splits: Sequence[str]) -> NDArray[np.bool_]:
    """Which cubes (n,) are test cubes; `predict --split all` writes down those of training as well."""
    test = np.array([split == "test" for split in splits], dtype=bool)
    if not test.any():
        raise InputError("holds no test cube", where=one.folder, remedy=f"run `{PACKAGE} predict` with --split test")
    return test


def read_overlaps(folder: Path, classes: int) -> tuple[NDArray[np.float64], list[str]]:
    """Intersections and unions (n, classes, 2), and the split of each cube.

    Raises:
        InputError: no such file, or a damaged one.
    """
    file = folder / OVERLAPS
    try:
        lines = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        values = np.array([(float(line["intersection"]), float(line["union"])) for line in lines])
        return values.reshape(-1, classes, 2), [line["split"] for line in lines[::classes]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot be read ({error})", where=file, remedy=f"run `{PACKAGE} predict` on cubes with masks"
        ) from error


# --- Labels ----------------------------------------------------------------------------------------------------------


def curves_of(results: Sequence[dict[str, Any]], measure: str) -> dict[str, dict[float, list[float]]]:
    """Initialisation -> fraction of labels -> values of the seeds."""
    curves: dict[str, dict[float, list[float]]] = {}
    for row in results:
        if row.get(measure) is not None:
            curves.setdefault(row["method"], {}).setdefault(row["fraction"], []).append(float(row[measure]))
    return curves


def saving_rows(results: Sequence[dict[str, Any]], baseline: str, measure: str) -> list[dict[str, Any]]:
    """Label saving of each initialisation against the baseline, and against each other one, from the means over seeds."""
    rows = []
    for task in dict.fromkeys(row["task"] for row in results if measure in row):
        curves = curves_of([row for row in results if row["task"] == task], measure)
        for name, points in curves.items():
            for other, base in curves.items():
                if other == name or len(points) < 2 or name == baseline:
                    continue
                saving = curve_saving(*({f: float(np.mean(curve[f])) for f in curve} for curve in (base, points)))
                rows.append(
                    {
                        "task": task, "method": name, "baseline": other, "measure": MEASURES[measure],
                        "saving": None if np.isnan(saving) else saving,
                    }
                )  # fmt: skip
    return rows


# --- Restorations ----------------------------------------------------------------------------------------------------

Extract = Callable[[NDArray[np.float32]], NDArray[np.float64]]


def extractor(path: Path, device: torch.device) -> Extract:
    """Features (n, d) of grey slices (n, H, W) in [0, 1] by a user's network.

    Args:
        path: an ONNX file, or weights of Inception v3, whose pooled features (2048) are taken.
        device: for Inception.

    Raises:
        InputError: no ONNX file, or one that takes something else.
    """
    if path.suffix.lower() == ".onnx":
        return _onnx_extractor(path)
    from dart_core.nets.backbones import create_backbone

    network = create_backbone("inception_v3", path).to(device).eval()

    @torch.no_grad()
    def extract(slices: NDArray[np.float32]) -> NDArray[np.float64]:
        found = []
        for part in torch.from_numpy(slices).split(_SLICES):
            x = part[:, None].expand(-1, 3, -1, -1).to(device) * 2 - 1
            x = torch.nn.functional.interpolate(
                x, (INCEPTION_SIDE, INCEPTION_SIDE), mode="bilinear", align_corners=False
            )
            found.append(network(x).double().cpu())
        return torch.cat(found).numpy()

    return extract


def _onnx_extractor(path: Path) -> Extract:
    import onnxruntime

    if not path.is_file():
        raise InputError("is not there", where=path, remedy="give an ONNX file or the weights of Inception v3")
    try:
        session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no family of errors of its own
        raise InputError(f"is no ONNX file ({error})", where=path, remedy="export the extractor again") from error
    name = session.get_inputs()[0].name

    def extract(slices: NDArray[np.float32]) -> NDArray[np.float64]:
        found = []
        for start in range(0, len(slices), _SLICES):
            part = np.repeat(slices[start : start + _SLICES, None], 3, axis=1)
            try:
                (features,) = session.run(None, {name: part})[:1]
            except Exception as error:
                raise InputError(
                    f"does not take slices of shape {part.shape} ({error})", where=path,
                    remedy="export it for (N, 3, H, W) of any size",
                ) from error  # fmt: skip
            found.append(np.asarray(features, dtype=np.float64).reshape(len(part), -1))
        return np.concatenate(found)

    return extract


def restoration_rows(
    restorations: Sequence[Scored], extract: Extract | None, device: torch.device
) -> list[dict[str, Any]]:
    """Frechet distances; without extractor, the features of all are those of the first network's encoder."""
    return [restoration_row(one, extract, device, restorations[0]) for one in restorations]


def restoration_row(one: Scored, extract: Extract | None, device: torch.device, encoder: Scored) -> dict[str, Any]:
    """Frechet distance between originals and restorations, and their mean squared error.

    Args:
        one: a folder of restorations.
        extract: features of slices; None: pooled features of whole cubes.
        device: for these.
        encoder: whose network gives them.

    Raises:
        InputError: files that are missing, or fewer than two cubes.
    """
    model = one.model
    assert isinstance(model, Pretrained)
    cubes = [_kept(one, name) for name in (ORIGINAL, RESTORED)]
    if extract is not None:
        # Axial slices lie along the last axis.
        slices = [np.moveaxis(values, 3, 1).reshape(-1, *values.shape[1:3]) for values in cubes]
        features = [extract(np.ascontiguousarray(values, dtype=np.float32)) for values in slices]
        what = "axial slices, the given extractor"
    else:
        if len(cubes[0]) < 2:
            raise InputError("a distance needs two cubes at least", where=one.folder, remedy="predict more cubes")
        network, _ = load_model(Path(encoder.content["network"]), device)
        features = []
        for name in (ORIGINAL, RESTORED):
            rows = tuple(CubeRow(one.folder / name, i) for i in range(len(cubes[0])))
            found = pooled_features(network, Cubes(rows, model.shape, one.folder), 16, device)
            features.append(found.double().numpy())
        what = f"cubes, encoder of {encoder.model.name}"
    return {
        "method": model.name, "seed": model.seed, "fid": frechet_distance(*features), "features": what,
        "mse": float(np.mean((cubes[0].astype(np.float64) - cubes[1].astype(np.float64)) ** 2)),
        "cubes": len(cubes[0]), "folder": str(one.folder),
    }  # fmt: skip


def _kept(one: Scored, name: str) -> NDArray[np.float32]:
    try:
        return np.asarray(np.load(one.folder / name, allow_pickle=False), dtype=np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot be read ({error})", where=one.folder / name, remedy="predict again") from error


# --- Report ----------------------------------------------------------------------------------------------------------


def sections(
    report: Report, command: of.Evaluate, results: Sequence[dict[str, Any]], full: Sequence[dict[str, Any]],
    distances: Sequence[dict[str, Any]], restorations: Sequence[Scored], printed: bool = True,
) -> None:  # fmt: skip
    """Tables and pictures.

    Args:
        report: where to.
        command: the baseline.
        results: rows of all networks.
        full: those with the largest fraction of labels.
        distances: rows of restorations.
        restorations: their folders.
        printed: show the paper's tables too.
    """
    for measure, title in MEASURES.items():
        own = [row for row in full if measure in row]
        if not own:
            continue
        report.section(title)
        compared = {
            (row["task"], row["method"]): row
            for row in significance(compare_seeds(own, command.baseline, ("task",), measure))
        }
        lines = []
        for row in seed_table(own, ("task", "method"), measure):
            other = compared.get((row["task"], row["method"]), {})
            lines.append(
                [
                    row["task"], row["method"], mean_and_spread(row["mean"], row["std"]), row["seeds"],
                    other.get("difference"), other.get("p_t"), other.get("stars", ""),
                ]
            )  # fmt: skip
        note = "pooled foreground IoU over all cubes" if measure == "iou" else "area under the ROC curve"
        report.table(
            ("task", "initialisation", f"{title}, mean ± std", "seeds", f"against {command.baseline}", "p", ""), lines,
            f"{note}; mean and standard deviation over seeds; p of the two-sample t-test (equal variances), *** below 0.05",
        )  # fmt: skip
        _labels(report, command, results, measure, title)
        bars = _increments(own, measure)
        if bars:
            report.picture(
                increments_figure(bars, title),
                "The bars reach up to (D)+R; green: what the adversary adds, orange: what it takes away (Fig. 3)",
                "bars by pretext task",
            )
    if distances:
        report.section("Restorations")
        report.table(
            ("network", "seed", "Frechet distance", "MSE", "cubes", "features of"),
            [[row[key] for key in ("method", "seed", "fid", "mse", "cubes", "features")] for row in distances],
            "Distance between the features of originals and of restorations. The paper names 427.6 for (D)+R and 251.3 for "
            "((D)+R)+A without its extractor: only numbers with the same extractor can be compared",
        )
        for one in restorations:
            rows = {name: _kept(one, file)[:, None] for name, file in (("original", ORIGINAL), ("restored", RESTORED))}
            report.picture(restored_figure(rows), f"Restorations of {one.model.name}", "slices of cubes")
    if printed and results:
        report.section("As printed in the paper")
        for name, what in (
            ("table1", "Table 1: joint and stepwise training"), ("table2", "Table 2: encoder transferred"),
            ("table3", "Table 3: with and without the decoder"),
        ):  # fmt: skip
            columns, rows_ = printed_rows(name)
            report.table(columns, rows_, f"{what}; NCC and ECC are AUC in %, the others IoU in %")


def _labels(report: Report, command: of.Evaluate, results: Sequence[dict[str, Any]], measure: str, title: str) -> None:
    """Fig. 4 where networks were fine-tuned on several fractions of the labels."""
    for task in dict.fromkeys(row["task"] for row in results if measure in row):
        curves = curves_of([row for row in results if row["task"] == task], measure)
        if not any(len(points) > 1 for points in curves.values()):
            continue
        report.picture(
            label_curves(curves, title), f"{task}: {title} against the share of the labels, as in Fig. 4", "curves"
        )
    savings = saving_rows(results, command.baseline, measure)
    if savings:
        report.table(
            ("task", "initialisation", "compared with", "labels saved"),
            [[row["task"], row["method"], row["baseline"], row["saving"]] for row in savings],
            "Share of the labels that the initialisation needs less to come where the other one is with its largest share; a "
            "dash: it never does",
        )


def _increments(rows: Sequence[dict[str, Any]], measure: str) -> dict[str, list[tuple[str, float, float]]]:
    """Task -> (pretext, mean of (D)+R, mean of ((D)+R)+A), where there are both."""
    means = {(row["task"], row["method"]): row["mean"] for row in seed_table(rows, ("task", "method"), measure)}
    bars: dict[str, list[tuple[str, float, float]]] = {}
    for (task, method), mean in means.items():
        for pretext, label in PRETEXT_NAMES.items():
            if method.startswith(f"{pretext} (D)+R"):
                other = means.get((task, method.replace("(D)+R", "((D)+R)+A")))
                if other is not None and mean is not None:
                    suffix = method.removeprefix(f"{pretext} (D)+R")
                    bars.setdefault(f"{task}{suffix}", []).append((label, mean, other))
    return bars
