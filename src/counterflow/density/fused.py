"""Log-likelihoods and what their derivatives need in one go over the batch, for frames that need no error themselves.

Some sequences at a time go from frames to statistics while they lie in the cache. Posteriors themselves are not kept:
with n states and D features a model's derivatives (equations 16 to 19) are linear in n (2D + 2 + n) sums a sequence,
which is less than its posteriors wherever it has more frames than 2D + 2 + n. The loops are in
`counterflow.density.lanes`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from counterflow.density.kernels import _LARGEST_FUTURE, _SMALLEST_FRAME, _SMALLEST_KEPT, _in_log_space
from counterflow.density.lanes import FRAMES, PIECE, TURNED, add_up, backward, emit, forward, take, transitions
from counterflow.density.recursions import once

__all__: list[str] = []

MOST_LANES = 32
MOST_STATES = 64  # above, what lies between two frames outgrows the cache
_LOG_TAU = 1.8378770664093453
_MOST_BYTES = 2**28  # of what lies beside each other for a while
_MOST_KEPT = 2**24  # of it between two calls


def fits(batch: int, steps: int, states: int, features: int) -> bool:
    """Whether sums over frames are fewer than posteriors, and their way takes neither much more time nor memory."""
    if not batch or states > MOST_STATES:
        return False
    blocks, lanes = _blocks(batch)
    fewer = blocks * lanes * (2 * features + states + 2) <= batch * steps
    return fewer and 8 * lanes * steps * (features + 3 * states) <= _MOST_BYTES


def _blocks(batch: int) -> tuple[int, int]:
    """How many blocks of how many lanes: multiples of four, with few that are empty."""
    blocks = -(-batch // MOST_LANES)
    return blocks, -(-batch // (4 * blocks)) * 4


def _statistics(x: Tensor, ends: Any, parameters: list[Any], want: bool) -> tuple[Any, Any, Any] | None:
    """Log-likelihoods (batch, models), the order of the sequences in blocks, the longest first, and their sums.

    ``ends`` are lengths, ``parameters`` arrays of the logarithms of initial and transition probabilities, means
    (models, states, features) and log-variances, all in float64. Sums (blocks, models, states, 2 features + 2 + states,
    lanes) are those of `counterflow.density.lanes.add_up`. None where a frame is not finite.
    """
    M, S, D = parameters[2].shape
    B = len(x)
    order = np.argsort(-ends, kind="stable")
    ends = ends[order]
    total, bad = np.empty((B, M)), np.empty((B, M), np.bool_)
    blocks, lanes = _blocks(B)
    kept = np.empty((blocks if want else 0, M, S, 2 * D + 2 + S, lanes))
    raw = x.detach().double().contiguous().numpy()
    start, step, back, centers, halves, constants = _prepared(parameters)
    P, Q, longest = centers.shape[2], step.shape[2], int(ends[0]) + 4
    # Memory holds anything. Padding is read too, and must be zero where nothing is written.
    frames, inside, e, alpha, gamma, before, after, block, share = _workspace(
        (P, longest, lanes),
        (longest, lanes),
        (longest, Q, lanes),
        (longest, Q, lanes),
        (longest if want else 1, S, lanes),
        (TURNED, PIECE, S),
        (TURNED, PIECE, S),
        (S + 2, FRAMES * lanes),
        (FRAMES, lanes),
    )
    e[:, S:], alpha[:, S:], frames[x.shape[2] :] = 0.0, 0.0, 0.0
    future, joined = np.zeros((2, Q, lanes))
    logs, lowest, highest = np.empty((3, lanes))
    rows, mask, bits = frames.reshape(P, -1), inside.reshape(-1), block[-1].view(np.int64)
    kernels: tuple[Any, ...] = (take, emit, forward, backward, add_up, transitions)
    take_in, densities, go, come_back, sums, moves = kernels
    for begin in range(0, B, lanes):
        part = slice(begin, min(B, begin + lanes))
        count, T = part.stop - begin, int(ends[begin])
        if not take_in(raw, order[part], ends[part], frames, inside):
            return None
        # Sums take four frames at once, and up to four behind the end count nothing.
        gamma[T : T + 4] = 0.0
        for m in range(M):
            logs[:], lowest[:], highest[:] = 0.0, 1.0, 0.0
            densities(T, rows, mask, centers[m], halves[m], constants[m], e, block, bits, logs)
            smallest = go(T, start[m], step[m], e, inside, alpha, logs, lowest)
            if want or smallest < _SMALLEST_KEPT:
                come_back(T, S, back[m], e, inside, alpha, gamma, future, joined, highest, want)
            if want:
                out = kept[begin // lanes, m]
                sums(T, frames, gamma, centers[m], D, share, out)
                moves(T, alpha, e, back[m], 2 * D + 2, before, after, out)
                out[:, :, count:] = 0.0
            total[part, m] = logs[:count]
            # Written so that what is no number is bad
            bad[part, m] = ~((lowest[:count] > _SMALLEST_FRAME) & (highest[:count] < _LARGEST_FUTURE))
    for b, m in zip(*np.nonzero(bad), strict=True):
        sequence = raw[order[b], : ends[b]]
        out = kept[b // lanes, m, :, :, b % lanes] if want else None
        total[b, m] = _repaired(sequence, [each[m] for each in parameters], out)
    found = np.empty_like(total)
    found[order] = total
    return found, order, kept


class _Kept(threading.local):
    """What a thread works in, kept: fetching its pages anew from the system takes as long as the work."""

    memory = np.empty(0)


_KEPT = _Kept()


def _workspace(*shapes: tuple[int, ...]) -> list[Any]:
    """Arrays that hold anything, valid until the thread asks again."""
    sizes = [math.prod(shape) for shape in shapes]
    memory = _KEPT.memory
    if len(memory) < sum(sizes):
        memory = np.empty(sum(sizes))
        if memory.nbytes <= _MOST_KEPT:
            _KEPT.memory = memory
    ends = np.cumsum([0, *sizes])
    return [memory[a:b].reshape(shape) for a, b, shape in zip(ends, ends[1:], shapes, strict=False)]


def _prepared(parameters: list[Any]) -> tuple[Any, ...]:
    """Probabilities, means, minus half the precisions, and constants of densities, filled up with zeros to fours."""
    log_start, log_step, means, log_variances = parameters
    M, S, D = means.shape
    P, Q = -(-D // 4) * 4, -(-S // 4) * 4
    step, back = np.zeros((2, M, Q, Q))
    centers, halves = np.zeros((2, M, S, P))
    with np.errstate(all="ignore"):
        back[:, :S, :S] = np.exp(log_step)
        step[:] = back.transpose(0, 2, 1)
        centers[..., :D] = means
        halves[..., :D] = -0.5 * np.exp(-log_variances)
        constants = -0.5 * (log_variances.sum(-1) + D * _LOG_TAU)
        return np.exp(log_start), step, back, centers, halves, constants


@np.errstate(all="ignore")  # where training runs away, variances are what no number can hold
def _repaired(x: Any, parameters: list[Any], out: Any) -> Any:
    """The log-likelihood of one sequence (time, features) under one model in log space; ``out`` becomes its sums."""
    log_start, log_step, means, log_variances = parameters
    S, D = means.shape
    log_b, gamma, xi = np.empty((len(x), S)), np.empty((len(x), S)), np.empty((S, S))
    for s in range(S):
        away = (x - means[s]) ** 2 * np.exp(-log_variances[s])
        log_b[:, s] = -0.5 * (away.sum(1) + log_variances[s].sum() + D * _LOG_TAU)
    total = _in_log_space(log_start, log_step, log_b, gamma, xi)
    if out is not None:
        for s in range(S):
            away = x - means[s]
            out[s, :D], out[s, D : 2 * D] = gamma[:, s] @ away, gamma[:, s] @ away**2
            out[s, 2 * D], out[s, 2 * D + 1] = gamma[:, s].sum(), gamma[0, s]
            out[s, 2 * D + 2 :] = xi[s]
    return total


class _Fused(torch.autograd.Function):
    """The log-likelihood, and its derivatives from sums over frames."""

    generate_vmap_rule = True

    @staticmethod
    def forward(total: Tensor, order: Any, kept: Tensor, *parameters: Tensor) -> Tensor:
        """The log-likelihoods ``total`` (batch, models) as they are; ``order`` and ``kept`` are for the way back."""
        return total.view_as(total)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keeps sums and what they are of."""
        _, ctx.order, *kept = inputs
        ctx.save_for_backward(*kept)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        """From the error (batch, models) to what each parameter is told, by equations 16 to 19."""
        kept, *parameters = ctx.saved_tensors
        blocks, models, states, width, lanes = kept.shape
        sent = np.zeros((blocks * lanes, models))
        sent[: len(error)] = error.detach().double().numpy()[ctx.order]
        whole = np.einsum("bnm,bmikn->mik", sent.reshape(blocks, lanes, models), kept.numpy())
        D = (width - 2 - states) // 2
        first, second, weight = whole[..., :D], whole[..., D : 2 * D], whole[..., 2 * D, None]
        with np.errstate(all="ignore"):
            precision = np.exp(-_arrays(parameters[3:])[0])
        to_means = first * precision  # equation 18
        to_variances = 0.5 * (second * precision - weight)  # equation 19
        found = (whole[..., 2 * D + 1], whole[..., 2 * D + 2 :], to_means, to_variances)
        told = [torch.from_numpy(each).to(error.dtype) for each in found]
        return (None, None, None, *once(told, (error, *parameters)))


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
    total = torch.from_numpy(found[0]).to(x.dtype)
    if not want:
        return total
    _, order, kept = found
    bound: Tensor = _Fused.apply(total, order, torch.from_numpy(kept), *parameters)  # type: ignore[no-untyped-call]
    return bound
