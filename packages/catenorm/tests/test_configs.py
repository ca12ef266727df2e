"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from catenorm.cli import COMMANDS
from catenorm.settings import Training
from dart_core.testing import config_words, settings_given

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def read(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The settings that the file's own command makes of it."""
    return settings_given("catenorm", COMMANDS, config_words(path, "catenorm"), monkeypatch)


def test_a_config_for_every_row() -> None:
    names = {path.stem for path in CONFIGS}
    rows = ("bn_plain", "bn_augmented", "bn", "in", "gn", "catenorm_1", "catenorm_1-4")
    multi = ("bn", "dsbn", "ms-net", "catenorm_1", "catenorm_1-4")
    assert names >= {f"table1_{data}_{row}" for data in ("prostate", "btcv") for row in rows}
    assert names >= {f"table2_{data}_{row}" for data in ("prostate", "abdomen") for row in multi}
    assert names >= {f"figure5_block_{block}" for block in range(1, 11)}
    assert names >= {f"table12_warmup_{steps}" for steps in (450, 1440, 9000)}
    assert names >= {f"figure3_{count}_classes_{method}" for count in (3, 5) for method in ("bn", "catenorm")}
    assert names >= {f"table11_{data}_{method}" for data in ("prostate", "abdomen") for method in ("bn", "catenorm")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read(path, monkeypatch)


@pytest.mark.parametrize("name", ["table1_prostate_catenorm_1-4", "table2_abdomen_bn", "table2_prostate_ms-net"])
def test_the_tables_are_the_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = read(next(path for path in CONFIGS if path.stem == name), monkeypatch)
    assert dataclasses.replace(command.training, fold=None) == Training()
