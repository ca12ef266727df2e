"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmark_transformers.cli import COMMANDS
from benchmark_transformers.initialisations import INITIALISATIONS, find_initialisation
from benchmark_transformers.settings import FineTuneRecipe, PretrainRecipe
from dart_core.testing import config_words, readme_commands, settings_given

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
README = Path(__file__).parents[1] / "README.md"
CHOSEN = {"schedule", "learning_rate", "warmup", "trials", "seed", "resize", "drop_path"}
"""What a file may set otherwise than the default."""


def test_every_row_of_the_tables_and_every_model_of_the_figure_has_a_file():
    names = {path.stem for path in CONFIGS}
    for row in INITIALISATIONS:
        assert row.table1 is None or f"table1_{row.key}" in names
        # Rows that both tables have are one fine-tuning.
        assert row.table2 is None or (f"table1_{row.key}" in names) != (f"table2_{row.key}" in names)
        if row.in_paper:
            assert {f"{place}_{row.key}" for place in ("table1", "figure1")} & names, row.key


EXAMPLES = readme_commands(README, "benchmark-transformers")


@pytest.mark.parametrize("words", EXAMPLES, ids=" ".join)
def test_commands_of_the_readme_are_understood(words, monkeypatch):
    settings_given("benchmark-transformers", COMMANDS, words, monkeypatch)


def test_the_readme_shows_every_command():
    assert {words[0] for words in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    verb, *words = config_words(path, "benchmark-transformers")
    given = settings_given("benchmark-transformers", COMMANDS, (verb, *words), monkeypatch)
    if verb == "fine-tune":
        row = find_initialisation(given.initialisation)
        assert path.stem.partition("_")[2].endswith(row.key)
        assert ("--weights" in words) == (row.source is not None)
        assert ("--download" in words) == (row.tag is not None)
        assert given.trials == 10


@pytest.mark.parametrize(
    "path",
    [p for p in CONFIGS if not p.stem.endswith("_800") and not p.stem.startswith("simmim_")],
    ids=lambda path: path.stem,
)
def test_what_is_written_out_is_the_default(path):
    """Leaving a line out must not change the run."""
    defaults = {**FineTuneRecipe().__dict__} if "initialisation" in path.read_text() else {**PretrainRecipe().__dict__}
    for name, value in yaml.safe_load(path.read_text()).items():
        if name in defaults and name not in CHOSEN:
            assert value == defaults[name], name
