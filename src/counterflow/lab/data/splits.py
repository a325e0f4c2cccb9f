"""Splits: those that a set states, and drawn ones that are the same on every machine."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from counterflow.exceptions import InputError

__all__ = ["drawn_split", "indices_of"]


class _Example(Protocol):
    @property
    def split(self) -> str: ...


def indices_of(name: str, examples: Sequence[_Example], split: str) -> NDArray[np.int64]:
    """Which examples belong to a split, in rising order.

    Args:
        name: The data set, for the message.
        examples: Its examples.
        split: The split.

    Raises:
        InputError: There is no such split.
    """
    there = np.array([example.split for example in examples])
    if split not in there:
        raise InputError(f"{name} has no split {split!r}: it has {', '.join(sorted(set(there.tolist())))}")
    return np.flatnonzero(there == split)


def drawn_split(
    groups: Sequence[str], test: int, *, strata: Sequence[Hashable] | None = None, seed: int = 0
) -> tuple[str, ...]:
    """Draw which examples are for testing; examples of one group are never on both sides.

    Groups are put in the order of a hash of their name and the seed, which needs no generator and does
    not depend on the order of the examples; the first ones are for testing. A group that lies in several
    strata is drawn in the first of them, and counts in the others.

    Args:
        groups: Each example's group: its speaker, or its text where texts are repeated.
        test: How many examples of each stratum are for testing, at least, if its groups allow; the last group
            drawn may exceed it.
        strata: Each example's stratum, such as its class; all are one if not given.
        seed: Another seed draws another split.

    Returns:
        ``"train"`` or ``"test"`` for each example.

    Example:
        >>> drawn_split(["ann", "bob", "ann", "eve"], test=1)
        ('train', 'train', 'train', 'test')
    """
    of_stratum: dict[Hashable, Counter[str]] = {}
    for group, stratum in zip(groups, strata or [None] * len(groups), strict=True):
        of_stratum.setdefault(stratum, Counter())[group] += 1
    sides: dict[str, str] = {}
    for members in of_stratum.values():
        left = test - sum(count for group, count in members.items() if sides.get(group) == "test")
        undecided = members.keys() - sides.keys()
        for group in sorted(undecided, key=lambda g: hashlib.sha256(f"{seed} {g}".encode()).digest()):
            sides[group] = "test" if left > 0 else "train"
            left -= members[group]
    return tuple(sides[group] for group in groups)
