"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from dart_core.cli import main
from skintone_debias.cli import COMMANDS
from skintone_debias.recipes import ALPHA, LR_BASE, LR_CLASS, MOMENTUM, PAPER_NAMES, WEIGHT
from skintone_debias.tables import printed_table

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
FILES = {"Baseline": "baseline", "LNTL": "lntl", "LNTL*": "lntl_nogr", "TABE": "tabe", "CLGR": "clgr"}


def example(path: Path) -> list[str]:
    """The words of the command in the first lines."""
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("#   skintone-debias ")]
    return shlex.split(line[4:])[1:]


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
    verb, *words = example(path)
    assert words[words.index("--config") + 1] == f"configs/{path.name}"
    words[words.index("--config") + 1] = str(path)
    settings, _ = COMMANDS[verb]
    seen = []
    monkeypatch.setitem(COMMANDS, verb, (settings, f"{__name__}:unused"))
    monkeypatch.setattr("importlib.import_module", lambda name: type("Module", (), {"unused": seen.append}))
    assert main("skintone-debias", COMMANDS, "0", "", argv=[verb, *words]) == 0
    assert type(seen[0]) is settings
    if verb == "train":
        train = seen[0]
        recipe, unlearning = train.training, train.unlearning
        assert (recipe.lr_base, recipe.lr_class, recipe.momentum) == (LR_BASE, LR_CLASS, MOMENTUM) == (3e-4, 3e-3, 0.9)
        assert (unlearning.weight, unlearning.alpha) == (WEIGHT, ALPHA) == (0.01, 0.03)
        assert recipe.epochs == (4 if "isic2020" in train.cases.sites else 30)
        assert (recipe.batch_size, recipe.side, train.run.seed) == (64, 256, 0)
