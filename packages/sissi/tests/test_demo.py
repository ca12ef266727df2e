"""The demo, on fewer phantoms and for fewer epochs."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sissi import demo as module
from sissi.settings import Correction

RECIPE = "edges clip, zoom 0.8 to 1.25, ellipses of turned boxes, detector small"


@pytest.mark.slow
def test_demo(command, tmp_path, monkeypatch):
    for name, value in (("PICTURES", 12), ("FILE_SIDE", 64), ("SIDE", 64), ("CELLS", 5)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "DETECTOR", dataclasses.replace(module.DETECTOR, size=64))
    monkeypatch.setattr(module, "RECIPE", dataclasses.replace(module.RECIPE, epochs=2, batch_size=3))
    sissi = Correction("sissi-s", views="one", least_score=0.01, skip_score=0.01)
    monkeypatch.setattr(module, "RUNS", (module.RUNS[0], ("sissi", sissi)))
    finished = command("demo", "--out", tmp_path / "demo")
    assert finished.status == 0
    assert f"mixed batch, no correction: {RECIPE}, reader: AP50" in finished.out
    assert finished.err.splitlines()[-1].endswith(f"open {tmp_path / 'demo' / 'report.html'}")
    report = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert all(
        words in report
        for words in (
            "first labels",
            "SISSI (S): one view, least score 0.01, skip score 0.01, epoch 1",
            "synthetic-like picture",
            "The detectors",
        )
    )
    content = json.loads((tmp_path / "demo" / "evaluation" / "metrics.json").read_text())
    methods = {
        f"mixed batch, no correction: {RECIPE}",
        f"SISSI (S): one view, least score 0.01, skip score 0.01, {RECIPE}",
        "circle pipeline",
    }
    assert {row["method"] for row in content["scores"]} == methods
