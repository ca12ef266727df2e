"""A small network learns one batch by heart, with the recipe of a stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from dart_core.data.datalist import Row
from dart_core.run import Run
from dart_core.settings import RunSettings
from odex import settings as of
from odex.cases import Case
from odex.learning import training_dice
from odex.plan import Plan
from odex.regularisers import regulariser_of
from odex.stopwatch import Stopwatch
from odex.training import train_stage

PATCH = (8, 12, 8)


@pytest.mark.parametrize("method", ["odex", "mib"])
def test_one_patch_is_learned_by_heart(method, tmp_path):
    """Noise with a random blob: nothing but the patch itself can be learned; MiB as in a later stage, from its own old network."""
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.normal(size=PATCH), 1.2) > 0.05
    case = Case(
        Row(Path("a")), rng.normal(size=(1, *PATCH)).astype(np.float32), truth.astype(np.int8), {1: np.argwhere(truth)}
    )
    plan = Plan(
        (1.0, 1.0, 1.0), PATCH, 2, ((2, 2, 2),) * 2, ((3, 3, 3),) * 3, (8, 16, 16), False, ("foreground",), True, "RAS", "batch"
    )  # fmt: skip
    torch.manual_seed(0)
    network = plan.network()
    before = training_dice(network.eval(), [case], plan)
    settings = of.Training(epochs=1, batches=80, learning_rate=0.05, momentum=0.9, augmentation=False, log_every=80)
    baselines = of.Baselines(lkd=0.01)
    with Run(RunSettings(tmp_path / "run", device="cpu")) as run:
        train_stage(
            run,
            network,
            [case],
            plan,
            settings,
            regulariser_of(method, baselines, {}, int(method == "mib")),
            Stopwatch(run.out, 0.0),
        )
    assert before < 0.8
    assert training_dice(network, [case], plan) > 0.98
