"""Dynamic programming in numba. Costs are minimized; a chain begins in its first state and ends in its last."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

__all__: list[str] = []

_INF = np.inf


def as_array(costs: Tensor) -> Any:
    """Costs as an array that the loops take: they know no half precision."""
    known = costs if costs.dtype in (torch.float32, torch.float64) else costs.float()
    return np.ascontiguousarray(known.numpy(force=True))


def as_table(costs: Tensor) -> Any:
    """The same, infinite where a cost is no number, for loops that do not tell these apart themselves."""
    table = as_array(costs)
    if np.isnan(table.sum()):  # one pass: a sum is no number wherever one is none
        table = np.where(np.isnan(table), table.dtype.type(_INF), table)
    return table


@numba.njit(cache=True, nogil=True, fastmath={"nsz", "contract"}, error_model="numpy")
def _chain(costs: Any, T: int, S: int, skip: bool, path: Any, old: Any, new: Any, back: Any) -> Any:
    """The cheapest path through one chain, written into ``path``; infinite where none fits."""
    for s in range(S):
        old[s] = _INF
        new[s] = _INF
    old[0] = costs[0, 0]
    for t in range(1, T):
        row = costs[t]
        mark = back[t]
        new[0] = old[0] + row[0]
        mark[0] = 0
        if skip:
            if S > 1:
                moved = old[0] < old[1]
                new[1] = (old[0] if moved else old[1]) + row[1]
                mark[1] = moved
            for s in range(2, S):
                best, step = old[s], np.uint8(0)
                if old[s - 1] < best:
                    best, step = old[s - 1], np.uint8(1)
                if old[s - 2] < best:
                    best, step = old[s - 2], np.uint8(2)
                new[s] = best + row[s]
                mark[s] = step
        else:
            # Without a branch, so that it vectorizes.
            for s in range(1, S):
                stay, move = old[s], old[s - 1]
                moved = move < stay
                new[s] = (move if moved else stay) + row[s]
                mark[s] = moved
        old, new = new, old
    total = old[S - 1]
    s = S - 1
    for t in range(T - 1, -1, -1):
        path[t] = s
        if t > 0:
            s = max(s - back[t, s], 0)
    return total


@numba.njit(cache=True, nogil=True)
def _known(costs: Any) -> Any:
    """Costs that are infinite where they were no numbers."""
    found = costs.copy()
    for t in range(len(costs)):
        for s in range(costs.shape[1]):
            if np.isnan(found[t, s]):
                found[t, s] = _INF
    return found


@numba.njit(cache=True, nogil=True)
def chains(costs: Any, frames: Any, states: Any, skip: bool, paths: Any) -> int:
    """The best path of each of a batch: ``costs`` (batch, time, states), ``paths`` (batch, time), -1 after the end.

    ``frames`` and ``states`` say how many are meant of each, and are empty where all are. A cost that is no number is
    passed over. Returns the first of the batch that no path leads through, or -1.
    """
    B, T, S = costs.shape
    old, new = np.empty(S, costs.dtype), np.empty(S, costs.dtype)
    back = np.empty((T, S), np.uint8)
    lost = -1
    for b in range(B):
        n = frames[b] if len(frames) else T
        size = states[b] if len(states) else S
        total = _chain(costs[b], n, size, skip, paths[b], old, new, back)
        # A state keeps what is no number until the end, so that no other pass has to look for it.
        strange = 0
        for s in range(size):
            strange += (old[s] != old[s]) | (new[s] != new[s])
        if strange:
            total = _chain(_known(costs[b]), n, size, skip, paths[b], old, new, back)
        if not total < _INF:
            paths[b, :] = -1
            lost = b if lost < 0 else lost
        paths[b, n:] = -1
    return lost


@numba.njit(cache=True, nogil=True)
def linked(costs: Any, units: Any, begin: Any, before: Any, starts: Any, ends: Any, path: Any) -> Any:
    """The best path through a linkage pattern; returns its cost, infinite where there is none.

    ``costs`` (time, units); state s is fed by ``units[s]``, and comes after itself or
    ``before[begin[s]:begin[s + 1]]``.
    """
    T, S = len(costs), len(units)
    old, new = np.full(S, _INF), np.full(S, _INF)
    back = np.empty((T, S), np.int32)
    for s in range(S):
        if starts[s]:
            old[s] = costs[0, units[s]]
    for t in range(1, T):
        for s in range(S):
            best, origin = old[s], s
            for e in range(begin[s], begin[s + 1]):
                if old[before[e]] < best:
                    best, origin = old[before[e]], before[e]
            new[s] = best + costs[t, units[s]]
            back[t, s] = origin
        old, new = new, old
    total, last = _INF, -1
    for s in range(S):
        if ends[s] and old[s] < total:
            total, last = old[s], s
    if last >= 0:
        for t in range(T - 1, -1, -1):
            path[t] = last
            if t > 0:
                last = back[t, last]
    return total


@numba.njit(cache=True, nogil=True)
def advance(
    costs: Any,
    units: Any,
    first: Any,
    skips: Any,
    leaves_early: Any,
    arc_begin: Any,
    arc_from: Any,
    arc_cost: Any,
    into: Any,
    silent_from: Any,
    silent_to: Any,
    silent_cost: Any,
    beam: float,
    score: Any,
    token: Any,
    node_score: Any,
    node_token: Any,
    record_template: Any,
    record_before: Any,
    record_end: Any,
    record_cost: Any,
    used: int,
    time: int,
) -> Any:
    """Some frames of the One-Stage algorithm; returns how many records are in use.

    Template k has the states ``first[k]`` to ``first[k + 1]``. It is entered from the grammar's nodes ``arc_from`` and
    left into ``into[k]``. A node's score is that of the best word that has ended there. A token is the record of the
    word before: its template, the record before it, the frame after its last, and the cost until then.
    """
    K, N = len(into), len(node_score)
    winner = np.empty(N, np.int64)
    alive = np.empty(K, np.bool_)  # whether a template has states that are followed
    for k in range(K):
        alive[k] = False
        for s in range(first[k], first[k + 1]):
            alive[k] |= score[s] < _INF
    for t in range(len(costs)):
        row = costs[t]
        least = _INF
        for k in range(K):
            a, z = first[k], first[k + 1]
            enter, origin = _INF, -1
            for e in range(arc_begin[k], arc_begin[k + 1]):
                value = node_score[arc_from[e]] + arc_cost[e]
                if value < enter:
                    enter, origin = value, node_token[arc_from[e]]
            if not alive[k]:
                if enter < _INF:
                    alive[k] = True
                    score[a], token[a] = enter + row[units[a]], origin
                    least = min(least, score[a])
                continue
            # From the last state down, so that what is read is of the frame before.
            for s in range(z - 1, a - 1, -1):
                best, mine = score[s], token[s]
                if s == a:
                    if enter < best:
                        best, mine = enter, origin
                else:
                    # Into a phoneme's first state one also comes from the last but one of the phoneme before.
                    if score[s - 1] < best:
                        best, mine = score[s - 1], token[s - 1]
                    if skips[s] and score[s - 2] < best:
                        best, mine = score[s - 2], token[s - 2]
                best += row[units[s]]
                score[s] = best
                token[s] = mine
                least = min(least, best)
        bound = least + beam
        for k in range(K):
            if alive[k]:
                alive[k] = False
                for s in range(first[k], first[k + 1]):
                    if score[s] > bound:
                        score[s] = _INF
                    alive[k] |= score[s] < _INF
        for n in range(N):
            node_score[n] = _INF
            node_token[n] = -1
            winner[n] = -1
        for k in range(K):
            if not alive[k]:
                continue
            z = first[k + 1] - 1
            if leaves_early and score[z - 1] < score[z]:
                z -= 1
            if score[z] < node_score[into[k]]:
                node_score[into[k]] = score[z]
                node_token[into[k]] = token[z]
                winner[into[k]] = k
        for n in range(N):
            if winner[n] >= 0:
                record_template[used] = winner[n]
                record_before[used] = node_token[n]
                record_end[used] = time + t + 1
                record_cost[used] = node_score[n]
                node_token[n] = used
                used += 1
        for e in range(len(silent_from)):
            value = node_score[silent_from[e]] + silent_cost[e]
            if value < node_score[silent_to[e]]:
                node_score[silent_to[e]] = value
                node_token[silent_to[e]] = node_token[silent_from[e]]
    return used
