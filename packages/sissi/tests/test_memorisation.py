"""ADELE's rule: closed forms of the specification (section 9)."""

from __future__ import annotations

import numpy as np
import pytest

from sissi import memorisation_epoch
from sissi.memorisation import fit_saturation


@pytest.mark.parametrize(("c", "fitted", "update"), [(1, 1.0333, 4), (3, 3.1, 9), (5, 5.1667, 13)])
def test_noiseless_curves(c, fitted, update):
    """31 points: the positions are stretched by 31/30, and c with them; update = floor(1 + 2.302585 c) + 1."""
    curve = 1 - np.exp(-np.arange(31) / c)
    a, b, found = fit_saturation(curve)
    assert (a, b) == (pytest.approx(1, abs=1e-3), pytest.approx(1, abs=1e-3))
    assert found == pytest.approx(fitted, abs=2e-3)
    assert memorisation_epoch(curve, 31) == (True, update)
    assert update == int(1 + 2.302585 * fitted) + 1


def test_flag_waits_for_its_epoch():
    curve = 1 - np.exp(-np.arange(31) / 3)
    flags = [memorisation_epoch(curve[: n + 1], 31) for n in range(31)]
    assert all(flag == (n >= update) for n, (flag, update) in enumerate(flags) if n >= 2)


@pytest.mark.parametrize("curve", [[], [0.1], [0.1, 0.2], [0.1, np.nan, 0.3], np.zeros(8), np.linspace(0, 0.5, 31)])
def test_never(curve):
    """Too few points, no number, no slope, or a straight line: never, that is in the epoch after the last one."""
    assert memorisation_epoch(curve, 31) == (False, 31)


def test_threshold():
    """At 0.5 the slope has to fall to a half only: ln 2 instead of ln 10 times c later."""
    curve = 1 - np.exp(-np.arange(31) / 5)
    assert memorisation_epoch(curve, 31, 0.5)[1] == int(1 + np.log(2) * 5.1667) + 1
