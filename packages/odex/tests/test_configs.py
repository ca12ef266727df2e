"""The settings files are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.testing import config_words, settings_given
from odex.cli import COMMANDS
from odex.settings import NAMES, Learn
from odex.tables import printed_table

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_every_row_of_the_tables_has_its_file():
    names = {path.stem.partition("_")[2] for path in CONFIGS if path.stem.startswith("table")}
    assert set(NAMES) <= names
    assert len(printed_table("table1")) + len(printed_table("table2")) == len(NAMES) + 1  # ODEx is in both


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    given = settings_given("odex", COMMANDS, config_words(path, "odex"), monkeypatch)
    if isinstance(given, Learn):
        assert given.method == path.stem.split("_")[1]
