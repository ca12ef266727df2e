"""The distortions of Models Genesis for one sample on the CPU, compiled by Numba.

Random numbers are those of SplitMix64 (Steele, Lea and Flood, 2014): number i of a seed is a function of both, so loops can draw
many at once. Places count as unsigned numbers, because Numba lets signed ones count from the end, which costs a comparison each.
"""

from __future__ import annotations

import numba
import numpy as np

BUCKETS = 8192
"""Equal intervals of [0, 1] in which the non-linear map is replaced by a straight line where that is exact enough."""
FIRST_NOISE = 64
"""Number of the first random number that becomes noise in a cutout; those before it are for the windows."""

_U = np.uint64
_LOW = _U(0xFFFFFFFF)
_HALF = _U(32)
# Products may be added without being rounded first.
_FUSED = {"contract"}


@numba.njit(inline="always")
def _random(seed, number):  # type: ignore[no-untyped-def]
    """64 random bits."""
    z = seed + (_U(number) + _U(1)) * _U(0x9E3779B97F4A7C15)
    z = (z ^ (z >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U(27))) * _U(0x94D049BB133111EB)
    return z ^ (z >> _U(31))


@numba.njit(inline="always")
def _upper(bits, count):  # type: ignore[no-untyped-def]
    """A whole number below `count`, of at most 32 bits, out of the upper half of 64 random bits."""
    return ((bits >> _HALF) * _U(count)) >> _HALF


@numba.njit(inline="always")
def _lower(bits, count):  # type: ignore[no-untyped-def]
    """As `_upper`, out of the lower half."""
    return ((bits & _LOW) * _U(count)) >> _HALF


# Local shuffling


@numba.njit(nogil=True, cache=True, error_model="numpy")
def shuffle(x, out, spanned, sides, limits, blocks, seed):  # type: ignore[no-untyped-def]
    """Shuffle the values within many small blocks.

    Args:
        x: (planes, spanned * product of sides); what is drawn moves the values of all planes alike.
        out: like x, other memory.
        spanned: length of an axis before the others, which every block spans.
        sides: (3,) of the others.
        limits: (3,) longest sides of a block.
        blocks: number of blocks.
        seed: uint64, of the random numbers. A block takes three, for one side of its and the start there each, and then
            one for each two of its values.
    """
    plane = sides[1] * sides[2]
    most = spanned * limits[0] * limits[1] * limits[2]
    offsets, partners, sources = np.empty(most, np.uint64), np.empty(most + 1, np.uint64), np.empty(most, np.uint64)
    length, start = np.empty(3, np.int64), np.empty(3, np.int64)
    out[:] = x
    drawn = _U(0)
    for _ in range(blocks):
        for axis in range(3):
            bits = _random(seed, drawn)
            drawn += _U(1)
            length[axis] = 1 + _upper(bits, limits[axis])
            start[axis] = _lower(bits, sides[axis] - length[axis] + 1)
        first = _U(start[0] * plane + start[1] * sides[2] + start[2])
        row, layer = length[2], length[1] * length[2]
        volume = length[0] * layer
        values = spanned * volume

        # Where the values lie, seen from the first. The half keeps the rounded quotients away from whole numbers.
        per_row, per_layer, per_volume = 1 / row, 1 / layer, 1 / volume
        next_row, next_layer = sides[2] - length[2], plane - length[1] * sides[2]
        next_volume = sides[0] * plane - length[0] * plane
        for i in range(values):
            rows, layers, volumes = (
                np.int64((i + 0.5) * per_row), np.int64((i + 0.5) * per_layer), np.int64((i + 0.5) * per_volume),
            )  # fmt: skip
            offsets[i] = i + rows * next_row + layers * next_layer + volumes * next_volume

        # Fisher and Yates, from the inside out: every value changes places with one of those before it, or stays.
        half = (values + 1) // 2
        for i in range(half):
            bits = _random(seed, drawn + _U(i))
            partners[i] = _upper(bits, i + 1)
            partners[i + half] = _lower(bits, i + half + 1)
        drawn += _U(half)
        for i in range(values):
            partner = partners[i]
            sources[i] = sources[partner]
            sources[partner] = offsets[i]

        for c in range(len(x)):
            for i in range(values):
                out[c, first + offsets[i]] = x[c, first + sources[i]]


# Non-linear intensity


@numba.njit(fastmath=_FUSED)
def _coefficients(p):  # type: ignore[no-untyped-def]
    """Of the powers of u in a cubic Bezier curve with control values p."""
    return p[0], 3 * (p[1] - p[0]), 3 * (p[0] - 2 * p[1] + p[2]), p[3] - 3 * p[2] + 3 * p[1] - p[0]


@numba.njit(fastmath=_FUSED)
def _cubic(k, u):  # type: ignore[no-untyped-def]
    return ((k[3] * u + k[2]) * u + k[1]) * u + k[0]


@numba.njit(fastmath=_FUSED)
def _line(value, knot, step, across, up):  # type: ignore[no-untyped-def]
    """Interpolation between a knot of the table and the next."""
    x0, x1 = _cubic(across, knot * step), _cubic(across, (knot + 1) * step)
    y0, y1 = _cubic(up, knot * step), _cubic(up, (knot + 1) * step)
    share = (value - x0) / (x1 - x0) if x1 > x0 else 1.0
    return y0 + min(max(share, 0.0), 1.0) * (y1 - y0)


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=_FUSED)
def interpolate(values, out, across, up, points, tolerance):  # type: ignore[no-untyped-def]
    """Interpolate in the table of a cubic Bezier curve; outside [0, 1], and for NaN, as NumPy's interp.

    The table is never written down. [0, 1] is cut into buckets, and where all knots in a bucket lie on the straight line
    between its ends, this line is used; elsewhere the two knots around a value are looked for.

    Args:
        values: (n,) float32 or float64.
        out: like the values; may be the same memory.
        across: (4,) float64, control values of the curve's X, from 0 to 1.
        up: (4,) of its Y.
        points: knots of the table, at equidistant u from 0 to 1.
        tolerance: how far knots may lie off a straight line.
    """
    x, y = _coefficients(across), _coefficients(up)
    last, step = points - 1, 1 / (points - 1)
    # Y at the ends of the buckets, the last one twice, because 1 itself lies beyond all buckets.
    heights, curved = np.empty(BUCKETS + 2, values.dtype), np.zeros(BUCKETS + 1, np.bool_)
    # The first knot beyond the lower end of each bucket.
    knots = np.empty(BUCKETS + 1, np.int64)
    heights[0] = low = up[0]
    knots[0] = knot = 1
    for bucket in range(BUCKETS):
        end = (bucket + 1) / BUCKETS
        while knot < last and _cubic(x, knot * step) <= end:
            knot += 1
        high = _line(end, knot - 1, step, x, y)
        slope = (high - low) * BUCKETS
        for i in range(knots[bucket], knot):
            line = low + slope * (_cubic(x, i * step) - bucket / BUCKETS)
            curved[bucket] |= abs(_cubic(y, i * step) - line) > tolerance
        heights[bucket + 1] = low = high
        knots[bucket + 1] = knot
    heights[BUCKETS] = heights[BUCKETS + 1] = up[3]

    for i in range(len(values)):
        value = values[i]
        if value <= 0:
            out[i] = up[0]
        elif value <= 1:
            place = value * values.dtype.type(BUCKETS)
            here = _U(np.int64(place))
            if curved[here]:
                lower, upper = knots[here] - 1, knots[here + _U(1)]
                while upper - lower > 1:
                    middle = (lower + upper) // 2
                    if _cubic(x, middle * step) <= value:
                        lower = middle
                    else:
                        upper = middle
                out[i] = _line(value, lower, step, x, y)
            else:
                share = place - values.dtype.type(here)
                out[i] = heights[here] + share * (heights[here + _U(1)] - heights[here])
        elif value > 1:
            out[i] = up[3]
        else:
            out[i] = np.nan


# Cutouts


@numba.njit(nogil=True, cache=True, error_model="numpy")
def cut(x, out, lows, highs, margins, windows, always, stop, seed):  # type: ignore[no-untyped-def]
    """Put noise into windows, or everywhere else if there is `always` one.

    Args:
        x: float32 (channels, D, H, W).
        out: like x; may be the same memory.
        lows: (3,) shortest sides of a window.
        highs: (3,) longest ones.
        margins: (3,) places at each border that no window covers.
        windows: most windows.
        always: windows before the first chance to stop.
        stop: probability of stopping before a further window.
        seed: uint64, of the random numbers.
    """
    channels, depth, height, width = x.shape
    outside = always > 0
    # A bit for each window says whether a place lies within it.
    within = np.zeros((3, max(depth, height, width)), np.uint8)
    drawn = 0
    for window in range(windows):
        if window >= always:
            drawn += 1
            if (_random(seed, drawn - 1) >> _U(11)) * 2.0**-53 < stop:
                break
        for axis in range(3):
            bits = _random(seed, drawn)
            drawn += 1
            length = lows[axis] + np.int64(_upper(bits, highs[axis] - lows[axis] + 1))
            start = margins[axis] + np.int64(_lower(bits, x.shape[axis + 1] - length - 2 * margins[axis] + 1))
            within[axis, start : start + length] |= np.uint8(1 << window)

    half = (width + 1) // 2
    noise = np.empty(2 * half, np.float32)
    for i in range(depth):
        for j in range(height):
            open_windows = within[0, i] & within[1, j]
            for c in range(channels):
                if not outside and open_windows == 0:
                    out[c, i, j] = x[c, i, j]
                    continue
                if outside or c == 0:
                    first = FIRST_NOISE + ((c * depth + i) * height + j) * half
                    for k in range(half):
                        bits = _random(seed, first + k)
                        noise[k] = np.float32(np.int32(bits >> _U(40))) * np.float32(2.0**-24)
                        noise[k + half] = np.float32(np.int32(bits & _U(0xFFFFFF))) * np.float32(2.0**-24)
                for k in range(width):
                    inside = (open_windows & within[2, k]) != 0
                    out[c, i, j, k] = x[c, i, j, k] if inside == outside else noise[k]
