"""The demo, run once: every step's files, a report that a browser shows without complaint, and a gain by adaptation."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aiva import __version__
from aiva.cli import COMMANDS, DESCRIPTION
from aiva.demo import METHODS
from aiva.epoch import clusterings
from dart_core.cli import main
from dart_core.testing import assert_reports_render, demo_once

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo_once("aiva", tmp_path_factory.getbasetemp())


def test_every_step_leaves_its_files(out: Path) -> None:
    for folder in ("", "source-network", "clusters", "evaluation", *METHODS, *(f"predict-{m}" for m in METHODS)):
        assert (out / folder / "report.html").is_file(), folder
        assert (out / folder / "config.yaml").is_file(), folder
    for folder in ("source-network", *METHODS):
        assert (out / folder / "model.safetensors").is_file(), folder
    assert (out / "phantoms" / "datalist.csv").is_file()


def test_adaptation_helps(out: Path) -> None:
    rows = json.loads((out / "evaluation" / "metrics.json").read_text())["results"]
    # Names say what departs from the defaults, here the settings of so short a run.
    results = dict(zip(METHODS, rows, strict=True))
    assert [row["method"].partition("_")[0] for row in rows] == list(METHODS)
    for method in ("aiva", "adabn"):
        assert results[method]["surface_dice"] > results["none"]["surface_dice"] + 0.03
    assert results["target"]["surface_dice"] > results["aiva"]["surface_dice"]


def test_sites_come_closer(out: Path) -> None:
    distances = [float(found["matched_distance"]) for found in clusterings(out / "aiva")]
    assert distances[-1] < 0.7 * distances[0]


def test_report_holds_every_part(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    for heading in ("Before and after", "Clusters", "Pairs", "Scans", "Settings"):
        assert re.search(rf"<h2[^>]*>{heading}</h2>", text), heading
    for figure in ("Fig. 2", "Fig. 3", "Fig. 4"):
        assert figure in text
    assert "Research software, not a medical device" in text
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)


def test_a_second_demo_does_not_overwrite_the_first(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (out / "report.html").stat().st_mtime_ns
    assert main("aiva", COMMANDS, __version__, DESCRIPTION, ["demo", "--out", str(out)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (out / "report.html").stat().st_mtime_ns == before


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_reports_render_in_a_browser(width: int, out: Path) -> None:
    assert_reports_render(out, width)
