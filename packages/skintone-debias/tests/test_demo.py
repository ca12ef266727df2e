"""The demo, run once: every step's files, and a report that needs nothing from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dart_core.testing import demo_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
METHODS = ("none", "lr-control", "lntl", "tabe", "clgr")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_once("skintone-debias", tmp_path_factory.getbasetemp())


def test_every_step_leaves_its_files(out: Path) -> None:
    for name in (
        "config.yaml",
        "report.html",
        "tones.csv",
        "tones_sheet.png",
        "phantoms/labelled.csv",
        "evaluation/scores.csv",
    ):
        assert (out / name).is_file(), name
    for method in METHODS:
        assert (out / f"train-{method}" / "model.safetensors").is_file()
        assert (out / f"predict-{method}" / "predictions.csv").is_file()


def test_networks_learn(out: Path) -> None:
    content = json.loads((out / "evaluation" / "metrics.json").read_text())
    aucs = {row["method"].partition(" (")[0]: row["auc"] for row in content["sites"] if row["site"] == "all"}
    assert tuple(aucs) == METHODS
    assert max(aucs.values()) > 0.65, aucs


def test_report_holds_every_part(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    for heading in ("Labeller", "Data sets", "Skin types", "Curves", "All scores", "Settings"):
        assert re.search(rf"<h2[^>]*>{heading}</h2>", text), heading
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
