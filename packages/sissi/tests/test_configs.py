"""The settings files: read without error, and what they say is what the paper and the authors' code say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dart_core.testing import config_words, readme_commands, settings_given
from sissi.cli import COMMANDS
from sissi.evaluation import printed_table
from sissi.settings import NAMES, ROWS, Correction, Training

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
EXAMPLES = readme_commands(Path(__file__).parents[1] / "README.md", "sissi")


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_commands_of_the_readme_are_understood(words, monkeypatch):
    settings_given("sissi", COMMANDS, words, monkeypatch)


def test_the_readme_shows_every_command():
    assert {words[0] for words in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_commands_of_the_settings_files_are_understood(path, monkeypatch):
    settings_given("sissi", COMMANDS, config_words(path, "sissi"), monkeypatch)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_read(path, cells, command, tmp_path):
    """A command takes the file; the list or folder that is missing here is what it stops at."""
    verb = (
        "train" if path.stem.startswith("train") else "evaluate" if path.stem.startswith("evaluate") else "weak-label"
    )
    words = {
        "train": ("--source", tmp_path / "gone.csv", "--target", cells["weak"], "--init", tmp_path / "a.pth"),
        "evaluate": ("--predictions", tmp_path / "gone", "--readers", cells["smear"], "--split", "test"),
        "weak-label": ("--pictures", tmp_path / "gone"),
    }[verb]
    finished = command(verb, "--config", path, *words, "--out", tmp_path / "out.csv")
    assert finished.status == 2
    assert "gone" in finished.line


def test_rows_of_the_table():
    named = {Correction(configuration).name for configuration in ROWS}
    printed = {str(row["method"]) for row in printed_table()}
    assert named == printed == set(NAMES.values())
    for configuration in ROWS:
        content = yaml.safe_load((FOLDER / f"train_{configuration}.yaml").read_text())
        assert content["configuration"] == configuration


def test_the_papers_values():
    for path in FOLDER.glob("train_*.yaml"):
        content = yaml.safe_load(path.read_text())
        if path.stem.startswith("train_authors"):
            assert (content["weight_decay"], content["zoom"]) == (0.0001, [1.5, 2.5])
        else:
            assert (content["learning_rate"], content["weight_decay"], content["batch_size"]) == (0.001, 0.0002, 4)
        assert (content["size"], content["score"], content["nms"], content["detections"]) == (512, 0.05, 0.2, 400)
        assert content["seed"] == 1337
    defaults = Training()
    assert (defaults.learning_rate, defaults.weight_decay, defaults.batch_size, defaults.epochs) == (
        0.001,
        0.0002,
        4,
        31,
    )


def test_printed_numbers():
    rows = {row["method"]: row for row in printed_table()}
    assert rows["A+SISSI (S)"]["Annotator1 AP"] == 43.2
    assert rows["Plain A"]["Annotator3 AR"] == 50.6
    assert all(len(row) == 13 for row in rows.values())
