"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dart_core.errors import SettingError
from dart_core.testing import config_words, settings_given
from metamedseg.baselines import printed_table
from metamedseg.cli import COMMANDS
from metamedseg.settings import DAWOUD_DEFAULTS, Inner, Meta, Tasks

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def accepted(path: Path, monkeypatch: pytest.MonkeyPatch):
    """The settings that the command of the first lines gets."""
    return settings_given("metamedseg", COMMANDS, config_words(path, "metamedseg"), monkeypatch)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    accepted(path, monkeypatch)


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.startswith(("table1_AW", "table1_IDW", "table2"))])
def test_what_is_written_out_is_the_default(path, monkeypatch):
    """The rows differ in tasks, loss and weighting alone; leaving another line out must not change the run."""
    command = accepted(path, monkeypatch)
    varied = {"tasks", "loss", "weighting"}
    for found, default in ((command.definition, Tasks()), (command.inner, Inner()), (command.meta, Meta())):
        for name, value in vars(default.resolved()).items():
            assert name in varied or getattr(found, name) == value, name
    assert set(yaml.safe_load(path.read_text())) > varied


@pytest.mark.parametrize("tasks", ["standard", "vol"])
def test_what_is_written_out_is_the_default_of_dawoud(tasks, monkeypatch):
    command = accepted(next(path for path in CONFIGS if path.stem == f"table1_dawoud_{tasks}"), monkeypatch)
    for group, usual in (("definition", Tasks()), ("inner", Inner()), ("meta", Meta())):
        found = getattr(command, group)
        expected = replace(usual, **DAWOUD_DEFAULTS[group])
        assert (replace(found, tasks="volumetric") if group == "definition" else found) == expected, group


def test_fine_tuning_is_the_default(monkeypatch):
    for path in (path for path in CONFIGS if path.stem.startswith("tune")):
        command = accepted(path, monkeypatch)
        assert (command.rate, command.decay) == ((0.005, 0.7) if command.shots else (0.001, 1.0))


def test_rows_of_the_tables():
    names = {path.stem for path in CONFIGS}
    assert {f"table1_{method}_{kind}" for method in ("AW", "IDW", "dawoud") for kind in ("standard", "vol")} <= names
    assert "table1_transfer" in names
    assert len([name for name in names if name.startswith("table2")]) == 2 * len(printed_table("table2")) == 20


def test_printed_tables():
    rows = printed_table("table1")
    assert len(rows) == 20
    assert rows[4] == {
        "method": "MetaMedSeg + AW", "target_organ": "Cardiac", "iou_15shots_standard": 67.83,
        "iou_15shots_volumetric": 68.33, "iou_full_standard": 91.08, "iou_full_volumetric": 95.55,
    }  # fmt: skip
    assert rows[0]["iou_15shots_volumetric"] == ""
    with pytest.raises(SettingError, match="no printed table"):
        printed_table("table9")
