"""The plan for a budget: what the bytes allow, and which strategy makes the most of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from counterflow.bptt.actions import Release, StoreHidden, StoreInternal
from counterflow.bptt.budget import Sizes, format_bytes, parse_bytes
from counterflow.bptt.plans import Plan, Strategy
from counterflow.bptt.plans import plan as make_plan
from counterflow.exceptions import InputError

__all__ = ["Choice", "TooSmallError", "choose"]

# Beyond so many cells the mixed strategy's table is made on a grid that is coarser than a hidden state, takes long, and
# finds little that the two pure strategies do not.
_CELLS = 30_000_000


class TooSmallError(InputError):
    """A budget that is too small.

    Args:
        message: What the user reads.
        needed: The smallest budget that works, in bytes.
    """

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True)
class Choice:
    """The plan for a budget.

    Args:
        plan: The plan.
        sizes: What the states weigh that it stores.
        budget: What it may hold, in bytes; None where the user gave slots or the plan itself.
    """

    plan: Plan
    sizes: Sizes
    budget: int | None = None

    @functools.cached_property
    def held(self) -> int:
        """The most bytes that are kept for going back at any time, as predicted from the sizes."""
        return self.sizes.smallest + stack_bytes(self.plan, self.sizes)


def choose(
    steps: int,
    sizes: Sizes,
    budget: str | int | None = None,
    slots: float | None = None,
    plan: Plan | None = None,
    strategy: Strategy | None = None,
) -> Choice:
    """The plan that runs the fewest steps for what the user has given: a budget, slots, or the plan itself.

    Args:
        steps: The number of steps.
        sizes: What the core's states weigh.
        budget: Bytes, or a string such as ``"64MiB"``.
        slots: The number of slots, in the strategy's units.
        plan: The plan.
        strategy: One of `counterflow.bptt.plan`; None compares hidden, internal and mixed within a budget (mixed only
            where its table, steps times slots, is of moderate size), and is mixed with slots.

    Raises:
        InputError: If the budget is too small.

    Example:
        >>> sizes = Sizes(hidden=128, internal=576, shared=448, gradient=128)
        >>> choice = choose(1000, sizes, "16KiB")
        >>> choice.held <= 16384
        True
    """
    if plan is not None:
        return Choice(plan, sizes)
    if budget is None:
        assert slots is not None
        return Choice(_plan(steps, slots, strategy or "mixed", sizes), sizes)
    allowed = parse_bytes(budget)
    room = allowed - sizes.smallest
    if room < 0:
        raise TooSmallError(
            f"budget={budget!r} is too small for one internal state: this core needs {format_bytes(sizes.smallest)} "
            f"({sizes.smallest} bytes) before anything is stored; give at least that",
            sizes.smallest + _least(steps, strategy, sizes),
        )
    strategies: tuple[Strategy, ...] = ("hidden", "internal", "mixed") if strategy is None else (strategy,)
    if strategy is None and steps * (room // sizes.stored) > _CELLS:
        strategies = ("hidden", "internal")
    best = cheapest(steps, room, strategies, sizes)
    if best is None:
        raise TooSmallError(
            f"budget={budget!r} leaves {format_bytes(room)} to store states in, less than strategy={strategy!r} needs; "
            "leave the strategy out, or raise the budget",
            sizes.smallest + _least(steps, strategy, sizes),
        )
    return Choice(best, sizes, allowed)


def cheapest(steps: int, room: int, strategies: Sequence[Strategy], sizes: Sizes) -> Plan | None:
    """The plan with the fewest forward operations that stores no more than ``room`` bytes; None where none does."""
    plans = [plan for strategy in strategies if (plan := _within(steps, room, strategy, sizes)) is not None]
    return min(plans, key=lambda plan: plan.forwards, default=None)


@functools.lru_cache(maxsize=256)  # training asks for the same plan in every iteration
def _plan(steps: int, slots: Fraction | float | None, strategy: Strategy, sizes: Sizes) -> Plan:
    return make_plan(steps, slots, strategy, internal_cost=sizes.alpha, shared_cost=sizes.beta)  # type: ignore[arg-type]


def _within(steps: int, room: int, strategy: Strategy, sizes: Sizes) -> Plan | None:
    """A strategy's plan in so many bytes beside what is always needed; None where they are too few for it."""
    if strategy in ("hidden", "internal", "mixed"):
        unit = sizes.stored
        # What is always needed has the start state, which is one of the hidden strategy's slots. Sizes are kept to a
        # millionth, so a mixed plan gets a little less than there is; `least_mixed` is the other way round.
        slots = {
            "hidden": Fraction(1 + room // unit),
            "internal": Fraction(room // max(sizes.internal + sizes.generator, 1)),
            "mixed": Fraction(room - room // 10**5, unit),
        }[strategy]
        return _plan(steps, slots, strategy, sizes) if slots >= 1 else None
    plan = _plan(steps, None, strategy, sizes)
    if stack_bytes(plan, sizes) > room:
        return None
    # More slots are of use to one strategy only; the start state is one of them, as of the hidden strategy's.
    return _plan(steps, 1 + room // sizes.stored, strategy, sizes) if strategy == "chen-recursive" else plan


def _least(steps: int, strategy: Strategy | None, sizes: Sizes) -> int:
    """The bytes beside what is always needed that a strategy's plan takes at least; None is the cheapest strategy."""
    if strategy in (None, "hidden"):
        return 0
    if strategy == "internal":
        return max(sizes.internal + sizes.generator, 1)
    return least_mixed(sizes) if strategy == "mixed" else stack_bytes(_plan(steps, None, strategy, sizes), sizes)


def least_mixed(sizes: Sizes) -> int:
    """The bytes beside what is always needed that give a mixed plan its first slot."""
    return sizes.stored + (sizes.stored - 1) // (10**5 - 1)


def stack_bytes(plan: Plan, sizes: Sizes) -> int:
    """The most bytes that a plan has on its stack at any time."""
    stack: list[int] = []
    held = most = 0
    for action in plan:
        if isinstance(action, StoreHidden):
            stack.append(sizes.hidden + sizes.generator)
        elif isinstance(action, StoreInternal):
            stack.append((sizes.shared if action.shared else sizes.internal) + sizes.generator)
        elif isinstance(action, Release):
            held -= stack.pop()
            continue
        else:
            continue
        held += stack[-1]
        most = max(most, held)
    return most
