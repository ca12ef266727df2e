"""The demo, through the code that a user's data takes."""

from __future__ import annotations

import csv

import pytest

from stain_aglr import demo
from stain_aglr.settings import Training


def test_demo(command, tmp_path, monkeypatch):
    """Shortened: two methods, two epochs."""
    monkeypatch.setattr(demo, "TRAINING", Training(width=2, batch_size=16, max_epochs=2, log_every=1))
    monkeypatch.setattr(demo, "METHODS", ("vanilla", "stain-aglr"))
    monkeypatch.setattr(demo, "PATCHES", 24)
    finished = command("demo", "--out", tmp_path / "demo")
    assert finished.status == 0, finished.err
    rows = list(csv.DictReader((tmp_path / "demo" / "evaluation" / "scores.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == {"vanilla", "stain-aglr"}
    assert {row["site"] for row in rows} == {"RUMC", "CWZ", "RST", "LPON"}
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    for words in ("Laboratories", "Area under the ROC curve", "Feature space"):
        assert words in page
    assert (tmp_path / "demo" / "classifier.onnx").is_file()
    assert "holds a run already" in command("demo", "--out", tmp_path / "demo").line


@pytest.mark.slow
def test_whole_demo(command, tmp_path):
    assert command("demo", "--out", tmp_path / "demo").status == 0
