"""The core's loop learns: a small network fits a handful of samples in every precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dart_core.batches import Batches
from dart_core.run import Run
from dart_core.settings import RunSettings

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)


def load(index: int, generator: np.random.Generator) -> dict[str, Any]:
    """Noise with random labels: there is nothing to learn but the samples themselves."""
    own = np.random.default_rng(index)
    return {"image": own.normal(size=(1, 8, 8)).astype(np.float32), "label": own.integers(2, size=1).astype(np.float32)}


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_overfits_eight_samples(tmp_path: Path, device: str, precision: Any) -> None:
    settings = RunSettings(out=tmp_path / "run", device=device, precision=precision, channels_last=True, accumulate=2)
    with Run(settings) as run:
        network = run.prepare(
            nn.Sequential(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 1))
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        run.restore(network=network, optimizer=optimizer)
        criterion = nn.BCEWithLogitsLoss()
        for _, batch in run.steps(Batches(load, 8, 8, 0), 60):
            loss = run.optimise(optimizer, lambda part: criterion(network(part["image"]), part["label"]), batch)
    assert float(loss) < 0.02
    assert len(Batches(load, 8, 8, 0).batch(0)["label"].unique()) == 2
