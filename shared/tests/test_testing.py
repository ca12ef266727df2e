from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from dart_core.testing import assert_equal_states


def state(value: float = 0.0, nan: float = float("nan")) -> dict[str, Any]:
    weight = torch.zeros(40, 40)
    weight[20, 20] = value  # str() of the tensor would not show it
    return {"optimizer": [{"step": 3, "weight": weight}, "sgd", nan]}


def test_equal_states() -> None:
    assert_equal_states(state(), state())


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (state(1e-7), "run.optimizer.0.weight"),
        (state(nan=0.0), "run.optimizer.2"),
        ({"optimizer": state()["optimizer"][:2]}, "run.optimizer"),
        ({"optimiser": []}, "run"),
        (
            {"optimizer": [{"step": 3, "weight": torch.zeros(40, 40).double()}, "sgd", 0]},
            "run.optimizer.0.weight, run.optimizer.2",
        ),
    ],
)
def test_the_place_that_differs_is_named(other: dict[str, Any], place: str) -> None:
    with pytest.raises(AssertionError, match=f"^these differ: {re.escape(place)}$"):
        assert_equal_states(state(), other, "run")
