"""Finding the records of trials that a later stage, or a claim, is read from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from counterflow.lab.trials.record import Record
from counterflow.lab.trials.trial import Trial

__all__ = ["find"]


def find(records: Iterable[Record], trials: Sequence[Trial]) -> list[Record]:
    """The records of some trials; empty unless all are there."""
    wanted = {_name(trial.treatment, trial.seeds, trial.settings): trial for trial in trials}
    found = {_name(r.treatment, r.seeds, r.settings): r for r in records}
    return [found[name] for name in wanted if name in found] if wanted.keys() <= found.keys() else []


def _name(treatment: str, seeds: tuple[int, ...], settings: Mapping[str, Any]) -> str:
    return json.dumps([treatment, seeds, settings], sort_keys=True)  # a record's settings have been through JSON
