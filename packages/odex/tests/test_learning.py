"""What `learn` says about a stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dart_core.data.datalist import Row
from dart_core.testing import InProcess
from odex import ModelPool, mahalanobis
from odex import settings as of
from odex.cases import Case
from odex.learning import features_of, moved, training_dice
from odex.plan import Plan
from odex.store import StageRecord, Stored


def test_features_that_move_away_from_the_older_stages():
    """Away from the first stage's mean by a factor of 3: squared distances grow by 9, whatever the second stage's Gaussian is."""
    rng = np.random.default_rng(0)
    first, second = (torch.from_numpy(rng.normal(shift, 1, (40, 4))) for shift in (0.0, 2.0))
    pool = ModelPool()
    pool.record(0, first)
    record = StageRecord("second", "update", 0, None)
    assert moved(pool, record, first) is None  # no older stage
    old = pool.histories[0][0]
    before = float(mahalanobis(second, old.mean, old.covariance).mean())
    mean = first.mean(0)
    after = mean + 3 * (second - mean)
    pool.record(0, after, action="update")
    record = replace(record, key=before)
    assert moved(pool, record, second) == pytest.approx(1, rel=1e-9)
    assert moved(pool, record, after) == pytest.approx(9, rel=1e-9)


@pytest.mark.parametrize("options", [{"history": False}, {"selection": "sum"}, {"normalisation": "per_stage_mean"}])
def test_nothing_is_said_where_distances_are_no_means_over_a_history(options):
    rng = np.random.default_rng(0)
    pool = ModelPool(**options)
    for shift in (0.0, 2.0):
        pool.record(0, rng.normal(shift, 1, (40, 4)), action="update")
    assert moved(pool, StageRecord("second", "update", 0, None, key=1.0), torch.zeros(3, 4)) is None


def test_no_more_patches_at_once_than_a_training_batch_has():
    """Features and Dice are those of any number, up to rounding."""
    plan = Plan(
        (1.0, 1.0, 1.0), (8, 8, 8), 2, ((2, 2, 2),), ((3, 3, 3),) * 2, (4, 8), False, ("foreground",), True, "RAS", "batch"
    )  # fmt: skip
    network = plan.network().eval()
    rng = np.random.default_rng(0)
    image, labels = rng.normal(size=(1, 16, 12, 8)).astype(np.float32), np.ones((16, 12, 8), np.int8)
    cases = [Case(Row(Path("a")), image, labels, {})]
    sizes: list[int] = []
    network.conv_blocks_context[0].register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    found = {}
    for batch in (2, 8):
        pool = Stored("odex", replace(plan, batch_size=batch), of.Pool(), of.Baselines(), [])
        sizes.clear()
        found[batch] = features_of(network, cases, pool)
        assert max(sizes) == min(batch, 6)  # 3 x 2 x 1 patches
        sizes.clear()
        dice = training_dice(network, cases, pool.plan)
        assert max(sizes) == min(batch, 4)
        found[batch] = torch.cat([found[batch][0], torch.tensor([dice])])
    torch.testing.assert_close(found[2], found[8], rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_odex_holds_no_more_gpu_memory_than_sequential_training(stages, tiny, tmp_path):
    """Whatever the pool holds, one network at a time is on the device (Fig. 3)."""
    network, training = tiny
    held: dict[str, list[int]] = {}
    for method in ("sequential", "odex"):
        start: tuple[object, ...] = ("--method", method, *network)
        for number, stage in enumerate(stages):
            torch.cuda.reset_peak_memory_stats()
            out = tmp_path / f"{method}-{number}"
            words = (*training, "--device", "cuda", "--out", out)
            assert InProcess("odex")("learn", "--stage", stage, *start, *words) == 0
            start = ("--pool", out)
            held.setdefault(method, []).append(torch.cuda.max_memory_allocated())
    assert max(held["odex"]) <= 1.01 * max(held["sequential"])
