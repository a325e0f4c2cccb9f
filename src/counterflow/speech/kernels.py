"""Dynamic programming in numba. Costs are minimized; a chain begins in its first state and ends in its last."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

__all__: list[str] = []

_INF = np.inf


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
def chains(costs: Any, frames: Any, states: Any, skip: bool, paths: Any) -> None:
    """The best path of each of a batch: ``costs`` (batch, time, states), ``paths`` (batch, time), -1 after the end."""
    B, T, S = costs.shape
    old, new = np.empty(S, costs.dtype), np.empty(S, costs.dtype)
    back = np.empty((T, S), np.uint8)
    for b in range(B):
        n = frames[b]
        total = _chain(costs[b], n, states[b], skip, paths[b], old, new, back)
        if not total < _INF:
            paths[b, :] = -1
        paths[b, n:] = -1


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
