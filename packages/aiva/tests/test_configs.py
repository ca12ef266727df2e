"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from aiva.cli import COMMANDS
from aiva.settings import Adapt, Alignment, Baselines, Training
from dart_core.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
NEEDED = {
    "pretrain": ["--datalist", "a.csv", "--source", "a", "--out", "o"],
    "adapt": ["--datalist", "a.csv", "--target", "b", "--out", "o"],
    "predict": ["--datalist", "a.csv", "--model", "m", "--out", "o"],
    "evaluate": ["--predictions", "p", "--out", "o"],
    "clusters": ["--runs", "r", "--out", "o"],
}


def read(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    example = next(line for line in path.read_text().splitlines() if f"--config configs/{path.name}" in line)
    verb = example.split("aiva ")[1].split()[0]
    settings, _ = COMMANDS[verb]
    seen: list[Any] = []
    monkeypatch.setitem(COMMANDS, verb, (settings, f"{__name__}:unused"))
    monkeypatch.setattr("importlib.import_module", lambda name: type("Module", (), {"unused": seen.append}))
    words = [
        *NEEDED[verb],
        *(["--source-model", "s"] if "--source-model" in path.read_text() and verb == "adapt" else []),
    ]
    assert main("aiva", COMMANDS, "0", "", argv=[verb, "--config", str(path), *words]) == 0
    assert type(seen[0]) is settings
    return seen[0]


def test_a_config_for_every_row() -> None:
    names = {path.stem for path in CONFIGS}
    rows = ("pretrain", "none", "target", "adabn", "adaptsegnet", "aiva")
    assert names >= {f"table{table}_{row}" for table in (1, 2) for row in rows} | {
        "table1_seg_jdot",
        "figure5_clusters",
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(path, monkeypatch)


@pytest.mark.parametrize(
    "name", ["table1_aiva", "table1_adaptsegnet", "table1_seg_jdot", "table1_adabn", "table1_target"]
)
def test_table_1_is_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the files of CC359 departs from the defaults."""
    command: Adapt = read(next(path for path in CONFIGS if path.stem == name), monkeypatch)
    assert command.alignment == Alignment()
    assert command.baselines == Baselines()
    resolved, default = command.training.resolved(command.method), Training().resolved(command.method)
    assert dataclasses.replace(resolved, patch_size=None) == default
    if command.milestones is not None:
        assert command.milestones == {"aiva": (5000, 6000), "adaptsegnet": (5000, 6000)}.get(command.method, ())
