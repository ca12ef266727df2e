"""The command `evaluate`: AUC per laboratory as mean and spread over seeds, beside the printed tables; Fig. 2 and Fig. 5."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dart_core.classification import (
    Predictions,
    binary_scores,
    calibration_figure,
    compare_seeds,
    read_predictions,
    roc_figure,
    seed_table,
)
from dart_core.cli import say
from dart_core.errors import InputError
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from stain_aglr import settings as of
from stain_aglr.figures import embed, feature_figure, sensitivity_figure
from stain_aglr.models import PACKAGE, Model
from stain_aglr.prediction import FEATURES, MARGIN, group_name
from stain_aglr.tables import PAPER_NAMES, mean_and_spread, mean_over_sites, printed_rows, printed_table

SCORES = "scores.csv"


@dataclass(frozen=True, eq=False)
class Scored:
    """One folder of `predict`."""

    folder: Path
    model: Model
    predictions: Predictions
    features: NDArray[np.float32] | None

    def margins(self) -> NDArray[np.float64]:
        """What ranks the patches: the difference of the logits."""
        return np.array(self.predictions.column(MARGIN), dtype=float)

    def groups(self) -> list[str]:
        """Laboratory of each patch, the training laboratory with the split."""
        pairs = zip(self.predictions.column("site"), self.predictions.column("split"), strict=True)
        return [group_name(site, split, self.model) for site, split in pairs]


def evaluate(command: of.Evaluate) -> None:
    """Compare the predictions of one or more networks."""
    scored = [read_scored(folder) for folder in command.predictions]
    results = auc_rows(scored)
    if command.embedding == "umap" and any(one.features is not None for one in scored):
        embed(np.random.default_rng(0).random((16, 2)), "umap")  # an absent package must not cost the output folder
    per_site, overall, compared = _over_seeds(command, scored, results)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    columns = ("method", "seed", "site", "split", "positives", "negatives", "auc", "auc_error", "folder")
    write_csv(out / SCORES, columns, [[row[name] for name in columns] for row in results])
    content = {"per_site": per_site, "mean": overall, "compared": compared}
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Evaluation", f"{len(scored)} predictions, {len(overall)} methods", package=PACKAGE)
    network_sections(report, command, scored, results)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    for row in results:
        if row["auc"] is None:
            say(
                f"no AUC for {row['group']} in {row['folder']}: {row['positives']} patches of class 1, {row['negatives']} "
                "of class 0"
            )
    if any(row["unseen"] and row["auc"] is None for row in results):
        say("MEAN needs the AUC of every laboratory; `predict --sites` leaves those of one class out")
    width = max(len(row["method"]) for row in overall) if overall else 0
    for row in overall:
        print(f"{row['method']:<{width}}  mean AUC {mean_and_spread(row['mean'], row['std'])}  ({row['seeds']} seeds)")
    say(f"scores: {out / SCORES}   report: {out / 'report.html'}")


def network_sections(
    report: Report,
    command: of.Evaluate,
    scored: Sequence[Scored],
    results: Sequence[dict[str, Any]],
    printed: bool = True,
) -> None:
    """Tables and pictures of some networks.

    Args:
        report: where to.
        command: embedding and baseline.
        scored: the networks.
        results: `auc_rows` of them.
        printed: show the paper's tables beside them.
    """
    per_site, overall, compared = _over_seeds(command, scored, results)
    _tables(report, results, per_site, overall, compared)
    if printed:
        _printed(report, per_site, overall)
    _pictures(report, command, scored, results)


def _over_seeds(
    command: of.Evaluate, scored: Sequence[Scored], results: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Each laboratory's AUC, the mean over unseen laboratories, and the methods compared in that mean."""
    means = mean_over_sites([row for row in results if row["unseen"]])
    compared = compare_seeds(means, _baseline(command, scored))
    return seed_table(results, ("method", "group")), seed_table(means, ("method",)), compared


def read_scored(folder: Path) -> Scored:
    """What `predict` wrote.

    Raises:
        InputError: something is missing or does not fit together.
    """
    predictions = read_predictions(folder, PACKAGE)
    remedy = f"give a folder of `{PACKAGE} predict`"
    for name in ("split", MARGIN):
        predictions.column(name)
    try:
        model = Model(**json.loads((folder / METRICS).read_text(encoding="utf-8"))["model"])
        np.array(predictions.column(MARGIN), dtype=float)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"cannot be read as scores of {PACKAGE} ({error})", where=folder, remedy=remedy) from error
    features = None
    if (folder / FEATURES).is_file():
        try:
            features = np.load(folder / FEATURES, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError("is damaged", where=folder / FEATURES, remedy="predict again") from error
        if features.ndim != 2 or len(features) != len(predictions):
            raise InputError(
                f"has features of shape {features.shape} for {len(predictions)} patches",
                where=folder / FEATURES,
                remedy="predict again",
            )
    return Scored(folder, model, predictions, features)


def auc_rows(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """AUC of each network and laboratory; None without both classes. Unlabelled patches are left out.

    Raises:
        InputError: no patch is labelled.
    """
    rows = []
    for one in scored:
        margins, groups = one.margins(), np.array(one.groups(), dtype=object)
        sites, splits = one.predictions.column("site"), one.predictions.column("split")
        for group in dict.fromkeys(groups):
            chosen = groups == group
            found = binary_scores(one.predictions.labels[chosen], margins[chosen], threshold=0.0)
            if found["positives"] + found["negatives"]:
                first = int(np.flatnonzero(chosen)[0])
                about = {"method": one.model.name, "seed": one.model.seed, "group": group, "folder": str(one.folder)}
                unseen = sites[first] != one.model.site
                rows.append({**about, "site": sites[first], "split": splits[first], "unseen": unseen, **found})
    if not rows:
        raise InputError(
            "no patch has a label", where=scored[0].folder, remedy="predict with a datalist that has a column label"
        )
    return rows


def _baseline(command: of.Evaluate, scored: Sequence[Scored]) -> str:
    return next((one.model.name for one in scored if one.model.method == command.baseline), command.baseline)


def _tables(
    report: Report, results: Sequence[dict[str, Any]], per_site: Sequence[dict[str, Any]],
    overall: Sequence[dict[str, Any]], compared: Sequence[dict[str, Any]],
) -> None:  # fmt: skip
    groups = list(dict.fromkeys(row["group"] for row in results))
    cells = {(row["method"], row["group"]): row for row in per_site}
    report.section("Area under the ROC curve")
    rows = []
    for mean in overall:
        found = [cells.get((mean["method"], group)) for group in groups]
        rows.append(
            [
                mean["method"],
                mean["seeds"],
                *(mean_and_spread(cell["mean"], cell["std"]) if cell else "–" for cell in found),
                mean_and_spread(mean["mean"], mean["std"]),
            ]
        )
    report.table(
        ("method", "seeds", *groups, "MEAN"),
        rows,
        "Mean and sample standard deviation over seeds of each laboratory's AUC on its test patches; MEAN is the unweighted "
        "mean over the laboratories that training did not see. A dash: no AUC, because only one class is there, and no MEAN "
        "with such a laboratory (`predict --sites` leaves it out)",
    )
    counts = {row["group"]: (row["positives"], row["negatives"]) for row in results}
    report.table(
        ("laboratory", "class 1", "class 0"), [(group, *counts[group]) for group in groups], "Labelled patches scored"
    )
    if compared:
        report.table(
            ("method", "against", "difference", "t-test p", "Wilcoxon p", "seeds in pairs"),
            [[r["method"], r["baseline"], r["difference"], r["p_t"], r["p_wilcoxon"], r["pairs"]] for r in compared],
            "MEAN of the methods compared over seeds: Student's t-test, and Wilcoxon's signed-rank test over shared seeds. A "
            "dash: fewer than two seeds",
        )


def _printed(report: Report, per_site: Sequence[dict[str, Any]], overall: Sequence[dict[str, Any]]) -> None:
    cells = {(row["method"], row["group"]): row for row in per_site}
    groups = list(dict.fromkeys(row["group"] for row in per_site))
    report.section("Printed in the paper")
    for name, what in (("table1", "Camelyon17, trained on RUMC"), ("table2", "TUPAC, trained on centre 1")):
        columns, printed = printed_rows(name)
        report.table(columns, printed, f"Table {name[-1]} as printed, not measured here: AUC, {what}; ten seeds")
    shown = _beside(overall, cells, groups)
    if shown:
        report.table(
            ("method", "laboratory", "here", "printed"),
            shown,
            "The same laboratories and methods here and in the paper",
        )


def _beside(
    overall: Sequence[Mapping[str, Any]], cells: Mapping[tuple[str, str], Mapping[str, Any]], groups: Sequence[str]
) -> list[list[str]]:
    """Numbers that were measured here and printed in the paper."""
    merged: dict[str, dict[str, Any]] = {}
    for name in ("table1", "table2"):
        for row in printed_table(name):
            merged.setdefault(str(row["method"]), {}).update(row)
    rows = []
    for mean in overall:
        of_paper = merged.get(PAPER_NAMES.get(mean["method"], ""), {})
        for group in groups:
            cell = cells.get((mean["method"], group))
            if cell is not None and f"{group}_auc_mean" in of_paper:
                pair = (of_paper[f"{group}_auc_mean"], of_paper[f"{group}_auc_std"])
                rows.append([mean["method"], group, mean_and_spread(cell["mean"], cell["std"]), mean_and_spread(*pair)])
    return rows


def _pictures(
    report: Report, command: of.Evaluate, scored: Sequence[Scored], results: Sequence[dict[str, Any]]
) -> None:
    first = {one.model.name: one for one in reversed(scored)}
    first = {name: first[name] for name in dict.fromkeys(one.model.name for one in scored)}
    report.section("Curves")
    curves = {}
    for name, one in first.items():
        tests = np.array(one.predictions.column("site"), dtype=object) != one.model.site
        if tests.any():
            curves[name] = (one.predictions.labels[tests], one.predictions.scores[tests])
    if curves:
        report.picture(
            roc_figure(curves), "ROC curves on the patches of all unseen laboratories together, first seed of each method",
            "ROC curves of the methods",
        )  # fmt: skip
        report.picture(
            calibration_figure(curves),
            "How often a score comes true on the same patches; on the diagonal as often as it says",
            "calibration curves of the methods",
        )
    panels = {
        name: (one.features, one.groups(), one.predictions.labels)
        for name, one in first.items()
        if one.features is not None and len(one.features) >= 5
    }
    if panels:
        report.section("Feature space")
        report.picture(
            feature_figure(panels, command.embedding),
            f"Pooled features of test patches and of the training laboratory's validation patches in two dimensions "
            f"({'UMAP' if command.embedding == 'umap' else 't-SNE'}, one embedding for each network; Fig. 2 of the paper). "
            "Colour: laboratory; plus: class 0; dot: class 1. A network that is blind to the stain mixes the colours",
            "scatter plots of the feature space by laboratory and class",
        )
    curves_of_weights = sensitivity(scored, mean_over_sites([row for row in results if row["unseen"]]))
    if curves_of_weights:
        report.section("Sensitivity to the weights")
        report.picture(
            sensitivity_figure(curves_of_weights),
            "Mean AUC over the test laboratories against the weight of one loss, the other's being 0 (Fig. 5 of the paper); "
            "bars: standard deviation over seeds",
            "mean AUC against the weights of the losses",
        )


def sensitivity(scored: Sequence[Scored], means: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, list[float]]]:
    """What Fig. 5 shows: weight -> mean AUC of each seed, for each loss of which there are at least two weights.

    Args:
        scored: networks.
        means: of `mean_over_sites`.
    """
    of_network = {(row["method"], row["seed"]): row["auc"] for row in means}
    curves: dict[str, dict[float, list[float]]] = {"lambda1": {}, "lambda2": {}}
    for one in scored:
        auc = of_network.get((one.model.name, one.model.seed))
        lambda1, lambda2 = one.model.lambda1, one.model.lambda2
        if auc is None or (lambda1 > 0) == (lambda2 > 0):
            continue
        name, weight = ("lambda1", lambda1) if lambda1 > 0 else ("lambda2", lambda2)
        curves[name].setdefault(weight, []).append(auc)
    return {name: values for name, values in curves.items() if len(values) > 1}
