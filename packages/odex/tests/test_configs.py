"""The settings files are understood by the command that their first lines name."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dart_core.cli import main
from odex.cli import COMMANDS
from odex.settings import NAMES
from odex.tables import printed_table

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_every_row_of_the_tables_has_its_file():
    names = {path.stem.partition("_")[2] for path in CONFIGS if path.stem.startswith("table")}
    assert set(NAMES) <= names
    assert len(printed_table("table1")) + len(printed_table("table2")) == len(NAMES) + 1  # ODEx is in both


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    line = next(line for line in path.read_text().splitlines() if line.startswith("#   odex "))
    verb, *words = shlex.split(line[4:])[1:]
    assert f"configs/{path.name}" in words
    words[words.index("--config") + 1] = str(path)
    settings, _ = COMMANDS[verb]
    seen = []
    monkeypatch.setitem(COMMANDS, verb, (settings, f"{__name__}:unused"))
    monkeypatch.setattr("importlib.import_module", lambda name: type("Module", (), {"unused": seen.append}))
    assert main("odex", COMMANDS, "0", "", argv=[verb, *words]) == 0
    assert type(seen[0]) is settings
    if verb == "learn":
        assert seen[0].method == path.stem.split("_")[1]
