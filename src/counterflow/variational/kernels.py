"""Loops over all weights, compiled: each reads and writes what it needs once. They are for float32 on the processor."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from counterflow.variational.divergence import SCALE, SLOPES, VALUES

__all__ = ["divergence", "normals", "of_variance", "rate", "rate_back", "scale", "scale_back", "spread"]

# No "nnan": NaN has to come out where it went in.
_LOOSE = {"contract", "reassoc", "nsz", "arcp"}
_CELLS = 512  # terms that are summed in float32, some to a lane of the processor's: more would cost digits
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
        below = inside if inside <= x else x  # NaN is NaN
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


@numba.njit(cache=True, fastmath=_LOOSE, error_model="numpy")
def spread(center: Any, variance: Any, noise: Any, tiny: Any) -> None:
    """Variances become deviations, and means pre-activations, in place."""
    for i in range(center.size):
        deviation = np.sqrt(variance[i] + f4(tiny))
        variance[i] = deviation
        center[i] += deviation * noise[i]


@numba.njit(cache=True, fastmath=_LOOSE, error_model="numpy")
def of_variance(grad: Any, noise: Any, deviation: Any, out: Any) -> None:
    """The error of variances from that of pre-activations."""
    for i in range(grad.size):
        out[i] = f4(0.5) * grad[i] * noise[i] / deviation[i]


@numba.njit(fastmath=_LOOSE, error_model="numpy", inline="always")
def _deviations(rho: Any, bounded: Any, top: Any, units: Any) -> Any:
    """Roots of the rates, one a unit."""
    found = np.empty(units, np.float32)
    for i in range(units):
        raw = rho[i] if rho.size > 1 else rho[0]
        found[i] = np.exp(f4(0.5) * (top - abs(raw) if bounded else raw))
    return found


@numba.njit(cache=True, fastmath=_LOOSE, error_model="numpy")
def scale(x: Any, noise: Any, rho: Any, bounded: Any, top: Any, units: Any, out: Any) -> None:
    """Inputs times scales, row by row."""
    deviations = _deviations(rho, bounded, top, units)
    for start in range(0, x.size, units):
        row, drawn, made = x[start : start + units], noise[start : start + units], out[start : start + units]
        for i in range(units):
            made[i] = row[i] * (f4(1.0) + deviations[i] * drawn[i])


@numba.njit(cache=True, fastmath=_LOOSE, error_model="numpy")
def scale_back(error: Any, x: Any, noise: Any, rho: Any, bounded: Any, top: Any, units: Any, by_rho: Any) -> None:
    """Errors of scaled inputs become those of inputs, in place; gradients by rho are added up."""
    deviations = _deviations(rho, bounded, top, units)
    by_unit = np.zeros(units, np.float32)
    for start in range(0, x.size, units):
        row, drawn, down = x[start : start + units], noise[start : start + units], error[start : start + units]
        for i in range(units):
            scaled = deviations[i] * drawn[i]
            by_unit[i] += f4(0.5) * down[i] * row[i] * scaled
            down[i] *= f4(1.0) + scaled
    for i in range(units):
        k = i if rho.size > 1 else 0
        by_rho[k] += -by_unit[i] if bounded and rho[k] >= f4(0.0) else by_unit[i]


u4, u8 = np.uint32, np.uint64


@numba.njit(inline="always")
def _philox(a: Any, b: Any, c: Any, d: Any, key: Any, other: Any) -> Any:
    """Four words from a counter of four and a key of two: Philox4x32-7 (Salmon and others, SC 2011).

    Of their generators that pass all tests of BigCrush it is the one with the fewest rounds.
    """
    for _ in range(7):
        first, second = u8(0xD2511F53) * u8(a), u8(0xCD9E8D57) * u8(c)
        a, c = u4(second >> u8(32)) ^ b ^ key, u4(first >> u8(32)) ^ d ^ other
        b, d = u4(second), u4(first)
        key, other = u4(key + u4(0x9E3779B9)), u4(other + u4(0xBB67AE85))
    return a, b, c, d


@numba.njit(fastmath=_LOOSE, error_model="numpy", inline="always")
def _pair(size: Any, angle: Any) -> Any:
    """Two normal numbers from two words by the polar form of Box and Muller.

    Thirty bits are an angle between -45 and 45 degrees, where short series do; two choose the quarter of the circle.
    """
    radius = np.sqrt(f4(-2.0) * _log((f4(size >> u4(1)) + f4(0.5)) * f4(2.0**-31)))
    turn = f4(np.int32(angle << u4(2))) * f4(math.pi / 4 * 2.0**-31)
    q = turn * turn
    sine = turn * (f4(1.0) + q * (f4(-1 / 6) + q * (f4(1 / 120) + q * f4(-1 / 5040))))
    cosine = f4(1.0) + q * (f4(-0.5) + q * (f4(1 / 24) + q * (f4(-1 / 720) + q * f4(1 / 40320))))
    radius = radius if angle & u4(0x40000000) else -radius
    swap = (angle & u4(0x80000000)) != u4(0)
    return radius * (sine if swap else cosine), radius * (cosine if swap else sine)


@numba.njit(cache=True, fastmath=_LOOSE, error_model="numpy")
def normals(key: Any, out: Any) -> None:
    """Standard normal numbers of a key of 64 bits: each counter makes one for every quarter of the array."""
    low, high = u4(key & u8(0xFFFFFFFF)), u4(key >> u8(32))
    count = out.size // 4
    first, second, third, fourth = out[:count], out[count : 2 * count], out[2 * count : 3 * count], out[3 * count :]
    for i in range(count):
        a, b, c, d = _philox(u4(i), u4(0), u4(0), u4(0), low, high)
        first[i], second[i] = _pair(a, b)
        third[i], fourth[i] = _pair(c, d)
    a, b, c, d = _philox(u4(count), u4(0), u4(0), u4(0), low, high)
    x, y = _pair(a, b)
    rest = (x, y, _pair(c, d)[0])
    for i in range(4 * count, out.size):
        out[i] = rest[i - 4 * count]
