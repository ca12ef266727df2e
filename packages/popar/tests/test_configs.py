"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dart_core.testing import config_words, readme_commands, settings_given
from popar.cli import COMMANDS
from popar.settings import Distortions, FineTuning, LabelSettings, Pretraining
from popar.tables import PRINTED_TABLES, printed_rows, printed_table

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
README = Path(__file__).parents[1] / "README.md"


EXAMPLES = readme_commands(README, "popar")


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_commands_of_the_readme_are_understood(words, monkeypatch):
    settings_given("popar", COMMANDS, words, monkeypatch)


def test_the_readme_shows_every_command():
    assert {words[0] for words in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    settings_given("popar", COMMANDS, config_words(path, "popar"), monkeypatch)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_is_written_out_is_the_default(path):
    """The files say the settings in full; leaving a line out must not change the run."""
    defaults = {**FineTuning().__dict__, **LabelSettings().__dict__, **Distortions().__dict__, **Pretraining().__dict__}
    if path.stem.startswith("table"):
        defaults |= FineTuning().__dict__
    content = yaml.safe_load(path.read_text())
    backbone = content.get("backbone", "")
    for name, value in content.items():
        if name == "epochs" and not path.stem.startswith("table"):
            assert value == Pretraining().epochs_of(backbone)
        elif (name in defaults and name not in ("subtasks", "batch_size")) or (name == "batch_size" and value == 256):
            assert value == defaults[name], name


def test_rows_of_the_tables():
    """Of the rows that this package can run there is a file."""
    names = {path.stem for path in CONFIGS}
    assert {f"table1_popar{suffix}" for suffix in ("", "-1", "-2", "-3")} <= names
    assert {row["setup"] for row in printed_table("table1")} == {"POPAR", "POPAR-1", "POPAR-2", "POPAR-3"}
    for row in printed_table("table4"):
        if row["backbone"] in ("ViT-B", "Swin-B") and not str(row["initialization"]).startswith("POPAR"):
            kind = (
                str(row["initialization"])
                .lower()
                .replace("imagenet-21k", "imagenet21k")
                .replace("chestx-ray14", "chestxray14")
            )
            assert f"table4_{kind}_{str(row['backbone']).lower()}" in names


@pytest.mark.parametrize("name", PRINTED_TABLES)
def test_printed_tables(name):
    columns, rows = printed_rows(name)
    assert columns[-4:] == ["ChestX-ray14", "CheXpert", "ShenZhen", "RSNA Pneumonia"]
    assert all(len(row) == len(columns) for row in rows)
    assert len(rows) == {"table1": 4, "table2": 8, "table3": 7, "table4": 11}[name]
    with pytest.raises(ValueError, match="no printed table"):
        printed_table("table9")


def test_printed_numbers():
    assert printed_rows("table1")[1][0] == ["POPAR-3", "ViT-B", "196", "224", "224", "79.58 ± 0.13", "87.86 ± 0.17", "93.87 ± 0.63", "73.17 ± 0.46"]  # fmt: skip
    assert printed_rows("table4")[1][2][2] == "–"
