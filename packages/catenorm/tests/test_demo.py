"""The demo, shortened."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from catenorm import demo
from catenorm.settings import Demo


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TRAINING", dataclasses.replace(demo.TRAINING, steps=2, warmup_steps=1, log_every=1))
    monkeypatch.setattr(demo, "WIDTH", 4)
    monkeypatch.setattr(demo, "SIDE", 32)
    demo.demo(Demo(tmp_path / "demo"))
    text = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    for words in ("Made-up abdomens", "What the networks say", "Scale (gamma)", "catenorm 1-4", "left-kidney"):
        assert words in text
    assert (tmp_path / "demo" / "evaluation" / "scores.csv").is_file()
    assert (tmp_path / "demo" / "catenorm" / "model.safetensors").is_file()
