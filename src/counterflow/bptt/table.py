r"""The dynamic program of the mixed strategy (sections 3.3 and 3.4, equations 6 to 10).

In whole units of memory, with h for a hidden state, a for an internal one and b for an internal one whose input hidden
state is held already:

.. math::
    Q_1(t, m, y) &= y + C(y, m) + C(t - y, m - h), & 1 \le y &< t \\
    Q_2(t, m, y) &= y + C(y - 1, m) + C(t - y, m - (a \text{ if } y > 1 \text{ else } b)), & 1 \le y &\le t

and C is the least of both, or t(t+1)/2, the cost of storing nothing. A segment of one step or more needs m >= h: as in
the paper, m counts the state that the segment starts from. An empty one needs m >= 0.

**How the least is found.** C(., m) is piecewise linear, with few pieces, but not convex, so that no walk along y is
safe. In y, Q is the sum of one row read forward and one read backward; between the kinks of both it is linear, so that
its least value lies at an end of the range or at a kink of the sum where the slope rises, and there one of the two
rows has a rising kink of its own. Only those are tried, which is exact. Rows are kept as their kinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["Table", "solve"]

Integers = NDArray[np.int64]
_FAR = 2**62


@dataclass(frozen=True)
class Table:
    """The solved program.

    Args:
        steps: Up to how many.
        capacity: Up to how many units.
        sizes: Units of a hidden state, of an internal state, and of one whose input is held already.
        starts: Where each row's kinks begin in the next two.
        kinks: Numbers of steps between which the cost is linear.
        costs: The forward operations there.
    """

    steps: int
    capacity: int
    sizes: tuple[int, int, int]
    starts: Integers
    kinks: Integers
    costs: Integers

    def cost(self, steps: int, capacity: int) -> int:
        """Least forward operations for a segment."""
        return int(_cost(steps, capacity, self.sizes[0], self.starts, self.kinks, self.costs))

    def choose(self, steps: int, capacity: int) -> tuple[int, bool]:
        """What to store first: its position y counted from 1 (0: nothing), and whether it is an internal state."""
        y, internal = _choose(steps, capacity, *self.sizes, self.starts, self.kinks, self.costs)
        return int(y), bool(internal)


@lru_cache(maxsize=8)
def solve(steps: int, capacity: int, hidden: int, internal: int, shared: int) -> Table:
    """Solve the program for all segments of up to ``steps`` steps and ``capacity`` units."""
    starts, kinks, costs = _solve(steps, capacity, hidden, internal, shared)
    return Table(steps, capacity, (hidden, internal, shared), starts, kinks, costs)


def _jit(function: Any) -> Any:
    return numba.njit(cache=True)(function)


@_jit
def _solve(
    steps: int, capacity: int, h: int, a: int, b: int
) -> tuple[Integers, Integers, Integers]:  # pragma: no cover
    window = max(h, a) + 1  # rows that later rows read
    rows = np.empty((window, steps + 1), np.int64)
    rising = np.empty((window, steps + 1), np.int32)  # where the slope rises, of each of these rows
    found = np.zeros(window, np.int64)
    starts = np.zeros(capacity + 2, np.int64)
    kinks = np.empty(1024, np.int64)
    costs = np.empty(1024, np.int64)
    used = 0
    for m in range(capacity + 1):
        row = rows[m % window]
        own = rising[m % window]
        count = 0
        row[0] = 0
        left = rows[(m - h) % window]
        left_rising, left_count = rising[(m - h) % window], found[(m - h) % window]
        deep = rows[(m - a) % window]
        deep_rising, deep_count = rising[(m - a) % window], found[(m - a) % window]
        close = rows[(m - b) % window]
        for t in range(1, steps + 1):
            if m < h:
                row[t] = _FAR
                continue
            best = t * (t + 1) // 2
            if m >= 2 * h and t > 1:
                for i in range(count):
                    y = own[i]
                    best = min(best, y + row[y] + left[t - y])
                best = min(best, 1 + row[1] + left[t - 1], t - 1 + row[t - 1] + left[1])
                for i in range(left_count):
                    y = t - left_rising[i]
                    if y < 1:
                        break
                    best = min(best, y + row[y] + left[t - y])
            if m >= b and (t == 1 or m - b >= h):
                best = min(best, 1 + close[t - 1])
            if m >= a and t > 1:
                best = min(best, t + row[t - 1])
                if m - a >= h:
                    best = min(best, 2 + row[1] + deep[t - 2])
                    for i in range(count):
                        y = own[i] + 1
                        if y <= t:
                            best = min(best, y + row[y - 1] + deep[t - y])
                    for i in range(deep_count):
                        y = t - deep_rising[i]
                        if y < 2:
                            break
                        best = min(best, y + row[y - 1] + deep[t - y])
            row[t] = best
            if t > 1 and row[t] - row[t - 1] > row[t - 1] - row[t - 2]:
                own[count] = t - 1
                count += 1
        found[m % window] = count
        starts[m] = used
        if m >= h:
            for t in range(steps + 1):
                if t in (0, steps) or row[t + 1] - row[t] != row[t] - row[t - 1]:
                    if used == len(kinks):
                        kinks = np.concatenate((kinks, np.empty_like(kinks)))
                        costs = np.concatenate((costs, np.empty_like(costs)))
                    kinks[used], costs[used] = t, row[t]
                    used += 1
    starts[capacity + 1] = used
    return starts, kinks[:used].copy(), costs[:used].copy()


@_jit
def _cost(t: int, m: int, h: int, starts: Integers, kinks: Integers, costs: Integers) -> int:  # pragma: no cover
    if t == 0:
        return 0 if m >= 0 else _FAR
    if m < h:
        return _FAR
    low, high = starts[m], starts[m + 1] - 1
    while high - low > 1:
        middle = (low + high) // 2
        if kinks[middle] <= t:
            low = middle
        else:
            high = middle
    slope = (costs[high] - costs[low]) // (kinks[high] - kinks[low])  # whole: costs are, at neighboring steps
    cost: int = costs[low] + (t - kinks[low]) * slope
    return cost


@_jit
def _choose(
    t: int, m: int, h: int, a: int, b: int, starts: Integers, kinks: Integers, costs: Integers
) -> tuple[int, bool]:  # pragma: no cover
    wanted = _cost(t, m, h, starts, kinks, costs)
    if wanted == t * (t + 1) // 2 and not (t == 1 and m >= b):
        return 0, False
    if m >= b and 1 + _cost(t - 1, m - b, h, starts, kinks, costs) == wanted:
        return 1, True
    if m >= a and t > 1 and t + _cost(t - 1, m, h, starts, kinks, costs) == wanted:
        return t, True
    for row in (m, m - h, m - a):
        if row < h:
            continue
        for i in range(starts[row] - 2, starts[row + 1] + 2):  # and the two ends of the range
            edge = kinks[i] if starts[row] <= i < starts[row + 1] else (1 if i < starts[row] else t - 1)
            for y in (edge, edge + 1, t - edge):
                if m >= 2 * h and 1 <= y < t:
                    both = _cost(y, m, h, starts, kinks, costs) + _cost(t - y, m - h, h, starts, kinks, costs)
                    if y + both == wanted:
                        return y, False
                if m >= a and 2 <= y <= t:
                    both = _cost(y - 1, m, h, starts, kinks, costs) + _cost(t - y, m - a, h, starts, kinks, costs)
                    if y + both == wanted:
                        return y, True
    return -1, False
