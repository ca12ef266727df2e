"""Learning rates (specification 2.1.10, 2.2.6, property 9.5)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmark_transformers import fine_tune_lr, simmim_lr


def test_intended_schedule() -> None:
    assert fine_tune_lr(0) == 0.01
    assert fine_tune_lr(100, lr=0.3) == pytest.approx((0.3 + 1e-5) / 2)
    assert fine_tune_lr(200) == pytest.approx(1e-5)
    assert fine_tune_lr(250) == pytest.approx(1e-5)


def test_warm_up_replaces_the_start_of_the_cosine() -> None:
    assert fine_tune_lr(0, lr=0.1, warmup=20) == pytest.approx(1e-6)
    assert fine_tune_lr(10.0, lr=0.1, warmup=20) == pytest.approx(1e-6 + (0.1 - 1e-6) / 2)
    assert fine_tune_lr(20, lr=0.1, warmup=20) == pytest.approx(fine_tune_lr(20, lr=0.1))


def test_schedule_as_coded() -> None:
    assert fine_tune_lr(3, 200, 0.1, 20, "as_coded", 0.17) == pytest.approx(0.00085099, abs=5e-9)
    assert fine_tune_lr(0, 200, 0.1, 20, "as_coded", 0.17) == pytest.approx(1e-6)
    assert fine_tune_lr(0, 200, 0.01, 0, "as_coded") == 0.01
    assert fine_tune_lr(150, 200, 0.01, 0, "as_coded", 0.17) == pytest.approx(0.00999998, abs=1e-8)
    with pytest.raises(ValueError, match="needs the validation loss"):
        fine_tune_lr(1, schedule="as_coded")


def test_schedules_as_timm_steps_them() -> None:
    """timm's own scheduler, stepped with the epoch, and with the validation loss in its place."""
    from timm.scheduler import CosineLRScheduler

    for warmup, lr in ((0, 0.01), (20, 0.1)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)
        scheduler = CosineLRScheduler(
            optimizer, t_initial=200, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6, cycle_limit=1, t_in_epochs=True
        )
        for epoch in (1, 7, 19, 20, 77, 199):
            scheduler.step(epoch)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(fine_tune_lr(epoch, 200, lr, warmup), rel=1e-9)
        for loss in (0.17, 0.6, 1.4):
            scheduler.step(loss)
            found = fine_tune_lr(5, 200, lr, warmup, "as_coded", loss)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(found, rel=1e-9)


def test_arrays_and_tensors() -> None:
    epochs = np.array([0, 10, 100, 200])
    assert fine_tune_lr(epochs).tolist() == pytest.approx([fine_tune_lr(int(epoch)) for epoch in epochs])
    assert simmim_lr(torch.tensor([0.0, 500.0]), 10).tolist() == pytest.approx([simmim_lr(0, 10), simmim_lr(500, 10)])


def test_simmim_recipe_of_100_epochs() -> None:
    """All three rates are for a batch of 512."""
    assert simmim_lr(0, 7) == pytest.approx(4e-6)
    assert simmim_lr(35, 7) == pytest.approx((4e-6 + 8e-4) / 2)
    assert simmim_lr(70, 7) == pytest.approx(4e-5 + 0.5 * (8e-4 - 4e-5) * (1 + math.cos(math.pi / 10)))
    assert simmim_lr(350, 7) == pytest.approx((8e-4 + 4e-5) / 2)
    assert simmim_lr(700, 7) == pytest.approx(4e-5)
    assert simmim_lr(0, 7, total_batch=512, warmup=0) == pytest.approx(2e-4)


def test_simmim_recipe_of_800_epochs() -> None:
    recipe = {"epochs": 800, "base": 1e-4, "start": 5e-7, "schedule": "step"}
    assert simmim_lr(0, 3, **recipe) == pytest.approx(2e-6)
    assert simmim_lr(3 * 10, 3, **recipe) == simmim_lr(3 * 700 - 1, 3, **recipe) == pytest.approx(4e-4)
    assert simmim_lr(3 * 700, 3, **recipe) == pytest.approx(4e-5)


def test_unknown_schedules() -> None:
    with pytest.raises(ValueError, match="intended or as_coded"):
        fine_tune_lr(1, schedule="cosine")
    with pytest.raises(ValueError, match="cosine or step"):
        simmim_lr(1, 1, schedule="linear")
    with pytest.raises(ValueError, match="0 iterations"):
        simmim_lr(1, 0)
