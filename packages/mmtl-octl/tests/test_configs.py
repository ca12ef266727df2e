"""The settings files of the paper's tables are understood by the command that their first lines name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_core.testing import config_words, settings_given
from mmtl_octl.cli import COMMANDS

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_every_row_of_the_tables_has_a_file():
    names = {path.stem for path in CONFIGS}
    rows = {f"table2_{optimizer}_{slices}" for optimizer in ("sgd", "adam") for slices in (90, 270, 540, 1080)}
    rows |= {f"table4_{slices}" for slices in (10, 20, 40)} | {f"table5_{images}" for images in (128, 256, 512, 1024)}
    assert rows <= names
    assert {
        "table2_source_sgd",
        "table2_source_adam",
        "table3_forgetting",
        "table4_source",
        "table5_source",
        "figure1",
    } <= names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_is_accepted(path, monkeypatch):
    settings_given("mmtl-octl", COMMANDS, config_words(path, "mmtl-octl"), monkeypatch)


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if "table2_sgd" in p.stem or "table4_" in p.stem], ids=lambda p: p.stem
)
def test_what_is_written_out_is_the_default(path, monkeypatch):
    """The files say the papers' settings in full; leaving a line out must not change the run."""
    import yaml

    from mmtl_octl.settings import Adaptation, Training

    defaults = {**Training().__dict__, **Adaptation().__dict__}
    written = yaml.safe_load(path.read_text())
    for name in ("epochs", "batches", "batch_size", "drop_epoch", "alpha", "l2sp"):
        if name in written:
            assert written[name] == defaults[name], name
