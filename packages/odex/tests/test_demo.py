"""The demo, shortened: every step through the code of a user's data, and its report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from odex import demo
from odex.settings import Demo


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STAGES", 2)
    monkeypatch.setattr(demo, "CASES", 5)
    monkeypatch.setattr(demo, "METHODS", ("odex", "sequential"))
    monkeypatch.setattr(demo, "TRAINING", dataclasses.replace(demo.TRAINING, epochs=1, batches=2, log_every=1))
    monkeypatch.setattr(demo, "NETWORK", dataclasses.replace(demo.NETWORK, base_features=2, max_pools=1, batch_size=2))
    out = tmp_path / "demo"
    demo.demo(Demo(out))
    page = (out / "report.html").read_text(encoding="utf-8")
    for words in (
        "What ODEx decided",
        "Stage by stage",
        "One image through the stages",
        "stage-2",
        "Research software",
    ):
        assert words in page
    for folder in ("odex-1", "odex-2", "sequential-2", "predict-odex-2", "evaluation"):
        for name in ("config.yaml", "metrics.json", "report.html"):
            assert (out / folder / name).is_file(), f"{folder}/{name}"
    summary = {row["method"]: row for row in json.loads((out / "evaluation/metrics.json").read_text())["summary"]}
    assert set(summary) == {"ODEx", "Seq."}
    assert summary["Seq."]["networks"] == 1
