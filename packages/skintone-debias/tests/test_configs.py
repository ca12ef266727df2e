"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dart_core.testing import config_words, settings_given
from skintone_debias.cli import COMMANDS
from skintone_debias.recipes import ALPHA, LR_BASE, LR_CLASS, MOMENTUM, PAPER_NAMES, WEIGHT
from skintone_debias.settings import Train
from skintone_debias.tables import printed_table

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
FILES = {"Baseline": "baseline", "LNTL": "lntl", "LNTL*": "lntl_nogr", "TABE": "tabe", "CLGR": "clgr"}


def test_every_row_of_the_tables_has_a_file_that_names_it():
    for number in (1, 2, 3):
        for row in printed_table(f"table{number}"):
            name = str(row["method"]).partition(" ")[0]
            if name == "Dermatologists":
                continue
            path = next(path for path in CONFIGS if path.stem == f"table{number}_{FILES[name]}")
            assert f"Paper Table {number}, row {name}:" in path.read_text()
            assert PAPER_NAMES[yaml.safe_load(path.read_text())["debias"]] == name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    given = settings_given("skintone-debias", COMMANDS, config_words(path, "skintone-debias"), monkeypatch)
    if isinstance(given, Train):
        train = given
        recipe, unlearning = train.training, train.unlearning
        assert (recipe.lr_base, recipe.lr_class, recipe.momentum) == (LR_BASE, LR_CLASS, MOMENTUM) == (3e-4, 3e-3, 0.9)
        assert (unlearning.weight, unlearning.alpha) == (WEIGHT, ALPHA) == (0.01, 0.03)
        assert recipe.epochs == (4 if "isic2020" in train.cases.sites else 30)
        assert (recipe.batch_size, recipe.side, train.run.seed) == (64, 256, 0)
