"""What the methods consist of: the table of configurations (specification B7). Free of torch so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PACKAGE = "skintone-debias"
Rate = Literal["base", "class"]
"""Which of the two learning rates an optimiser has."""
LR_BASE, LR_CLASS, MOMENTUM = 3e-4, 3e-3, 0.9
"""Of stochastic gradient descent: main and LNTL; confusion and TABE (B7)."""
WEIGHT, ALPHA, SCALE = 0.01, 0.03, -0.1
"""Of the negative entropy (B3), of the confusion loss (B5), of reversed gradients (B4)."""


@dataclass(frozen=True)
class Recipe:
    """One row of the table; heads are counted from 0."""

    heads: tuple[Rate, ...] = ()
    """The learning rate of each auxiliary head's optimiser."""
    entropy: tuple[int, ...] = ()
    """Heads whose negative entropy is part of the first loss (LNTL)."""
    confusion: tuple[int, ...] = ()
    """Heads whose confusion loss is part of it (TABE); with any, the encoder has a second optimiser."""
    reverse: bool = False
    """The gradient of the auxiliary loss is reversed on its way into the encoder."""


RECIPES: dict[str, Recipe] = {
    "none": Recipe(),
    "lntl": Recipe(("base",), entropy=(0,), reverse=True),
    "lntl-nogr": Recipe(("base",), entropy=(0,)),
    "tabe": Recipe(("class",), confusion=(0,)),
    "clgr": Recipe(("class",), confusion=(0,), reverse=True),
    "both": Recipe(("base", "class"), entropy=(0,), confusion=(1,), reverse=True),
    "double-tabe": Recipe(("class", "class"), confusion=(0, 1), reverse=True),
    "double-lntl": Recipe(("base", "base"), entropy=(0, 1), reverse=True),
}
"""Method -> its recipe."""
PAPER_NAMES = {
    "none": "Baseline", "lntl": "LNTL", "lntl-nogr": "LNTL*", "tabe": "TABE", "clgr": "CLGR", "both": "LNTL+TABE",
    "double-tabe": "doubleTABE", "double-lntl": "doubleLNTL",
}  # fmt: skip
"""Methods as the paper's tables, or the authors' program, call them."""
