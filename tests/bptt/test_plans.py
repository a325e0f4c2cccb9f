"""Plans: executable, within their slots, at the cost that they claim, and that cost the least."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow import bptt
from counterflow.bptt.costs import hidden_cost, hidden_split, internal_cost, internal_split
from counterflow.bptt.plans import Strategy
from counterflow.bptt.table import solve
from counterflow.exceptions import InputError

from . import reference

SIZES = [(1, 2, 2), (1, 2, 1), (1, 5, 5), (1, 5, 4), (2, 7, 5), (2, 5, 3), (3, 4, 4), (1, 1, 1)]


@pytest.mark.parametrize("slots", range(1, 13))
def test_closed_forms_solve_the_recurrences(slots: int) -> None:
    for steps in range(1, 151):
        assert hidden_cost(steps, slots) == reference.hidden(steps, slots)
        assert internal_cost(steps, slots) == reference.internal(steps, slots)


@pytest.mark.parametrize("slots", range(2, 13))
def test_closed_splits_are_optimal(slots: int) -> None:
    for steps in range(1, 151):
        y = internal_split(steps, slots)
        left, right = reference.internal(y - 1, slots), reference.internal(steps - y, slots - 1)
        assert y + left + right == reference.internal(steps, slots)
        if steps > 1:
            y = hidden_split(steps, slots)
            both = reference.hidden(y, slots) + reference.hidden(steps - y, slots - 1)
            assert y + both == reference.hidden(steps, slots)


def test_limits_of_the_paper() -> None:
    for steps in range(1, 60):
        assert hidden_cost(steps, 1) == internal_cost(steps, 1) == steps * (steps + 1) // 2
        assert hidden_cost(steps, steps + 3) == 2 * steps - 1
        assert internal_cost(steps, steps + 3) == steps
    assert (hidden_cost(4, 4), hidden_cost(10, 4)) == (7, 24)


@pytest.mark.parametrize(
    ("strategy", "expected"), [("hidden", "4.636 2.948 2.898 2.498 1.999"), ("internal", "3.64 1.95 1.90 1.50 1.00")]
)
def test_figures_2a_and_5a_at_a_thousand_steps(strategy: Strategy, expected: str) -> None:
    found = [bptt.plan(1000, slots, strategy).forwards_per_step for slots in (10, 50, 100, 500, 1000)]
    assert found == pytest.approx([float(text) for text in expected.split()], abs=0.005)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_table_equals_brute_force(sizes: tuple[int, int, int]) -> None:
    table = solve(40, 12 * sizes[0], *sizes)
    for steps, units in itertools.product(range(1, 41), range(sizes[0], 12 * sizes[0] + 1)):
        assert table.cost(steps, units) == reference.mixed(steps, units, *sizes)


def brute_row_by_row(steps: int, units: int, h: int, a: int, b: int) -> list[Any]:
    """The recurrence again, every y tried, by whole rows so that long sequences can be afforded."""
    import numpy as np

    far = np.int64(2**60)
    rows: list[Any] = []
    for m in range(units + 1):
        row = np.full(steps + 1, far)
        row[0] = 0
        rows.append(row)
        if m < h:
            continue
        deep = {size: rows[m - size] for size in {h, a, b} if m >= size}
        for t in range(1, steps + 1):
            best = t * (t + 1) // 2
            if h in deep and t > 1:
                y = np.arange(1, t)
                best = min(best, int((y + row[1:t] + deep[h][t - 1 : 0 : -1]).min()))
            if b in deep:
                best = min(best, int(1 + deep[b][t - 1]))
            if a in deep and t > 1:
                y = np.arange(2, t + 1)
                best = min(best, int((y + row[1:t] + deep[a][t - 2 :: -1][: t - 1]).min()))
            row[t] = best
    return rows


@pytest.mark.parametrize(
    ("steps", "units", "sizes"), [(1500, 120, (1, 5, 4)), (1100, 90, (2, 7, 5)), (700, 120, (1, 12, 12))], ids=str
)
def test_the_table_is_exact_in_far_cells(steps: int, units: int, sizes: tuple[int, int, int]) -> None:
    table = solve(steps, units, *sizes)
    rows = brute_row_by_row(steps, units, *sizes)
    draw = random.Random(0)
    for _ in range(4000):
        t, m = draw.randint(1, steps), draw.randint(sizes[0], units)
        assert table.cost(t, m) == rows[m][t]


def check(plan: bptt.Plan) -> None:
    beta = plan.shared_cost if plan.strategy in ("mixed", "chen-sqrt") else plan.internal_cost
    in_states = plan.strategy in ("internal", "full")
    alpha, beta = (1, 1) if in_states else (Fraction(plan.internal_cost), Fraction(beta))
    forwards, filled = reference.follow(plan, plan.steps, alpha, beta)
    assert forwards == plan.forwards
    if in_states:
        assert filled == plan.peak_slots
    elif plan.strategy == "mixed":
        assert filled <= float(plan.peak_slots) + 1e-9
    else:
        assert float(filled + 1) == pytest.approx(plan.peak_slots)
    assert plan.peak_slots <= plan.slots + 1e-9


@settings(deadline=None)  # the first plan compiles
@given(
    st.integers(1, 80),
    st.integers(1, 40),
    st.sampled_from(get_args(Strategy)),
    st.fractions(1, 8, max_denominator=6),
    st.fractions(Fraction(1, 10), 1, max_denominator=10),
)
def test_every_plan_is_executable_and_keeps_its_word(
    steps: int, slots: int, strategy: Strategy, alpha: Fraction, share: Fraction
) -> None:
    fixed = strategy not in ("hidden", "internal", "mixed")
    costs = {"internal_cost": float(alpha), "shared_cost": float(alpha * share)}
    check(bptt.plan(steps, None if fixed else slots, strategy, **costs))


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_long_plans_need_no_recursion(strategy: Strategy) -> None:
    steps = 200 if strategy == "constant" else 5000
    check(bptt.plan(steps, 40 if strategy in ("hidden", "internal", "mixed") else None, strategy, internal_cost=3.5))


def test_a_million_steps_cost_nothing_to_plan() -> None:
    plan = bptt.plan(1_000_000, 100, "hidden")
    assert plan.forwards == hidden_cost(1_000_000, 100)
    assert next(iter(plan)) == bptt.Advance(0, hidden_split(1_000_000, 100))


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8))
def test_mixing_is_never_dearer(steps: int, slots: int, alpha: int) -> None:
    mixed = bptt.plan(steps, slots, "mixed", internal_cost=alpha).forwards
    assert mixed <= bptt.plan(steps, slots, "hidden").forwards
    if slots >= alpha:
        assert mixed <= bptt.plan(steps, slots // alpha, "internal").forwards


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(2, 10))
def test_chen_is_never_cheaper_in_the_same_memory(steps: int, alpha: int) -> None:
    costs = {"internal_cost": alpha, "shared_cost": alpha - 1}
    for strategy in ("chen-sqrt", "chen-recursive"):
        chen = bptt.plan(steps, None, strategy, **costs)  # type: ignore[arg-type]
        assert bptt.plan(steps, chen.slots, "mixed", **costs).forwards <= chen.forwards


@given(st.integers(1, 120), st.integers(1, 60))
def test_chen_recursive_cuts_a_segment_as_often_as_the_slots_allow(steps: int, spare: int) -> None:
    halved = bptt.plan(steps, strategy="chen-recursive")
    wider = bptt.plan(steps, halved.slots + spare, "chen-recursive")
    check(wider)
    first = list(itertools.takewhile(lambda action: not isinstance(action, bptt.Backward), wider))
    assert wider.forwards <= halved.forwards
    assert bptt.plan(steps, wider.slots, "hidden").forwards <= wider.forwards
    if wider.slots >= steps:
        assert wider.forwards == 2 * steps - 1
        assert sum(isinstance(action, bptt.StoreHidden) for action in first) == steps - 1


def test_chen_recursive_by_hand() -> None:
    # Two cuts: thirds of three steps, each cut into its steps: 6 + 3 (2 + 3) = 21, and in the last third 2 + 3 slots.
    nine = bptt.plan(9, 5, "chen-recursive")
    assert (nine.forwards, nine.peak_slots) == (21, 5)
    assert bptt.plan(9, 6, "chen-recursive").peak_slots <= 6
    # Halves: n + n/2 for each of log2(n) levels, and n at the end.
    eight = bptt.plan(8, strategy="chen-recursive")
    assert (eight.forwards, eight.slots) == (3 * 4 + 8, 4)


@settings(deadline=None)
@given(st.integers(1, 120), st.integers(1, 60), st.fractions(1, 6, max_denominator=40))
def test_rounding_never_makes_a_plan_dearer_than_one_kind_of_state(steps: int, slots: int, alpha: Fraction) -> None:
    mixed = bptt.plan(steps, slots, "mixed", internal_cost=float(alpha))
    assert steps <= mixed.forwards <= hidden_cost(steps, slots)
    if slots >= alpha:
        assert mixed.forwards <= internal_cost(steps, int(slots / alpha))


def test_the_table_stays_small_for_long_sequences() -> None:
    plan = bptt.plan(30_000, 2_000, "mixed", internal_cost=4.5, shared_cost=3.5)
    assert plan.forwards <= min(hidden_cost(30_000, 2_000), internal_cost(30_000, math.floor(2_000 / 4.5)))


def test_more_steps_than_the_table_may_have_cells_make_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bptt.table, "solve", lambda *_: pytest.fail("its rows are as long as the sequence"))
    steps = bptt.plans._CELLS + 1
    plan = bptt.plan(steps, 100, "mixed", internal_cost=4)
    assert plan.forwards == min(hidden_cost(steps, 100), internal_cost(steps, 25))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0, "slots": 1}, "steps must be a whole number >= 1, got 0"),
        ({"steps": 2.5, "slots": 1}, "steps must be a whole number"),
        ({"steps": 5}, "needs slots"),
        ({"steps": 5, "slots": 0}, "needs 1 slot for 5 steps"),
        ({"steps": 5, "slots": 2.5, "strategy": "hidden"}, "whole number with strategy='hidden'"),
        ({"steps": 5, "slots": 2, "strategy": "best"}, "strategy must be one of hidden"),
        ({"steps": 5, "slots": 2, "strategy": "full"}, "needs 5 slots"),
        ({"steps": 1000, "slots": 9, "strategy": "chen-sqrt", "internal_cost": 7.77713}, "needs 279.86816 slots"),
        ({"steps": 5, "slots": 2, "internal_cost": 0.5}, "internal_cost must be >= 1"),
        ({"steps": 5, "slots": 2, "internal_cost": 2, "shared_cost": 3}, "shared_cost must lie above 0"),
        ({"steps": 5, "slots": float("nan")}, "slots must be a number"),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        bptt.plan(**arguments)
    assert "\n" not in str(caught.value)
