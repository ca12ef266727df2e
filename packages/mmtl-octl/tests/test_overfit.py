"""The network learns one batch by heart, by source training and by every way of fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dart_core import metrics
from dart_core.data.scans import predict_scan
from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings, ScanSettings
from mmtl_octl.method import SEGMENTATION, fine_tune
from mmtl_octl.pools import make_pool, training_batches
from mmtl_octl.settings import Adaptation, Training

PLAIN = ScanSettings(Path("list.csv"), preprocessing="plain")


@pytest.mark.parametrize(
    ("method", "optimizer"), [("fta", "sgd"), ("target", "adam"), ("mmtl", "adam"), ("spottune", "sgd")]
)
def test_one_batch_is_learnt_by_heart(method: Any, optimizer: Any, make_scan: Any, tmp_path: Path) -> None:
    scan = make_scan("p", (16, 24, 2))
    scan.mask[4:12, 6:18] = True
    scan.mask[6:8, 8:10, 1] = False  # a hole in one of the two slices
    pool = make_pool([scan], PLAIN, 0)
    rate = {"sgd": 0.1, "adam": 0.03}[optimizer]
    training = Training(
        epochs=2, batches=30, batch_size=4, learning_rate=rate, drop_epoch=2, optimizer=optimizer, log_every=1
    )
    batches = training_batches(
        pool if method == "mmtl" else None, pool, training, PLAIN, 0, "paper" if method == "mmtl" else "target"
    )
    torch.manual_seed(0)
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=0)) as run:
        network = fine_tune(
            run, ResidualUNet2d(width=4), batches, SEGMENTATION, training, Adaptation(method=method, k=0.0)
        )
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] > 0.4
    assert np.mean(losses[-5:]) < 0.1
    mask = predict_scan(network, scan.volume)[0].numpy() > 0
    assert metrics.dice(mask, scan.truth) > 0.97
