"""The demo, through the code that a user's data takes."""

from __future__ import annotations

import pytest

from united_ssl import demo
from united_ssl.settings import Network, Training


@pytest.mark.slow
def test_demo(command, tmp_path, monkeypatch):
    """Shortened."""
    monkeypatch.setattr(demo, "TRAINING", Training(batch_size=8, max_epochs=1, log_every=1, show_every=1))
    monkeypatch.setattr(demo, "NETWORK", Network(width=1))
    monkeypatch.setattr(demo, "WORDS", 2)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    finished = command("demo", "--out", tmp_path / "demo")
    assert finished.status == 0, finished.err
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    for words in ("Pretraining", "IoU", "Frechet distance", "After ((D)+R)+A"):
        assert words in page
    assert (tmp_path / "demo" / "liver.onnx").is_file()
    assert "holds a run already" in command("demo", "--out", tmp_path / "demo").line
