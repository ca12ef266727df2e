"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from aiva.cli import COMMANDS
from aiva.settings import Adapt, Alignment, Baselines, Training
from dart_core.testing import config_words, settings_given

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def read(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that the file's own command makes of it."""
    return settings_given("aiva", COMMANDS, config_words(path, "aiva"), monkeypatch)


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
