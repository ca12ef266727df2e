"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.cli import main
from fda_mri.cli import COMMANDS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_configs_are_there():
    assert len(CONFIGS) >= 9


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch, tmp_path):
    example = next(line for line in path.read_text().splitlines() if "fda-mri " in line)
    verb = example.split("fda-mri ")[1].split()[0]
    settings, _ = COMMANDS[verb]
    seen = []
    monkeypatch.setitem(COMMANDS, verb, (settings, f"{__name__}:unused"))
    monkeypatch.setattr("importlib.import_module", lambda name: type("Module", (), {"unused": seen.append}))
    needed = {
        "train": ["--datalist", "a.csv", "--site", "a", "--out", "o"],
        "predict": ["--datalist", "a.csv", "--site", "b", "--model", "m", "--out", "o"],
        "tune-beta": ["--datalist", "a.csv", "--site", "b", "--model", "m", "--bank", "k", "--out", "o"],
    }
    status = main("fda-mri", COMMANDS, "0", "", argv=[verb, "--config", str(path), *needed[verb]])
    assert status == 0
    assert type(seen[0]) is settings
