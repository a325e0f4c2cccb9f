"""Loops over all weights, compiled: each reads and writes what it needs once. They are for float32 on the processor."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from counterflow.variational.divergence import SCALE, SLOPES, VALUES

__all__ = ["divergence", "rate", "rate_back"]

# No "nnan": NaN has to come out where it went in.
_LOOSE = {"contract", "reassoc", "nsz", "arcp"}
_CELLS = 4096  # terms that are summed at once
_FAR = np.float32(80.0)  # beyond this, exp leaves float32's range; the divergence is a line there, or nothing
_ROOT_HALF = np.int32(0x3F3504F3)  # the bits of sqrt(1/2)

f4 = np.float32

# Constants of the code below: who changes them changes this file too, or numba's cache keeps what was compiled.
_SCALE, _DEGREE = np.float32(SCALE), len(SLOPES) - 1
_SLOPES, _VALUES = np.array(SLOPES, np.float32), np.array(VALUES, np.float32)


def _cast(signature: Any, to: Any) -> Any:
    """The same 32 bits as another kind of number."""

    def typed(typing_context: Any, value: Any) -> Any:
        return signature, lambda context, builder, signature, arguments: builder.bitcast(arguments[0], to)

    return intrinsic(typed)


_as_float = _cast(numba.types.float32(numba.types.int32), ir.FloatType())
_as_bits = _cast(numba.types.int32(numba.types.float32), ir.IntType(32))


@numba.njit(fastmath=_LOOSE, error_model="numpy", inline="always")
def _exp(x: Any) -> Any:
    """exp(x) for |x| <= 80, right to 5e-7: 2 to the whole part by its bits, a polynomial for the rest."""
    scaled = x * f4(1.44269504)
    whole = np.floor(scaled + f4(0.5))
    r = scaled - whole
    p = f4(0.00961813) + r * (f4(0.00133336) + r * f4(0.000154035))
    p = f4(1.0) + r * (f4(0.69314718) + r * (f4(0.24022651) + r * (f4(0.05550411) + r * p)))
    return p * _as_float((np.int32(whole) + np.int32(127)) << np.int32(23))


@numba.njit(fastmath=_LOOSE, error_model="numpy", inline="always")
def _log(x: Any) -> Any:
    """log(x) for normal positive numbers: the power of 2 from the bits, a series for the rest."""
    bits = _as_bits(x)
    power = np.int32(np.int32(bits - _ROOT_HALF) >> np.int32(23))
    f = _as_float(bits - (power << np.int32(23))) - f4(1.0)
    s = f / (f4(2.0) + f)
    q = s * s
    series = f4(1.0) + q * (f4(1 / 3) + q * (f4(0.2) + q * (f4(1 / 7) + q * f4(1 / 9))))
    return f4(power) * f4(0.69314718) + f4(2.0) * s * series


@numba.njit(cache=True, fastmath=_LOOSE, error_model="numpy")
def _block(rho: Any, bounded: Any, top: Any, out: Any) -> Any:
    total = f4(0.0)
    for i in range(rho.size):
        raw = rho[i]
        x = top - abs(raw) if bounded else raw
        inside = x if x > -_FAR else -_FAR  # NaN too
        inside = inside if inside < _FAR else _FAR
        alpha = _exp(inside)
        share = f4(1.0) / (alpha + _SCALE)
        v, rest = alpha * share, _SCALE * share
        t = v - rest
        slope, value = _SLOPES[_DEGREE], _VALUES[_DEGREE]
        for k in range(1, _DEGREE + 1):
            slope = _SLOPES[_DEGREE - k] + t * slope
            value = _VALUES[_DEGREE - k] + t * value
        below = x if x < inside else inside
        total += rest * value - f4(0.5) * _log(v) + f4(0.5) * (inside - below)
        slope = rest * slope * (f4(1.0) if bounded and raw >= f4(0.0) else f4(-1.0))
        out[i] = slope if raw == raw else raw
    return total


@numba.njit(cache=True)
def divergence(rho: Any, bounded: Any, top: Any, out: Any) -> Any:
    """The sum of KL; its derivative by rho goes into out. See `counterflow.variational.divergence`."""
    total = 0.0  # of sums in float32, which alone would lose digits
    for start in range(0, rho.size, _CELLS):
        stop = min(start + _CELLS, rho.size)
        total += _block(rho[start:stop], bounded, top, out[start:stop])
    return total


@numba.njit(cache=True, fastmath=_LOOSE, error_model="numpy")
def rate(rho: Any, weight: Any, bounded: Any, top: Any, scaled: Any, variance: Any) -> None:
    """Alpha times the weights, and times their squares."""
    for i in range(rho.size):
        raw, w = rho[i], weight[i]
        x = top - abs(raw) if bounded else raw
        inside = x if x > -_FAR else -_FAR
        inside = inside if inside < _FAR else _FAR
        s = (_exp(inside) if raw == raw else raw) * w
        scaled[i] = s
        variance[i] = s * w


@numba.njit(cache=True, fastmath=_LOOSE, error_model="numpy")
def rate_back(by_weight: Any, by_variance: Any, scaled: Any, weight: Any, rho: Any, bounded: Any) -> None:
    """Gradients by the variances become gradients by rho, in place, and their part goes into those by the weights."""
    for i in range(rho.size):
        each = by_variance[i] * scaled[i]
        by_weight[i] += f4(2.0) * each
        each *= weight[i]
        by_variance[i] = -each if bounded and rho[i] >= f4(0.0) else each
