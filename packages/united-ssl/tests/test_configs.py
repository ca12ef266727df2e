"""The settings files are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dart_core.testing import config_words, readme_commands, settings_given
from united_ssl.cli import COMMANDS
from united_ssl.settings import Adversary, Network, Pretext, Training

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
README = Path(__file__).parents[1] / "README.md"


def test_every_row_of_the_tables_has_its_files():
    names = {path.stem for path in CONFIGS}
    pretexts = ("rotation", "jigsaw", "rubik", "deep-clustering", "transvw")
    assert {f"pretrain_{p}_{s}" for p in pretexts for s in ("D", "DR", "DRA", "joint")} <= names
    targets = ("NCC", "NCS", "ECC", "LCS", "BMS")
    assert {f"{kind}_{t}" for kind in ("prepare", "target") for t in targets} <= names
    assert {f"figure4_{t}" for t in ("NCC", "NCS", "ECC")} <= names


EXAMPLES = readme_commands(README, "united-ssl")


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_commands_of_the_readme_are_understood(words, monkeypatch):
    settings_given("united-ssl", COMMANDS, words, monkeypatch)


def test_the_readme_shows_every_command():
    assert {words[0] for words in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    given = settings_given("united-ssl", COMMANDS, config_words(path, "united-ssl"), monkeypatch)
    if path.stem.startswith("pretrain_"):
        _, pretext, steps = path.stem.split("_")
        assert (given.pretext.pretext, given.steps) == (pretext, steps)


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.startswith("pretrain_")], ids=lambda path: path.stem)
def test_what_is_written_out_is_the_default(path):
    defaults = {**Training().__dict__, **Adversary().__dict__, **Network().__dict__, **Pretext().__dict__}
    for name, value in yaml.safe_load(path.read_text()).items():
        if name not in ("pretext", "steps"):
            assert value == defaults[name], name
