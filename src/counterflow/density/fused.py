"""Log-likelihoods and what their derivatives need in one go over the batch, for frames that need no error themselves.

Some sequences at a time go from frames to statistics while they lie in the cache: densities by one matrix product,
scaled recursions, and the posteriors' sums of frames and squares by another product. Posteriors themselves are not
kept: with n states and D features a model's derivatives (equations 16 to 19) are linear in n (2D + 1) sums a sequence,
which is less than its posteriors wherever it has more frames than that.

Inside, the models of several sequences lie beside each other. Sequences are sorted by length, the longest first, so
that those that have not ended are always the first *lanes*; a lane is a sequence under a model, and arrays are (time,
states, lanes). What underflows is found as in `counterflow.density.kernels` and computed again in log space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from counterflow.density.kernels import _FAST, _LARGEST_FUTURE, _SMALLEST_FRAME, _SMALLEST_KEPT, _in_log_space
from counterflow.exceptions import UnsupportedError

__all__: list[str] = []

MOST_STATES = 16  # above, what lies between two frames outgrows the cache
_LANES = 64
_CHUNK = 2**17  # numbers in a matrix of densities
_HALF_LOG_TAU = 0.9189385332046727

# exp(x) = 2^k exp(r), |r| <= log(2) / 2; the logarithm of 2 in two parts, of which the first times k is exact
_PER_LOG_2 = 1.4426950408889634
_LOG_2_HIGH, _LOG_2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
_SHIFT = 6755399441055744.0  # 1.5 * 2^52: added, it leaves the nearest whole number in the last bits
_LEAST_EXPONENT = -708.0
_INVERSE = tuple(1.0 / math.factorial(n) for n in range(14))


@numba.njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _exponentials(values: Any, count: int, scratch: Any, bits: Any) -> None:
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
def _prepare(means: Any, log_variances: Any, center: Any, weights: Any) -> None:
    """The matrix (2D + 1, S M) that makes densities of frames, squares and ones; means are relative to their mean."""
    M, S, D = means.shape
    for d in range(D):
        total = 0.0
        for m in range(M):
            for s in range(S):
                total += means[m, s, d]
        center[d] = total / (M * S)
    for m in range(M):
        for s in range(S):
            column = s * M + m
            constant = -D * _HALF_LOG_TAU
            for d in range(D):
                precision = math.exp(-log_variances[m, s, d])
                at = means[m, s, d] - center[d]
                weights[d, column] = at * precision
                weights[D + d, column] = -0.5 * precision
                constant -= 0.5 * (log_variances[m, s, d] + at * at * precision)
            weights[2 * D, column] = constant


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _take(x: Any, order: Any, ends: Any, center: Any, frames: Any) -> Any:
    """Frames, their squares and a one, (B, T, 2D + 1), zero behind the end; whether all are finite."""
    B, T, _ = frames.shape
    D = x.shape[2]
    finite = True
    for b in range(B):
        one = x[order[b]]
        rows = frames[b]
        L = ends[b]
        for t in range(L):
            check = 0.0
            for d in range(D):
                value = one[t, d] - center[d]
                check += value
                rows[t, d] = value
                rows[t, D + d] = value * value
            rows[t, 2 * D] = 1.0
            if not np.isfinite(check):
                finite = False
        rows[L:T] = 0.0
    return finite


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _mix(rows: Any, weights: Any, count: int, out: Any) -> None:
    """Sums over the first index of rows times weights, four at once, in the first ``count`` lanes."""
    S = len(rows)
    whole = S - S % 4
    if not whole:
        for n in range(count):
            out[n] = 0.0
    for i in range(0, whole, 4):
        a, b, c, d = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        p, q, r, s = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        if i == 0:
            for n in range(count):
                out[n] = (a[n] * p[n] + b[n] * q[n]) + (c[n] * r[n] + d[n] * s[n])
        else:
            for n in range(count):
                out[n] += (a[n] * p[n] + b[n] * q[n]) + (c[n] * r[n] + d[n] * s[n])
    for i in range(whole, S):
        a, p = rows[i], weights[i]
        for n in range(count):
            out[n] += a[n] * p[n]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _forward(start: Any, step: Any, e: Any, active: Any, alpha: Any, logs: Any, lowest: Any) -> Any:
    """Scaled forward probabilities; ``logs`` (N) grows by each lane's, ``lowest`` becomes its least frame.

    ``start`` (S, N), ``step`` (S to, S from, N), ``e`` and ``alpha`` (T, S, N), ``active`` (T + 1): lanes that have not
    ended. Returns the least probability of all, if no lane underflowed.
    """
    T, S, N = e.shape
    here, product, inverse = np.empty(N), np.ones(N), np.empty(N)
    smallest = 1.0
    for t in range(T):
        A = active[t]
        for j in range(S):
            now, fit = alpha[t, j], e[t, j]
            if t == 0:
                for n in range(A):
                    now[n] = start[j, n]
            else:
                _mix(alpha[t - 1], step[j], A, now)
            if j == 0:
                for n in range(A):
                    now[n] *= fit[n]
                    here[n] = now[n]
            else:
                for n in range(A):
                    now[n] *= fit[n]
                    here[n] += now[n]
        least = 1.0
        for n in range(A):
            lowest[n] = here[n] if not here[n] >= lowest[n] else lowest[n]
            product[n] *= here[n]
            inverse[n] = 1.0 / here[n]
            least = min(least, product[n])
        if least < 1e-150:
            for n in range(N):
                logs[n] += math.log(product[n])
                product[n] = 1.0
        for j in range(S):
            now = alpha[t, j]
            for n in range(A):
                now[n] *= inverse[n]
                smallest = min(smallest, now[n])
    for n in range(N):
        logs[n] += math.log(product[n])
    return smallest


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _backward(back: Any, e: Any, active: Any, alpha: Any, highest: Any, xi: Any, gamma: Any, want: bool) -> None:
    """Scaled backward probabilities, whose largest becomes ``highest`` (N).

    ``back`` (S from, S to, N). If wanted, ``xi`` (S, S, N) become the expected transitions, and ``gamma`` (B, T, S, M)
    the posteriors.
    """
    T, S, N = e.shape
    future, joined, following = np.empty((S, N)), np.empty((S, N)), np.empty((S, N))
    norm = np.empty(N)
    for t in range(T - 1, -1, -1):
        A, before = active[t], active[t + 1]
        for i in range(S):
            for n in range(before, A):
                future[i, n] = 1.0
        if before:
            for j in range(S):
                fit = e[t + 1, j]
                for n in range(before):
                    joined[j, n] = fit[n] * future[j, n]
            for i in range(S):
                out, now = following[i], alpha[t, i]
                _mix(joined, back[i], before, out)
                if i == 0:
                    for n in range(before):
                        norm[n] = now[n] * out[n]
                else:
                    for n in range(before):
                        norm[n] += now[n] * out[n]
            for n in range(before):
                norm[n] = 1.0 / norm[n]
            for i in range(S):
                out = following[i]
                for n in range(before):
                    value = out[n] * norm[n]
                    future[i, n] = value
                    highest[n] = value if not value <= highest[n] else highest[n]
            if want:
                for j in range(S):
                    for n in range(before):
                        joined[j, n] *= norm[n]
                for i in range(S):
                    now = alpha[t, i]
                    for j in range(S):
                        row, other = xi[i, j], joined[j]
                        for n in range(before):
                            row[n] += now[n] * other[n]
        if want:
            M = gamma.shape[3]
            for b in range(A // M):
                for i in range(S):
                    now, ahead, out = alpha[t, i], future[i], gamma[b, t, i]
                    for m in range(M):
                        out[m] = now[b * M + m] * ahead[b * M + m]
    if want:
        for i in range(S):
            for j in range(S):
                for n in range(N):
                    xi[i, j, n] *= back[i, j, n]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _recur(
    log_b: Any, ends: Any, log_start: Any, log_step: Any, lanes: int, total: Any, first: Any, moves: Any, bad: Any,
    want: bool,
) -> None:  # fmt: skip
    """From log-densities (B, T, S, M) to likelihoods ``total`` (B, M), and to posteriors in place if they are wanted.

    ``first`` (B, S, M) is their first frame, ``moves`` (B, S, S, M) the expected transitions, ``bad`` (B, M) is raised
    where it underflows.
    """
    B, longest, S, M = log_b.shape
    group = max(1, min(B, lanes // M))
    N = group * M
    start, step, back = np.empty((S, N)), np.empty((S, S, N)), np.empty((S, S, N))
    for n in range(N):
        m = n % M
        for i in range(S):
            start[i, n] = math.exp(log_start[m, i])
            for j in range(S):
                back[i, j, n] = math.exp(log_step[m, i, j])
                step[j, i, n] = back[i, j, n]
    e, alpha = np.empty((longest, S, N)), np.empty((longest, S, N))
    xi = np.empty((S, S, N))
    logs, lowest, highest, scratch, best = np.empty(N), np.empty(N), np.empty(N), np.empty(N), np.empty(M)
    bits = scratch.view(np.int64)
    active = np.empty(longest + 1, np.int64)
    for begin in range(0, B, group):
        count = min(group, B - begin)
        own = ends[begin : begin + count]
        T = own[0]
        left = count
        for t in range(T):
            while own[left - 1] <= t:
                left -= 1
            active[t] = left * M
        active[T] = 0
        logs[:] = 0.0
        lowest[:] = 1.0
        highest[:] = 0.0
        for b in range(count):
            lane = b * M
            for t in range(own[b]):
                rows = log_b[begin + b, t]
                for m in range(M):
                    best[m] = rows[0, m]
                for s in range(1, S):
                    for m in range(M):
                        best[m] = max(best[m], rows[s, m])
                for m in range(M):
                    logs[lane + m] += best[m]
                for s in range(S):
                    out = e[t, s]
                    for m in range(M):
                        out[lane + m] = rows[s, m] - best[m]
        for t in range(T):
            for s in range(S):
                _exponentials(e[t, s], active[t], scratch, bits)
        used = count * M
        smallest = _forward(
            start[:, :used], step[:, :, :used], e[:T, :, :used], active, alpha[:T, :, :used], logs[:used], lowest[:used]
        )
        if want or smallest < _SMALLEST_KEPT:
            xi[:] = 0.0
            part = log_b[begin : begin + count]
            _backward(
                back[:, :, :used],
                e[:T, :, :used],
                active,
                alpha[:T, :, :used],
                highest[:used],
                xi[:, :, :used],
                part,
                want,
            )
        for b in range(count):
            for m in range(M):
                n = b * M + m
                total[begin + b, m] = logs[n]
                bad[begin + b, m] = not (lowest[n] > _SMALLEST_FRAME and highest[n] < _LARGEST_FUTURE)
                if want:
                    for i in range(S):
                        first[begin + b, i, m] = log_b[begin + b, 0, i, m]
                        for j in range(S):
                            moves[begin + b, i, j, m] = xi[i, j, n]
            if want:
                log_b[begin + b, own[b] : longest] = 0.0


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _derive(
    error: Any, order: Any, sums: Any, first: Any, moves: Any, means: Any, log_variances: Any, center: Any,
    to_start: Any, to_step: Any, to_means: Any, to_variances: Any,
) -> None:  # fmt: skip
    """Equations 16 to 19 from the sums of all sequences, each as much as its error says."""
    B, S, M, width = sums.shape
    D = width // 2
    whole = np.zeros((S, M, width))
    for b in range(B):
        for m in range(M):
            sent = error[order[b], m]
            for i in range(S):
                to_start[m, i] += sent * first[b, i, m]
                for j in range(S):
                    to_step[m, i, j] += sent * moves[b, i, j, m]
                out, own = whole[i, m], sums[b, i, m]
                for d in range(width):
                    out[d] += sent * own[d]
    for m in range(M):
        for i in range(S):
            weight = whole[i, m, 2 * D]
            for d in range(D):
                precision = math.exp(-log_variances[m, i, d])
                at = means[m, i, d] - center[d]
                one, square = whole[i, m, d], whole[i, m, D + d]
                to_means[m, i, d] = (one - weight * at) * precision  # equation 18
                spread = square - 2.0 * at * one + at * at * weight
                to_variances[m, i, d] = 0.5 * (spread * precision - weight)  # equation 19


def _statistics(x: Tensor, ends: Any, parameters: list[Any], want: bool) -> tuple[Any, ...] | None:
    """Log-likelihoods (batch, models), and what `_derive` wants: order, sums, first, moves, center.

    ``ends`` are lengths, ``parameters`` arrays of the logarithms of initial and transition probabilities, means
    (models, states, features) and log-variances, all in float64. None where a frame is not finite.
    """
    log_start, log_step, means, log_variances = parameters
    M, S, D = means.shape
    B, width = len(x), 2 * D + 1
    order = np.argsort(-ends, kind="stable")
    ends = ends[order]
    center, weights = np.empty(D), np.empty((width, S * M))
    _prepare(means, log_variances, center, weights)
    longest = int(ends[0])
    size = max(1, min(B, _CHUNK // (longest * S * M)))
    kept = B if want else 0
    total, bad = np.empty((B, M)), np.empty((B, M), np.bool_)
    sums = torch.empty(kept, S * M, width, dtype=torch.float64)
    first, moves = np.empty((kept, S, M)), np.empty((kept, S, S, M))
    whole = torch.empty(size * longest * (width + S * M), dtype=torch.float64)
    matrix, raw = torch.from_numpy(weights), x.detach().numpy()
    for begin in range(0, B, size):
        part = slice(begin, min(B, begin + size))
        n, T = part.stop - begin, int(ends[begin])
        frames = whole[: n * T * width].view(n, T, width)
        if not _take(raw, order[part], ends[part], center, frames.numpy()):
            return None
        log_b = whole[-n * T * S * M :].view(n * T, S * M)
        torch.mm(frames.view(n * T, width), matrix, out=log_b)
        posteriors = log_b.view(n, T, S, M)
        arrays = (total[part], first[part], moves[part], bad[part])
        _recur(posteriors.numpy(), ends[part], log_start, log_step, _LANES, *arrays, want)
        if bad[part].any():
            _repair(bad[part], ends[part], frames, matrix, log_start, log_step, posteriors, *arrays[:3], want)
        if want:
            torch.bmm(posteriors.view(n, T, S * M).transpose(1, 2), frames, out=sums[part])
    found = np.empty_like(total)
    found[order] = total
    return found, order, sums.view(-1, S, M, width), first, moves, center


def _repair(
    bad: Any, ends: Any, frames: Tensor, weights: Tensor, log_start: Any, log_step: Any, posteriors: Tensor, total: Any,
    first: Any, moves: Any, want: bool,
) -> None:  # fmt: skip
    """Lanes that underflowed, once more in log space."""
    S, M = posteriors.shape[2:]
    for b, m in zip(*np.nonzero(bad), strict=True):
        length = int(ends[b])
        rows = (frames[b, :length] @ weights).view(length, S, M)[..., m].contiguous().numpy()
        gamma, xi = np.empty((length, S)), np.empty((S, S))
        total[b, m] = _in_log_space(log_start[m], log_step[m], rows, gamma, xi)
        if want:
            posteriors[b, :, :, m] = 0.0
            posteriors[b, :length, :, m] = torch.from_numpy(gamma)
            first[b, :, m] = gamma[0]
            moves[b, :, :, m] = xi


class _Once(torch.autograd.Function):
    """Hands on derivatives, tied to what they depend on, and refuses to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, sources: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.view_as(each) for each in tensors[sources:])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise UnsupportedError('second derivatives of a bank of models need GaussianHMM(..., backend="autograd")')


class _Fused(torch.autograd.Function):
    """The log-likelihood, and its derivatives from sums over frames."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, order: Any, center: Any, kept: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.order, ctx.center = order, center
        ctx.save_for_backward(*kept, *parameters)
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        sums, first, moves, *parameters = ctx.saved_tensors
        arrays = _arrays(parameters)
        found = [np.zeros(each.shape) for each in arrays]
        kept = (sums.numpy(), first.numpy(), moves.numpy())
        derive: Any = _derive
        derive(error.detach().double().numpy(), ctx.order, *kept, *arrays[2:], ctx.center, *found)
        sent = [torch.from_numpy(each).to(error.dtype) for each in found]
        if torch.is_grad_enabled():
            sent = list(_Once.apply(1 + len(parameters), error, *parameters, *sent))  # type: ignore[no-untyped-call]
        return (None, None, None, None, *sent)


def _arrays(parameters: Sequence[Tensor]) -> list[Any]:
    return [each.detach().double().contiguous().numpy() for each in parameters]


def likelihood(x: Tensor, lengths: Tensor, *parameters: Tensor) -> Tensor | None:
    """The log-likelihood of sequences, shape (batch, models), differentiable in all but them.

    Args:
        x: Sequences (batch, time, features).
        lengths: Frames of each (batch,).
        parameters: Logarithms of initial (models, states) and transition probabilities (models, states, states),
            means and log-variances (models, states, features).

    Returns:
        None where a frame is not finite.
    """
    want = torch.is_grad_enabled() and any(each.requires_grad for each in parameters)
    found = _statistics(x, lengths.numpy(), _arrays(parameters), want)
    if found is None:
        return None
    total, order, sums, first, moves, center = found
    total = torch.from_numpy(total).to(x.dtype)
    if not want:
        return total
    kept = [sums, torch.from_numpy(first), torch.from_numpy(moves)]
    bound: Tensor = _Fused.apply(total, order, center, kept, *parameters)  # type: ignore[no-untyped-call]
    return bound
