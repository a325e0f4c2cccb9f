"""What happens while trials run, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from counterflow.lab.trials.record import Record
from counterflow.lab.trials.trial import Trial

__all__ = ["Damaged", "Elsewhere", "Event", "Finished", "Lost", "Planned", "Progressed", "Started"]


@dataclass(frozen=True)
class Planned:
    """The trials of a paper that are known by now."""

    paper: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Started:
    """A trial was handed to the executor."""

    key: str
    trial: Trial


@dataclass(frozen=True)
class Progressed:
    """A running trial said how far it is."""

    key: str
    trial: Trial
    fraction: float
    note: str


@dataclass(frozen=True)
class Finished:
    """A trial has its record; ``reused`` if it was there before."""

    record: Record
    trial: Trial
    reused: bool


@dataclass(frozen=True)
class Lost:
    """A worker died under these trials, and they start again."""

    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Elsewhere:
    """Nothing is left but trials that another run in the same folder is at work on; their records are waited for."""

    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Damaged:
    """A record could not be used; it was set aside and its trial runs again."""

    message: str


Event: TypeAlias = Planned | Started | Progressed | Finished | Lost | Elsewhere | Damaged
