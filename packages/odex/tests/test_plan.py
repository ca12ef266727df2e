"""The planner against the plans that nnU-Net 1's own planner made (specification 3)."""

from __future__ import annotations

import pytest

from odex.plan import plan_unet_3d


@pytest.mark.parametrize(
    ("shape", "cases", "classes", "patch", "pools", "batch", "features"),
    [
        ((36, 50, 35), 260, 3, (40, 56, 40), ((2, 2, 2),) * 3, 9, (32, 64, 128, 256)),
        ((36, 50, 35), 130, 2, (40, 56, 40), ((2, 2, 2),) * 3, 5, (32, 64, 128, 256)),
        ((36, 50, 35), 26, 2, (40, 56, 40), ((2, 2, 2),) * 3, 2, (32, 64, 128, 256)),
        ((64, 64, 48), 58, 2, (64, 64, 48), ((2, 2, 2),) * 3 + ((2, 2, 1),), 3, (32, 64, 128, 256, 320)),
        ((48, 64, 64), 270, 2, (48, 64, 64), ((2, 2, 2),) * 3 + ((1, 2, 2),), 14, (32, 64, 128, 256, 320)),
    ],
)
def test_plans(shape, cases, classes, patch, pools, batch, features):
    found = plan_unet_3d((1, 1, 1), shape, cases, classes)
    assert found == (patch, batch, pools, ((3, 3, 3),) * (len(pools) + 1), features)


def test_cases_that_cannot_be_halved():
    with pytest.raises(ValueError, match="cannot be halved once"):
        plan_unet_3d((1, 1, 1), (6, 7, 5), 3, 2)
