"""What `learn` says about a stage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from odex import ModelPool, mahalanobis
from odex.learning import moved
from odex.store import StageRecord


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
