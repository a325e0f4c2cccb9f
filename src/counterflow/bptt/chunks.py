r"""How many time steps a fused layer runs in one call.

A chunk of :math:`k` time steps is one step of the plan: its internal state grows with :math:`k`, and the number of
hidden states between chunks falls with it. ``chunk="auto"`` takes, of the powers of two up to the length of the
sequence, the one with the smallest predicted time

.. math:: (F + 2 n) (k + c), \qquad n = \lceil T / k \rceil,

where :math:`F` is the number of forward operations of the cheapest hidden or internal plan within the budget, a
backward operation costs two forward ones, and a call costs as much as :math:`c = 2` time steps beside those that it
runs. Chunks are measured by running one of 1, 2, 4, ... time steps, until one of twice the size might not fit into the
budget, or the predicted time has risen twice. The choice is kept with the layer for inputs of the same shape, so
training pays for it once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

from torch import nn

from counterflow.bptt.budget import Sizes, parse_bytes
from counterflow.bptt.choices import cheapest
from counterflow.bptt.cores import Core
from counterflow.bptt.plans import Strategy
from counterflow.exceptions import InputError

__all__ = ["check_chunk", "choose_chunk"]

_CALL = 2  # time steps that a call costs beside those that it runs


def check_chunk(core: Core, chunk: object, budget: str | int | None) -> int | None:
    """What the user's ``chunk`` means: a number of time steps, or None where it is to be chosen by `choose_chunk`.

    Raises:
        InputError: If it is no number from 1 on, nor ``"auto"`` with a budget; if it is more than 1 for a core that
            runs one time step at a time.
    """
    if chunk is None:
        chunk = "auto" if core.fused is not None and budget is not None else 1
    if chunk == "auto":
        if core.fused is None:
            return 1
        if budget is None:
            raise InputError("chunk='auto' needs a budget to choose by; give budget=, or chunk as a number")
        return None
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise InputError(f"chunk must be 'auto' or a whole number from 1 on, got {chunk!r}")
    if chunk > 1 and core.fused is None:
        raise InputError(
            f"chunk={chunk}: {core.name} runs one time step at a time; chunks are for nn.LSTM, nn.GRU and nn.RNN"
        )
    return chunk


def choose_chunk(
    time_steps: int, budget: str | int, weigh: Callable[[int], Sizes], strategy: Strategy | None = None
) -> int:
    """The number of time steps to a call with the smallest predicted time within a budget.

    Args:
        time_steps: The length of the sequence.
        budget: Bytes, or a string such as ``"64MiB"``.
        weigh: Measures the states of a chunk of so many time steps.
        strategy: The strategy, if the user said which.

    Returns:
        The chunk; 1 if none fits into the budget.
    """
    allowed = parse_bytes(budget)
    strategies: tuple[Strategy, ...] = ("hidden", "internal") if strategy is None else (strategy,)
    best, chosen, chunk, risen = float("inf"), 1, 1, 0
    while risen < 2:
        sizes = weigh(chunk)
        count = -(-time_steps // chunk)
        room = allowed - sizes.smallest
        plan = cheapest(count, room, strategies, sizes) if room >= 0 else None
        if plan is not None:
            predicted = (plan.forwards + 2 * count) * (chunk + _CALL)
            risen = 0 if predicted < best else risen + 1
            if predicted < best:
                best, chosen = predicted, chunk
        # What is measured must keep the promise too: a chunk is at most in proportion to a shorter one.
        if chunk == time_steps or sizes.smallest * 2 > allowed:
            break
        chunk = min(2 * chunk, time_steps)
    return chosen


_CHOSEN: WeakKeyDictionary[nn.RNNBase, dict[Hashable, int]] = WeakKeyDictionary()


def remembered(layer: nn.RNNBase, key: Hashable, choice: Callable[[], int]) -> int:
    """A choice that is made once for a layer and whatever it depends on."""
    known = _CHOSEN.setdefault(layer, {})
    if key not in known:
        known[key] = choice()
    return known[key]
