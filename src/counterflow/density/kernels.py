"""Forward-backward and Viterbi in numba, behind a custom operator of torch.

All models and states of a frame lie beside each other. With more models than states the inner loops run over models,
whose array is (batch, time, states, models); otherwise over states, with (batch, time, models, states).

The fast recursion multiplies probabilities that are scaled at every frame. It is left for one in log space where a
frame's likelihood under what came before falls below 1e-100, or where what underflowed on the way could still have
mattered, which the backward recursion knows: a probability that was lost is below 1e-200 of all, and it matters only
if what follows makes up for it by 1e180.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from counterflow.density.recursions import link_to, once
from counterflow.exceptions import UnsupportedError

__all__: list[str] = []

_SMALLEST_FRAME = 1e-100
_LARGEST_FUTURE = 1e180
_SMALLEST_KEPT = 1e-200
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_CHUNK = 2**17  # elements at once: what lies between exponentials and recursion stays in the cache


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _through(vector: Any, matrix: Any, out: Any) -> None:
    """Vector times matrix, four rows at once: ``out`` is written a quarter as often."""
    S = len(vector)
    for j in range(S):
        out[j] = 0.0
    whole = S - S % 4
    for i in range(0, whole, 4):
        a, b, c, d = vector[i], vector[i + 1], vector[i + 2], vector[i + 3]
        first, second, third, fourth = matrix[i], matrix[i + 1], matrix[i + 2], matrix[i + 3]
        for j in range(S):
            out[j] += (a * first[j] + b * second[j]) + (c * third[j] + d * fourth[j])
    for i in range(whole, S):
        a = vector[i]
        first = matrix[i]
        for j in range(S):
            out[j] += a * first[j]


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _add_products(left: Any, right: Any, count: int, out: Any) -> None:
    """Adds the outer products of up to four pairs; those beyond ``count`` are zeroed."""
    S = len(out)
    for k in range(count, 4):
        for i in range(S):
            left[k, i] = 0.0
            right[k, i] = 0.0
    for i in range(S):
        a, b, c, d = left[0, i], left[1, i], left[2, i], left[3, i]
        row = out[i]
        for j in range(S):
            row[j] += (a * right[0, j] + b * right[1, j]) + (c * right[2, j] + d * right[3, j])


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _over_states(
    start: Any,
    step: Any,
    back: Any,
    e: Any,
    lengths: Any,
    out: Any,
    xi: Any,
    total: Any,
    bad: Any,
    want: bool,
    back_too: bool,
) -> None:
    """Scaled recursions, one model after the other.

    ``start`` (M, S), ``step`` (M, S, S), ``back`` its transpose in the last two, ``e`` and ``out`` (B, T, M, S), ``xi``
    (B, M, S, S), ``total`` and ``bad`` (B, M). ``out`` becomes the posteriors if they are wanted.
    """
    B, _, M, S = e.shape
    future = np.empty(S)
    joined = np.empty(S)
    left = np.empty((4, S))
    right = np.empty((4, S))
    for b in range(B):
        L = lengths[b]
        for m in range(M):
            pairs = 0
            logs = 0.0
            product = 1.0
            fine = True
            for t in range(L):
                now = out[b, t, m]
                if t == 0:
                    for j in range(S):
                        now[j] = start[m, j]
                else:
                    _through(out[b, t - 1, m], step[m], now)
                c = 0.0
                for j in range(S):
                    now[j] *= e[b, t, m, j]
                    c += now[j]
                if not c > _SMALLEST_FRAME:
                    fine = False
                    break
                scale = 1.0 / c
                for j in range(S):
                    now[j] *= scale
                product *= c
                if product < 1e-150:
                    logs += math.log(product)
                    product = 1.0
            if fine:
                total[b, m] += logs + math.log(product)
                for j in range(S):
                    future[j] = 1.0
                for t in range(L - 2 if want or back_too else -1, -1, -1):
                    now = out[b, t, m]
                    for j in range(S):
                        joined[j] = e[b, t + 1, m, j] * future[j]
                    _through(joined, back[m], future)
                    n = 0.0
                    largest = 0.0
                    for i in range(S):
                        n += now[i] * future[i]
                        largest = max(largest, future[i])
                    if not (n > 0.0 and largest < _LARGEST_FUTURE * n):
                        fine = False
                        break
                    scale = 1.0 / n
                    for i in range(S):
                        future[i] *= scale
                    if want:
                        for i in range(S):
                            left[pairs, i] = now[i]
                            right[pairs, i] = joined[i] * scale
                            now[i] *= future[i]
                        pairs += 1
                        if pairs == 4:
                            _add_products(left, right, pairs, xi[b, m])
                            pairs = 0
                if want:
                    _add_products(left, right, pairs, xi[b, m])
                    for i in range(S):
                        for j in range(S):
                            xi[b, m, i, j] *= step[m, i, j]
            bad[b, m] = not fine


@numba.njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _over_models(
    start: Any, step: Any, e: Any, lengths: Any, out: Any, xi: Any, total: Any, bad: Any, want: bool, back_too: bool
) -> None:
    """The same, all models beside each other: ``start`` (S, M), ``step`` (S, S, M), ``e``, ``out`` (B, T, S, M)."""
    B, _, S, M = e.shape
    future = np.empty((S, M))
    joined = np.empty((S, M))
    c = np.empty(M)
    largest = np.empty(M)
    product = np.empty(M)
    for b in range(B):
        L = lengths[b]
        for m in range(M):
            product[m] = 1.0
        for t in range(L):
            for m in range(M):
                c[m] = 0.0
            for j in range(S):
                now = out[b, t, j]
                here = e[b, t, j]
                if t == 0:
                    row = start[j]
                    for m in range(M):
                        now[m] = row[m]
                else:
                    for m in range(M):
                        now[m] = 0.0
                    for i in range(S):
                        before = out[b, t - 1, i]
                        row = step[i, j]
                        for m in range(M):
                            now[m] += before[m] * row[m]
                for m in range(M):
                    now[m] *= here[m]
                    c[m] += now[m]
            for m in range(M):
                if not c[m] > _SMALLEST_FRAME:
                    bad[b, m] = True
                    c[m] = 1.0
                product[m] *= c[m]
                c[m] = 1.0 / c[m]
                if product[m] < 1e-150:
                    total[b, m] += math.log(product[m])
                    product[m] = 1.0
            for j in range(S):
                now = out[b, t, j]
                for m in range(M):
                    now[m] *= c[m]
        for m in range(M):
            total[b, m] += math.log(product[m])
        for j in range(S):
            for m in range(M):
                future[j, m] = 1.0
        for t in range(L - 2 if want or back_too else -1, -1, -1):
            for j in range(S):
                here = e[b, t + 1, j]
                for m in range(M):
                    joined[j, m] = here[m] * future[j, m]
            for m in range(M):
                c[m] = 0.0
                largest[m] = 0.0
            for i in range(S):
                for m in range(M):
                    future[i, m] = 0.0
                for j in range(S):
                    row = step[i, j]
                    for m in range(M):
                        future[i, m] += row[m] * joined[j, m]
                now = out[b, t, i]
                for m in range(M):
                    c[m] += now[m] * future[i, m]
                    largest[m] = max(largest[m], future[i, m])
            for m in range(M):
                if not (c[m] > 0.0 and largest[m] < _LARGEST_FUTURE * c[m]):
                    bad[b, m] = True
                    c[m] = 1.0
                c[m] = 1.0 / c[m]
            for i in range(S):
                for m in range(M):
                    future[i, m] *= c[m]
            if want:
                for i in range(S):
                    now = out[b, t, i]
                    for j in range(S):
                        row = xi[b, i, j]
                        for m in range(M):
                            row[m] += now[m] * (joined[j, m] * c[m])
                    for m in range(M):
                        now[m] *= future[i, m]
        if want:
            for i in range(S):
                for j in range(S):
                    for m in range(M):
                        xi[b, i, j, m] *= step[i, j, m]


@numba.njit(cache=True, nogil=True)
def _log_sum(values: Any) -> Any:
    top = values.max()
    if top == -np.inf:
        return -np.inf
    total = 0.0
    for value in values:
        total += math.exp(value - top)
    return top + math.log(total)


@numba.njit(cache=True, nogil=True)
def _in_log_space(log_start: Any, log_step: Any, log_b: Any, gamma: Any, xi: Any) -> Any:
    """One sequence under one model: ``log_b`` (L, S); ``gamma`` (L, S) and ``xi`` (S, S) are filled."""
    L, S = log_b.shape
    alpha = np.empty((L, S))
    alpha[0] = log_start + log_b[0]
    terms = np.empty(S)
    for t in range(1, L):
        for j in range(S):
            for i in range(S):
                terms[i] = alpha[t - 1, i] + log_step[i, j]
            alpha[t, j] = _log_sum(terms) + log_b[t, j]
    total = _log_sum(alpha[L - 1])
    gamma[:] = 0.0
    xi[:] = 0.0
    if total == -np.inf:
        return total
    beta = np.zeros(S)
    gamma[L - 1] = np.exp(alpha[L - 1] - total)
    for t in range(L - 2, -1, -1):
        ahead = log_b[t + 1] + beta
        beta = np.empty(S)
        for i in range(S):
            for j in range(S):
                terms[j] = log_step[i, j] + ahead[j]
                xi[i, j] += math.exp(alpha[t, i] + terms[j] - total)
            beta[i] = _log_sum(terms)
            gamma[t, i] = math.exp(alpha[t, i] + beta[i] - total)
    return total


@numba.njit(cache=True, nogil=True)
def viterbi_paths(log_start: Any, log_step: Any, log_b: Any, lengths: Any, paths: Any, best: Any) -> None:
    """The likeliest path: ``log_b`` (B, T, M, S); ``paths`` (B, M, T) and ``best`` (B, M) are filled."""
    B, T, M, S = log_b.shape
    came = np.empty((T, S), np.int64)
    for b in range(B):
        L = lengths[b]
        for m in range(M):
            now = log_start[m] + log_b[b, 0, m]
            for t in range(1, L):
                following = np.empty(S)
                for j in range(S):
                    at = 0
                    top = now[0] + log_step[m, 0, j]
                    for i in range(1, S):
                        value = now[i] + log_step[m, i, j]
                        if value > top:
                            top = value
                            at = i
                    came[t, j] = at
                    following[j] = top + log_b[b, t, m, j]
                now = following
            state = np.argmax(now)
            best[b, m] = now[state]
            for t in range(L - 1, -1, -1):
                paths[b, m, t] = state
                if t > 0:
                    state = came[t, state]


def _computed(
    log_start: Tensor, log_step: Tensor, log_b: Tensor, lengths: Tensor, models_last: bool, want: bool
) -> tuple[Tensor, Tensor, Tensor]:
    models, states = log_start.shape
    batch, steps = log_b.shape[:2]
    start, step = log_start.double().exp(), log_step.double().exp()
    if models_last:
        start, step = start.T.contiguous(), step.permute(1, 2, 0).contiguous()
    back = step.transpose(-1, -2).contiguous()
    kept = (batch, steps, states, models) if models_last else (batch, steps, models, states)
    total = torch.zeros(batch, models, dtype=torch.float64)
    gamma = log_b.new_empty(kept if want else (0,))
    counts = torch.zeros((batch, states, states, models) if models_last else (batch, models, states, states)).double()
    bad = np.zeros((batch, models), np.bool_)
    ends = lengths.numpy()
    valid = torch.arange(steps) < lengths[:, None]
    chunk = max(1, _CHUNK // max(1, steps * models * states))
    for first in range(0, batch, chunk):
        part = slice(first, min(batch, first + chunk))
        e = torch.unflatten(log_b[part].double(), -1, kept[2:])
        dim = -2 if models_last else -1
        top = e.amax(dim, keepdim=True)
        total[part] = (top.squeeze(dim) * valid[part, :, None]).sum(1)
        e = (e - top).exp_()
        direct = want and gamma.dtype == torch.float64
        out = gamma[part] if direct else torch.ones_like(e)
        levels = total[part].clone()
        sums = (start.numpy(), step.numpy()) if models_last else (start.numpy(), step.numpy(), back.numpy())
        arrays = (*sums, e.numpy(), ends[part], out.numpy(), counts[part].numpy(), total[part].numpy(), bad[part])
        run: Any = _over_models if models_last else _over_states
        run(*arrays, want, False)
        if not want and float(out.amin()) < _SMALLEST_KEPT:
            # Something was lost on the way: going back finds out whether it matters.
            total[part] = levels
            run(*arrays, False, True)
        if want:
            out.masked_fill_(~valid[part, :, None, None], 0.0)
            if not direct:
                gamma[part] = out
    if models_last:
        gamma = gamma.transpose(-1, -2) if want else gamma
        counts = counts.permute(0, 3, 1, 2)
    for b, m in zip(*np.nonzero(bad), strict=True):
        length = int(ends[b])
        rows = torch.unflatten(log_b[b, :length].double(), -1, kept[2:])
        rows = (rows[:, :, m] if models_last else rows[:, m]).contiguous()
        posterior, moved = torch.empty(length, states, dtype=torch.float64), counts.new_empty(states, states)
        arguments = (log_start[m].double(), log_step[m].double(), rows, posterior, moved)
        total[b, m] = _in_log_space(*(each.contiguous().numpy() for each in arguments))
        if want:
            gamma[b, :length, m] = posterior.to(gamma.dtype)
            counts[b, m] = moved
    if models_last and want:
        gamma = gamma.transpose(-1, -2)
    moves = counts.to(log_b.dtype).contiguous() if want else log_b.new_empty(0)
    return total.to(log_b.dtype), gamma.flatten(2) if want else gamma, moves


_recursion = torch.library.custom_op("counterflow::hmm_recursion", _computed, mutates_args=())


@_recursion.register_fake
def _(
    log_start: Tensor, log_step: Tensor, log_b: Tensor, lengths: Tensor, models_last: bool, want: bool
) -> tuple[Tensor, Tensor, Tensor]:
    models, states = log_start.shape
    batch = log_b.shape[0]
    moves = (batch, models, states, states) if want else (0,)
    return log_b.new_empty(batch, models), log_b.new_empty(log_b.shape if want else (0,)), log_b.new_empty(moves)


@_recursion.register_vmap
def _(info: Any, in_dims: Any, *arguments: Any) -> Any:
    calls = []
    for index in range(info.batch_size):
        mine = [each if dim is None else each.select(dim, index) for each, dim in zip(arguments, in_dims, strict=True)]
        calls.append(_recursion(*mine))
    return tuple(torch.stack(each) for each in zip(*calls, strict=True)), (0, 0, 0)


def _run(
    log_start: Tensor, log_step: Tensor, log_b: Tensor, lengths: Tensor, last: bool, want: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator; past its dispatch, whose first call imports torch's compiler for seconds, where all is plain."""
    plain = type(log_b) is Tensor and torch._C._functorch.maybe_current_level() is None
    run = _computed if plain and not torch.compiler.is_compiling() else _recursion
    found: tuple[Tensor, Tensor, Tensor] = run(log_start, log_step, log_b, lengths, last, want)
    return found


class _Bank(torch.autograd.Function):
    """Equations 14 to 19: what a parameter is told is what its part of the joint likelihood is, in expectation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        log_start: Tensor, log_step: Tensor, log_b: Tensor, lengths: Tensor, link: Tensor, last: bool, want: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihoods, posteriors and expected transitions, as `recursion` has them."""
        return _run(log_start, log_step, log_b, lengths, last, want)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keeps posteriors and transitions where they were computed, else what they are computed from."""
        log_start, log_step, log_b, lengths, link, ctx.last, ctx.want = inputs
        _, gamma, moves = output
        ctx.mark_non_differentiable(gamma, moves)
        kept = (gamma, moves) if ctx.want else (log_b, lengths)
        ctx.save_for_backward(log_start, log_step, link, *kept)

    @staticmethod
    def backward(ctx: Any, error: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """From the error (batch, models) to initial probabilities, transitions and densities."""
        log_start, log_step, link, gamma, moves = ctx.saved_tensors
        if not ctx.want:
            with torch.no_grad():
                gamma, moves = _run(log_start, log_step, gamma, moves, ctx.last, True)[1:]
        models, states = log_start.shape
        if ctx.last:
            sent = torch.unflatten(gamma, -1, (states, models)) * error[:, None, None, :]
            first = sent[:, 0].sum(0).transpose(0, 1)
        else:
            sent = torch.unflatten(gamma, -1, (models, states)) * error[:, None, :, None]
            first = sent[:, 0].sum(0)
        moved = (moves * error[:, :, None, None]).sum(0)
        sent = sent.flatten(-2)
        return (*once((first, moved, sent), (log_start, log_step, link)), None, None, None, None)


def recursion(
    log_start: Tensor, log_step: Tensor, log_b: Tensor, lengths: Tensor, models_last: bool, want: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihoods with, if wanted, state posteriors and expected transitions.

    Args:
        log_start: Logarithm of the initial state probabilities, shape (models, states).
        log_step: Logarithm of the transition probabilities, shape (models, states, states).
        log_b: Log-densities of the frames, shape (batch, time, models * states).
        lengths: Frames of each sequence, shape (batch,).
        models_last: Whether the last dimension of ``log_b`` is (states, models), not (models, states).
        want: Whether posteriors and transitions are computed now; if not, going back computes them.

    Returns:
        The log-likelihood (batch, models), posteriors in the order of ``log_b``, and expected transitions (batch,
        models, states, states). Only the first is differentiable.

    Raises:
        UnsupportedError: If tensors are not on the CPU.
    """
    if log_b.device.type != "cpu":
        raise UnsupportedError(f'backend="numba" works on the CPU, and x is on {log_b.device}; use backend="torch"')
    arguments = (log_start, log_step, log_b, lengths, link_to(log_b), models_last, want)
    found: tuple[Tensor, Tensor, Tensor] = _Bank.apply(*arguments)  # type: ignore[no-untyped-call]
    return found
