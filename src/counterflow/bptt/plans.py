r"""Plans: which states of an unrolled sequence are kept, and when steps are run again.

Source: Gruslys, Munos, Danihelka, Lanctot, Graves, "Memory-Efficient Backpropagation Through Time", NIPS 2016.

========================  ==========================================================
the paper                 here
========================  ==========================================================
t                         ``steps``
m                         ``slots``
:math:`\alpha`            ``internal_cost``, the size of an internal state in hidden ones
:math:`\beta`             ``shared_cost``, the same without the hidden state it starts from
C(t, m)                   ``Plan.forwards``
BPTT-HSM, -ISM, -MSM      the strategies ``"hidden"``, ``"internal"``, ``"mixed"``
========================  ==========================================================

What a slot is differs: with ``"hidden"`` one hidden state, the start state in one of them; with ``"internal"`` one
internal state, the start state not counted; with ``"mixed"`` the size of one hidden state, where an internal one takes
``internal_cost`` of them. The working internal state is never counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import Literal, get_args

from counterflow.bptt import costs
from counterflow.bptt.actions import (
    Action,
    Advance,
    Backward,
    Forward,
    Release,
    Restore,
    StoreHidden,
    StoreInternal,
)
from counterflow.exceptions import InputError

__all__ = ["Plan", "Strategy", "check_strategy", "plan"]

Strategy = Literal["hidden", "internal", "mixed", "constant", "every-hidden", "full", "chen-sqrt", "chen-recursive"]

_CELLS = 10_000_000  # of the mixed strategy's table, at most: some seconds


@dataclass(frozen=True)
class _Policy:
    """How a segment is divided.

    Args:
        choose: From a segment's steps and room: what is stored first, as the step behind which it lies counted from 1
            (0: nothing is stored any more), and whether that is the step's internal state.
        hidden: The size of a hidden state in units; 0 where none is stored and the start state is not counted.
        internal: The size of an internal state.
        shared: The same where the state that it starts from is held already.
        capacity: Units in all.
        unit: Units in a slot.
    """

    choose: Callable[[int, int], tuple[int, bool]]
    hidden: int
    internal: int
    shared: int
    capacity: int
    unit: Fraction = Fraction(1)


@dataclass(frozen=True)
class Plan:
    """What is stored, run again and released, in order, to go back through a sequence.

    Iterating yields the actions (see `counterflow.bptt.Action`), each time anew, in memory that does not grow with the
    number of steps. Up to the first `Backward` they are the forward pass, in which every step is run once.

    Attributes:
        steps: The length of the sequence.
        slots: The memory that was asked for, in the strategy's slots.
        strategy: Its name.
        internal_cost: The size of an internal state, in slots.
        shared_cost: The same where the hidden state that it starts from is held already.
        forwards: Forward operations in all, those of the forward pass among them.
    """

    steps: int
    slots: float
    strategy: Strategy
    internal_cost: float
    shared_cost: float
    forwards: int
    _policy: _Policy | None = field(repr=False, compare=False)  # None: Chen's segments

    @property
    def forwards_per_step(self) -> float:
        """Forward operations a step of the sequence."""
        return self.forwards / self.steps

    @cached_property
    def peak_slots(self) -> float:
        """The most slots that the plan really fills at a time."""
        if self.strategy == "chen-recursive":
            return _parts(self.steps, _most_cuts(self.steps, int(self.slots)))[1]
        if self._policy is None or self.strategy in ("constant", "every-hidden", "full"):
            return self.slots
        if self.strategy in ("hidden", "internal"):
            return min(self.slots, self.steps)
        return _tidy(max(filled for _, filled in _walk(self.steps, self._policy)) / self._policy.unit)

    def __iter__(self) -> Iterator[Action]:
        if self.strategy == "chen-recursive":
            return _walk_parts(self.steps, _most_cuts(self.steps, int(self.slots)))
        if self._policy is None:
            return _walk_segments(self.steps)
        return (action for action, _ in _walk(self.steps, self._policy))

    def describe(self) -> str:
        """One line for people.

        Example:
            >>> plan(1000, 50, "internal").describe()
            'internal: 1000 steps in 50 slots, 1950 forwards (1.95 a step)'
        """
        return (
            f"{self.strategy}: {self.steps} steps in {self.slots:g} slots, {self.forwards} forwards "
            f"({self.forwards_per_step:.4g} a step)"
        )


def plan(
    steps: int,
    slots: float | None = None,
    strategy: Strategy = "mixed",
    *,
    internal_cost: float = 1.0,
    shared_cost: float | None = None,
) -> Plan:
    r"""The cheapest way back through ``steps`` steps in ``slots`` slots of memory.

    .. math::
        C_\text{hidden}(t, m) &= \min_{1 \le y < t} y + C(t - y, m - 1) + C(y, m) \\
        C_\text{internal}(t, m) &= \min_{1 \le y \le t} y + C(t - y, m - 1) + C(y - 1, m)

    and mixed takes the better of both at every store (equations 1 to 10).

    Args:
        steps: The length of the sequence.
        slots: The memory. A whole number for hidden and internal states; any number for ``"mixed"``, where it is
            rounded down on the grid of sizes. None where the strategy decides it: ``"constant"``, ``"every-hidden"``,
            ``"full"`` (every internal state) and Chen's algorithms; more slots are of use to ``"chen-recursive"`` only.
        strategy: ``"mixed"`` (default), ``"hidden"``, ``"internal"``, or one of those for comparison:
            ``"constant"`` stores nothing, ``"every-hidden"`` all hidden states, ``"full"`` all internal ones,
            ``"chen-sqrt"`` the hidden states between about sqrt(t) segments and the internal ones within one,
            ``"chen-recursive"`` the k cuts of a segment into k + 1 equal ones, and so on in each of these, with the
            largest k that the slots allow (None: k = 1, the least memory).
        internal_cost: The size of an internal state in hidden ones, >= 1; need not be whole: sizes are rounded up to a
            common grid.
        shared_cost: The same where the hidden state that it starts from is held already (section 3.4), at most
            ``internal_cost``, which is also the default.

    Returns:
        The plan.

    Raises:
        InputError: If an argument is out of range, or the strategy needs more slots; the message names how many.

    References:
        Gruslys et al., "Memory-Efficient Backpropagation Through Time", NIPS 2016, section 3.

    Example:
        >>> best = plan(1000, 50, "internal")
        >>> best.forwards, best.peak_slots
        (1950, 50)
        >>> list(plan(2, 2, "hidden"))[:3]
        [Advance(start=0, stop=1), StoreHidden(position=1), Forward(step=1)]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InputError(f"steps must be a whole number >= 1, got {steps!r}")
    if strategy not in get_args(Strategy):
        raise InputError(f"strategy must be one of {', '.join(get_args(Strategy))}, got {strategy!r}")
    alpha = _number("internal_cost", internal_cost, 1.0)
    beta = alpha if shared_cost is None else _number("shared_cost", shared_cost, 0.0)
    if not 0 < beta <= alpha:
        raise InputError(f"shared_cost must lie above 0 and not above internal_cost={internal_cost!r}, got {beta!r}")
    needed = _needed(steps, strategy, beta)
    if slots is None and needed is None:
        raise InputError(f"strategy={strategy!r} needs slots=..., the memory that it may fill")
    if slots is not None:
        least = Fraction(1) if needed is None else needed
        given = _number("slots", slots, 0.0)
        if given < least:
            many = f"{_tidy(least)} slot{'s' * (least != 1)} for {steps} step{'s' * (steps != 1)}"
            raise InputError(f"strategy={strategy!r} needs {many}, got slots={slots!r}")
        if strategy in ("hidden", "internal") and given != int(given):
            raise InputError(f"slots must be a whole number with strategy={strategy!r}, got {slots!r}")
    if needed is not None:
        given = needed
    make = partial(Plan, steps, _tidy(given), strategy, _tidy(alpha), _tidy(beta))
    if strategy == "mixed":
        return _mixed(make, steps, given, alpha, beta)
    if strategy == "chen-sqrt":
        return make(2 * steps - _last_segment(steps), None)
    if strategy == "chen-recursive":
        most = int(given) if slots is None else int(_number("slots", slots, 0.0))
        return Plan(steps, most, strategy, _tidy(alpha), _tidy(beta), _parts(steps, _most_cuts(steps, most))[0], None)
    most = min(int(given), steps)  # more slots than steps are of no use
    if strategy in ("internal", "full"):
        return make(costs.internal_cost(steps, most), _Policy(_choose_internal, 0, 1, 1, most))
    return make(costs.hidden_cost(steps, most), _Policy(_choose_hidden, 1, 1, 1, most))


def _mixed(make: Callable[[int, _Policy], Plan], steps: int, slots: Fraction, alpha: Fraction, beta: Fraction) -> Plan:
    found = []
    # Where the grid's rounding costs more than mixing gains, one kind of state alone is cheaper.
    hidden = min(int(slots), steps)
    found.append(make(costs.hidden_cost(steps, hidden), _Policy(_choose_hidden, 1, 1, 1, hidden)))
    internal = min(int(slots / alpha), steps)
    if internal:
        policy = _Policy(_choose_internal, 0, 1, 1, internal, 1 / alpha)
        found.append(make(costs.internal_cost(steps, internal), policy))
    if internal < steps:
        from counterflow.bptt.table import solve  # loading numba takes a second

        unit = _units(steps, slots, alpha, beta)
        sizes = math.ceil(unit), math.ceil(alpha * unit), math.ceil(beta * unit)
        capacity = math.floor(slots * unit)
        if capacity >= sizes[0]:
            table = solve(steps, capacity, *sizes)
            found.append(make(table.cost(steps, capacity), _Policy(table.choose, *sizes, capacity, unit)))
    return min(found, key=lambda each: each.forwards)


def _units(steps: int, slots: Fraction, alpha: Fraction, beta: Fraction) -> Fraction:
    """Units a slot: as few as lose 1% of a size at most, or less where the table would be too large."""
    affordable = Fraction(_CELLS, steps) / slots
    if affordable < 1:
        return affordable

    def loss(unit: int) -> Fraction:
        return max(math.ceil(size * unit) / (size * unit) - 1 for size in (alpha, beta))

    tried = range(1, min(16, int(affordable)) + 1)
    return Fraction(next((unit for unit in tried if loss(unit) <= Fraction(1, 100)), min(tried, key=loss)))


def _walk(steps: int, policy: _Policy) -> Iterator[tuple[Action, int]]:
    """The actions, each with the units that are filled by then."""
    todo: list[tuple[int, int, int] | Action] = [(0, steps, policy.capacity)]
    working: int | None = 0  # the position of the working hidden state
    while todo:
        item = todo.pop()
        if not isinstance(item, tuple):
            yield item, 0
            continue
        start, length, room = item
        if length == 0:
            continue
        filled = policy.capacity - room
        y, internal = policy.choose(length, room)
        ends = range(start + length - 1, start - 1, -1) if y == 0 else (start + y - internal,)
        for position in ends:
            if working != start:
                yield Restore(start), filled + policy.hidden
            if position > start:
                yield Advance(start, position), filled + policy.hidden
            if y == 0:
                yield Forward(position), filled + policy.hidden
                yield Backward(position), filled + policy.hidden
                working = None
        if y == 0:
            continue
        working = end = start + y
        if internal:
            size = policy.shared if y == 1 else policy.internal
            yield StoreInternal(end - 1, y == 1), filled + size
            todo += [(start, y - 1, room), Release(end - 1), Backward(end - 1)]
        else:
            size = policy.hidden
            yield StoreHidden(end), filled + size
            todo += [(start, y, room), Release(end)]
        todo.append((end, length - y, room - size))
    # (a segment that follows a store counts the state that it starts from once more, as the paper's m does)


def _choose_hidden(steps: int, room: int) -> tuple[int, bool]:
    return (0 if steps == 1 or room == 1 else costs.hidden_split(steps, room)), False


def _choose_internal(steps: int, room: int) -> tuple[int, bool]:
    return costs.internal_split(steps, room), True


@cache
def _parts(steps: int, cuts: int) -> tuple[int, int]:
    """Forward operations and slots of a sequence that is cut in so many places, and each part again, down to one step.

    The start of a part is counted with the part.
    """
    if steps == 1:
        return 1, 1
    lengths = _cut(steps, cuts)
    forwards, slots = steps - lengths[-1], 0
    for before, length in enumerate(lengths):
        inside = _parts(length, cuts)
        forwards, slots = forwards + inside[0], max(slots, before + inside[1])
    return forwards, slots


def _cut(steps: int, cuts: int) -> list[int]:
    """The lengths of the parts: as equal as they can be, the longer ones at the end, where fewer cuts are held."""
    count = min(cuts + 1, steps)
    return [(steps * (part + 1)) // count - (steps * part) // count for part in range(count)]


@cache
def _most_cuts(steps: int, slots: int) -> int:
    """The most cuts in a segment whose states fit into so many slots."""
    return next((cuts for cuts in range(min(slots, steps) - 1, 1, -1) if _parts(steps, cuts)[1] <= slots), 1)


def _walk_parts(steps: int, cuts: int, first: int = 0) -> Iterator[Action]:
    """Through the segment that begins at ``first``, whose start is the working state."""
    if steps == 1:
        yield Forward(first)
        yield Backward(first)
        return
    starts = [first]
    lengths = _cut(steps, cuts)
    for length in lengths[:-1]:
        yield Advance(starts[-1], starts[-1] + length)
        starts.append(starts[-1] + length)
        yield StoreHidden(starts[-1])
    for start, length in zip(reversed(starts), reversed(lengths), strict=True):
        if start != starts[-1]:
            yield Restore(start)
        yield from _walk_parts(length, cuts, start)
        if start != first:
            yield Release(start)


def _segments(steps: int) -> list[int]:
    """Where the square root's segments begin."""
    return list(range(0, steps, math.isqrt(steps - 1) + 1))


def _last_segment(steps: int) -> int:
    return steps - _segments(steps)[-1]


def _walk_segments(steps: int) -> Iterator[Action]:
    starts = _segments(steps)
    for start, stop in pairwise(starts):
        yield Advance(start, stop)
        yield StoreHidden(stop)
    for start, stop in zip(reversed(starts), [steps, *reversed(starts)], strict=False):
        if stop != steps:
            yield Restore(start)
        for step in range(start, stop):
            yield StoreInternal(step, True)
        for step in range(stop - 1, start - 1, -1):
            yield Backward(step)
            yield Release(step)
        if start:
            yield Release(start)


def _needed(steps: int, strategy: Strategy, beta: Fraction) -> Fraction | None:
    """The slots of a strategy that leaves no choice."""
    starts = [*_segments(steps), steps]
    fixed: dict[str, Fraction | int] = {
        "constant": 1,
        "every-hidden": steps,
        "full": steps,
        "chen-sqrt": max(count + (stop - start) * beta for count, (start, stop) in enumerate(pairwise(starts), 1)),
    }
    if strategy == "chen-recursive":
        return Fraction(_parts(steps, 1)[1])
    return Fraction(fixed[strategy]) if strategy in fixed else None


def check_strategy(strategy: object) -> None:
    """Raise if there is no such strategy; None leaves the choice to the budget."""
    if strategy is not None and strategy not in get_args(Strategy):
        raise InputError(f"strategy must be one of {', '.join(get_args(Strategy))}, or None, got {strategy!r}")


def _number(name: str, value: float, least: float) -> Fraction:
    number = isinstance(value, int | float | Fraction) and not isinstance(value, bool)
    if not number or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{name} must be a number >= {least:g}, got {value!r}")
    if value < least:
        raise InputError(f"{name} must be >= {least:g}, got {value!r}")
    return Fraction(value).limit_denominator(10**6)


def _tidy(value: Fraction) -> float:
    # From 2^53 on a float holds no fractions, and later overflows.
    return int(value) if value == int(value) or value >= 2**53 else float(value)
