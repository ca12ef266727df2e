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
from dart_core.report import Report, mean_and_spread
from dart_core.run import METRICS, claim_folder, flat_settings
from stain_aglr import settings as of
from stain_aglr.figures import embed, feature_figure, sensitivity_figure
from stain_aglr.models import PACKAGE, Model
from stain_aglr.prediction import FEATURES, MARGIN, group_name
from stain_aglr.tables import beside_printed, mean_over_sites, printed_rows

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


@dataclass(frozen=True, eq=False)
class Block:
    """The networks of one training laboratory: only these are compared, and only their MEAN is over the same laboratories."""

    site: str
    scored: list[Scored]
    results: list[dict[str, Any]]
    """`auc_rows` of them."""
    per_site: list[dict[str, Any]]
    """AUC of each method and laboratory over seeds."""
    means: list[dict[str, Any]]
    """`mean_over_sites` of the unseen laboratories, of each network."""
    overall: list[dict[str, Any]]
    """MEAN of each method over seeds."""
    compared: list[dict[str, Any]]
    """The methods compared in MEAN."""


def evaluate(command: of.Evaluate) -> None:
    """Compare the predictions of one or more networks."""
    scored = [read_scored(folder) for folder in command.predictions]
    results = auc_rows(scored)
    if command.embedding == "umap" and any(one.features is not None for one in scored):
        embed(np.random.default_rng(0).random((16, 2)), "umap")  # an absent package must not cost the output folder
    blocks = _blocks(command, scored, results)
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    columns = (
        "method", "seed", "trained_on", "site", "split", "positives", "negatives", "auc", "auc_error", "folder",
    )  # fmt: skip
    write_csv(out / SCORES, columns, [[row[name] for name in columns] for row in results])
    overall = [row for block in blocks for row in block.overall]
    content = {
        "per_site": [row for block in blocks for row in block.per_site],
        "mean": overall,
        "compared": [row for block in blocks for row in block.compared],
    }
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    report = Report("Evaluation", f"{len(scored)} predictions, {len(overall)} methods", package=PACKAGE)
    _sections(report, command, blocks, printed=True)
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
    names = [row["method"] + (f", trained on {row['trained_on']}" if len(blocks) > 1 else "") for row in overall]
    for name, row in zip(names, overall, strict=True):
        mean = mean_and_spread(row["mean"], row["std"])
        print(f"{name:<{max(map(len, names))}}  mean AUC {mean}  ({row['seeds']} seeds)")
    say(f"scores: {out / SCORES}   report: {out / 'report.html'}")


def network_sections(
    report: Report,
    command: of.Evaluate,
    scored: Sequence[Scored],
    results: Sequence[dict[str, Any]],
    printed: bool = True,
) -> None:
    """Tables and pictures of some networks, for each training laboratory by itself.

    Args:
        report: where to.
        command: embedding and baseline.
        scored: the networks.
        results: `auc_rows` of them.
        printed: show the paper's tables beside them.
    """
    _sections(report, command, _blocks(command, scored, results), printed)


def _blocks(command: of.Evaluate, scored: Sequence[Scored], results: Sequence[dict[str, Any]]) -> list[Block]:
    blocks = []
    for site in dict.fromkeys(one.model.site for one in scored):
        own = [one for one in scored if one.model.site == site]
        rows = [row for row in results if row["trained_on"] == site]
        _same_laboratories(site, rows)
        means = mean_over_sites([row for row in rows if row["unseen"]])
        overall = seed_table(means, ("trained_on", "method"))
        compared = compare_seeds(means, _baseline(command, own), ("trained_on",))
        per_site = seed_table(rows, ("trained_on", "method", "group", "unseen"))
        blocks.append(Block(site, own, rows, per_site, means, overall, compared))
    return blocks


def _same_laboratories(site: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to compare a MEAN over some laboratories with one over others; networks without any have no MEAN."""
    of_network: dict[str, set[str]] = {}
    for row in rows:
        if row["unseen"]:
            of_network.setdefault(row["folder"], set()).add(row["site"])
    if not of_network:
        return
    first, *others = of_network
    for folder in others:
        if of_network[folder] != of_network[first]:
            here, there = (", ".join(sorted(of_network[one])) for one in (folder, first))
            raise InputError(
                f"networks trained on {site} were scored on different laboratories: here on {here}, in {first} on {there}",
                where=folder,
                remedy="give `predict` the same --sites for all of them",
            )


def _sections(report: Report, command: of.Evaluate, blocks: Sequence[Block], printed: bool) -> None:
    for block in blocks:
        _tables(report, block, _after(block, blocks))
    if printed:
        _printed(report, blocks)
    for block in blocks:
        _pictures(report, command, block, _after(block, blocks))


def _after(block: Block, blocks: Sequence[Block]) -> str:
    """What the headings of a block add where there are several."""
    return f", trained on {block.site}" if len(blocks) > 1 else ""


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
                place = {"trained_on": one.model.site, "site": sites[first], "split": splits[first]}
                rows.append({**about, **place, "unseen": unseen, **found})
    if not rows:
        raise InputError(
            "no patch has a label", where=scored[0].folder, remedy="predict with a datalist that has a column label"
        )
    return rows


def _baseline(command: of.Evaluate, scored: Sequence[Scored]) -> str:
    """The method as its defaults have it, where it is there; else its first variant."""
    names = [one.model.name for one in scored if one.model.method == command.baseline]
    return command.baseline if command.baseline in names else next(iter(names), command.baseline)


def _tables(report: Report, block: Block, after: str) -> None:
    groups = list(dict.fromkeys(row["group"] for row in block.results))
    cells = {(row["method"], row["group"]): row for row in block.per_site}
    report.section(f"Area under the ROC curve{after}")
    rows = []
    for mean in block.overall:
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
    counts = {row["group"]: (row["positives"], row["negatives"]) for row in block.results}
    report.table(
        ("laboratory", "class 1", "class 0"), [(group, *counts[group]) for group in groups], "Labelled patches scored"
    )
    if block.compared:
        report.table(
            ("method", "against", "difference", "t-test p", "Wilcoxon p", "seeds in pairs"),
            [
                [r["method"], r["baseline"], r["difference"], r["p_t"], r["p_wilcoxon"], r["pairs"]]
                for r in block.compared
            ],
            "MEAN of the methods compared over seeds: Student's t-test, and Wilcoxon's signed-rank test over shared seeds. A "
            "dash: fewer than two seeds",
        )


def _printed(report: Report, blocks: Sequence[Block]) -> None:
    report.section("Printed in the paper")
    for name, what in (("table1", "Camelyon17, trained on RUMC"), ("table2", "TUPAC, trained on centre 1")):
        columns, printed = printed_rows(name)
        report.table(columns, printed, f"Table {name[-1]} as printed, not measured here: AUC, {what}; ten seeds")
    shown = [row for block in blocks for row in beside_printed(block.site, block.per_site, block.overall)]
    if shown:
        report.table(
            ("method", "laboratory", "here", "printed"),
            shown,
            "The same laboratories and methods here and in the paper",
        )


def _pictures(report: Report, command: of.Evaluate, block: Block, after: str) -> None:
    scored = block.scored
    first = {one.model.name: one for one in reversed(scored)}
    first = {name: first[name] for name in dict.fromkeys(one.model.name for one in scored)}
    report.section(f"Curves{after}")
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
        report.section(f"Feature space{after}")
        report.picture(
            feature_figure(panels, command.embedding),
            f"Pooled features of test patches and of the training laboratory's validation patches in two dimensions "
            f"({'UMAP' if command.embedding == 'umap' else 't-SNE'}, one embedding for each network; Fig. 2 of the paper). "
            "Colour: laboratory; plus: class 0; dot: class 1. A network that is blind to the stain mixes the colours",
            "scatter plots of the feature space by laboratory and class",
        )
    curves_of_weights = sensitivity(scored, block.means)
    if curves_of_weights:
        report.section(f"Sensitivity to the weights{after}")
        report.picture(
            sensitivity_figure(curves_of_weights),
            "Mean AUC over the test laboratories against the weight of one loss, the other's being 0 (Fig. 5 of the paper); "
            "bars: standard deviation over seeds",
            "mean AUC against the weights of the losses",
        )


def sensitivity(scored: Sequence[Scored], means: Sequence[Mapping[str, Any]]) -> dict[str, dict[float, list[float]]]:
    """What Fig. 5 shows: weight -> mean AUC of each seed, for each loss of which there are at least two weights.

    Args:
        scored: networks of one training laboratory.
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
