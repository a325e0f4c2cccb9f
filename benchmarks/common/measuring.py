"""How benchmarks measure: processor time, in turns, and ratios turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def timed(work: Callable[[], object], calls: int = 1) -> Callable[[], float]:
    """A way, as ``in_turns`` takes it, to do some work: its processor seconds a call."""

    def way() -> float:
        began = time.process_time()
        for _ in range(calls):
            work()
        return (time.process_time() - began) / calls

    return way


def in_turns(ways: Mapping[str, Callable[[], float]], rounds: int, warm: int = 0) -> dict[str, list[float]]:
    """Seconds of each way, round by round.

    Another one comes first in every round, since what comes first may find the machine in another state.

    Args:
        ways: Each does its work once and returns the seconds that it took.
        rounds: Rounds that count.
        warm: Rounds before them that do not, in which code is compiled and memory is taken.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    names = [*ways]
    for number in range(warm + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = ways[name]()
            if number >= warm:
                found[name].append(seconds)
    return found


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """The median of the ratios of turns, and their quartiles."""
    low, middle, high = np.quantile(np.array(above) / np.array(below), (0.25, 0.5, 0.75)).tolist()
    return {"ratio": middle, "low": low, "high": high}
