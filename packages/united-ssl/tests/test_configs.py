"""The settings files are understood by the command that their first lines name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from dart_core.cli import main
from dart_core.testing import readme_commands
from united_ssl.cli import COMMANDS
from united_ssl.settings import Adversary, Network, Pretext, Training

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
README = Path(__file__).parents[1] / "README.md"


def example(path: Path) -> list[str]:
    """The words of the command in the first lines, continued lines joined."""
    lines = iter(path.read_text().splitlines())
    for line in lines:
        if line.startswith("#   united-ssl "):
            text = line[4:]
            while text.endswith("\\"):
                text = text[:-1] + next(lines).lstrip("# ")
            return shlex.split(text)[1:]
    raise AssertionError(f"{path.name} shows no command")


def test_every_row_of_the_tables_has_its_files():
    names = {path.stem for path in CONFIGS}
    pretexts = ("rotation", "jigsaw", "rubik", "deep-clustering", "transvw")
    assert {f"pretrain_{p}_{s}" for p in pretexts for s in ("D", "DR", "DRA", "joint")} <= names
    targets = ("NCC", "NCS", "ECC", "LCS", "BMS")
    assert {f"{kind}_{t}" for kind in ("prepare", "target") for t in targets} <= names
    assert {f"figure4_{t}" for t in ("NCC", "NCS", "ECC")} <= names


def understood(verb: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that the command gets; it is not carried out."""
    settings, _ = COMMANDS[verb]
    seen: list[Any] = []
    monkeypatch.setitem(COMMANDS, verb, (settings, f"{__name__}:unused"))
    monkeypatch.setattr("importlib.import_module", lambda name: type("Module", (), {"unused": seen.append}))
    assert main("united-ssl", COMMANDS, "0", "", argv=[verb, *words]) == 0
    assert type(seen[0]) is settings
    return seen[0]


EXAMPLES = readme_commands(README, "united-ssl")


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_commands_of_the_readme_are_understood(words, monkeypatch):
    understood(words[0], words[1:], monkeypatch)


def test_the_readme_shows_every_command():
    assert {words[0] for words in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    verb, *words = example(path)
    assert f"configs/{path.name}" in words
    words[words.index("--config") + 1] = str(path)
    given = understood(verb, words, monkeypatch)
    if path.stem.startswith("pretrain_"):
        _, pretext, steps = path.stem.split("_")
        assert (given.pretext.pretext, given.steps) == (pretext, steps)


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.stem.startswith("pretrain_")], ids=lambda path: path.stem)
def test_what_is_written_out_is_the_default(path):
    defaults = {**Training().__dict__, **Adversary().__dict__, **Network().__dict__, **Pretext().__dict__}
    for name, value in yaml.safe_load(path.read_text()).items():
        if name not in ("pretext", "steps"):
            assert value == defaults[name], name
