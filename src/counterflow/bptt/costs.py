r"""What the strategies for hidden and for internal states cost, in closed form.

With :math:`b(m, r) = \binom{m+r}{r}`, a sequence of :math:`t` steps and :math:`m` slots,

.. math::
    C_\text{hidden}(t, m) &= t + r t - b(m+1, r-1), & b(m, r-1) < t &\le b(m, r) \\
    C_\text{internal}(t, m) &= r (t+1) - b(m+1, r-1), & b(m, r-1) < t+1 &\le b(m, r)

solve the recurrences (1) to (5) of the paper, as the tests check against the dynamic program. They are the binomial
schedules of reversible computation: with r repetitions of a step at most, m slots reach b(m, r) steps.
"""

from __future__ import annotations

from math import comb

__all__ = ["hidden_cost", "hidden_split", "internal_cost", "internal_split"]


def hidden_cost(steps: int, slots: int) -> int:
    """Least forward operations where slots hold hidden states, the start state in one of them (section 3.1).

    Example:
        >>> hidden_cost(4, 4), hidden_cost(10, 4)
        (7, 24)
    """
    if steps == 0:
        return 0
    r = _repetitions(steps, slots)
    return steps + r * steps - _reach(slots + 1, r - 1)


def internal_cost(steps: int, slots: int) -> int:
    """Least forward operations where slots hold internal states (section 3.2).

    Example:
        >>> internal_cost(1000, 50)
        1950
    """
    r = _repetitions(steps + 1, slots)
    return r * (steps + 1) - _reach(slots + 1, r - 1)


def hidden_split(steps: int, slots: int) -> int:
    """Where the first hidden state is stored, for two steps or more and two slots or more."""
    r = _repetitions(steps, slots)
    return _split(steps, slots, r, steps - 1)


def internal_split(steps: int, slots: int) -> int:
    """The step, counted from 1, whose internal state is stored first, for one step or more."""
    r = _repetitions(steps + 1, slots)
    return _split(steps + 1, slots, r, steps)


def _reach(slots: int, repetitions: int) -> int:
    return comb(slots + repetitions, repetitions) if repetitions >= 0 else 0


def _repetitions(steps: int, slots: int) -> int:
    """The least r with steps <= b(slots, r)."""
    if slots == 1:
        return max(steps - 1, 0)
    r = 0
    while comb(slots + r, r) < steps:
        r += 1
    return r


def _split(reach: int, slots: int, r: int, most: int) -> int:
    # Both sides must be within r - 1 and r repetitions of their own, else one of them costs more than it need.
    y = min(_reach(slots, r - 1), reach - _reach(slots - 1, r - 1), most)
    return max(y, 1)
