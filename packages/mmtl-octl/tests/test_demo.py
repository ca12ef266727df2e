"""The demo, run once: every step's files, a report that a browser shows without complaint, and a gain by fine-tuning."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dart_core.cli import main
from dart_core.testing import assert_reports_render, demo_once
from mmtl_octl import __version__
from mmtl_octl.cli import COMMANDS, DESCRIPTION

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_once("mmtl-octl", tmp_path_factory.getbasetemp())


METHODS = ("none", "fta", "fta_mu099", "ftf", "l2sp", "spottune", "octl", "mmtl", "target")


def test_every_step_leaves_its_files(out: Path) -> None:
    for name in (
        "config.yaml", "report.html", "phantoms/datalist.csv", "source-network/model.safetensors",
        "source-network/history.safetensors", "evaluation/scores.csv", "evaluation/forgetting.csv",
        "evaluation/tables.csv", "adapt-mmtl/features/epoch-000.npz",
    ):  # fmt: skip
        assert (out / name).is_file(), name
    folders = [f"adapt-{method}" for method in METHODS] + [f"predict-{method}-on-ge15" for method in METHODS]
    for folder in ("source-network", "evaluation", *folders):
        assert (out / folder / "report.html").is_file()
        assert (out / folder / "config.yaml").is_file()
        assert (out / folder / "metrics.json").is_file()


def test_fine_tuning_helps(out: Path) -> None:
    results = json.loads((out / "evaluation" / "metrics.json").read_text())["results"]
    dice = {row["method"]: row["dice"] for row in results}
    assert tuple(dice) == METHODS
    for method in ("fta", "mmtl", "octl", "target"):
        assert dice[method] > dice["none"] + 0.1, dice
    validation = json.loads((out / "source-network" / "metrics.json").read_text())
    assert validation["validation_dice"] > 0.9


def test_report_holds_every_part(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    for heading in ("Schedule", "Methods", "Forgetting", "Examples", "Features during fine-tuning", "Settings"):
        assert re.search(rf"<h2[^>]*>{heading}</h2>", text), heading
    assert "Research software, not a medical device" in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)


def test_a_second_demo_does_not_overwrite_the_first(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (out / "report.html").stat().st_mtime_ns
    assert main("mmtl-octl", COMMANDS, __version__, DESCRIPTION, ["demo", "--out", str(out)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (out / "report.html").stat().st_mtime_ns == before


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_reports_render_in_a_browser(width: int, out: Path) -> None:
    assert_reports_render(out, width)
