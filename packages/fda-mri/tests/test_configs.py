"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.testing import config_words, settings_given
from fda_mri.cli import COMMANDS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_configs_are_there():
    assert len(CONFIGS) >= 9


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    settings_given("fda-mri", COMMANDS, config_words(path, "fda-mri"), monkeypatch)
