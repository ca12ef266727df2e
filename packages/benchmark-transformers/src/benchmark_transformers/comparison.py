"""The command `compare`: the paper's Tables 1 and 2 and Fig. 1 from finished runs, beside the printed numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark_transformers import settings as of
from benchmark_transformers.evaluation import Scored, check_names, read_scored, score_sections
from benchmark_transformers.figures import Bar, initialisation_figure
from benchmark_transformers.initialisations import INITIALISATIONS, Initialisation
from benchmark_transformers.networks import PACKAGE
from benchmark_transformers.tables import (
    DATASETS,
    LEVEL,
    PRINTED_TABLES,
    Verdict,
    in_percent,
    mean_and_spread,
    printed_columns,
    printed_table,
    printed_verdicts,
    row_name,
    verdicts,
)
from dart_core.cli import say
from dart_core.errors import InputError
from dart_core.files import atomic_write, write_atomic, write_csv
from dart_core.report import Report
from dart_core.run import METRICS, claim_folder, flat_settings

FIGURE = "figure1.png"
SIZE = 224
"""Of the paper's pictures."""
AS_CODED = " (schedule as coded)"
"""Behind the name of a row that repeats the authors' program as it ran, which the intended schedule is compared with."""
_OF_A_TRIAL = ("seed", "epoch", "validation_loss")
"""What the trials of one fine-tuning differ in."""
TITLES = {
    "table1": "Table 1: ways to pre-train",
    "table2": "Table 2: domains of the pre-training",
    "all": "All networks",
}


def compare(command: of.Compare) -> None:
    """Build tables and figure; write them as CSV, PNG and report.html."""
    scored = [read_scored(folder, command.test_labels) for folder in command.predictions]
    check_names(scored)
    tables = {table: members_of(table, scored) for table in ("table1", "table2", "all")}
    out = command.output.out
    claim_folder(out, flat_settings(command), overwrite=command.output.overwrite)
    report = Report("Comparison of initialisations", f"{len(scored)} fine-tunings", package=PACKAGE)
    content: dict[str, Any] = {}
    for table, members in tables.items():
        if members:
            report.section(TITLES[table])
            content[table] = _measured(report, table, members, out)
    panels = panels_of(scored)
    if panels:
        figure = initialisation_figure(panels)
        with atomic_write(out / FIGURE) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
        report.section("Figure 1")
        report.picture(
            figure,
            "Pre-trained models (bars with standard deviation; convolutional networks first) and training from scratch (lines). "
            f"A star above the best transformer: it differs from the best convolutional network (p < {LEVEL:g}); a box: it "
            "does not",
            "bar charts of the initialisations, one for each data set",
        )
    for table in PRINTED_TABLES:
        content[f"{table}_printed"] = _printed(report, table, command.spread)
    if scored:
        score_sections(report, scored)
    report.section("Settings")
    report.settings(command)
    report.write(out / "report.html")
    write_atomic(out / METRICS, json.dumps(content, indent=2) + "\n")
    say(f"tables: {out}   report: {out / 'report.html'}")


def initialisation_of(one: Scored) -> Initialisation | None:
    """The row of the comparison; None: the user's own weights."""
    return next((row for row in INITIALISATIONS if row.key == one.model["initialisation"]), None)


def paper_row(one: Scored, table: str) -> str | None:
    """The row of a printed table that a fine-tuning repeats, its test too.

    Network, size of the pictures, all annotations and SGD with Nesterov as there (models that do not say their optimiser are from
    before that was written down, and count), and the ten crops of the test pictures of the data set of the training.
    """
    row, model = initialisation_of(one), one.model
    repeats = not model["options"] and model["image_size"] == SIZE and float(model["fraction"]) == 100
    repeats = repeats and (model.get("optimizer") or "sgd") == "sgd"
    if row is None or not repeats or (one.site, one.split, one.crops) != (model["dataset"], "test", 10):
        return None
    found = row.table1 if table == "table1" else row.table2
    return found if found is None or isinstance(found, str) else " ".join(found)


def members_of(table: str, scored: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Row -> its fine-tunings, one for each data set, of a table; weights of one's own go into Table 2 too, which is about domains.

    Raises:
        InputError: two fine-tunings on a data set repeat one printed row, of which one would be lost.
    """
    rows: dict[str, list[Scored]] = {}
    for one in scored:
        name: str | None = f"{one.name} ({one.model['backbone']})"
        if table == "table1" or (table == "table2" and initialisation_of(one) is not None):
            name = paper_row(one, table)
            name = name and name + AS_CODED * (one.model["schedule"] == "as_coded")
        if name is None:
            continue
        for other in rows.setdefault(name, []):
            if other.dataset == one.dataset:
                raise InputError(
                    f"{one.name} and {other.name} ({other.folder}) both repeat the row {name} on {one.dataset}; they differ in "
                    f"{_difference(one, other)}",
                    where=one.folder, remedy="give one of them",
                )  # fmt: skip
        rows[name].append(one)
    repeats = any(paper_row(one, table) for ones in rows.values() for one in ones)
    return rows if table == "all" or repeats else {}


def _difference(one: Scored, other: Scored) -> str:
    """What tells two fine-tunings apart, in words."""
    keys = [k for k in one.model if k not in _OF_A_TRIAL and one.model[k] != other.model.get(k)]
    return ", ".join(f"{key} ({one.model[key]}, {other.model.get(key)})" for key in keys)


def _measured(report: Report, table: str, members: Mapping[str, list[Scored]], out: Any) -> dict[str, Any]:
    """Add a table of what was measured; write it as CSV."""
    datasets = list(dict.fromkeys(one.dataset for ones in members.values() for one in ones))
    datasets.sort(key=lambda name: list(DATASETS).index(name) if name in DATASETS else len(DATASETS))
    values = {
        dataset: {name: one.values() for name, ones in members.items() for one in ones if one.dataset == dataset}
        for dataset in datasets
    }
    tests = verdicts(values)
    equal = {(test.dataset, test.name) for test in tests if test.equal and test.p == test.p}
    best = {test.dataset: test.best for test in tests}
    rows = []
    for name in members:
        cells = []
        for dataset in datasets:
            text = in_percent(values[dataset].get(name, []))
            text += " (best)" if best.get(dataset) == name else " [=]" if (dataset, name) in equal else ""
            cells.append(text)
        rows.append((name, *cells))
    report.table(
        ("initialisation", *(DATASETS.get(dataset, dataset) for dataset in datasets)), rows,
        "Measured here, in percent: mean and population standard deviation over the trials. [=]: no difference to the best of "
        f"the column (two-sided t-test with equal variances, p not below {LEVEL:g})",
    )  # fmt: skip
    _tests(report, tests, "Tests against the best of each data set")
    _beside(report, table, values)
    columns = ["initialisation"]
    columns += [
        f"{dataset}_{key}" for dataset in datasets for key in ("mean", "std_population", "std_sample", "trials")
    ]
    lines = []
    for name in members:
        line: list[Any] = [name]
        for dataset in datasets:
            runs = values[dataset].get(name, [])
            line += [*mean_and_spread(runs).values(), len(runs)]
        lines.append(line)
    write_csv(out / f"{table}.csv", columns, lines)
    return {
        "values": values,
        "tests": [
            {"dataset": t.dataset, "name": t.name, "best": t.best, "p": None if t.p != t.p else t.p} for t in tests
        ],
    }


def _tests(report: Report, tests: Sequence[Verdict], caption: str) -> None:
    report.table(
        ("data set", "initialisation", "best", "p", "verdict"),
        [(DATASETS.get(t.dataset, t.dataset), t.name, t.best, t.p, _verdict(t)) for t in tests],
        f"{caption}. A dash: fewer than two trials, or no spread at all",
    )


def _verdict(test: Verdict) -> str:
    if test.p != test.p:
        return "no test"
    return "no difference shown" if test.equal else "differs"


def _beside(report: Report, table: str, values: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Measured and printed numbers of the same rows."""
    if table not in PRINTED_TABLES:
        return
    printed = {row_name(row): row for row in printed_table(table)}
    rows = []
    for dataset, column in values.items():
        title = DATASETS.get(dataset, "")
        for name, runs in column.items():
            row = printed.get(name.removesuffix(AS_CODED), {})
            if f"{title}_mean" in row:
                text = f"{float(row[f'{title}_mean']):.2f} ± {float(row[f'{title}_std']):.2f}"
                rows.append((name, title, in_percent(runs), len(runs), text))
    if rows:
        report.table(
            ("initialisation", "data set", "here", "trials", "printed"),
            rows,
            "Here and in the paper (ten trials), percent",
        )


def _printed(report: Report, table: str, spread: Any) -> list[dict[str, Any]]:
    """Add a table as printed, with the tests that its numbers allow."""
    report.section(f"Printed {table.replace('table', 'Table ')}")
    tests = printed_verdicts(table, spread)
    equal = {(test.dataset, test.name) for test in tests if test.equal}
    best = {test.dataset: test.best for test in tests}
    columns = printed_columns(table)
    rows = []
    for row in printed_table(table):
        name, cells = row_name(row), []
        for dataset in columns:
            text = f"{float(row[f'{dataset}_mean']):.2f} ± {float(row[f'{dataset}_std']):.2f}"
            text += " (best)" if best[dataset] == name else " [=]" if (dataset, name) in equal else ""
            cells.append(text)
        rows.append((name, *cells))
    report.table(
        ("initialisation", *columns), rows,
        f"As printed, not measured here, in percent. [=]: not different from the best (ten runs each, the printed deviations "
        f"read as {spread} ones, p not below {LEVEL:g})",
    )  # fmt: skip
    return [{"dataset": t.dataset, "name": t.name, "best": t.best, "p": t.p} for t in tests]


def panels_of(scored: Sequence[Scored]) -> dict[str, list[Bar]]:
    """What Fig. 1 shows; networks with a fraction of the annotations are left out."""
    panels: dict[str, list[Bar]] = {}
    for one in scored:
        row = initialisation_of(one)
        if one.values() and float(one.model["fraction"]) == 100:
            scratch = row is not None and not row.pretrained
            bar = Bar(one.name, str(one.model["backbone"]), scratch, tuple(one.values()))
            panels.setdefault(DATASETS.get(one.dataset, one.dataset), []).append(bar)
    return {title: bars for title, bars in panels.items() if any(not bar.scratch for bar in bars)}
