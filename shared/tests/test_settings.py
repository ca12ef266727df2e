from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dart_core.cli import main, say
from dart_core.errors import SettingError
from dart_core.run import flat_settings
from dart_core.settings import DemoSettings, EvaluationSettings, OutputSettings, ScanSettings, at_least


@dataclass(frozen=True)
class Predict:
    """A command as the packages have it."""

    scans: ScanSettings
    output: OutputSettings


def run(*words: str) -> tuple[int, list[Predict]]:
    got: list[Predict] = []
    sys.modules[__name__].__dict__["take"] = got.append
    return main("x", {"predict": (Predict, f"{__name__}:take")}, "1", "d", ["predict", *words]), got


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or __import__(__name__))


def test_at_least():
    at_least(0, a=0, b=3.5)
    for value in (-1, float("nan"), float("inf")):
        with pytest.raises(SettingError, match=r"--batch-size is .*; give at least 1"):
            at_least(1, batch_size=value)


def test_scans_as_flags():
    status, (got,) = run("--datalist", "a.csv", "--out", "o")
    assert status == 0
    assert got == Predict(ScanSettings(Path("a.csv")), OutputSettings(Path("o")))
    status, (got,) = run(
        "--datalist", "a.csv", "--out", "o", "--preprocessing", "prostate", "--spacing", "1", "0.5", "2", "--cache", "c"
    )
    assert status == 0
    assert got.scans == ScanSettings(Path("a.csv"), "prostate", (1.0, 0.5, 2.0), Path("c"))


@pytest.mark.parametrize("words", [("1", "1"), ("0", "1", "1"), ("1", "-2", "1"), ("1", "nan", "1"), ("1", "inf", "1")])
def test_a_spacing_that_is_none(words, capsys):
    status, got = run("--datalist", "a.csv", "--out", "o", "--spacing", *words)
    assert status == 2
    assert not got
    (line,) = capsys.readouterr().err.splitlines()
    assert "--spacing" in line


def test_settings_of_a_run_can_be_given_back(tmp_path):
    scans = ScanSettings(Path("a.csv"), spacing=(1, 2, 3))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(flat_settings(Predict(scans, OutputSettings(Path("o"))))))
    status, (got,) = run("--config", str(tmp_path / "config.yaml"))
    assert status == 0
    assert got.scans == scans


def test_what_follows_from_the_preprocessing():
    made = {name: ScanSettings(Path("a"), name) for name in ("cc359", "prostate", "plain")}
    assert {name: s.channels for name, s in made.items()} == {"cc359": 1, "prostate": 3, "plain": 1}
    assert {name: s.target_spacing for name, s in made.items()} == {
        "cc359": (1, 0.95, 0.95), "prostate": None, "plain": None,
    }  # fmt: skip
    assert dataclasses.replace(made["plain"], spacing=(1, 1, 2)).target_spacing == (1, 1, 2)
    assert dataclasses.replace(made["cc359"], spacing=(1, 1, 1)).target_spacing == (1, 1, 1)


def test_a_demo_takes_no_negative_seed():
    assert DemoSettings(Path("o"), seed=0).seed == 0
    with pytest.raises(SettingError, match="--seed is -1; give at least 0"):
        DemoSettings(Path("o"), seed=-1)


def test_evaluation_settings():
    with pytest.raises(SettingError, match="--tolerance is -1"):
        EvaluationSettings(OutputSettings(Path("o")), (Path("p"),), tolerance=-1)


def test_say_goes_to_stderr(capsys):
    say("a line")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a line\n")
