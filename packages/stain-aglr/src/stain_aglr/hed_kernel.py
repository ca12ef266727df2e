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


@numba.njit(fastmath={"contract"}, error_model="numpy", cache=True, nogil=True)
def jitter(images, result, matrix, offset, to_stains, cut, shift, darkest):  # type: ignore[no-untyped-def]
    """Write 2^(matrix s + offset) - shift, clipped to [0, 1], into `result`, with s = log2(max(images + shift, darkest)).

    Args:
        images: float32 (N, 3, P), P pixels.
        result: likewise; may be `images`.
        matrix: float32 (N, 3, 3).
        offset: float32 (N, 3).
        to_stains: float32 (3, 3); if `cut`, s becomes max(to_stains s, 0) first.
        cut: whether negative stains are cut off.
        shift: float32, c of `stain_aglr.hed`.
        darkest: float32, a positive normal number.
    """
    s = np.empty((3, _STRETCH), np.float32)
    bad = np.empty(_STRETCH, np.float32)
    highest = np.log2(_ONE + shift)
    for n in range(images.shape[0]):
        for start in range(0, images.shape[2], _STRETCH):
            count = min(_STRETCH, images.shape[2] - start)
            # 0 for a number; NaN stays NaN and infinity becomes it, where the bits would make a colour of them.
            for i in range(count):
                total = images[n, 0, start + i] + images[n, 1, start + i] + images[n, 2, start + i]
                bad[i] = total - total
            for c in range(3):
                source, logs = images[n, c, start : start + count], s[c]
                for i in range(count):
                    logs[i] = _log2(max(source[i] + shift, darkest))
            first, second, third = s[0], s[1], s[2]
            if cut:
                for i in range(count):
                    p, q, r = first[i], second[i], third[i]
                    first[i] = max(to_stains[0, 0] * p + to_stains[0, 1] * q + to_stains[0, 2] * r, _ZERO)
                    second[i] = max(to_stains[1, 0] * p + to_stains[1, 1] * q + to_stains[1, 2] * r, _ZERO)
                    third[i] = max(to_stains[2, 0] * p + to_stains[2, 1] * q + to_stains[2, 2] * r, _ZERO)
            for c in range(3):
                out = result[n, c, start : start + count]
                k0, k1, k2, k3 = matrix[n, c, 0], matrix[n, c, 1], matrix[n, c, 2], offset[n, c]
                for i in range(count):
                    power = k0 * first[i] + k1 * second[i] + k2 * third[i] + k3
                    colour = _exp2(min(max(power, _SMALLEST), highest)) - shift
                    out[i] = min(max(colour, _ZERO), _ONE) + bad[i]
