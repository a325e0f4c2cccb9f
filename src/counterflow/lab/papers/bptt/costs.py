"""What the paper says of numbers of forward operations, computed: figures 2a, 3, 5, 6, 7, section 3.5, section 4.

Each function is one trial. What it returns under the id of a claim is the number that the claim is judged by.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from counterflow import bptt
from counterflow.bptt.costs import hidden_cost, internal_cost
from counterflow.bptt.table import Table, solve
from counterflow.lab.trials import Context, Outcome

__all__ = ["ALPHAS", "MEMORIES", "TRIALS", "hidden_costs"]

Integers = npt.NDArray[np.int64]

MEMORIES = (10, 50, 100, 500, 1000)  # figures 2 and 5
ALPHA = 5  # figures 5 and 6
ALPHAS = (2, 5, 10)  # figure 7
LONG = 1000  # figures 2 and 5 end here
FIGURES_6 = {"fig6a": (10, 50), "fig6b": (20, 100)}  # internal, hidden


class _Numbers:
    """What a trial finds, one number each, and its curves."""

    def __init__(self) -> None:
        self.metrics: dict[str, Sequence[float]] = {}
        self.curves: dict[str, Sequence[float]] = {}

    def __setitem__(self, name: str, value: float) -> None:
        self.metrics[name] = [float(value)]

    def outcome(self) -> Outcome:
        return Outcome(self.metrics, self.curves)


def plans(settings: Mapping[str, Any], context: Context) -> Outcome:
    """Figures 2a, 3 and 5, and the ends of all tables."""
    found = _Numbers()
    longest = settings["steps"]
    lengths = range(1, longest + 1)
    best, everything = bptt.plan(LONG, 50, "internal"), bptt.plan(LONG, strategy="full")
    found["abs.memory"] = 1 - best.peak_slots / everything.peak_slots
    found["abs.forwards"] = best.forwards
    found["abs.time"] = found["abs.third"] = (best.forwards + 2 * LONG) / (everything.forwards + 2 * LONG)

    def deviation(cost: Callable[[int], int], expected: Callable[[int], int], upto: int = longest) -> int:
        return max(abs(cost(t) - expected(t)) for t in range(1, upto + 1))

    def square(t: int) -> int:
        return t * (t + 1) // 2

    found["sec2.constant"] = deviation(lambda t: bptt.plan(t, strategy="constant").forwards, square)
    found["sec2.every_hidden"] = deviation(
        lambda t: bptt.plan(t, strategy="every-hidden").forwards, lambda t: 2 * t - 1
    )
    found["sec2.chen.cost"] = bptt.plan(LONG, strategy="chen-sqrt").forwards_per_step
    found["hsm.one"] = deviation(lambda t: bptt.plan(t, 1, "hidden").forwards, square)
    found["hsm.many"] = deviation(lambda t: bptt.plan(t, t, "hidden").forwards, lambda t: 2 * t - 1)
    found["ism.one"] = deviation(lambda t: bptt.plan(t, 1, "internal").forwards, square)
    found["ism.many"] = deviation(lambda t: bptt.plan(t, t, "internal").forwards, lambda t: t)
    mixed: dict[str, Any] = {"strategy": "mixed", "internal_cost": ALPHA}
    found["msm.one"] = deviation(lambda t: bptt.plan(t, 1, **mixed).forwards, square, 100)
    found["msm.many"] = deviation(lambda t: bptt.plan(t, ALPHA * t, **mixed).forwards, lambda t: t, 100)
    context.progress(0.3)
    for steps, claim in ((4, "hsm.C44"), (10, "hsm.C10_4")):
        figure = "fig3a" if steps == 4 else "fig3b"
        schedule = bptt.plan(steps, 4, "hidden")
        found[claim] = schedule.forwards
        found[f"{figure}.cpts"] = max(_runs(schedule).values())
        if steps == 4:
            found["fig3a.pushes"] = sum(isinstance(action, bptt.StoreHidden) for action in schedule)
        found.curves.update({f"{figure}.{name}": values for name, values in _trace(schedule).items()})

    shown = [t for t in lengths if t < 20 or t % 10 == 0]
    found.curves["steps"] = shown
    worst = 0.0
    for fewer, more in itertools.pairwise(MEMORIES):
        worst = max(worst, *((hidden_cost(t, more) - hidden_cost(t, fewer)) / t for t in lengths))
    found["fig2a.ordered"] = worst
    for m in MEMORIES:
        found[f"fig2a.m{m}"] = hidden_cost(LONG, m) / LONG
        found[f"fig5a.m{m}"] = internal_cost(LONG, m) / LONG
        found.curves[f"fig2a.m{m}"] = [hidden_cost(t, m) / t for t in shown]
        found.curves[f"fig5a.m{m}"] = [internal_cost(t, m) / t for t in shown]
    context.progress(0.5)
    # Units of half a hidden state, so that 3.5 is a whole number of them.
    excess = {}
    for alpha in (2.0, 3.5, float(ALPHA), 10.0):
        unit = 1 if alpha.is_integer() else 2
        size = round(alpha * unit)
        table = solve(longest, max(MEMORIES) * size, unit, size, size)
        excess[alpha] = max((table.cost(t, m * size) - internal_cost(t, m)) / t for m in MEMORIES for t in lengths)
        if alpha == ALPHA:
            shared = solve(longest, max(MEMORIES) * size, unit, size, size - unit)
            for m in MEMORIES:
                found.curves[f"fig5b.m{m}"] = [table.cost(t, m * size) / t for t in shown]
            found["fig5b.gain"] = table.cost(LONG, 10 * size) / internal_cost(LONG, 10)
            found["sec34.shared"] = max(
                (shared.cost(t, m * size) - table.cost(t, m * size)) / t for m in MEMORIES for t in lengths
            )
    found["fig5b.below_5a"] = excess.pop(float(ALPHA))
    found["fig5b.any_alpha"] = max(excess.values())
    return found.outcome()


def _runs(schedule: bptt.Plan) -> Counter[int]:
    """How often each step is run forward."""
    runs: Counter[int] = Counter()
    for action in schedule:
        match action:
            case bptt.Advance(start, stop):
                runs.update(range(start, stop))
            case bptt.StoreInternal(step) | bptt.Forward(step):
                runs[step] += 1
    return runs


def _trace(schedule: bptt.Plan) -> dict[str, list[float]]:
    """Every operation of a plan in the order of execution: its step, and what it is."""
    kinds: dict[str, list[float]] = {"step": [], "kind": [], "stored": [], "from": [], "to": []}
    stack: list[tuple[int, int]] = []
    for action in schedule:
        now = len(kinds["step"])
        match action:
            case bptt.Advance(start, stop):
                kinds["step"] += [step + 1 for step in range(start, stop)]
                kinds["kind"] += [0] * (stop - start)
            case bptt.Forward(step):
                kinds["step"].append(step + 1)
                kinds["kind"].append(0)
            case bptt.Backward(step):
                kinds["step"].append(step + 1)
                kinds["kind"].append(1)
            case bptt.StoreHidden(position):
                stack.append((position, now))
            case bptt.Release():
                position, since = stack.pop()
                kinds["stored"].append(position)
                kinds["from"].append(since)
                kinds["to"].append(now)
    return kinds


def strategies(settings: Mapping[str, Any], context: Context) -> Outcome:
    """Figure 6."""
    found = _Numbers()
    longest = settings["steps"]
    shown = sorted({round(10 ** (k / 20)) for k in range(round(20 * math.log10(longest)) + 1)})
    found.curves["steps"] = shown
    for figure, (internal, hidden) in FIGURES_6.items():
        table = solve(longest, hidden, 1, ALPHA, ALPHA)
        curves = [
            [hidden_cost(t, hidden), internal_cost(t, internal), table.cost(t, hidden)] for t in range(1, longest + 1)
        ]
        signs = [math.copysign(1, h - i) for h, i, _ in curves if h != i]
        crossings = [t for t, (h, i, _) in enumerate(curves, 1) if h < i]
        found[f"{figure}.crossing"] = sum(a != b for a, b in itertools.pairwise(signs))
        found[f"{figure}.crossed at"] = crossings[0] if crossings else math.nan
        h, i, _ = curves[hidden - 1]
        found[f"{figure}.short"] = (i - h) / hidden
        h, i, _ = curves[-1]
        found[f"{figure}.long"] = (h - i) / longest
        found[f"{figure}.mixed"] = max((m - min(h, i)) / t for t, (h, i, m) in enumerate(curves, 1))
        for column, name in enumerate(("hidden", "internal", "mixed")):
            found.curves[f"{figure}.{name}"] = [curves[t - 1][column] / t for t in shown]
    return found.outcome()


def chen(settings: Mapping[str, Any], context: Context) -> Outcome:
    """Figure 7, and Chen's algorithms at their own memory."""
    found = _Numbers()
    longest = settings["steps"]
    lengths = sorted({*range(1, 151), *(round(10 ** (k / 40)) for k in range(87, round(40 * math.log10(longest)) + 1))})
    found.curves["steps"] = lengths
    excess = []
    for number, alpha in enumerate(ALPHAS):
        beta = alpha - 1
        table = solve(longest, math.isqrt(longest) * alpha + alpha + 1, 1, alpha, beta)
        memory, cost, own, slower = [], [], [], []
        for t in lengths:
            published = math.sqrt(t) * (1 + beta)
            memory.append(_least(table, t, 2 * t) / published)
            cost.append(table.cost(t, int(published)) / t)
            half = table.cost(t, max(1, int(published / 2))) / t
            slower.append((half + 2) / (cost[-1] + 2))
            other = bptt.plan(t, strategy="chen-sqrt", internal_cost=alpha, shared_cost=beta)
            excess.append((table.cost(t, int(other.slots)) - other.forwards) / t)
            own.append(_least(table, t, other.forwards) / other.slots)
        found.curves[f"fig7l.alpha{alpha}"] = memory
        found.curves[f"fig7r.alpha{alpha}"] = cost
        found.curves[f"own.alpha{alpha}"] = own
        late = [value for t, value in zip(lengths, cost, strict=True) if t >= 100]
        found[f"fig7l.alpha{alpha}"] = max(memory)
        found[f"fig7r.not_worse.alpha{alpha}"] = max(cost)
        found[f"fig7r.not_faster.alpha{alpha}"] = min(late)
        if alpha == ALPHA:
            found["chen.diminishing"] = max(v for t, v in zip(lengths, slower, strict=True) if t >= 100)
        context.progress((number + 1) / len(ALPHAS))
    found["chen.sqrt.never_worse"] = max(excess)
    sides = range(1, math.isqrt(longest) + 1)
    found["chen.memory"] = max(
        abs(bptt.plan(s * s, strategy="chen-sqrt", internal_cost=a, shared_cost=a - 1).slots - s * a)
        for s in sides
        for a in ALPHAS
    )
    recursive = [bptt.plan(t, strategy="chen-recursive") for t in range(1, LONG + 1)]
    found["chen.recursive.memory"] = min(p.slots - math.log2(p.steps) for p in recursive)
    table = solve(LONG, max(int(p.slots) for p in recursive), 1, ALPHA, ALPHA - 1)
    found["chen.recursive.never_worse"] = max(
        (table.cost(p.steps, int(p.slots)) - p.forwards) / p.steps for p in recursive
    )
    return found.outcome()


def _least(table: Table, steps: int, allowed: int) -> int:
    """The fewest slots that take no more than so many forward operations."""
    low, high = 1, table.capacity
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if table.cost(steps, middle) <= allowed else (middle + 1, high)
    return low


def bounds(settings: Mapping[str, Any], context: Context) -> Outcome:
    """Section 3.5: the four upper bounds, at all lengths and numbers of slots."""
    steps = np.arange(1, settings["steps"])
    most = dict.fromkeys(("bound1", "bound2", "bound3", "bound4"), (-math.inf, 0, 0))
    worst: dict[str, list[float]] = {name: [] for name in most}
    slots = range(1, settings["slots"])
    broken, first = 0, settings["steps"]
    for m in slots:
        costs = hidden_costs(steps, m)
        power = steps ** (1 + 1 / m)
        thresholds = np.array(list(_thresholds(m, settings["steps"])))
        fits = np.searchsorted(thresholds, steps, side="right")  # the first threshold above each length
        bounded = fits < len(thresholds)
        ratios = {
            "bound1": costs / (m * power),
            "bound2": costs / power,
            "bound3": (costs - steps) / power,
            "bound4": np.where(bounded, costs / ((fits + 2) * steps), 0.0),
        }
        fails = np.flatnonzero(ratios["bound3"] >= 3)
        broken, first = broken + len(fails), min([first, *steps[fails[:1]]])
        for name, factors in ratios.items():
            place = int(factors.argmax())
            worst[name].append(float(factors[place]))
            most[name] = max(most[name], (worst[name][-1], int(steps[place]), m))
        if m % 50 == 0:
            context.progress(m / len(slots))
    found = _Numbers()
    for name, (ratio, t, m) in most.items():
        found[name], found[f"{name}.steps"], found[f"{name}.slots"] = ratio, t, m
        found.curves[name] = worst[name]
    found["bound3.broken"], found["bound3.cells"], found["bound3.from"] = broken, len(slots) * len(steps), first
    found.curves["slots"] = list(slots)
    return found.outcome()


def hidden_costs(steps: Integers, slots: int) -> Integers:
    """C(t, m) of the hidden strategy at many lengths: t + r t - b(m + 1, r - 1).

    Args:
        steps: The lengths, increasing.
        slots: The slots m.

    Example:
        >>> hidden_costs(np.array([4, 10]), 4)
        array([ 7, 24])
    """
    reaches, rests = [1], [0]  # b(m, r) and b(m + 1, r - 1), by r
    while reaches[-1] < steps[-1]:
        r = len(reaches)
        reaches.append(math.comb(slots + r, r))
        rests.append(math.comb(slots + r, r - 1))
    repetitions: Integers = np.searchsorted(np.array(reaches), steps)
    costs: Integers = steps + repetitions * steps - np.array(rests)[repetitions]
    return costs


def _thresholds(slots: int, limit: int) -> Iterator[float]:
    """m^a / a! for a = 1, 2, ... as long as it rises, up to the first that no length reaches."""
    value = 1.0
    for a in range(1, slots + 1):
        value *= slots / a
        yield value
        if value > limit:
            return


def search(settings: Mapping[str, Any], context: Context) -> Outcome:
    """Section 4.1: the least cost of any schedule at all, found by a search, against the recurrences."""
    found = _Numbers()
    excess = [0]
    longest = settings["steps"]
    for t in range(1, longest + 1):
        for m in range(1, 5):
            excess.append(hidden_cost(t, m) - _search(t, m - 1, 1, math.inf, math.inf, True))
        for m in range(1, 4):
            excess.append(internal_cost(t, m) - _search(t, m, math.inf, 1, 1, False))
        for alpha, beta in ((2, 2), (3, 3), (2, 1), (3, 2)):
            table = solve(longest, 7, 1, alpha, beta)
            for m in range(1, 8):
                excess.append(table.cost(t, m) - _search(t, m - 1, 1, alpha, beta, True))
        context.progress(t / longest)
    found["opt.search"] = max(excess, key=abs)
    found["opt.cases"] = len(excess) - 1
    return found.outcome()


def _search(steps: int, room: float, hidden: float, internal: float, shared: float, core: bool) -> int:
    """The fewest forward operations of any schedule, by a search through all states that memory can be in.

    Args:
        steps: How many steps.
        room: What stored states may take, the start state not counted.
        hidden: What a hidden state takes.
        internal: What an internal state takes.
        shared: What it takes where the hidden state that it starts from is held.
        core: Whether an internal state may be worked on beside those that are stored.
    """
    # A state: steps still to go back through, hidden states and internal states held, the working hidden state.
    State = tuple[int, frozenset[int], frozenset[int], int]

    def fits(hiddens: frozenset[int], internals: frozenset[int]) -> bool:
        size = hidden * len(hiddens) if hiddens else 0.0
        for s in internals:
            size += shared if s == 0 or s in hiddens or s - 1 in internals else internal
        return size <= room

    def following(state: State) -> Iterator[tuple[int, State]]:
        left, hiddens, internals, at = state
        for place in {0, *hiddens, *(s + 1 for s in internals)} - {at}:
            if place < left:
                yield 0, (left, hiddens, internals, place)
        for one in hiddens:
            yield 0, (left, hiddens - {one}, internals, at)
        for one in internals:
            yield 0, (left, hiddens, internals - {one}, at)
        if left - 1 in internals:
            yield 0, (left - 1, hiddens - {left - 1}, internals - {left - 1}, at if at < left - 1 else -1)
        if at < 0 or at >= left:
            return
        if at and at not in hiddens and fits(hiddens | {at}, internals):
            yield 0, (left, hiddens | {at}, internals, at)
        ahead = at + 1 if at + 1 < left else -1
        yield 1, (left, hiddens, internals, ahead)
        if at not in internals and fits(hiddens, internals | {at}):
            yield 1, (left, hiddens, internals | {at}, ahead)
        if core and at == left - 1:
            yield 1, (left - 1, hiddens - {left - 1}, internals - {left - 1}, -1)

    start: State = (steps, frozenset(), frozenset(), 0)
    known: dict[State, int] = {start: 0}
    waiting = deque([(0, start)])
    while waiting:
        cost, state = waiting.popleft()
        if known[state] < cost:
            continue
        if state[0] == 0:
            return cost
        for price, after in following(state):
            if cost + price < known.get(after, 10**9):
                known[after] = cost + price
                (waiting.append if price else waiting.appendleft)((cost + price, after))
    raise AssertionError("a schedule that stores nothing always gets there")


TRIALS: Mapping[str, Callable[[Mapping[str, Any], Context], Outcome]] = {
    "plans": plans,
    "strategies": strategies,
    "chen": chen,
    "bounds": bounds,
    "search": search,
}
