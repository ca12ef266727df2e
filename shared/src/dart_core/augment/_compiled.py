"""What the distortions of Models Genesis do value by value on the CPU, compiled by Numba."""

from __future__ import annotations

import numba
import numpy as np

_U = np.uint64
_LOW = _U(0xFFFFFFFF)
_HALF, _ONE = _U(32), _U(1)
_STEP = _U(0x9E3779B97F4A7C15)


@numba.njit(inline="always")
def _mix(state):  # type: ignore[no-untyped-def]
    """64 random bits of a counter that goes up by _STEP: SplitMix64 (Steele, Lea and Flood, 2014)."""
    z = (state ^ (state >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U(27))) * _U(0x94D049BB133111EB)
    return z ^ (z >> _U(31))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def shuffle(result, spanned, sides, limits, blocks, seeds, window):  # type: ignore[no-untyped-def]
    """Write where in the batch each value comes from after local shuffling.

    Args:
        result: whole numbers (N, spanned * product of sides).
        spanned: length of the first axis, which every block spans.
        sides: (3,) of the others.
        limits: (3,) longest sides of a block.
        blocks: of a sample.
        seeds: uint64 (N,), of the samples' random numbers.
        window: like the numbers, room for a block.
    """
    samples, size = result.shape
    plane = sides[1] * sides[2]
    channel = sides[0] * plane
    length, start = np.empty(3, np.int64), np.empty(3, np.int64)
    for n in range(samples):
        state, row, first = seeds[n], result[n], n * size
        for i in range(size):
            row[i] = first + i
        for _ in range(blocks):
            for axis in range(3):
                state += _STEP
                bits = _mix(state)
                length[axis] = 1 + np.int64(((bits >> _HALF) * _U(limits[axis])) >> _HALF)
                start[axis] = np.int64(((bits & _LOW) * _U(sides[axis] - length[axis] + 1)) >> _HALF)
            # Fisher and Yates, from the inside out: every value changes places with one of those before it, or stays.
            count = 0
            for c in range(spanned):
                for i in range(start[0], start[0] + length[0]):
                    for j in range(start[1], start[1] + length[1]):
                        place = c * channel + i * plane + j * sides[2] + start[2]
                        for k in range(length[2]):
                            state += _STEP
                            other = np.int64(((_mix(state) >> _HALF) * (_U(count) + _ONE)) >> _HALF)
                            window[count] = window[other]
                            window[other] = first + place + k
                            count += 1
            count = 0
            for c in range(spanned):
                for i in range(start[0], start[0] + length[0]):
                    for j in range(start[1], start[1] + length[1]):
                        place = c * channel + i * plane + j * sides[2] + start[2]
                        for k in range(length[2]):
                            row[place + k] = window[count]
                            count += 1


@numba.njit(nogil=True, cache=True, error_model="numpy")
def interpolate(values, across, up, result):  # type: ignore[no-untyped-def]
    """Write the linear interpolation of values in tables over [0, 1]; outside, and for NaN, as NumPy's interp.

    Args:
        values: (N, n).
        across: float64 (N, points), rising from 0 to 1.
        up: float64 (N, points).
        result: like the values.
    """
    points = across.shape[1]
    # For each of many equal intervals the first place of the table beyond its lower end: mostly the one that is looked for.
    intervals = max(points, 4096)
    beyond = np.empty(intervals, np.int32)
    slopes = np.empty(points - 1)
    for n in range(len(values)):
        x, y, row, out = across[n], up[n], values[n], result[n]
        place = 1
        for i in range(intervals):
            while place < points - 1 and x[place] <= i / intervals:
                place += 1
            beyond[i] = place
        for i in range(points - 1):
            slopes[i] = (y[i + 1] - y[i]) / (x[i + 1] - x[i]) if x[i + 1] > x[i] else 0.0
        for i in range(len(row)):
            value = np.float64(row[i])
            if value >= 1:
                out[i] = y[points - 1]
            elif value <= 0:
                out[i] = y[0]
            elif value > 0:
                right = np.int64(beyond[np.int64(value * intervals)])
                while right < points - 1 and x[right] <= value:
                    right += 1
                out[i] = y[right - 1] + (value - x[right - 1]) * slopes[right - 1]
            else:
                out[i] = np.nan
