"""The kernels behind `counterflow.density.fused`: some sequences side by side, under one model after the other.

A *lane* is a sequence, and every loop that counts runs over all lanes of a block, without a branch, so that the
compiler turns it into a few vector instructions. Arrays are (states or features, time, lanes); where a sum over states
comes next, time is first. Lanes that have ended, or are none, are computed too: their frames are zero and their
densities one, and ``inside`` (time, lanes), one or zero, takes them out of all sums exactly. Sums over states and
features take four terms at once; what is missing to four is zero.

What underflows is found as in `counterflow.density.kernels`, and computed again in log space by who calls.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np

from counterflow.density.kernels import _FAST

__all__: list[str] = []


FRAMES = 16  # at once, where one does not wait for the other


# exp(x) = 2^k exp(r), |r| <= log(2) / 2; the logarithm of 2 in two parts, of which the first times k is exact
_PER_LOG_2 = 1.4426950408889634
_LOG_2_HIGH, _LOG_2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
_SHIFT = 6755399441055744.0  # 1.5 * 2^52: added, it leaves the nearest whole number in the last bits
_LEAST_EXPONENT = -708.0
_INVERSE = tuple(1.0 / math.factorial(n) for n in range(14))


@numba.njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def exponentials(values: Any, count: int, scratch: Any, bits: Any) -> None:
    """Exp of the first values, none above 0, to the last digit or two; ``bits`` is ``scratch`` seen as whole numbers.

    Loops without branches or calls, which the compiler turns into vector instructions.
    """
    for n in range(count):
        x = max(values[n], _LEAST_EXPONENT)
        shifted = x * _PER_LOG_2 + _SHIFT
        scratch[n] = shifted
        k = shifted - _SHIFT
        r = (x - k * _LOG_2_HIGH) - k * _LOG_2_LOW
        p = _INVERSE[13]
        p = p * r + _INVERSE[12]
        p = p * r + _INVERSE[11]
        p = p * r + _INVERSE[10]
        p = p * r + _INVERSE[9]
        p = p * r + _INVERSE[8]
        p = p * r + _INVERSE[7]
        p = p * r + _INVERSE[6]
        p = p * r + _INVERSE[5]
        p = p * r + _INVERSE[4]
        p = p * r + _INVERSE[3]
        p = p * r + 0.5
        p = p * r + 1.0
        values[n] = p * r + 1.0
    for n in range(count):
        bits[n] = (bits[n] + 1023) << 52
    for n in range(count):
        values[n] *= scratch[n]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def take(x: Any, own: Any, ends: Any, frames: Any, inside: Any) -> Any:
    """Lay the sequences ``own`` of ``x`` (batch, time, features) beside each other; whether all frames are finite."""
    T, D = ends[0], x.shape[2]
    frames[:, : T + 4] = 0.0
    inside[: T + 4] = 0.0
    check = 0.0
    for t in range(T):
        for n in range(len(own)):
            if t < ends[n]:
                b = own[n]
                inside[t, n] = 1.0
                for d in range(D):
                    value = x[b, t, d]
                    check += value
                    frames[d, t, n] = value
    return np.isfinite(check)


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _mix(rows: Any, weights: Any, out: Any) -> None:
    """Sums over the first index of rows times weights, four at once."""
    N = len(out)
    for n in range(N):
        out[n] = 0.0
    for i in range(0, len(weights), 4):
        a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        p, q, r, s = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for n in range(N):
            out[n] += (a[n] * p + b[n] * q) + (c[n] * r + d[n] * s)


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def emit(
    T: int,
    rows: Any,
    mask: Any,
    means: Any,
    halves: Any,
    constants: Any,
    out_rows: Any,
    work: Any,
    bits: Any,
    logs: Any,
) -> None:
    """Densities over the largest of each frame, whose logarithm goes to ``logs`` (lanes).

    ``rows`` (features, time * lanes) are frames, ``mask`` (time * lanes) those that are meant, ``out_rows`` (states,
    time * lanes) become the densities. ``means`` and ``halves``, minus half the precisions, are (states, features),
    ``constants`` (states). ``work`` (2, FRAMES * lanes) and ``bits``, its second row as whole numbers, are overwritten.
    """
    N = len(logs)
    S, D = means.shape
    best, scratch = work[0], work[1]
    for first in range(0, T, FRAMES):
        low = first * N
        size = min(T - first, FRAMES) * N
        here = mask[low : low + size]
        for s in range(S):
            out = out_rows[s, low : low + size]
            for n in range(size):
                out[n] = constants[s]
            for i in range(0, D, 4):
                a, b = rows[i, low : low + size], rows[i + 1, low : low + size]
                c, d = rows[i + 2, low : low + size], rows[i + 3, low : low + size]
                at, bt, ct, dt = means[s, i], means[s, i + 1], means[s, i + 2], means[s, i + 3]
                p, q, r, u = halves[s, i], halves[s, i + 1], halves[s, i + 2], halves[s, i + 3]
                for n in range(size):
                    v, w, x, y = a[n] - at, b[n] - bt, c[n] - ct, d[n] - dt
                    out[n] += (p * v * v + q * w * w) + (r * x * x + u * y * y)
            if s == 0:
                for n in range(size):
                    best[n] = out[n]
            else:
                for n in range(size):
                    best[n] = max(best[n], out[n])
        for n in range(size):
            best[n] *= here[n]
        for t in range(0, size, N):
            for n in range(N):
                logs[n] += best[t + n]
        for s in range(S):
            out = out_rows[s, low : low + size]
            for n in range(size):
                out[n] = out[n] * here[n] - best[n]
            exponentials(out, size, scratch, bits)


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def forward(T: int, start: Any, step: Any, e: Any, inside: Any, alpha: Any, logs: Any, lowest: Any) -> Any:
    """Scaled forward probabilities; ``logs`` grow by their scales', ``lowest`` becomes the least frame of a lane.

    ``start`` (states), ``step`` (states to, states from). Returns the least probability of all.
    """
    N = len(logs)
    S = len(start)
    here, product, least = np.empty(N), np.ones(N), np.ones(N)
    for t in range(T):
        there = inside[t]
        for n in range(N):
            here[n] = 0.0
        for j in range(S):
            now, fit = alpha[t, j], e[j, t]
            if t == 0:
                for n in range(N):
                    now[n] = start[j]
            else:
                _mix(alpha[t - 1], step[j], now)
            for n in range(N):
                now[n] *= fit[n]
                here[n] += now[n]
        smallest = 1.0
        for n in range(N):
            lowest[n] = here[n] if not here[n] >= lowest[n] else lowest[n]
            # Exactly one where the lane has ended
            product[n] *= here[n] * there[n] + (1.0 - there[n])
            here[n] = 1.0 / here[n]
            smallest = min(smallest, product[n])
        if smallest < 1e-150:
            for n in range(N):
                logs[n] += math.log(product[n])
                product[n] = 1.0
        for j in range(S):
            now = alpha[t, j]
            for n in range(N):
                now[n] *= here[n]
                least[n] = min(least[n], now[n])
    for n in range(N):
        logs[n] += math.log(product[n])
    smallest = 1.0
    for n in range(N):
        smallest = min(smallest, least[n])
    return smallest


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def backward(
    T: int, back: Any, e: Any, inside: Any, alpha: Any, gamma: Any, future: Any, joined: Any, highest: Any, want: bool
) -> None:
    """Scaled backward probabilities ``future`` (states, lanes), the largest of which becomes ``highest``.

    ``back`` (states from, states to). If it is wanted, ``gamma`` become the posteriors, and ``e``, from the second
    frame on, what a transition to a state is worth: with ``alpha`` of the frame before they make expected transitions.
    """
    N = len(highest)
    S = len(back)
    norm = np.empty(N)
    future[:] = 1.0
    for t in range(T - 1, -1, -1):
        here = inside[t]
        if t < T - 1:
            after = inside[t + 1]
            for j in range(S):
                fit, ahead, both = e[j, t + 1], future[j], joined[j]
                for n in range(N):
                    both[n] = fit[n] * ahead[n]
            for n in range(N):
                norm[n] = 0.0
            for i in range(S):
                out, now = future[i], alpha[t, i]
                _mix(joined, back[i], out)
                for n in range(N):
                    norm[n] += now[n] * out[n]
            for n in range(N):
                norm[n] = after[n] / norm[n]
            for i in range(S):
                out = future[i]
                for n in range(N):
                    # Exactly one in a lane's last frame
                    value = out[n] * norm[n] + (1.0 - after[n])
                    out[n] = value
                    highest[n] = value if not value <= highest[n] else highest[n]
            if want:
                for j in range(S):
                    worth, both = e[j, t + 1], joined[j]
                    for n in range(N):
                        worth[n] = both[n] * norm[n]
        if want:
            for i in range(S):
                out, now, ahead = gamma[i, t], alpha[t, i], future[i]
                for n in range(N):
                    out[n] = now[n] * ahead[n] * here[n]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _collapse(values: Any, first: int, count: int, out: Any) -> None:
    """Adds to ``out`` (lanes) so many frames of values (frames, lanes), four at once."""
    for t in range(first, first + count, 4):
        a, b, c, d = values[t], values[t + 1], values[t + 2], values[t + 3]
        for n in range(len(out)):
            out[n] += (a[n] + b[n]) + (c[n] + d[n])


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def add_up(
    T: int, rows: Any, shares: Any, gamma: Any, alpha: Any, e: Any, means: Any, probabilities: Any, D: int, work: Any,
    flat: Any, kept: Any,
) -> None:  # fmt: skip
    """What derivatives are made of, ``kept`` (states, 2 D + 2 + states, lanes).

    By columns: posteriors times the distance from the mean, times its square, and alone; the first frame's; and
    expected transitions. ``rows`` are frames as in `emit`, ``shares`` (states, time * lanes) is ``gamma`` as rows;
    ``work`` (2, FRAMES, lanes) and ``flat``, the same with one row each, are overwritten.
    """
    S, _, N = kept.shape
    once, twice, one, two = work[0], work[1], flat[0], flat[1]
    kept[:] = 0.0
    for first in range(0, T, FRAMES):
        count = (min(T - first, FRAMES) + 3) // 4 * 4
        low, size = first * N, count * N
        for i in range(S):
            share = shares[i, low : low + size]
            _collapse(gamma[i], first, count, kept[i, 2 * D])
            for k in range(D):
                row, middle = rows[k, low : low + size], means[i, k]
                for n in range(size):
                    away = row[n] - middle
                    part = share[n] * away
                    one[n] = part
                    two[n] = part * away
                _collapse(once, 0, count, kept[i, k])
                _collapse(twice, 0, count, kept[i, D + k])
    for t in range(0, T - 1, 4):
        for i in range(S):
            a, b, c, d = alpha[t, i], alpha[t + 1, i], alpha[t + 2, i], alpha[t + 3, i]
            for j in range(S):
                moved = kept[i, 2 * D + 2 + j]
                p, q, r, s = e[j, t + 1], e[j, t + 2], e[j, t + 3], e[j, t + 4]
                for n in range(N):
                    moved[n] += (a[n] * p[n] + b[n] * q[n]) + (c[n] * r[n] + d[n] * s[n])
    for i in range(S):
        initial, shown = kept[i, 2 * D + 1], gamma[i, 0]
        for n in range(N):
            initial[n] = shown[n]
        for j in range(S):
            moved = kept[i, 2 * D + 2 + j]
            for n in range(N):
                moved[n] *= probabilities[i, j]
