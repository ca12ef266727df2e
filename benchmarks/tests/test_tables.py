"""The papers' tables: statistics and words on made-up numbers; what every table file promises."""

from __future__ import annotations

import argparse
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


def test_without_a_test_nothing_is_said_of_p(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import table as of

    table = made_up(tmp_path, monkeypatch)
    ours = {
        ("New",): {"a": of.Number((70.0,)), "b": of.Number((3.0,))},
        ("Old",): {"a": of.Number((80.0,)), "b": of.Number((2.0,))},
    }
    found = of.verdicts(table, ours)
    assert of.in_words(table, ours, found)[0] == (
        "1 of 2 differences have the paper's sign, 1 without it; no test was possible, with one repetition."
    )
    ours[("New",)]["b"], ours[("Old",)]["b"] = of.Number((3.0, 4.0)), of.Number((2.0, 2.5))
    first = of.in_words(table, ours, of.verdicts(table, ours))[0]
    assert "0 of them with p < .05 (paired t)" in first
    assert first.endswith("1 could not be tested.")


@pytest.mark.parametrize(
    ("higher", "paper_above", "word"),
    [(True, True, "above"), (True, False, "below"), (False, True, "worse"), (False, False, "better")],
)
def test_the_paper_has_it_above_or_better(
    higher: bool, paper_above: bool, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import table as of

    rows = (("New",), ("Old",)) if paper_above else (("Old",), ("New",))
    table = replace(made_up(tmp_path, monkeypatch), higher_is_better=higher, claims=(of.Claim(*rows),))
    ours = {rows[0]: {"a": of.Number((1.0,))}, rows[1]: {"a": of.Number((1.0 + (1 if paper_above else -1),))}}
    text = of.in_words(table, ours, of.verdicts(table, ours))[1]
    assert f"the paper has it {word}; here it is not, in a" in text


def scored(of, folder: Path, name: str, differences: list[float]):  # type: ignore[no-untyped-def]
    """A run with a scores.csv of so many subjects, two phases each; the first subject is undefined in one of them."""
    from dart_core.experiment import Job, Outcome

    job = Job("fda-mri", ("evaluate", "--method", name))
    lines = ["scan,frame,dice"]
    for number, difference in enumerate(differences):
        value = 0.5 + 0.01 * number + difference
        lines += [f"s{number},0,{value - 0.1 if number else 'nan'}", f"s{number},1,{value + 0.1 if number else value}"]
    (folder / name / "out").mkdir(parents=True)
    (folder / name / "out" / "scores.csv").write_text("\n".join(lines) + "\n")
    read, cases = of.csv_mean("scores.csv", "dice"), of.csv_cases("scores.csv", "scan", "dice")
    return of.Cell((name,), "a", [[job]], read, cases), {job: Outcome(job, folder / name, "done")}


def test_tests_over_cases_pair_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import table as of

    better = [0.01 * (n + 1) for n in range(8)]
    table = replace(made_up(tmp_path, monkeypatch), test="Wilcoxon over cases", comparisons=7)
    new, done = scored(of, tmp_path, "New", [*better, 0.3])  # the last subject is in one of the two only
    old, more = scored(of, tmp_path, "Old", [0.0] * 8)
    ours, _ = of.our_numbers(table, [new, old], done | more)
    assert ours[("New",)]["a"].cases["s0"] == pytest.approx(51)  # the phase that has a number
    assert ours[("New",)]["a"].cases["s1"] == pytest.approx(53)
    assert ours[("Old",)]["a"].n == 8
    assert ours[("Old",)]["a"].std == pytest.approx(2.449, abs=1e-3)  # of 50, 51, ..., 57
    (verdict,) = of.verdicts(table, ours)
    assert (verdict.n, verdict.p) == (8, pytest.approx(7 * 2 / 2**8))
    (verdict,) = of.verdicts(replace(table, test="one-sided Wilcoxon over cases", comparisons=1), ours)
    assert verdict.p == pytest.approx(1 / 2**8)
    turned = {("New",): ours[("Old",)], ("Old",): ours[("New",)]}
    (verdict,) = of.verdicts(replace(table, test="one-sided Wilcoxon over cases", comparisons=1), turned)
    assert verdict.p == pytest.approx(1)
    (verdict,) = of.verdicts(replace(table, comparisons=1000), turned)
    assert verdict.p == 1
    over_runs, _ = of.our_numbers(replace(table, test="paired t"), [new, old], done | more)
    assert over_runs[("New",)]["a"].cases == {}
    assert over_runs[("New",)]["a"].n == 1
    text = of.write(table, of.Scale("small", tmp_path), ours, {}, tmp_path / "out")
    assert "over test cases" in text
    assert "(Wilcoxon over cases, p times 7 (Bonferroni))" in text


def test_odex_is_tested_on_the_cases_of_the_last_stage(tmp_path: Path) -> None:
    import table as of
    from grids import odex as grid

    cells = {cell.column: cell for cell in of.load("odex", "table1").cells(of.Scale("smoke", tmp_path))}
    assert cells["shifting_source_bwt"].read_cases is None
    (tmp_path / "scores.csv").write_text(
        "method,seed,after,stage,case,dice\nodex,0,1,s1,a,0.1\nodex,0,2,s1,a,0.2\nodex,0,2,s2,a,0.3\n"
    )
    read = cells["shifting_source_dice"].read_cases
    assert read is grid._final_dice
    assert read(tmp_path) == {"s1 a": 0.2, "s2 a": 0.3}


def test_catenorm_is_tested_on_cases_and_passes_are_kept_apart(tmp_path: Path) -> None:
    from grids.catenorm import cell

    (tmp_path / "scores.csv").write_text(
        "method,site,case,organ,dice,asd,assd\n"
        "cn (BN pass),A,1,liver,0.1,9,9\ncn,A,1,liver,0.5,1,1\ncn,A,1,aorta,0.7,nan,nan\ncn,B,1,liver,0.9,3,3\n"
    )

    def cases(*words: str, first_pass: bool = False) -> dict[str, float]:
        read = cell(("row",), "column", [], *words, first_pass=first_pass).read_cases
        assert read is not None
        return dict(read(tmp_path))

    assert cases("dice") == pytest.approx({"A 1": 0.6, "B 1": 0.9})
    assert cases("dice", "sites", "A") == pytest.approx({"A 1": 0.6})
    assert cases("dice", "organs", "liver") == {"A 1": 0.5, "B 1": 0.9}
    assert cases("asd", "sites", "A") == {"A 1": 1.0}
    assert cases("asd", "organs", "aorta") == {}
    assert cases("dice", first_pass=True) == {"A 1": 0.1}


def test_the_legend_says_what_the_papers_spread_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import table as of

    table = made_up(tmp_path, monkeypatch)
    scale = of.Scale("small", tmp_path)
    assert "The paper's ± is" not in of.write(table, scale, {}, {}, tmp_path / "out")
    told = replace(table, paper_spread="over stages")
    assert "(divisor n - 1) over repetitions, n their number. The paper's ± is over stages." in of.write(
        told, scale, {}, {}, tmp_path / "out"
    )


@pytest.mark.parametrize("package", ["benchmark-transformers", "popar"])
def test_papers_that_print_the_spread_of_a_population_are_named(package: str) -> None:
    import table as of

    names = [name for owner, name in table_files() if owner == package]
    assert names
    assert all("divisor n" in of.load(package, name).paper_spread for name in names)


# --- Command ---------------------------------------------------------------------------------------------------------


def reproduced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> int:
    import reproduce

    monkeypatch.setattr(sys, "argv", ["reproduce", *words, "--work", str(tmp_path)])
    return reproduce.main()


def test_a_table_without_its_data_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import reproduce

    from dart_core.errors import InputError

    made: list[str] = []

    def one(table, *_):  # type: ignore[no-untyped-def]
        if table.name == "table2":
            raise InputError("the data set is not there", where="CC359", remedy="give --data-root")
        made.append(table.name)
        return 0

    monkeypatch.setattr(reproduce, "reproduce", one)
    assert reproduced(monkeypatch, tmp_path, "mmtl-octl") == 2
    assert made == ["table3", "table4", "table5"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "reproduce: 1 of 4 tables were not made, for what stands above: mmtl-octl table2"
    made.clear()
    assert reproduced(monkeypatch, tmp_path, "mmtl-octl", "table3") == 0
    assert made == ["table3"]


def options(*words: str) -> argparse.Namespace:
    import reproduce

    parser = argparse.ArgumentParser()
    reproduce.executor_options(parser)
    return parser.parse_args(words)


def test_what_slurm_is_given() -> None:
    import reproduce as of

    assert of.slurm_parameters(options()) == {"timeout_min": 1440, "gpus_per_node": 1}
    words = ("--gpus", "0", "--timeout-hours", "1.5", "--slurm", "partition=gpu", "--slurm", "cpus_per_task=8")
    assert of.slurm_parameters(options(*words)) == {
        "timeout_min": 90, "slurm_partition": "gpu", "slurm_cpus_per_task": 8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus", "1"], r"--gpus does nothing with --executor local; it is for ray and slurm"),
        (
            ["--executor", "ray", "--slurm", "partition=gpu"],
            r"--slurm does nothing with --executor ray; it is for slurm",
        ),
        (
            ["--executor", "slurm", "--processes", "2"],
            r"--processes does nothing with --executor slurm; it is for local",
        ),
        (["--executor", "slurm", "--gpus", "0.5"], r"SLURM gives whole GPUs, not 0\.5"),
        (["--executor", "slurm", "--slurm", "partition"], r"--slurm partition is no NAME=VALUE"),
        (["--executor", "slurm", "--timeout-hours", "0"], r"--timeout-hours 0 is less than a minute"),
        (["--processes", "0"], r"--processes starts at 1"),
    ],
)
def test_options_that_do_not_fit_the_executor_are_told(words: list[str], told: str, tmp_path: Path) -> None:
    import reproduce as of

    from dart_core.errors import SettingError

    with pytest.raises(SettingError, match=told):
        of.executor_of(options(*words), tmp_path)


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


def test_the_papers_scale_is_confirmed_before_anything_is_labelled(tmp_path: Path) -> None:
    import table as of

    data, work = tmp_path / "data", tmp_path / "work"
    for name in ("isic", "atlas", "asan", "mclass", "weights"):
        (data / name).mkdir(parents=True)
        (data / name / "resnext101_32x8d.pth").write_text(name)
    table = of.load("skintone-debias", "table2")
    jobs = of.with_needs(job for cell in table.cells(of.Scale("paper", work, data)) for run in cell.runs for job in run)
    verbs = [str(job.words[0]) for job in jobs]
    assert (verbs.count("label"), verbs.count("train"), verbs.count("evaluate")) == (1, 4, 4 * 3)
    assert set(verbs) <= set(table.hours)
    assert not work.exists()


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
