"""The kernels behind `counterflow.density.fused`: some sequences side by side, under one model after the other.

A *lane* is a sequence, and every loop that counts runs over all lanes of a block, without a branch, so that the
compiler turns it into a few vector instructions. Arrays are (time, states, lanes), and frames (features, time, lanes).
Lanes that have ended, or are none, are computed too: their frames are zero and their densities one, and ``inside``
(time, lanes), one or zero, takes them out of all sums exactly. Sums over states and features take four terms at once;
what is missing to four is zero. From `SOME` states on, products of matrices are those of BLAS.

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
SOME = 8  # states from which on a product by BLAS is worth its call
TURNED = 4  # lanes at once that are laid out by sequence
PIECE = 96  # their frames at once


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
    """Lay the sequences ``own`` of ``x`` (batch, time, features) beside each other; whether all frames are finite.

    ``ends`` are their lengths, the longest first. What is behind a sequence's end is not looked at.
    """
    T, D, N = ends[0], x.shape[2], inside.shape[1]
    check = np.zeros(N)
    count = len(own)
    for t in range(T + 4):
        while count and ends[count - 1] <= t:
            count -= 1
        inside[t] = 0.0
        inside[t, :count] = 1.0
        for d in range(D):
            for n in range(count):
                value = x[own[n], t, d]
                check[n] += value
                frames[d, t, n] = value
            frames[d, t, count:] = 0.0
    return np.isfinite(check.sum())


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _through(matrix: Any, rows: Any, out: Any) -> None:
    """Matrix (to, from) times rows (from, lanes)."""
    size, N = rows.shape
    if size > SOME:
        np.dot(matrix, rows, out)
        return
    for j in range(size):
        for n in range(N):
            out[j, n] = 0.0
        for i in range(0, size, 4):
            p, q, r, s = matrix[j, i], matrix[j, i + 1], matrix[j, i + 2], matrix[j, i + 3]
            for n in range(N):
                out[j, n] += (rows[i, n] * p + rows[i + 1, n] * q) + (rows[i + 2, n] * r + rows[i + 3, n] * s)


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def emit(
    T: int, rows: Any, mask: Any, means: Any, halves: Any, constants: Any, e: Any, block: Any, bits: Any, logs: Any
) -> None:
    """Densities ``e`` over the largest of each frame, whose logarithm goes to ``logs`` (lanes).

    ``rows`` (features, time * lanes) are frames, ``mask`` (time * lanes) those that are meant. ``means`` and
    ``halves``, minus half the precisions, are (states, features), ``constants`` (states). ``block`` (states + 2, FRAMES
    * lanes) and ``bits``, its last row as whole numbers, are overwritten.
    """
    N = len(logs)
    S, D = means.shape
    best, scratch = block[S], block[S + 1]
    for first in range(0, T, FRAMES):
        low = first * N
        frames = min(T - first, FRAMES)
        size = frames * N
        here = mask[low : low + size]
        for s in range(S):
            out = block[s]
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
            out = block[s]
            for n in range(size):
                out[n] = out[n] * here[n] - best[n]
            exponentials(out, size, scratch, bits)
            for t in range(frames):
                for n in range(N):
                    e[first + t, s, n] = out[t * N + n]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def forward(T: int, start: Any, step: Any, e: Any, inside: Any, alpha: Any, logs: Any, lowest: Any) -> Any:
    """Scaled forward probabilities; ``logs`` grow by their scales', ``lowest`` becomes the least frame of a lane.

    ``start`` (states), ``step`` (states to, states from). Returns the least probability of all.
    """
    N = len(logs)
    S = len(start)
    here, product, least = np.empty(N), np.ones(N), np.ones(N)
    for t in range(T):
        now = alpha[t]
        if t == 0:
            for j in range(S):
                for n in range(N):
                    now[j, n] = start[j]
        else:
            _through(step, alpha[t - 1], now)
        for n in range(N):
            here[n] = 0.0
        for j in range(S):
            for n in range(N):
                now[j, n] *= e[t, j, n]
                here[n] += now[j, n]
        smallest = 1.0
        for n in range(N):
            lowest[n] = here[n] if not here[n] >= lowest[n] else lowest[n]
            # Exactly one where the lane has ended
            product[n] *= here[n] * inside[t, n] + (1.0 - inside[t, n])
            here[n] = 1.0 / here[n]
            smallest = min(smallest, product[n])
        if smallest < 1e-150:
            for n in range(N):
                logs[n] += math.log(product[n])
                product[n] = 1.0
        for j in range(S):
            for n in range(N):
                now[j, n] *= here[n]
                least[n] = min(least[n], now[j, n])
    for n in range(N):
        logs[n] += math.log(product[n])
    smallest = 1.0
    for n in range(N):
        smallest = min(smallest, least[n])
    return smallest


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def backward(
    T: int, S: int, back: Any, e: Any, inside: Any, alpha: Any, gamma: Any, future: Any, joined: Any, highest: Any,
    want: bool,
) -> None:  # fmt: skip
    """Scaled backward probabilities ``future`` (states, lanes), the largest of which becomes ``highest``.

    ``back`` (states from, states to). If it is wanted, ``gamma`` become the posteriors, and ``e``, from the second
    frame on, what a transition to a state is worth: with ``alpha`` of the frame before they make expected transitions.
    """
    N = len(highest)
    norm = np.empty(N)
    for j in range(S):
        for n in range(N):
            future[j, n] = 1.0
    for t in range(T - 1, -1, -1):
        now = alpha[t]
        if t < T - 1:
            for j in range(S):
                for n in range(N):
                    joined[j, n] = e[t + 1, j, n] * future[j, n]
            _through(back, joined, future)
            for n in range(N):
                norm[n] = 0.0
            for i in range(S):
                for n in range(N):
                    norm[n] += now[i, n] * future[i, n]
            for n in range(N):
                norm[n] = inside[t + 1, n] / norm[n]
            for i in range(S):
                for n in range(N):
                    # Exactly one in a lane's last frame
                    value = future[i, n] * norm[n] + (1.0 - inside[t + 1, n])
                    future[i, n] = value
                    highest[n] = value if not value <= highest[n] else highest[n]
            if want:
                for j in range(S):
                    for n in range(N):
                        e[t + 1, j, n] = joined[j, n] * norm[n]
        if want:
            for i in range(S):
                for n in range(N):
                    gamma[t, i, n] = now[i, n] * future[i, n] * inside[t, n]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def add_up(T: int, frames: Any, gamma: Any, means: Any, D: int, share: Any, kept: Any) -> None:
    """What derivatives of densities are made of, the first columns of ``kept`` (states, 2 D + 2 + states, lanes).

    Posteriors times the distance from the mean, times its square, and alone; and the first frame's. ``frames``
    (features, time, lanes) are those of `emit`; ``share`` (FRAMES, lanes) is overwritten.
    """
    S, _, N = kept.shape
    for i in range(S):
        for k in range(2 * D + 1):
            for n in range(N):
                kept[i, k, n] = 0.0
        for n in range(N):
            kept[i, 2 * D + 1, n] = gamma[0, i, n]
    for first in range(0, T, FRAMES):
        count = (min(T - first, FRAMES) + 3) // 4 * 4
        for i in range(S):
            once = kept[i]
            for t in range(count):
                for n in range(N):
                    share[t, n] = gamma[first + t, i, n]
                    once[2 * D, n] += share[t, n]
            for k in range(D):
                middle = means[i, k]
                for t in range(0, count, 4):
                    now = first + t
                    for n in range(N):
                        a, b = frames[k, now, n] - middle, frames[k, now + 1, n] - middle
                        c, d = frames[k, now + 2, n] - middle, frames[k, now + 3, n] - middle
                        p, q = share[t, n] * a, share[t + 1, n] * b
                        r, s = share[t + 2, n] * c, share[t + 3, n] * d
                        once[k, n] += (p + q) + (r + s)
                        once[D + k, n] += (p * a + q * b) + (r * c + s * d)


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def transitions(T: int, alpha: Any, e: Any, probabilities: Any, first: int, before: Any, after: Any, kept: Any) -> None:
    """Expected transitions, the columns of ``kept`` from ``first`` on.

    ``alpha`` and ``e`` as `backward` leaves them; ``before`` and ``after`` (TURNED, PIECE, states) are overwritten.
    """
    S, _, N = kept.shape
    if len(probabilities) <= SOME:
        for i in range(S):
            for j in range(S):
                moved = kept[i, first + j]
                for n in range(N):
                    moved[n] = 0.0
                for t in range(T - 1):
                    for n in range(N):
                        moved[n] += alpha[t, i, n] * e[t + 1, j, n]
                for n in range(N):
                    moved[n] *= probabilities[i, j]
        return
    moves = np.empty((TURNED, S, S))
    for low in range(0, N, TURNED):
        count = min(TURNED, N - low)
        moves[:] = 0.0
        for begin in range(0, T - 1, PIECE):
            size = min(PIECE, T - 1 - begin)
            for t in range(size):
                for i in range(S):
                    for n in range(count):
                        before[n, t, i] = alpha[begin + t, i, low + n]
                        after[n, t, i] = e[begin + t + 1, i, low + n]
            for n in range(count):
                # Both, since what is left of a sequence that overflowed is no number, and zero times it is none.
                before[n, size:], after[n, size:] = 0.0, 0.0
                moves[n] += np.dot(before[n].T, after[n])
        for i in range(S):
            for j in range(S):
                for n in range(count):
                    kept[i, first + j, low + n] = moves[n, i, j] * probabilities[i, j]
