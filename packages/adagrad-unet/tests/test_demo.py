"""The demo, run once: every step's files, a report, and what it must show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from adagrad_unet import __version__
from adagrad_unet.cli import COMMANDS, DESCRIPTION
from dart_core.cli import main
from dart_core.testing import assert_reports_render, demo_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RUNS = ("S-12", "S-4", "AG-4", "SGDm-4")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_once("adagrad-unet", tmp_path_factory.getbasetemp())


def test_every_step_leaves_its_files(out: Path) -> None:
    for name in ("config.yaml", "report.html", "plan.json", "phantoms/datalist.csv", "evaluation/scores.csv",
                 "layer-speed/layers.csv", "predict-spot-tuned/policy.csv"):  # fmt: skip
        assert (out / name).is_file(), name
    steps = (*RUNS, "evaluation", "layer-speed", "spot-baseline", "spot-tuned", "spot-evaluation")
    for folder in (*steps, *(f"predict-{name}" for name in RUNS)):
        assert (out / folder / "report.html").is_file()
        assert (out / folder / "config.yaml").is_file()
        assert (out / folder / "metrics.json").is_file()


def test_networks_have_learnt(out: Path) -> None:
    rows = json.loads((out / "evaluation" / "metrics.json").read_text())["comparisons"]
    dice = {(row["target"], row["method"]): row["mean"] for row in rows if row["metric"] == "dice"}
    assert set(dice) == {(site, name) for site in ("ge3", "sm15", "ph3") for name in RUNS}
    assert dice["ge3", "S-12"] > 0.7
    assert dice["ge3", "AG-4"] > 0.6
    assert all(value > 0.3 for value in dice.values())


def test_adaptivity_is_answered(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    assert re.search(r"AG-4 (does not adapt|hardly adapts|adapts): 98 % of the weights have between", text)
    rates = json.loads((out / "layer-speed" / "metrics.json").read_text())["rates"]
    assert set(rates["AG-4"]) == {"rate_min", "rate_p1", "rate_p50", "rate_p99", "rate_max"}


def test_report_holds_every_part(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    for heading in ("Surface Dice", "Speed of the layers", "SpotTUNet", "Settings"):
        assert re.search(rf"<h2[^>]*>{heading}</h2>", text), heading
    assert "Research software, not a medical device" in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)


def test_a_second_demo_does_not_overwrite_the_first(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (out / "report.html").stat().st_mtime_ns
    assert main("adagrad-unet", COMMANDS, __version__, DESCRIPTION, ["demo", "--out", str(out)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (out / "report.html").stat().st_mtime_ns == before


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_reports_render_in_a_browser(width: int, out: Path) -> None:
    assert_reports_render(out, width)
