"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dart_core.testing import config_words, settings_given
from stain_aglr.cli import COMMANDS
from stain_aglr.settings import Augmentation, Losses, Train, Training
from stain_aglr.tables import PAPER_NAMES

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
IN_FULL = [path for path in CONFIGS if path.stem.startswith(("table1_", "figure5"))]


def test_every_row_of_the_tables_has_a_file():
    names = {path.stem for path in CONFIGS}
    rows = {f"table1_{method}" for method in PAPER_NAMES} | {f"table2_{m}" for m in PAPER_NAMES if m != "macenko"}
    assert rows | {"figure5_lambda1", "figure5_lambda2"} <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    given = settings_given("stain-aglr", COMMANDS, config_words(path, "stain-aglr"), monkeypatch)
    if path.stem.startswith("table") and isinstance(given, Train):
        assert path.stem.partition("_")[2] == given.method


@pytest.mark.parametrize("path", IN_FULL, ids=lambda path: path.stem)
def test_what_is_written_out_is_the_default(path):
    """The files of Camelyon17 say the settings in full; leaving a line out must not change the run."""
    defaults = {**Training().__dict__, **Augmentation().__dict__, **Losses().__dict__, "lambda1": 0.1, "lambda2": 10.0}
    for name, value in yaml.safe_load(path.read_text()).items():
        if name in defaults and name != "ce_on":
            assert value == defaults[name], name


@pytest.mark.parametrize(
    "path", [path for path in CONFIGS if path.stem.startswith("table2_")], ids=lambda path: path.stem
)
def test_tupac_has_its_own_recipe(path, monkeypatch):
    """Section 2.1: 5e-3, patience 15, as many patches of each class in a batch; all else as for Camelyon17."""
    given = settings_given("stain-aglr", COMMANDS, config_words(path, "stain-aglr"), monkeypatch)
    assert given.training == Training(learning_rate=5e-3, patience=15, balanced=True)
    assert given.site == "centre1"
