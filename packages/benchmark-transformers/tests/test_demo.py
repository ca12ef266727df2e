"""The demo, through the code that a user's data takes."""

from __future__ import annotations

import dataclasses

import pytest

from benchmark_transformers import demo
from benchmark_transformers.settings import Network


def test_demo(command, tmp_path, monkeypatch):
    """Shortened: tiny network, two epochs."""
    monkeypatch.setattr(demo, "NETWORK", Network(4, 8, (1, 1), (1, 2), 3))
    monkeypatch.setattr(demo, "PICTURES", 30)
    monkeypatch.setattr(demo, "PRETRAINING", dataclasses.replace(demo.PRETRAINING, epochs=2))
    monkeypatch.setattr(demo, "FINE_TUNING", dataclasses.replace(demo.FINE_TUNING, epochs=2))
    monkeypatch.setattr(demo, "TRIALS", 1)
    monkeypatch.setattr("benchmark_transformers.demo.export", lambda command: None)  # has its own, slow test
    finished = command("demo", "--out", tmp_path / "demo")
    assert finished.status == 0, finished.err
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    for words in ("Continued pre-training", "Initialisations compared", "ROC curves"):
        assert words in page
    assert (tmp_path / "demo" / "comparison" / "figure1.png").is_file()
    assert "holds a run already" in command("demo", "--out", tmp_path / "demo").line


@pytest.mark.slow
def test_whole_demo(command, tmp_path):
    assert command("demo", "--out", tmp_path / "demo").status == 0
