"""The network learns one batch by heart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from dart_core.nets import ResidualUNet2d
from dart_core.run import Run
from dart_core.settings import RunSettings
from fda_mri import multi_source_predict, train_source
from fda_mri.scans import load, select
from fda_mri.settings import Scans, Training


def test_one_batch_is_learnt_by_heart(datalist: Path, tmp_path: Path) -> None:
    """Two slices, each as a scan of its own and no larger than the crop: every batch holds nothing else."""
    chosen = Scans(datalist, "sm15")
    scans = list(load(select(chosen, "train")[:2], chosen, need_mask=True))
    volumes = [scan.volume[:, 4:52, 7:8] for scan in scans]
    masks = [scan.mask[:, 4:52, 7:8] for scan in scans if scan.mask is not None]
    settings = Training(
        width=4, epochs=1, iterations=40, batch_size=4, learning_rate=0.1, drop_epoch=1, crop_size=48, log_every=1
    )
    torch.manual_seed(0)
    with Run(RunSettings(tmp_path / "run", device="cpu", seed=0)) as run:
        network = train_source(run, ResidualUNet2d(width=4), volumes, masks, settings)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 40
    assert losses[0] > 0.4
    assert np.mean(losses[-5:]) < 0.1
    # The slice as its own donor at beta 0 is the slice over its maximum, 1: the network has just seen it.
    for volume, mask in zip(volumes, masks, strict=True):
        probabilities = multi_source_predict(network, torch.from_numpy(volume), torch.from_numpy(volume)[None], 0)
        prediction = probabilities.numpy() > 0.5
        assert 2 * (prediction & mask).sum() / (prediction.sum() + mask.sum()) > 0.95
