"""The demo, through the code that a user's data takes."""

from __future__ import annotations

import pytest

from metamedseg import demo
from metamedseg.settings import Inner, Meta, Network


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo(command, tmp_path, monkeypatch):
    """Shortened."""
    for name, value in (
        ("SHAPE", (32, 26, 14)), ("CASES", 3), ("NETWORK", Network(width=2)), ("INNER", Inner(inner_epochs=1)),
        ("META", Meta(meta_epochs=1)), ("EPOCHS", 1), ("SHOTS", 3), ("SELECTIONS", (1, 6)),
    ):  # fmt: skip
        monkeypatch.setattr(demo, name, value)
    finished = command("demo", "--out", tmp_path / "demo")
    assert finished.status == 0, finished.err
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    for words in ("IDW vol", "supervised", "by volume", "Fig. 2"):
        assert words in page
    assert list((tmp_path / "demo" / "volumes").glob("*.nii.gz"))
    assert "holds a run already" in command("demo", "--out", tmp_path / "demo").line
