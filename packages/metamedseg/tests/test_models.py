from __future__ import annotations

import json
from dataclasses import asdict

from dart_core.checkpoint import save_weights
from metamedseg import MetaUNet
from metamedseg.models import PACKAGE, Model, read_model


def test_files_from_before_there_was_a_channel(tmp_path):
    content = asdict(Model("target", "IDW", {"width": 2}, target="spleen"))
    del content["channel"]
    save_weights(tmp_path / "model.safetensors", MetaUNet(width=2), {PACKAGE: json.dumps(content)})
    model = read_model(tmp_path)
    assert (model.target, model.channel) == ("spleen", 0)
