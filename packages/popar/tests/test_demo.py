"""The demo, on fewer phantoms and for fewer epochs."""

from __future__ import annotations

import dataclasses
import json

import pytest

from popar import demo as module


@pytest.mark.slow
def test_demo(command, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "UNLABELLED", 24)
    monkeypatch.setattr(module, "LABELLED", 30)
    monkeypatch.setattr(module, "SEEDS", 1)
    monkeypatch.setattr(
        module, "PRETRAINING", dataclasses.replace(module.PRETRAINING, epochs=1, held_out=4, examples=2)
    )
    monkeypatch.setattr(module, "TUNING", dataclasses.replace(module.TUNING, epochs=2))
    finished = command("demo", "--out", tmp_path / "demo")
    assert finished.status == 0
    rest = "vit_b at 64, depth=3, embed_dim=64, num_heads=4, patch_size=8, normalisation chestxray14"
    assert f"random, {rest}: mean AUC" in finished.out
    assert finished.err.splitlines()[-1].endswith(f"open {tmp_path / 'demo' / 'report.html'}")
    report = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "Patch order and appearance" in report
    assert "Printed in the paper" not in report
    pretrained = json.loads((tmp_path / "demo" / "pretraining" / "metrics.json").read_text())
    assert f"of 4 such pictures {pretrained['order_accuracy']:.0%} were named rightly" in report
    content = json.loads((tmp_path / "demo" / "evaluation" / "metrics.json").read_text())
    assert {row["method"] for row in content["scores"]} == {f"random, {rest}", f"POPAR, {rest}"}
    assert [(row["method"], row["baseline"]) for row in content["compared"]] == [(f"POPAR, {rest}", "random")]
    assert (tmp_path / "demo" / "backbone.safetensors").is_file()
