"""What the papers' tables have in common: the printed numbers, the runs, the statistics, and the words.

Each table is one file, `tables/<package>/<table>.py`, that defines TABLE. Its numbers as printed lie in `papers/`.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dart_core.errors import InputError, SettingError
from dart_core.experiment import Job, Outcome, data_looked_at_once
from dart_core.files import write_atomic
from dart_core.metrics import two_sample_t_test, wilcoxon_signed_rank
from dart_core.report import Report

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
Row = tuple[str, ...]
ScaleName = Literal["paper", "small", "smoke"]
Test = Literal["paired t", "Student", "Wilcoxon", "Wilcoxon over cases", "one-sided Wilcoxon over cases"]
"""Over repetitions, but for those over cases; one-sided: that the claim holds."""
ALPHA = 0.05


# --- Scale -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """How big: as in the paper, small on real data, or just all of it once on phantoms."""

    name: ScaleName
    work: Path
    """Folder for data that a table writes (phantoms, converted sets)."""
    data: Path | None = None
    """Folder of the data: the paper's own, each as its owners publish it, or the small real sets (DART_DATA)."""
    repetitions: int | None = None
    """In place of the table's own number of seeds or folds."""

    def pick(self, *, paper: Any, small: Any, smoke: Any) -> Any:
        """The value for this scale."""
        return {"paper": paper, "small": small, "smoke": smoke}[self.name]

    def seeds(self, paper: Sequence[int], small: int = 3) -> tuple[int, ...]:
        """Seeds: the paper's, or fewer; one for smoke."""
        found = tuple(paper) if self.name == "paper" else tuple(range(small if self.name == "small" else 1))
        if self.repetitions is None:
            return found
        return tuple(found[i] if i < len(found) else i for i in range(self.repetitions))

    def set(self, name: str) -> Path:
        """Folder of a data set.

        Raises:
            InputError: it is not there.
        """
        where = self.data / name if self.data else None
        if where is None or not where.exists():
            raise InputError("the data set is not there", where=where or name, remedy="give --data-root")
        return where


def config(package: str, name: str) -> Path:
    """The settings of a table's row, as the package ships them."""
    return ROOT / "packages" / package / "configs" / f"{name}.yaml"


# --- A table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A number of the table: its place, and the runs that it comes from."""

    row: Row
    column: str
    runs: Sequence[Sequence[Job]]
    """One entry per repetition (seed, fold); its value is the mean over the jobs in it (such as pairs of sites)."""
    read: Callable[[Path], float]
    """The value in a job's folder."""
    read_cases: Callable[[Path], Mapping[str, float]] | None = None
    """Case -> value in a job's folder, where the table's test is over cases."""


@dataclass(frozen=True)
class Claim:
    """That the paper finds one row above another."""

    better: Row
    other: Row
    columns: tuple[str, ...] = ()
    """Which; none: all that both have a number in."""


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Args:
        package: such as "mmtl-octl".
        name: such as "table2".
        title: what the numbers are.
        keys: columns of the printed table that name a row.
        columns: those that hold numbers (`<column>_mean` and `<column>_std`, or `<column>`).
        cells: all cells that are run at a scale.
        claims: what the paper concludes from it.
        scales: what is different from the paper, for small and smoke.
        hours: GPU hours of one run of each verb at the paper's scale.
        hours_from: what that estimate rests on.
        factor: what our numbers are multiplied by (100 where the paper prints per cent).
        higher_is_better: False for distances.
        test: which compares two rows.
        comparisons: what p is multiplied by (Bonferroni).
        paper_spread: what the printed ± is, where it is not a sample's standard deviation over the same as ours.
        not_run: rows that are not run, and why.
    """

    package: str
    name: str
    title: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Callable[[Scale], Iterable[Cell]]
    claims: tuple[Claim, ...]
    scales: Mapping[ScaleName, str]
    hours: Mapping[str, float]
    hours_from: str
    factor: float = 1.0
    higher_is_better: bool = True
    test: Test = "paired t"
    comparisons: int = 1
    paper_spread: str = ""
    not_run: Mapping[Row, str] = field(default_factory=dict)

    @property
    def over_cases(self) -> bool:
        """Whether spread, n and test are over cases."""
        return self.test.endswith("over cases")

    @cached_property
    def printed(self) -> dict[Row, dict[str, tuple[float, float | None]]]:
        """Row -> column -> mean and standard deviation (None where none is printed)."""
        found: dict[Row, dict[str, tuple[float, float | None]]] = {}
        with (HERE / "papers" / f"{self.package}_{self.name}.csv").open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                values = {}
                for column in self.columns:
                    mean = line.get(f"{column}_mean", line.get(column, ""))
                    if mean:
                        std = line.get(f"{column}_std")
                        values[column] = (float(mean), float(std) if std else None)
                found[tuple(line[key] for key in self.keys)] = values
        return found


def json_value(*keys: str | int, file: str = "metrics.json") -> Callable[[Path], float]:
    """Reads a number out of a JSON file of a run."""

    def read(folder: Path) -> float:
        value: Any = json.loads((folder / file).read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
        return float("nan") if value is None else float(value)

    return read


def csv_mean(file: str, column: str, **where: str) -> Callable[[Path], float]:
    """Reads the mean of a column of a CSV file of a run, over the rows whose other columns have the given values."""

    def read(folder: Path) -> float:
        with (folder / file).open(newline="", encoding="utf-8") as opened:
            rows = [row for row in csv.DictReader(opened) if all(row[key] == value for key, value in where.items())]
        values = [float(row[column]) for row in rows if row[column] not in ("", "nan")]
        return statistics.fmean(values) if values else float("nan")

    return read


def csv_cases(file: str, case: str, column: str, **where: str) -> Callable[[Path], dict[str, float]]:
    """Like `csv_mean`, for each case: the mean of its rows, such as two phases of a heart; cases without a number are left out."""

    def read(folder: Path) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        with (folder / file).open(newline="", encoding="utf-8") as opened:
            for row in csv.DictReader(opened):
                if all(row[key] == value for key, value in where.items()) and row[column] not in ("", "nan"):
                    found.setdefault(row[case], []).append(float(row[column]))
        return {name: statistics.fmean(values) for name, values in found.items()}

    return read


def known_tables() -> dict[tuple[str, str], Path]:
    """(package, table) -> its file."""
    return {(path.parent.name, path.stem): path for path in sorted((HERE / "tables").glob("*/*.py"))}


def load(package: str, name: str) -> Table:
    """The table.

    Raises:
        SettingError: there is none of that name.
    """
    known = known_tables()
    if (package, name) not in known:
        own = [table for owner, table in known if owner == package]
        packages = sorted({owner for owner, _ in known})
        remedy = f"{package} has {', '.join(own)}" if own else f"packages with tables: {', '.join(packages)}"
        raise SettingError(f"there is no {name or 'table'} of {package}", remedy=remedy)
    spec = importlib.util.spec_from_file_location(f"{package}_{name}".replace("-", "_"), known[package, name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table = module.TABLE
    assert isinstance(table, Table)
    return table


# --- Cost ------------------------------------------------------------------------------------------------------------


def with_needs(jobs: Iterable[Job]) -> list[Job]:
    """The jobs and all that they need, each once."""
    found: dict[Job, None] = {}
    waiting = list(jobs)
    while waiting:
        job = waiting.pop()
        if job not in found:
            found[job] = None
            waiting += job.needs
    return list(found)


def gpu_hours(table: Table, jobs: Iterable[Job], experiment: Path) -> tuple[float, int]:
    """Estimated hours of the jobs that are not done yet, and how many those are."""
    with data_looked_at_once(experiment):
        left = [job for job in jobs if not (experiment / "runs" / job.address / "done.json").is_file()]
    return sum(table.hours.get(str(job.words[0]), 0.0) for job in left), len(left)


# --- Our numbers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """One of ours."""

    values: tuple[float, ...]
    """Of the repetitions; in the paper's unit."""
    cases: Mapping[str, float] = field(default_factory=dict)
    """Case -> mean over repetitions, where the table's test is over cases."""

    @property
    def n(self) -> int:
        """Cases, or repetitions."""
        return len(self.cases or self.values)

    @property
    def mean(self) -> float:
        """Over repetitions."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over cases, or repetitions; None of one."""
        return statistics.stdev(self.cases.values() or self.values) if self.n > 1 else None


def our_numbers(
    table: Table, cells: Iterable[Cell], outcomes: Mapping[Job, Outcome]
) -> tuple[dict[Row, dict[str, Number]], dict[tuple[Row, str], str]]:
    """Row -> column -> number, and why the other cells have none."""
    found: dict[Row, dict[str, Number]] = {}
    missing: dict[tuple[Row, str], str] = {}
    for cell in cells:
        values = []
        failed = next((job for jobs in cell.runs for job in jobs if outcomes[job].state != "done"), None)
        if failed is not None:
            missing[cell.row, cell.column] = f"{failed} {outcomes[failed].state}"
            continue
        for jobs in cell.runs:
            values.append(table.factor * statistics.fmean(cell.read(outcomes[job].out) for job in jobs))
        if all(map(math.isfinite, values)):
            folders = [outcomes[job].out for jobs in cell.runs for job in jobs]
            found.setdefault(cell.row, {})[cell.column] = Number(tuple(values), _cases(table, cell, folders))
        else:
            missing[cell.row, cell.column] = "not a number"
    return found, missing


def _cases(table: Table, cell: Cell, folders: Iterable[Path]) -> dict[str, float]:
    if cell.read_cases is None or not table.over_cases:
        return {}
    found: dict[str, list[float]] = {}
    for folder in folders:
        for case, value in cell.read_cases(folder).items():
            found.setdefault(case, []).append(table.factor * value)
    return {case: statistics.fmean(values) for case, values in found.items()}


# --- Comparison with the paper ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """How a claim fares in one column."""

    better: Row
    other: Row
    column: str
    paper: float
    ours: float
    n: int
    p: float | None
    """None where there are too few repetitions for a test."""

    @property
    def agrees(self) -> bool:
        """Whether the sign is the paper's."""
        return self.paper * self.ours > 0

    @property
    def words(self) -> str:
        """For people."""
        if self.ours == 0:
            return "no difference"
        text = "agrees" if self.agrees else "the other way round"
        if self.p is None:
            return f"{text} (no test)"
        return f"{text}, p < .05" if self.p < ALPHA else f"{text}, not significant"


def verdicts(table: Table, ours: Mapping[Row, Mapping[str, Number]]) -> list[Verdict]:
    """Every claim in every column that both the paper and we have numbers in."""
    found = []
    for claim in table.claims:
        for column in claim.columns or table.columns:
            printed = [table.printed.get(row, {}).get(column) for row in (claim.better, claim.other)]
            pair = [ours.get(row, {}).get(column) for row in (claim.better, claim.other)]
            if printed[0] is None or printed[1] is None or pair[0] is None or pair[1] is None:
                continue
            if printed[0][0] == printed[1][0]:
                continue  # a tie claims nothing that could hold or not
            paper = printed[0][0] - printed[1][0]
            n, p = _tested(table, pair[0], pair[1], "greater" if paper > 0 else "less")
            found.append(Verdict(claim.better, claim.other, column, paper, pair[0].mean - pair[1].mean, n, p))
    return found


def _tested(table: Table, a: Number, b: Number, claimed: Literal["greater", "less"]) -> tuple[int, float | None]:
    """Pairs (repetitions, cases that both have) and p, None where there can be none."""
    if table.over_cases:
        shared = sorted(a.cases.keys() & b.cases.keys())
        if len(shared) < 2:
            return len(shared) or len(a.values), None
        alternative = claimed if table.test.startswith("one-sided") else "two-sided"
        p = wilcoxon_signed_rank([a.cases[case] for case in shared], [b.cases[case] for case in shared], alternative)[1]
        return len(shared), min(1.0, p * table.comparisons)
    p_of_runs = _p_value(table.test, a.values, b.values)
    return len(a.values), None if p_of_runs is None else min(1.0, p_of_runs * table.comparisons)


def _p_value(test: Test, a: Sequence[float], b: Sequence[float]) -> float | None:
    if min(len(a), len(b)) < 2:
        return None
    if test == "Student":
        return two_sample_t_test(a, b, equal_variances=True)[1]
    if len(a) != len(b):
        return None
    if test == "Wilcoxon":
        return wilcoxon_signed_rank(a, b)[1]
    from scipy import stats

    if len({x - y for x, y in zip(a, b, strict=True)}) == 1:
        return None  # no spread of differences: the test says nothing
    return float(stats.ttest_rel(a, b).pvalue)


def in_words(table: Table, ours: Mapping[Row, Mapping[str, Number]], found: Sequence[Verdict]) -> list[str]:
    """What agrees and what does not, a sentence for each claim and one for all."""
    if not found:
        return ["Nothing can be compared: no claim of the table has numbers of ours on both sides."]
    agree = sum(verdict.agrees for verdict in found)
    tested = [verdict for verdict in found if verdict.p is not None]
    if tested:
        sure = [verdict.agrees for verdict in tested if verdict.p is not None and verdict.p < ALPHA]
        text = (
            f"{agree} of {len(found)} differences have the paper's sign, {sum(sure)} of them with p < .05 ({test_of(table)}); "
            f"{len(found) - agree} without it, {len(sure) - sum(sure)} of them with p < .05."
        )
        if len(tested) < len(found):
            text += f" {len(found) - len(tested)} could not be tested."
    else:
        why = ", with one repetition" if all(verdict.n == 1 for verdict in found) else ""
        text = f"{agree} of {len(found)} differences have the paper's sign, {len(found) - agree} without it; no test was possible{why}."
    sentences = [text]
    for claim in table.claims:
        own = [verdict for verdict in found if (verdict.better, verdict.other) == (claim.better, claim.other)]
        if not own:
            continue
        signs = {table.higher_is_better == (verdict.paper > 0) for verdict in own}
        words = ("above", "below") if table.higher_is_better else ("better", "worse")
        yes, no = ([verdict.column for verdict in own if verdict.agrees == kind] for kind in (True, False))
        text = f"{name_of(claim.better)} against {name_of(claim.other)}: "
        if not no:
            text += f"as in the paper in {'all ' if len(yes) > 1 else ''}{len(yes)} column{'s' * (len(yes) > 1)}."
        elif not yes:
            paper = (
                f"the paper has it {words[True not in signs]}; here it is not, in"
                if len(signs) == 1
                else "the other way round in"
            )
            text += f"{paper} {', '.join(no)}."
        else:
            text += f"as in the paper in {', '.join(yes)}; not in {', '.join(no)}."
        sentences.append(text)
    near = [
        abs(number.mean - mean) <= 2 * std
        for row, columns in ours.items()
        for column, number in columns.items()
        for mean, std in [table.printed.get(row, {}).get(column, (0.0, None))]
        if std
    ]
    if near:
        sentences.append(f"{sum(near)} of {len(near)} means lie within two of the paper's standard deviations.")
    return sentences


def test_of(table: Table) -> str:
    """Name of the test."""
    return table.test + (f", p times {table.comparisons} (Bonferroni)" if table.comparisons > 1 else "")


def name_of(row: Row) -> str:
    """A row's name for people."""
    return ", ".join(part for part in row if part)


# --- Output ----------------------------------------------------------------------------------------------------------


def write(
    table: Table,
    scale: Scale,
    ours: Mapping[Row, Mapping[str, Number]],
    missing: Mapping[tuple[Row, str], str],
    folder: Path,
) -> str:
    """Write Markdown, CSV and HTML, and give back the Markdown."""
    found = [] if scale.name == "smoke" else verdicts(table, ours)
    sentences = ["Every run worked, or is named below. Such small numbers say nothing about the methods."]
    if scale.name != "smoke":
        sentences = in_words(table, ours, found)
    rows = list(dict.fromkeys([*table.printed, *ours]))
    head = [*table.keys, *table.columns]
    body = [[*row, *(_cell_text(table, ours, row, column) for column in table.columns)] for row in rows]
    reasons = [f"{name_of(row)}: not run: {why}" for row, why in table.not_run.items()]
    reasons += [f"{name_of(row)}, {column}: {why}" for (row, column), why in missing.items()]
    compared = [
        [
            name_of(v.better),
            name_of(v.other),
            v.column,
            f"{v.paper:+.4g}",
            f"{v.ours:+.4g}",
            str(v.n),
            "" if v.p is None else f"{v.p:.2g}",
            v.words,
        ]
        for v in found
    ]
    against = ["row", "against", "column", "paper's difference", "ours", "n", "p", "verdict"]
    title = f"{table.package}, {table.name}: {table.title}"
    about = f"Scale: {scale.name}. {table.scales.get(scale.name, '')}".strip()
    over = "test cases (repetitions in columns without any)" if table.over_cases else "repetitions"
    legend = f"Paper → ours; our ± is the standard deviation of a sample (divisor n - 1) over {over}, n their number."
    legend += f" The paper's ± is {table.paper_spread}." if table.paper_spread else ""
    blocks = [f"# {title}", about, legend, _markdown(head, body), "\n".join(f"- {s}" for s in sentences)]
    blocks += [_markdown(against, compared)] if compared else []
    blocks += ["\n".join(f"- {reason}" for reason in reasons)] if reasons else []
    text = "\n\n".join(blocks) + "\n"

    stem = f"{table.package}-{table.name}-{scale.name}"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{stem}.md", text)
    write_atomic(folder / f"{stem}.csv", "".join(_csv_lines(table, ours, rows)))
    report = Report(title, about)
    report.text("\n\n".join([legend, *sentences]))
    report.section("Numbers")
    report.table(head, body)
    if compared:
        report.section("Claims of the paper")
        report.table(against, compared)
    if reasons:
        report.section("Cells without a number")
        report.text("\n\n".join(reasons))
    report.write(folder / f"{stem}.html")
    return text


def _cell_text(table: Table, ours: Mapping[Row, Mapping[str, Number]], row: Row, column: str) -> str:
    printed, number = table.printed.get(row, {}).get(column), ours.get(row, {}).get(column)
    left = "–" if printed is None else f"{printed[0]:g}" + (f" ± {printed[1]:g}" if printed[1] is not None else "")
    if number is None:
        return f"{left} → –" if printed is not None else ""
    spread = f" ± {number.std:.2g}" if number.std is not None else ""
    return f"{left} → {number.mean:.4g}{spread} (n {number.n})"


def _csv_lines(table: Table, ours: Mapping[Row, Mapping[str, Number]], rows: Iterable[Row]) -> Iterator[str]:
    buffer = io.StringIO()
    lines = csv.writer(buffer, lineterminator="\n")
    lines.writerow([*table.keys, "column", "paper_mean", "paper_std", "mean", "std", "n", "values"])
    for row in rows:
        for column in table.columns:
            mean, std = table.printed.get(row, {}).get(column, ("", None))
            number = ours.get(row, {}).get(column)
            own: list[Any] = ["", "", 0, ""]
            if number is not None:
                own = [
                    number.mean,
                    "" if number.std is None else number.std,
                    number.n,
                    " ".join(map(repr, number.values)),
                ]
            lines.writerow([*row, column, mean, "" if std is None else std, *own])
    yield buffer.getvalue()


def _markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
