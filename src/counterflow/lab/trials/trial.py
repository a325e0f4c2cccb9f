"""What one trial is, what its function returns, and what it is handed.

A trial is a pure function of (paper, treatment, seeds, settings) to numbers. It carries JSON values only, so
that it can be hashed, stored and sent to another machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from counterflow.exceptions import InputError

__all__ = ["Context", "Device", "Json", "Outcome", "Trial"]

Device = Literal["cpu", "cuda"]

# Quoted, because it refers to itself.
Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

PROGRESS_FILE = ".progress"
SECONDS_FILE = ".seconds"


@dataclass(frozen=True)
class Trial:
    """One run of one treatment: the unit that is hashed, recorded, resumed and repeated.

    Args:
        paper: Key of the paper, such as ``"tempering"``.
        treatment: What is being tried, such as ``"momentum.tempered"``.
        seeds: The seeds; several may run as one batched computation.
        settings: Everything else that changes the result, as JSON values.
        data: Names of the data sets it reads, as the data catalog has them.
        exclusive: It is timed, so nothing else runs beside it.
        movable: It runs on whatever ``Context.device`` names; any other stays on the CPU. Not part of the hash.
        expected_seconds: Seconds of one thread, for the order and the time left only; not part of the hash.

    Raises:
        InputError: There is no seed, a seed is not an integer, or the settings are not JSON.

    Example:
        >>> Trial("tempering", "momentum.tempered", seeds=(0, 1), settings={"rate": 0.01}).seeds
        (0, 1)
    """

    paper: str
    treatment: str
    seeds: tuple[int, ...]
    settings: Mapping[str, Json] = field(default_factory=dict)
    data: tuple[str, ...] = ()
    exclusive: bool = False
    movable: bool = False
    expected_seconds: float = 1.0

    def __post_init__(self) -> None:
        if not self.seeds or any(type(seed) is not int for seed in self.seeds):
            raise InputError(f"{self}: seeds are one or more integers, not {self.seeds!r}")
        if not self.expected_seconds > 0:
            raise InputError(f"{self}: expected_seconds is {self.expected_seconds}, and has to be positive")
        _require_json(self.settings, f"{self}: settings")

    def __str__(self) -> str:
        return f"trial {self.paper}/{self.treatment}"


def _require_json(value: object, where: str) -> None:
    """Refuse what JSON would change on the way (integer keys, NaN) or cannot hold at all."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}; keys are strings")
            _require_json(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _require_json(item, f"{where}[{position}]")
    elif isinstance(value, float):
        if not (float("-inf") < value < float("inf")):
            raise InputError(f"{where} is {value}, which JSON cannot hold; use null")
    elif value is not None and not isinstance(value, str | bool | int):
        raise InputError(f"{where} is a {type(value).__name__}; use numbers, strings, lists and mappings")


@dataclass(frozen=True)
class Outcome:
    """What a trial's function returns.

    Args:
        metrics: One value a seed, in the order of the seeds; ``None`` where there is none (it did not
            converge). NaN and infinity are refused: the trial then counts as failed.
        curves: Whatever is drawn in the report. Values that are not finite become gaps.
    """

    metrics: Mapping[str, Sequence[float | None]]
    curves: Mapping[str, Sequence[float | None]] = field(default_factory=dict)


class Context:
    """What a trial's function is handed beside the trial.

    Attributes:
        folder: The trial may keep its own checkpoint here. The folder survives a run that is killed, and is
            removed when the trial's record is written.
        device: Where its tensors are to be, ``"cpu"`` unless the trial is movable and the run was asked for another.
    """

    def __init__(self, folder: Path, device: Device = "cpu") -> None:
        self.folder = folder
        self.device = device
        self._reported = float("-inf")
        self._started = time.monotonic()
        self._earlier = 0.0
        with contextlib.suppress(OSError, ValueError):  # there was no attempt before this one
            self._earlier = float((folder / SECONDS_FILE).read_text("utf-8"))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the trial until now. An attempt that was killed counts up to its last progress."""
        return self._earlier + time.monotonic() - self._started

    def progress(self, fraction: float, note: str = "") -> None:
        """Say how far the trial is; cheap enough to be called every step.

        Args:
            fraction: Between 0 and 1.
            note: A few words for the table, such as ``"epoch 300"``.
        """
        now = time.monotonic()
        if now - self._reported < 0.5:
            return
        self._reported = now
        # Files, because they cross every kind of executor. The parent reads the one when it redraws; the other tells
        # the next attempt, should this one be killed, how long it was.
        told = {"fraction": min(max(fraction, 0.0), 1.0), "note": note}
        for name, text in ((PROGRESS_FILE, json.dumps(told)), (SECONDS_FILE, f"{self.seconds:.3f}")):
            partial = self.folder / f"{name}.new"
            with contextlib.suppress(OSError):  # neither is worth ending a trial
                partial.write_text(text, "utf-8")
                os.replace(partial, self.folder / name)
