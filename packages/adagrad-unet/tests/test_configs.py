"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from adagrad_unet.baselines import RUNS, printed_table
from adagrad_unet.cli import COMMANDS
from adagrad_unet.method import run_name
from dart_core.testing import config_words, settings_given

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def parsed(path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The settings that the file's own command makes of it."""
    return settings_given("adagrad-unet", COMMANDS, [*config_words(path, "adagrad-unet"), *words], monkeypatch)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    assert parsed(path, monkeypatch) is not None


@pytest.mark.parametrize("name", RUNS)
def test_every_run_of_the_tables_has_its_settings(name, monkeypatch):
    """configs/<run>.yaml is exactly the recipe that the paper's column has."""
    path = CONFIGS[0].parent / f"{name}.yaml"
    command = parsed(path, monkeypatch)
    assert command.training == RUNS[name]
    assert run_name(command.training) == name
    assert command.run.precision == "fp16"


def test_the_tables_are_complete():
    columns = {str(row["method"]) for name in ("table1", "table2", "table3") for row in printed_table(name)}
    assert columns <= {path.stem for path in CONFIGS}


def test_no_key_is_there_twice_or_empty():
    for path in CONFIGS:
        content = yaml.safe_load(path.read_text())
        assert content, path
        assert None not in content.values(), path
