"""Learning rates. Free of torch."""

from __future__ import annotations


def fine_tune_lr(epoch: int, lr: float = 0.005, factor: float = 0.7, every: int = 2) -> float:
    """Learning rate in an epoch (from 0): `lr` times `factor` once after each `every` epochs."""
    return float(lr * factor ** (epoch // every))
