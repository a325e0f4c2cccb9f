"""The recurrences of the paper as they stand, and a machine that follows a plan and refuses what is illegal."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from functools import cache

from counterflow.bptt import (
    Action,
    Advance,
    Backward,
    Forward,
    Release,
    Restore,
    StoreHidden,
    StoreInternal,
)

INFINITE = 10**18


@cache
def hidden(t: int, m: int) -> int:
    """Equations 1 to 3."""
    if t <= 1 or m == 1:
        return t * (t + 1) // 2
    return min(y + hidden(t - y, m - 1) + hidden(y, m) for y in range(1, t))


@cache
def internal(t: int, m: int) -> int:
    """Equations 4 and 5."""
    if t == 0 or m == 1:
        return t * (t + 1) // 2
    return min(y + internal(y - 1, m) + internal(t - y, m - 1) for y in range(1, t + 1))


@cache
def mixed(t: int, m: int, h: int, a: int, b: int) -> int:
    """Equations 6 to 10, where a hidden state takes h units, an internal one a, and b behind a state that is held."""
    if t == 0:
        return 0 if m >= 0 else INFINITE
    if m < h:
        return INFINITE
    best = t * (t + 1) // 2
    for y in range(1, t):
        best = min(best, y + mixed(y, m, h, a, b) + mixed(t - y, m - h, h, a, b))
    for y in range(1, t + 1):
        best = min(best, y + mixed(y - 1, m, h, a, b) + mixed(t - y, m - (a if y > 1 else b), h, a, b))
    return best


def follow(
    actions: Iterable[Action], steps: int, alpha: Fraction | float = 1, beta: Fraction | float = 1, hidden: int = 1
) -> tuple[int, Fraction]:
    """Follow a plan.

    Args:
        actions: The plan.
        steps: How many steps must have been gone back through, last to first.
        alpha: The size of an internal state.
        beta: The same where the state that it starts from is held.
        hidden: The size of a hidden state.

    Returns:
        Forward operations, and the most that the stack held, the start state not counted.
    """
    stack: list[tuple[str, int, Fraction]] = []
    working: int | None = 0
    core: int | None = None
    forwards, most, filled, left = 0, Fraction(0), Fraction(0), steps
    gone_back = False

    def top() -> int:
        return stack[-1][1] + (stack[-1][0] == "internal") if stack else 0

    for action in actions:
        match action:
            case Advance(start, stop):
                assert working == start < stop <= left
                forwards += stop - start
                working = stop
            case StoreHidden(position):
                assert working == position
                stack.append(("hidden", position, Fraction(hidden)))
                filled += hidden
            case StoreInternal(step, shared):
                assert working == step < left
                assert shared == (top() == step)
                stack.append(("internal", step, Fraction(beta if shared else alpha)))
                filled += stack[-1][2]
                forwards += 1
                working = step + 1
            case Restore(position):
                assert position == 0 or top() == position
                working = position
            case Forward(step):
                assert working == step < left
                assert core is None
                core, working = step, None
                forwards += 1
            case Backward(step):
                gone_back = gone_back or forwards >= steps
                assert gone_back, "the forward pass has not run every step"
                assert step == left - 1
                assert core == step or stack[-1][:2] == ("internal", step)
                core, left = None, step
            case Release(position):
                kind, at, size = stack.pop()
                filled -= size
                assert at == position
                assert kind == "hidden" or left == position, "released before it was used"
        most = max(most, filled)
    assert left == 0
    assert not stack
    assert core is None
    return forwards, most
