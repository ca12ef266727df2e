"""The paper's tables: as printed, and how their numbers are found from scores (specification 6 and 7)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from dart_core.errors import SettingError
from dart_core.report import mean_and_spread

PRINTED_TABLES = ("table1", "table2", "table3")
PAPER_NAMES = {
    "vanilla": "Vanilla",
    "macenko": "Macenko",
    "vahadane": "Vahadane",
    "stst-gan": "STST GAN",
    "dscsi-gan": "DSCSI GAN",
    "hed": "HED-Light Aug",
    "hed-reg": "HED-Light Aug + L_Reg",
    "hed-cons": "HED-Light Aug + L_Cons",
    "stain-aglr": "HED-Light Aug + L_Reg + L_Cons (Stain-AgLr)",
}
"""Methods as the paper's tables call them (Macenko is in its Fig. 4 only)."""
PRINTED_SITES = {
    "table1": ("RUMC", {name: name for name in ("CWZ", "RST", "UMCU", "LPON")}),
    "table2": ("centre1", {"centre2": "Center2", "centre3": "Center3"}),
}
"""Training laboratory of a table, and its test laboratories: as datalists name them, and as the table's columns do."""


OF_THE_PAPER = {"table1": ("gan weights ",), "table2": ("gan weights ", "balanced")}
"""Options in a network's name (see `Model.name`) that are the paper's own there, though no defaults."""


def printed_table(name: str) -> list[dict[str, str | float]]:
    """One of the paper's tables as printed, not measured here.

    Args:
        name: "table1" (Camelyon17, AUC of each centre), "table2" (TUPAC, AUC and seconds for 100 patches), "table3" (layers).

    Returns:
        A dict for each row; columns of numbers are floats.

    Raises:
        ValueError: no such table.
    """
    if name not in PRINTED_TABLES:
        raise SettingError(f"no printed table {name!r}", remedy=f"give one of {', '.join(PRINTED_TABLES)}")
    text = resources.files("stain_aglr").joinpath("tables", f"{name}.csv").read_text(encoding="utf-8")
    return [{key: _number_or_text(value) for key, value in row.items()} for row in csv.DictReader(text.splitlines())]


def _number_or_text(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value


def printed_rows(name: str) -> tuple[list[str], list[list[str]]]:
    """Table 1 or 2 ready to show: columns, and rows with mean ± std in one cell; the patch counts are left out."""
    rows = [row for row in printed_table(name) if not str(row["method"]).startswith("#")]
    centres = [key.removesuffix("_auc_mean") for key in rows[0] if key.endswith("_auc_mean")]
    last = {"MEAN_auc": "MEAN", "time_seconds_per_100_patches": "s / 100 patches"}
    rest = [key for key in last if key in rows[0]]
    shown = [
        [
            str(row["method"]),
            *(mean_and_spread(float(row[f"{c}_auc_mean"]), float(row[f"{c}_auc_std"])) for c in centres),
            *(f"{row[key]:.4f}" if key == "MEAN_auc" else f"{row[key]:.2f}" for key in rest),
        ]
        for row in rows
    ]
    return ["method", *centres, *(last[key] for key in rest)], shown


def mean_over_sites(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """MEAN of Table 1 for each network: the unweighted mean of the laboratories' AUCs.

    Args:
        results: one per network and laboratory with "trained_on" (the training laboratory), "method", "seed", "site" and "auc"
            (None = undefined).

    Returns:
        One per network, "auc" None where a laboratory's is: a mean over fewer laboratories could not be compared.
    """
    networks: dict[tuple[str, str, Any], list[float | None]] = {}
    for result in results:
        networks.setdefault((result["trained_on"], result["method"], result["seed"]), []).append(result["auc"])
    rows = []
    for (trained_on, method, seed), values in networks.items():
        defined = [value for value in values if value is not None]
        mean = float(np.mean(defined)) if defined and len(defined) == len(values) else None
        rows.append({"trained_on": trained_on, "method": method, "seed": seed, "auc": mean})
    return rows


def beside_printed(
    trained_on: str, per_site: Sequence[Mapping[str, Any]], overall: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, str, str]]:
    """Numbers that were measured here and printed in the paper, for networks of one training laboratory.

    Args:
        trained_on: that laboratory.
        per_site: "method", "group" (the test laboratory), "unseen", "mean" and "std" over seeds.
        overall: "method", "mean" and "std" of the mean over the unseen laboratories.

    Returns:
        (method, laboratory or MEAN, here, printed); MEAN only where it is over the laboratories of the table.
    """
    name = next((name for name, (site, _) in PRINTED_SITES.items() if site == trained_on), None)
    if name is None:
        return []
    printed, columns = {row["method"]: row for row in printed_table(name)}, PRINTED_SITES[name][1]
    rows = []
    for mean in overall:
        method, of_paper = mean["method"], printed.get(_paper_name(mean["method"], name))
        if of_paper is None:
            continue
        found = {row["group"]: row for row in per_site if row["method"] == method}
        for site, column in columns.items():
            if site in found:
                pair = float(of_paper[f"{column}_auc_mean"]), float(of_paper[f"{column}_auc_std"])
                rows.append((method, site, _of(found[site]), mean_and_spread(*pair)))
        unseen = {site for site, row in found.items() if row["unseen"]}
        if unseen == columns.keys() and "MEAN_auc" in of_paper:
            rows.append((method, "MEAN", _of(mean), mean_and_spread(float(of_paper["MEAN_auc"]), None)))
    return rows


def _paper_name(method: str, table: str) -> str:
    """What a table calls a network; empty where the network has options that the paper's has not."""
    plain, _, options = method.partition(" (")
    other = [o for o in options.removesuffix(")").split(", ") if o and not o.startswith(OF_THE_PAPER[table])]
    return "" if other else PAPER_NAMES.get(plain, "")


def _of(row: Mapping[str, Any]) -> str:
    return mean_and_spread(row["mean"], row["std"])
