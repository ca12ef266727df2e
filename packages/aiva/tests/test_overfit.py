"""The network learns one batch by heart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from aiva.settings import Training
from aiva.slices import Slices
from aiva.training import Selection, train_supervised
from dart_core.data.scans import load_scans, open_datalist, rows_of
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings, ScanSettings


def test_one_batch_is_learnt_by_heart(datalist: Path, tmp_path: Path) -> None:
    settings = ScanSettings(datalist, "plain")
    scans = load_scans(rows_of(open_datalist(datalist), ["sm15"], "train")[:2], settings)
    slices = Slices(scans, settings, 48)
    slices.places = [(0, 7), (1, 6)]
    training = Training(steps=60, batch_size=2, learning_rate=0.1, log_every=1, checkpoint="last")
    torch.manual_seed(0)
    network = ResidualUNet2d(out_channels=2, width=4)
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=0)) as run:
        train_supervised(run, network, slices, training, Selection("last", None, 100, 60))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] > 0.3
    assert np.mean(losses[-5:]) < 0.05
