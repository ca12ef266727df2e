"""The command `evaluate`: AUC per data set and per group of skin types, the gap, and the paper's numbers beside ours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dart_core.checkpoint import WEIGHTS
from dart_core.classification import (
    MEASURES,
    Predictions,
    auc_text,
    binary_scores,
    calibration_figure,
    compare_seeds,
    read_predictions,
    roc_figure,
    scores_section,
    seed_table,
)
from dart_core.cli import say
from dart_core.errors import InputError, SettingError
from dart_core.files import write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings
from skintone_debias import settings as of
from skintone_debias.cases import ordered
from skintone_debias.datalists import normalised
from skintone_debias.networks import Model, read_model
from skintone_debias.recipes import PACKAGE, PAPER_NAMES
from skintone_debias.tables import dermatologists, printed_table, published_set

SCORES, TABLES = "scores.csv", "tables.csv"
PAIRS = {"1": "1&2", "2": "1&2", "3": "3&4", "4": "3&4", "5": "5&6", "6": "5&6"}
"""Skin type -> the group that the paper scores it in."""
UNKNOWN = "unknown"
EVERYTHING = "all"


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The predictions of one network."""

    model: Model
    predictions: Predictions
    groups: tuple[str, ...]
    """Of each picture; "" where the predictions have no such column."""
    weights: str = Path(WEIGHTS).stem
    """Name of its weight file."""
    views: int = 8
    """Flips and turns that its scores are the mean of."""
    unlearnt: str = ""
    """Its nuisance, where networks of its method differ in it."""
    apart: tuple[str, ...] = ()
    """What tells it from networks of the same sites and method that it must not be averaged or compared with."""

    @property
    def sites(self) -> list[str]:
        """The site of each picture."""
        return [row["site"] or EVERYTHING for row in self.predictions.rows]

    @property
    def method(self) -> str:
        """What tables call its method: its name, with the nuisance where it tells it from others."""
        name, nuisance = self.model.method, f"nuisance {self.unlearnt}"
        if not self.unlearnt:
            return name
        return f"{name.removesuffix(')')}, {nuisance})" if name.endswith(")") else f"{name} ({nuisance})"

    @property
    def key(self) -> dict[str, Any]:
        """What tells it from other networks; folds count as seeds."""
        model = self.model
        seed: int | str = model.seed if model.fold is None else f"{model.seed}, fold {model.fold}"
        trained_on = ", ".join(("+".join(model.sites) or "–", *self.apart))
        return {"trained_on": trained_on, "method": self.method, "seed": seed}


def evaluate(command: of.Evaluate) -> None:
    """Score the predictions of one or more networks."""
    networks = read_networks(command)
    by_site = [row for network in networks for row in site_results(network)]
    by_group = [row for network in networks for row in group_results(network)]
    gaps = [row for network in networks for row in gap_results(network, command)]
    summary = {
        "site": seed_table(by_site, ("trained_on", "method", "site")),
        "group": seed_table(by_group, ("trained_on", "method", "group")),
        "gap": seed_table(gaps, ("trained_on", "method"), of="gap"),
    }
    compared = {
        "site": compare_seeds(by_site, command.baseline, ("trained_on", "site")),
        "group": compare_seeds(by_group, command.baseline, ("trained_on", "group")),
        "gap": compare_seeds(gaps, command.baseline, ("trained_on",), of="gap"),
    }
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    columns = ("trained_on", "method", "seed", "site", "group", "positives", "negatives", *MEASURES)
    write_csv(out / SCORES, columns, [[row.get(name) for name in columns] for row in (*by_site, *by_group)])
    heads = ("trained_on", "method", "site", "group", "measure", "mean", "std", "seeds")
    rows = [{**row, "measure": "gap" if kind == "gap" else "auc"} for kind, found in summary.items() for row in found]
    write_csv(out / TABLES, heads, [[row.get(name) for name in heads] for row in rows])
    content = {"sites": by_site, "groups": by_group, "gaps": gaps, "summary": summary, "comparisons": compared}
    write_atomic(out / METRICS, json.dumps({"baseline": command.baseline, **content}, indent=2) + "\n")
    count = len(networks)
    report = Report("Evaluation", f"{count} network{'s' * (count != 1)}", package=PACKAGE)
    evaluation_sections(report, networks, command)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    several = len({row["trained_on"] for row in by_site}) > 1

    def named(row: Mapping[str, Any]) -> str:
        return f"{row['method']:<12} seed {row['seed']}" + (f", trained on {row['trained_on']}" if several else "")

    for row in (*by_site, *by_group):
        place = f"{command.group_by} {row['group']}" if "group" in row else row["site"]
        print(f"{named(row)}  {place}: {auc_text(row)}")
    for row in gaps:
        if row["gap"] is not None:
            print(f"{named(row)}  gap {row['between']}: {row['gap']:+.3f}")
    for row in summary["site"]:
        print(f"{_over_seeds(row, several)}  {row['site']}: mean AUC {_mean_text(row) or '–'}")
    for row in summary["gap"]:
        print(f"{_over_seeds(row, several)}  mean gap {_mean_text(row) or '–'}")
    say(f"report: {out / 'report.html'}")


def _over_seeds(row: Mapping[str, Any], several: bool) -> str:
    """Whose mean a row of `seed_table` is, with the training sites where there are several."""
    seeds = f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}"
    return f"{row['method']:<12} {seeds}" + (f", trained on {row['trained_on']}" if several else "")


def _place(method: str) -> tuple[int, str]:
    order = ["none", "lr-control", *PAPER_NAMES]
    name = method.partition(" (")[0]
    return (order.index(name) if name in order else len(order), method)


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_networks(command: of.Evaluate) -> list[Network]:
    """The predictions that a command names, in the order of the methods.

    Raises:
        InputError: a folder without predictions, or without the groups.
        SettingError: none of them has the method that the others are to be compared with.
    """
    networks = [_read(folder, command) for folder in command.predictions]
    networks = sorted((_told_apart(network, networks) for network in networks), key=lambda n: _place(n.method))
    methods = dict.fromkeys(network.method for network in networks)
    if command.baseline not in methods and command.baseline != type(command).baseline:
        raise SettingError(f"--baseline is {command.baseline}", remedy=f"methods there: {', '.join(methods)}")
    return networks


def _told_apart(network: Network, networks: Sequence[Network]) -> Network:
    apart = []
    if len({other.model.encoder for other in networks}) > 1:
        apart.append(f"encoder {network.model.encoder}")
    if len({_pictures(other.model) for other in networks}) > 1:
        apart.append(_pictures(network.model))
    if network.weights != type(network).weights:
        apart.append(f"weights {network.weights}")
    if len({other.views for other in networks}) > 1:
        apart.append(f"{network.views} view{'s' * (network.views != 1)}")
    alike = {_nuisance(other.model) for other in networks if other.model.method == network.model.method}
    return dataclasses.replace(network, apart=tuple(apart), unlearnt=_nuisance(network.model) if len(alike) > 1 else "")


def _pictures(model: Model) -> str:
    """How a network wants its pictures."""
    return f"{model.image_size} pixels{' of the middle square' * model.square}"


def _nuisance(model: Model) -> str:
    """The columns that a network has unlearnt."""
    return "+".join(dict.fromkeys(model.heads))


def _read(folder: Path, command: of.Evaluate) -> Network:
    predictions = read_predictions(folder, PACKAGE)
    file = folder / METRICS
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model, weights = read_model(content["model"]), str(content.get("weights", Network.weights))
        views = int(content.get("views", Network.views))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"does not say which network made the predictions ({error})",
            where=file,
            remedy=f"run `{PACKAGE} predict` again",
        ) from error
    column = command.group_by
    if column not in predictions.columns and column == type(command).group_by:
        return Network(model, predictions, ("",) * len(predictions), weights, views)
    groups = tuple(group_of(cell, column, command.single_types) for cell in predictions.column(column))
    return Network(model, predictions, groups, weights, views)


def group_of(cell: str, column: str, single_types: bool) -> str:
    """The group of a picture: skin types in pairs, as in the paper, unless they are to stand alone."""
    cell = normalised(cell)
    if not cell:
        return UNKNOWN
    return PAIRS.get(cell, UNKNOWN) if column.startswith("fitzpatrick") and not single_types else cell


# --- Scores ----------------------------------------------------------------------------------------------------------


def _scores(network: Network, chosen: Sequence[bool]) -> dict[str, Any]:
    mask = np.array(chosen)
    return binary_scores(network.predictions.labels[mask], network.predictions.scores[mask])


def site_results(network: Network) -> list[dict[str, Any]]:
    """Scores on each data set, and on all of them where there are several."""
    sites = network.sites
    names = list(dict.fromkeys(sites))
    rows = [{**network.key, "site": name, **_scores(network, [site == name for site in sites])} for name in names]
    if len(names) > 1:
        rows.append({**network.key, "site": EVERYTHING, **_scores(network, [True] * len(sites))})
    return rows


def group_results(network: Network) -> list[dict[str, Any]]:
    """Scores of each group, over all data sets; none where the groups are unknown throughout."""
    names = [name for name in ordered(network.groups) if name]
    return [
        {**network.key, "group": name, **_scores(network, [group == name for group in network.groups])}
        for name in names
    ]


def gap_results(network: Network, command: of.Evaluate) -> list[dict[str, Any]]:
    """The gap between groups (specification 6): AUC on types 3 and 4 less that on 5 and 6; with other groups the largest AUC
    less the smallest. None where fewer than two of them have an AUC."""
    aucs = {row["group"]: row["auc"] for row in group_results(network) if row["group"] != UNKNOWN}
    defined = {name: auc for name, auc in aucs.items() if auc is not None}
    if not aucs:
        return []
    if command.group_by.startswith("fitzpatrick") and not command.single_types:
        first, last = "3&4", "5&6"
    else:
        first = max(defined, key=lambda name: defined[name], default="")
        last = min(defined, key=lambda name: defined[name], default="")
    known = len(defined) > 1 and first in defined and last in defined
    gap = defined[first] - defined[last] if known else None
    return [{**network.key, "between": f"{first} - {last}", "gap": gap}]


# --- The report ------------------------------------------------------------------------------------------------------


def evaluation_sections(report: Report, networks: Sequence[Network], command: of.Evaluate) -> None:
    """Add tables and pictures of an evaluation to a report."""
    by_site = [row for network in networks for row in site_results(network)]
    by_group = [row for network in networks for row in group_results(network)]
    gaps = [row for network in networks for row in gap_results(network, command)]
    report.section("Data sets")
    _pivot(report, by_site, "site", [], "AUC on each data set")
    _printed_beside(report, by_site)
    if by_group:
        report.section("Skin types" if command.group_by.startswith("fitzpatrick") else f"Groups of {command.group_by}")
        pairs = command.group_by.startswith("fitzpatrick") and not command.single_types
        of_types = "types 3 & 4 less types 5 & 6 (negative: darker skin fares better)"
        what = f"gap: {of_types if pairs else 'the largest less the smallest'}; the nearer to 0, the fairer"
        _pivot(report, by_group, "group", gaps, f"AUC on each group ({command.group_by}); {what}")
    _compared(report, by_site, by_group, gaps, command.baseline)
    report.section("Curves")
    _curves(report, networks)
    report.section("All scores")
    rows = [{"place": row.get("site") or f"{command.group_by} {row['group']}", **row} for row in (*by_site, *by_group)]
    names = {"method": "method", "seed": "seed", "trained_on": "trained on", "place": "scored on"}
    scores_section(report, rows, names, "Each network; classes at a score of 0.5")
    if any("fitzpatrick17k" in row["site"].lower() for row in by_site):
        report.section("Printed in the paper")
        _printed(report, "table1", "Table 1: trained on types 1 and 2 of Fitzpatrick17k")
        _printed(report, "table3", "Table 3: the same, LNTL with and without gradient reversal")


def _pivot(
    report: Report, rows: Sequence[Mapping[str, Any]], place: str, gaps: Sequence[Mapping[str, Any]], caption: str
) -> None:
    """A table with methods in rows and places in columns for each set of training sites."""
    for trained_on in dict.fromkeys(row["trained_on"] for row in rows):
        chosen = [row for row in rows if row["trained_on"] == trained_on]
        places = list(dict.fromkeys(row[place] for row in chosen))
        means = seed_table(chosen, ("method", place))
        of_gap = {
            r["method"]: r for r in seed_table([g for g in gaps if g["trained_on"] == trained_on], ("method",), "gap")
        }
        lines = []
        for method in dict.fromkeys(row["method"] for row in chosen):
            cells = {row[place]: row for row in means if row["method"] == method}
            ours = [row for row in chosen if row["method"] == method]
            texts = (_mean_text(cells.get(name), [row for row in ours if row[place] == name]) for name in places)
            line: list[str | int | None] = [method, *texts]
            if of_gap:
                line.append(_mean_text(of_gap.get(method)))
            lines.append([*line, max(row["seeds"] for row in cells.values())])
        heads = ("method", *(f"types {p}" if "&" in p else p for p in places), *(["gap"] * bool(of_gap)), "seeds")
        report.table(
            heads,
            lines,
            f"{caption}. Trained on {trained_on}; {_SPREAD}; a dash where a group has one class only, which gives no AUC",
        )


_SPREAD = (
    "mean ± sample standard deviation over seeds where there are several, else in brackets Hanley and McNeil's standard error "
    "of the one AUC"
)


def _mean_text(row: Mapping[str, Any] | None, results: Iterable[Mapping[str, Any]] = ()) -> str | None:
    """A row of `seed_table`; with the results behind it the standard error of an AUC that is the only one."""
    if row is None or row["mean"] is None:
        return None
    if row["std"] is not None:
        return f"{row['mean']:.3f} ± {row['std']:.3f}"
    error = next((result["auc_error"] for result in results if result["auc"] is not None), None)
    return f"{row['mean']:.3f}" if error is None else f"{row['mean']:.3f} ({error:.3f})"


def _compared(
    report: Report, by_site: Iterable[Mapping[str, Any]], by_group: Iterable[Mapping[str, Any]],
    gaps: Iterable[Mapping[str, Any]], baseline: str,
) -> None:  # fmt: skip
    """Every method against the baseline, over seeds."""
    found = [
        *({**row, "place": row["site"]} for row in compare_seeds(by_site, baseline, ("trained_on", "site"))),
        *({**row, "place": row["group"]} for row in compare_seeds(by_group, baseline, ("trained_on", "group"))),
        *({**row, "place": "gap"} for row in compare_seeds(gaps, baseline, ("trained_on",), of="gap")),
    ]
    if any(row["p_t"] is not None for row in found):
        report.table(
            ("trained on", "method", "scored on", f"difference to {baseline}", "p (t)", "p (Wilcoxon)", "pairs"),
            [
                [row[key] for key in ("trained_on", "method", "place", "difference", "p_t", "p_wilcoxon", "pairs")]
                for row in found
            ],
            f"Against {baseline}, over seeds: difference of the means; two-sided p of Student's t-test and of Wilcoxon's "
            "signed-rank test over seeds that both have, uncorrected",
        )


def _curves(report: Report, networks: Sequence[Network]) -> None:
    """ROC and calibration for each training and data set, a curve per method, by the first seed of each."""
    first: dict[tuple[str, str], Network] = {}
    for network in networks:
        first.setdefault((network.key["trained_on"], network.method), network)
    for trained_on in dict.fromkeys(key[0] for key in first):
        members = {method: network for (where, method), network in first.items() if where == trained_on}
        for site in dict.fromkeys(site for network in members.values() for site in network.sites):
            curves = {
                method: (network.predictions.labels[mask], network.predictions.scores[mask])
                for method, network in members.items()
                if (mask := np.array([name == site for name in network.sites])).any()
            }
            point = dermatologists(site)
            points = {"157 dermatologists": point} if point else None
            where = f"{site}, trained on {trained_on}; one network per method"
            report.picture(
                roc_figure(curves, points),
                f"ROC on {where}; AUC ± its standard error",
                f"ROC curves by method on {site}",
            )
            report.picture(
                calibration_figure(curves),
                f"How often a score comes true on {where}; on the diagonal as often as it says",
                f"calibration by method on {site}",
            )
        for method, network in members.items():
            if any(network.groups):
                title = f"ROC by group: {method}, trained on {trained_on}; AUC ± its standard error"
                report.picture(roc_figure(_by_group(network)), title, f"ROC curves by group, {method}")


def _by_group(network: Network) -> dict[str, tuple[Any, Any]]:
    curves = {}
    for name in ordered(network.groups):
        mask = np.array([group == name for group in network.groups])
        label = f"types {name}" if "&" in name else name
        curves[label] = (network.predictions.labels[mask], network.predictions.scores[mask])
    return curves


def _printed_beside(report: Report, by_site: Sequence[Mapping[str, Any]]) -> None:
    """Table 2 beside ours for each set of training sites, where the data sets are its own."""
    columns = {row["site"]: column for row in by_site if (column := published_set(row["site"]))}
    printed = {str(row["method"]): row for row in printed_table("table2")}
    heads = ["method"]
    for column in columns.values():
        heads += [f"{column}, here", "printed"]
    for trained_on in dict.fromkeys(row["trained_on"] for row in by_site if row["site"] in columns):
        ours = [row for row in by_site if row["trained_on"] == trained_on and row["site"] in columns]
        means = {(row["method"], row["site"]): row for row in seed_table(ours, ("method", "site"))}
        rows: list[list[str | float | None]] = []
        for method in dict.fromkeys(row["method"] for row in ours):
            # What departs from the defaults stands behind the name; the paper's own settings do.
            base, bracket, departures = method.partition(" (")
            name = PAPER_NAMES.get(base, base)
            line: list[str | float | None] = [name + bracket + departures]
            for site, column in columns.items():
                results = [row for row in ours if (row["method"], row["site"]) == (method, site)]
                line.append(_mean_text(means.get((method, site)), results))
                line.append(printed.get(name, {}).get(f"{column} AUC"))
            rows.append(line)
        people = printed["Dermatologists"]
        rows.append(
            ["Dermatologists", *(cell for column in columns.values() for cell in (None, people[f"{column} AUC"]))]
        )
        report.table(
            heads,
            rows,
            f"Table 2 of the paper beside this evaluation: AUC. Trained on {trained_on}; {_SPREAD}. The dermatologists' numbers "
            "are (sensitivity + specificity) / 2 of one operating point, no areas; the curves below show the point",
        )


def _printed(report: Report, name: str, caption: str) -> None:
    rows = printed_table(name)
    report.table(
        list(rows[0]), [list(row.values()) for row in rows], f"{caption} (Bevan & Atapour-Abarghouei 2022): AUC"
    )
