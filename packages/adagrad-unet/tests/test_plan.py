"""The planner against every case that specification 3 measured with nnU-Net."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrad_unet import plan_unet_2d
from adagrad_unet.network import GenericUNet2d


def fingerprint(rows: int, columns: int, classes: int = 2, **changes: Any) -> dict[str, Any]:
    values = {"spacing": (1.0, 1.0, 1.0), "shape": (180, rows, columns), "cases": 48, "channels": 1, "classes": classes}
    return {**values, **changes}


def parameters(plan: Any, channels: int, classes: int) -> int:
    network = GenericUNet2d(channels, classes, plan.pool, plan.conv, plan.features)
    return sum(parameter.numel() for parameter in network.parameters())


SIX = ((2, 2),) * 6
MEASURED = [
    # rows, columns, classes, patch, pool, batch, parameters
    (256, 196, 2, (256, 224), ((2, 2),) * 5 + ((2, 1),), 58, 29_505_312),
    (256, 256, 2, (256, 256), SIX, 50, 29_966_112),
    (256, 256, 4, (256, 256), SIX, 50, 29_968_992),
    (288, 288, 2, (320, 320), SIX, 32, 29_966_112),
    (216, 256, 4, (224, 256), ((2, 2),) * 5 + ((1, 2),), 56, 29_508_192),
    (276, 256, 4, (320, 256), SIX, 40, 29_968_992),
    (512, 512, 3, (512, 512), ((2, 2),) * 7, 12, 41_264_352),
]


@pytest.mark.parametrize(("rows", "columns", "classes", "patch", "pool", "batch", "count"), MEASURED)
def test_measured_plans(rows, columns, classes, patch, pool, batch, count):
    plan = plan_unet_2d(fingerprint(rows, columns, classes))
    assert (plan.patch_size, plan.pool, plan.batch_size) == (patch, pool, batch)
    assert plan.conv == ((3, 3),) * (len(pool) + 1)
    assert plan.features == (32, 64, 128, 256, 480, 480, 480, 480)[: len(pool) + 1]
    assert parameters(plan, 1, classes) == count


@pytest.mark.parametrize(
    ("rows", "columns", "patch", "pool", "batch"),
    [
        (240, 240, (256, 256), SIX, 50),
        (250, 250, (256, 256), SIX, 50),
        (516, 449, (640, 512), ((2, 2),) * 7, 10),
    ],
)
def test_odd_sides_are_rounded_up_when_halved(rows, columns, patch, pool, batch):
    """240 pixels reach 15 and then 8, which is halved once more. Values of nnU-Net 1.7.1's own planner."""
    plan = plan_unet_2d(fingerprint(rows, columns))
    assert (plan.patch_size, plan.pool, plan.batch_size) == (patch, pool, batch)


def test_batch_is_at_most_five_per_cent_of_the_voxels():
    """4 cases of 10 slices of the size of the patch: 0.05 * 40 = 2 slices; with one case of 4 slices there is still one."""
    assert plan_unet_2d(fingerprint(256, 256, shape=(10, 256, 256), cases=4)).batch_size == 2
    assert plan_unet_2d(fingerprint(256, 256, shape=(4, 256, 256), cases=1)).batch_size == 1


def test_slices_too_large_for_memory_shrink():
    """Twice 1600 pixels would not leave a batch of two: the axis that is largest against the median gives way."""
    plan = plan_unet_2d(fingerprint(1600, 1600))
    assert plan.batch_size == 2
    assert max(plan.patch_size) < 1600
    assert all(side % (2 ** len(plan.pool)) == 0 for side in plan.patch_size)


def test_the_finer_axis_is_halved_alone_until_the_other_is_in_reach():
    """1 x 3 mm: the first reduction halves rows only, with kernels along rows only."""
    plan = plan_unet_2d(fingerprint(256, 64, spacing=(5.0, 1.0, 3.0)))
    assert plan.pool == ((2, 1), (2, 2), (2, 2), (2, 2), (2, 2), (2, 1))[: len(plan.pool)]
    assert plan.conv[0] == (3, 1)
    assert plan.conv[1:] == ((3, 3),) * (len(plan.pool))
    # Of two groups of one axis nnU-Net takes the first for the kernel, also where the other axis is halved.
    turned = plan_unet_2d(fingerprint(64, 256, spacing=(5.0, 3.0, 1.0)))
    assert turned.pool[:2] == ((1, 2), (2, 2))
    assert turned.conv[0] == (3, 1)


def test_axes_exactly_a_factor_of_two_apart_are_not_together():
    plan = plan_unet_2d(fingerprint(64, 32, spacing=(5.0, 1.0, 2.0)))
    assert plan.pool[0] == (2, 1)
    assert plan.conv[0] == (3, 1)
    assert plan.pool[1] == (2, 2)


def test_small_networks_for_slow_machines():
    plan = plan_unet_2d(fingerprint(128, 128), base_features=8, max_pools=3)
    assert plan.pool == ((2, 2),) * 3
    assert plan.features == (8, 16, 32, 64)


@given(rows=st.integers(8, 700), columns=st.integers(8, 700), step=st.floats(0.3, 4), cases=st.integers(1, 300))
@settings(max_examples=80, deadline=None)
def test_any_plan_fits_its_network(rows, columns, step, cases):
    plan = plan_unet_2d(fingerprint(rows, columns, spacing=(5.0, 1.0, step), cases=cases))
    assert plan.batch_size >= 1
    for side, kernels in zip(plan.patch_size, zip(*plan.pool, strict=True), strict=True):
        assert side % math.prod(kernels) == 0
    assert max(plan.features) <= 480
    assert len(plan.conv) == len(plan.features) == len(plan.pool) + 1
    for side, median, kernels in zip(plan.patch_size, (rows, columns), zip(*plan.pool, strict=True), strict=True):
        assert side < median + math.prod(kernels)
        if side > median:
            assert plan.patch_size != (rows, columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing in the fingerprint is .*; give three positive numbers"),
        ({"spacing": (1.0, 1.0)}, "spacing"),
        ({"spacing": (1.0, float("nan"), 1.0)}, "spacing"),
        ({"shape": None}, "shape"),
        ({"cases": 0}, "cases in the fingerprint is 0"),
        ({"channels": None}, "channels"),
        ({"shape": (20, 7, 6)}, "slices of 7 x 6 pixels cannot be halved"),
    ],
)
def test_fingerprints_that_cannot_be_planned(changes, message):
    values = {**fingerprint(256, 256), **changes}
    values = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        plan_unet_2d(values)
