"""Finding the records of trials that a later stage, or a claim, is read from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from counterflow.lab.trials.record import Record, canonical
from counterflow.lab.trials.trial import Trial

__all__ = ["available", "common", "find", "identity", "so_far"]


def find(records: Iterable[Record], trials: Sequence[Trial]) -> list[Record]:
    """The records of some trials, in the order of the trials; empty unless all are there."""
    wanted = dict.fromkeys(map(identity, trials))
    found = {identity(record): record for record in records}
    return [found[name] for name in wanted] if wanted.keys() <= found.keys() else []


def available(records: Iterable[Record], trials: Sequence[Trial]) -> list[Record]:
    """The records of those trials that have one, in the order of the trials."""
    found = {identity(record): record for record in records}
    return [found[name] for name in map(identity, trials) if name in found]


def common(*runs: Sequence[Record]) -> list[list[Record]]:
    """Of several methods' records, one trial a seed, those of the seeds that all the methods have."""
    seeds = set.intersection(*({record.seeds for record in of} for of in runs))
    return [[record for record in of if record.seeds in seeds] for of in runs]


def so_far(there: int, wanted: int, what: str = "seeds") -> str:
    """What is said of a claim that is judged by a part of its trials; nothing where all are there.

    Example:
        >>> so_far(1, 3)
        '1 of 3 seeds so far'
    """
    return "" if there == wanted else f"{there} of {wanted} {what} so far"


def identity(one: Trial | Record) -> bytes:
    """What a trial and its record have in common within a paper, whatever the data and the revision."""
    # A record's settings have been through JSON, which makes lists of tuples.
    return canonical([one.treatment, list(one.seeds), dict(one.settings)])
