"""The papers' tables: statistics and words on made-up numbers; what every table file promises."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

REPRODUCE = Path(__file__).parents[1] / "reproduce"


@pytest.fixture(autouse=True, scope="module")
def scripts() -> Iterator[None]:
    """Scripts find each other as they do when they are run."""
    sys.path.insert(0, str(REPRODUCE))
    yield
    sys.path.remove(str(REPRODUCE))


def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A table with two methods and two columns, in which the paper finds New above Old."""
    import table as of

    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "p_table1.csv").write_text("method,a_mean,a_std,b\nNew,90,1,70\nOld,80,0.5,60\nOther,,,\n")
    monkeypatch.setattr(of, "HERE", tmp_path)
    return of.Table(
        package="p", name="table1", title="Dice", keys=("method",), columns=("a", "b"), cells=lambda scale: [],
        claims=(of.Claim(("New",), ("Old",)),), scales={"small": "less"}, hours={"train": 2.0}, hours_from="nothing",
        factor=100,
    )  # fmt: skip


def test_printed_numbers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made_up(tmp_path, monkeypatch)
    assert table.printed == {
        ("New",): {"a": (90.0, 1.0), "b": (70.0, None)}, ("Old",): {"a": (80.0, 0.5), "b": (60.0, None)}, ("Other",): {},
    }  # fmt: skip


def test_claims_are_judged_by_sign_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import table as of

    table = made_up(tmp_path, monkeypatch)
    ours = {
        ("New",): {"a": of.Number((91.0, 92.0, 93.0)), "b": of.Number((50.0, 61.0))},
        ("Old",): {"a": of.Number((81.0, 82.1, 82.9)), "b": of.Number((56.0, 55.0))},
    }
    first, second = of.verdicts(table, ours)
    assert first.paper == 10
    assert first.ours == pytest.approx(10)
    assert first.p is not None and first.p < 0.01  # noqa: PT018
    assert first.words == "agrees, p < .05"
    assert second.ours == pytest.approx(0)
    assert second.words == "no difference"
    sentences = of.in_words(table, ours, [first, second])
    assert sentences[0].startswith("1 of 2 differences have the paper's sign, 1 of them with p < .05")
    assert sentences[1] == "New against Old: as in the paper in a; not in b."
    assert sentences[2] == "1 of 2 means lie within two of the paper's standard deviations."
    turned = {("New",): {"a": of.Number((70.0,))}, ("Old",): {"a": of.Number((80.0,))}}
    (verdict,) = of.verdicts(table, turned)
    assert verdict.words == "the other way round (no test)"
    assert "the paper has it above; here it is not, in a" in of.in_words(table, turned, [verdict])[1]
    distances = replace(table, higher_is_better=False)
    assert "as in the paper in 1 column." in of.in_words(distances, ours, [first])[1]


def test_the_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import table as of

    table = made_up(tmp_path, monkeypatch)
    ours = {("New",): {"a": of.Number((91.0, 93.0))}, ("Old",): {"a": of.Number((82.0, 82.5))}}
    text = of.write(table, of.Scale("small", tmp_path), ours, {(("New",), "b"): "a run failed"}, tmp_path / "out")
    assert "| New | 90 ± 1 → 92 ± 1.4 (n 2) | 70 → – |" in text
    assert "- New, b: a run failed" in text
    assert (tmp_path / "out" / "p-table1-small.md").read_text(encoding="utf-8") == text
    with (tmp_path / "out" / "p-table1-small.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["values"] == "91.0 93.0"
    assert [row["paper_mean"] for row in rows] == ["90.0", "70.0", "80.0", "60.0", "", ""]
    page = (tmp_path / "out" / "p-table1-small.html").read_text(encoding="utf-8")
    assert "New against Old" in page
    smoke = of.write(table, of.Scale("smoke", tmp_path), ours, {}, tmp_path / "out")
    assert "say nothing about the methods" in smoke
    assert "against" not in smoke


def test_cost_counts_what_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import table as of

    from dart_core.experiment import Job

    table = made_up(tmp_path, monkeypatch)
    jobs = [Job("fda-mri", ("train", "--seed", seed)) for seed in range(3)] + [Job("fda-mri", ("evaluate",))]
    assert of.gpu_hours(table, jobs, tmp_path) == (6.0, 4)
    done = tmp_path / "runs" / jobs[0].address
    done.mkdir(parents=True)
    (done / "done.json").write_text("{}")
    assert of.gpu_hours(table, jobs, tmp_path) == (4.0, 3)


def test_an_unknown_table_is_told() -> None:
    import table as of

    from dart_core.errors import SettingError

    with pytest.raises(SettingError, match="no table9 of mmtl-octl; mmtl-octl has table2, table3"):
        of.load("mmtl-octl", "table9")
    with pytest.raises(SettingError, match="packages with tables: "):
        of.load("mmtl", "table2")


def table_files() -> list[tuple[str, str]]:
    return sorted((path.parent.name, path.stem) for path in (REPRODUCE / "tables").glob("*/*.py"))


@pytest.mark.parametrize(("package", "name"), table_files(), ids=[" ".join(key) for key in table_files()])
def test_every_table_names_rows_columns_and_runs_that_exist(package: str, name: str, tmp_path: Path) -> None:
    import table as of

    table = of.load(package, name)
    assert (table.package, table.name) == (package, name)
    for claim in table.claims:
        for row in (claim.better, claim.other):
            assert row in table.printed, row
        assert set(claim.columns) <= set(table.columns)
        assert of.verdicts(replace(table, claims=(claim,)), numbers_as_printed(of, table)), claim
    for column in table.columns:
        assert any(column in values for values in table.printed.values()), column
    cells = list(table.cells(of.Scale("smoke", tmp_path)))
    rows = {cell.row for cell in cells}
    assert {row for row in rows if row not in table.printed} == set(), "rows that the paper does not have"
    assert {row for row, values in table.printed.items() if values} - rows == set(table.not_run)
    verbs = {str(job.words[0]) for job in of.with_needs(job for cell in cells for jobs in cell.runs for job in jobs)}
    assert verbs <= set(table.hours), "hours of each verb"
    for job in of.with_needs(job for cell in cells for jobs in cell.runs for job in jobs):
        assert len(job.address) == 16
        for word in job.words:
            assert not isinstance(word, Path) or word.exists()


def numbers_as_printed(of, table):  # type: ignore[no-untyped-def]
    return {
        row: {column: of.Number((mean,)) for column, (mean, _) in values.items()}
        for row, values in table.printed.items()
    }
