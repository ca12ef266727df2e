"""HED jitter of float32 patches on the CPU in one pass, compiled by Numba.

The time of HED jitter is that of a logarithm and a power per value and of going through memory. NumPy and PyTorch go through memory
once per operation; here a stretch of pixels stays in the cache from its logarithms to its new colours, and both functions are polynomials
that LLVM turns into vector instructions (benchmarks/speed/hed_jitter.py). float64, CUDA and gradients take PyTorch's own operations
(`stain_aglr.hed`).
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray

_INT, _FLOAT = np.int32, np.float32
_ZERO, _ONE, _HALF = _FLOAT(0), _FLOAT(1), _FLOAT(0.5)
_SMALLEST = _FLOAT(-126)
# Bits of a float32: those of its fraction, how far its exponent is shifted, and sqrt(1/2), from which the fractions are counted so
# that the polynomial is asked on [sqrt(1/2), sqrt(2)], around 1.
_FRACTION, _EXPONENT, _ROOT_HALF = _INT(0x7FFFFF), _INT(23), _INT(0x3F3504F3)
# Pixels at a time: three channels of them fit the fastest cache.
_STRETCH = 1024


def _coefficients(values: NDArray[np.float64], points: NDArray[np.float64], degree: int) -> tuple[np.float32, ...]:
    fitted = Chebyshev.fit(points, values, degree, domain=[points.min(), points.max()])
    return tuple(_FLOAT(c) for c in fitted.convert(kind=Polynomial).coef)


# Chebyshev points: the fit is nearly the best of its degree. Errors 2e-9 and 3e-9, below float32's rounding.
_NODES = np.cos(np.pi * (np.arange(600) + 0.5) / 600)
_U = np.sqrt(0.5) * (0.5 + 0.5 * _NODES) + np.sqrt(0.5) - 1
_L = _coefficients(np.log1p(_U) / _U / np.log(2), _U, 9)  # log2(1 + u) / u
_E = _coefficients(np.exp2(_NODES / 2), _NODES / 2, 6)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7, _L8, _L9 = _L
_E0, _E1, _E2, _E3, _E4, _E5, _E6 = _E


@numba.njit(fastmath={"contract"}, inline="always")
def _log2(x):  # type: ignore[no-untyped-def]
    """Of a positive normal float32."""
    bits = _INT(_FLOAT(x).view(_INT) - _ROOT_HALF)
    u = _INT((bits & _FRACTION) + _ROOT_HALF).view(_FLOAT) - _ONE
    tail = _L4 + u * (_L5 + u * (_L6 + u * (_L7 + u * (_L8 + u * _L9))))
    return _FLOAT(_INT(bits >> _EXPONENT)) + u * (_L0 + u * (_L1 + u * (_L2 + u * (_L3 + u * tail))))


@numba.njit(fastmath={"contract"}, inline="always")
def _exp2(x):  # type: ignore[no-untyped-def]
    """Of a float32 in [-126, 126]."""
    whole = np.floor(x + _HALF)
    v = x - whole
    y = _FLOAT(_E0 + v * (_E1 + v * (_E2 + v * (_E3 + v * (_E4 + v * (_E5 + v * _E6))))))
    return _INT(y.view(_INT) + _INT(_INT(whole) << _EXPONENT)).view(_FLOAT)


# Loops in functions of their own: in one long function LLVM leaves some of them without vector instructions.


@numba.njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _mark(first, second, third, bad):  # type: ignore[no-untyped-def]
    """0 for numbers; NaN stays NaN and infinity becomes it, where the bits would make a colour of them."""
    for i in range(bad.size):
        total = first[i] + second[i] + third[i]
        bad[i] = total - total


@numba.njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _logarithms(source, logs, shift, darkest):  # type: ignore[no-untyped-def]
    for i in range(logs.size):
        logs[i] = _log2(max(source[i] + shift, darkest))


@numba.njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _positive_stains(first, second, third, to_stains):  # type: ignore[no-untyped-def]
    for i in range(first.size):
        p, q, r = first[i], second[i], third[i]
        first[i] = max(to_stains[0, 0] * p + to_stains[0, 1] * q + to_stains[0, 2] * r, _ZERO)
        second[i] = max(to_stains[1, 0] * p + to_stains[1, 1] * q + to_stains[1, 2] * r, _ZERO)
        third[i] = max(to_stains[2, 0] * p + to_stains[2, 1] * q + to_stains[2, 2] * r, _ZERO)


@numba.njit(fastmath={"contract"}, error_model="numpy", cache=True)
def _colours(first, second, third, bad, out, k0, k1, k2, k3, shift):  # type: ignore[no-untyped-def]
    highest = np.log2(_ONE + shift)
    for i in range(out.size):
        power = k0 * first[i] + k1 * second[i] + k2 * third[i] + k3
        colour = _exp2(min(max(power, _SMALLEST), highest)) - shift
        out[i] = min(max(colour, _ZERO), _ONE) + bad[i]


@numba.njit(fastmath={"contract"}, error_model="numpy", cache=True, nogil=True)
def jitter(image, result, matrix, offset, to_stains, cut, shift, darkest):  # type: ignore[no-untyped-def]
    """Write 2^(matrix s + offset) - shift, clipped to [0, 1], into `result`, with s = log2(max(image + shift, darkest)).

    Args:
        image: float32 (3, P), P pixels.
        result: likewise; may be `image`.
        matrix: float32 (3, 3).
        offset: float32 (3,).
        to_stains: float32 (3, 3); if `cut`, s becomes max(to_stains s, 0) first.
        cut: whether negative stains are cut off.
        shift: float32, c of `stain_aglr.hed`.
        darkest: float32, a positive normal number.
    """
    stretch = np.empty((4, _STRETCH), np.float32)
    for start in range(0, image.shape[1], _STRETCH):
        end = min(start + _STRETCH, image.shape[1])
        count = end - start
        first, second, third, bad = stretch[0, :count], stretch[1, :count], stretch[2, :count], stretch[3, :count]
        _mark(image[0, start:end], image[1, start:end], image[2, start:end], bad)
        _logarithms(image[0, start:end], first, shift, darkest)
        _logarithms(image[1, start:end], second, shift, darkest)
        _logarithms(image[2, start:end], third, shift, darkest)
        if cut:
            _positive_stains(first, second, third, to_stains)
        for c in range(3):
            k = matrix[c]
            _colours(first, second, third, bad, result[c, start:end], k[0], k[1], k[2], offset[c], shift)
