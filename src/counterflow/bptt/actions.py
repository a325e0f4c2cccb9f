"""What a plan tells an executor to do, one action at a time.

Steps are numbered from 0. The hidden state at position p is the one before step p: position 0 is the start state. The
internal state of step p is all that going back through that step needs, its output hidden state included.

Whoever follows a plan holds the start state, a *stack* of stored states, one *working* hidden state and at most one
working internal state.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Action", "Advance", "Backward", "Forward", "Release", "Restore", "StoreHidden", "StoreInternal"]


@dataclass(frozen=True, slots=True)
class Advance:
    """Run steps ``start`` to ``stop - 1`` from the working hidden state, keeping nothing on the way."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class StoreHidden:
    """Put the working hidden state, which is at ``position``, on the stack."""

    position: int


@dataclass(frozen=True, slots=True)
class StoreInternal:
    """Run ``step`` from the working hidden state and put its internal state on the stack.

    Attributes:
        step: The step; the working hidden state is behind it afterwards.
        shared: Whether the hidden state that the step starts from is held already, as the start state or on top of the
            stack, so that the internal state needs no copy of it.
    """

    step: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Restore:
    """Make the state at ``position`` the working hidden state, and leave it where it is.

    It is the start state at position 0, or on top of the stack: a hidden state, or what an internal state puts out.
    """

    position: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Run ``step`` from the working hidden state into the working internal state."""

    step: int


@dataclass(frozen=True, slots=True)
class Backward:
    """Go back through ``step``: by the working internal state if there is one, else by that on top of the stack."""

    step: int


@dataclass(frozen=True, slots=True)
class Release:
    """Take the top off the stack: the hidden state at ``position``, or the internal state of step ``position``."""

    position: int


#: What a plan is made of, one after the other.
Action = Advance | StoreHidden | StoreInternal | Restore | Forward | Backward | Release
