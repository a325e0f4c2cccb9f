"""Papers with trials of all lengths, some of them timed, for tests of what is run when."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from counterflow.lab.trials import Context, Outcome, Paper, Profile, Record, Trial

KEYS = ("several_a", "several_b", "several_c")
SECONDS = 0.15


def paper(key: str) -> Paper:
    """A paper of four ordinary trials and one timed one; the last has a second stage of the same sort."""
    place = KEYS.index(key)

    def stage(number: int) -> list[Trial]:
        lengths = [1 + place + len(KEYS) * step for step in range(5)]  # no two papers have one in common
        return [
            Trial(key, f"{number}.{length}", (0,), exclusive=length == lengths[2], expected_seconds=length)
            for length in lengths
        ]

    def trials(profile: Profile, records: Sequence[Record]) -> Sequence[Trial]:
        first = stage(1)
        return [*first, *stage(2)] if place == len(KEYS) - 1 and len(records) >= len(first) else first

    return Paper(
        key=key,
        revision=1,
        trials=trials,
        run=run,
        measure=lambda profile, records: {},
        exhibits=lambda profile, records, results: [],
    )


def run(trial: Trial, context: Context) -> Outcome:
    """Take a moment, and note when: the clock is the machine's, so that processes can be compared."""
    begun = time.monotonic()
    time.sleep(SECONDS)
    name, kind = f"{trial.paper}/{trial.treatment}", "timed" if trial.exclusive else "ordinary"
    with open(os.environ["TOY_TRACE"], "a", encoding="utf-8") as stream:
        stream.write(f"{name} {trial.expected_seconds} {kind} {begun} {time.monotonic()} {os.getpid()}\n")
    return Outcome({"epochs": [1.0]})
