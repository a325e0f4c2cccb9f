"""The trials of each profile, and how their records are read.

Trials are named by what decides their numbers and nothing else. No setting is chosen by results but the epoch at which
a run is stopped, which the validation error chooses; test errors are those of that epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from counterflow.lab.trials import Json, Profile, Record, Trial, available
from counterflow.variational import Estimator

__all__ = [
    "CIFAR",
    "ESTIMATORS",
    "KEY",
    "METHODS",
    "MNIST",
    "TABLE",
    "best_epoch",
    "error_trials",
    "rate_of",
    "runs_of",
    "speed_trials",
    "table_trials",
    "test_errors",
]

KEY = "variational"
METHODS = ("none", "binary", "gaussian a", "gaussian b", "variational a", "variational a2", "variational b")
ESTIMATORS: tuple[Estimator, ...] = ("none", "local", "per_datum", "per_minibatch")


@dataclass(frozen=True)
class Table:
    """Table 1's nets in a profile.

    Args:
        width: Of each hidden layer.
        examples: Training pictures.
        epochs: After which the variance is measured.
        batches: How many gradient estimates it is measured from.
        seeds: One trained net each.
        seconds: What an epoch costs, about.
    """

    width: int
    examples: int
    epochs: tuple[int, ...]
    batches: int
    seeds: tuple[int, ...]
    seconds: float


TABLE: Mapping[Profile, Table] = {
    "smoke": Table(32, 2000, (1, 2), 3, (0, 1), 0.3),
    "laptop": Table(1024, 60_000, (10,), 10, (0,), 50),
    "paper": Table(1024, 60_000, (10, 100), 10, (0,), 50),
}


@dataclass(frozen=True)
class Errors:
    """The nets of one half of figure 1 in a profile.

    Args:
        sizes: Hidden units (MNIST), or multipliers k (CIFAR-10).
        epochs: Of each run.
        examples: Pictures that are learned from.
        tested: Test pictures.
        validation: Pictures that choose the epoch.
        seeds: Runs of each method.
        seconds: What an epoch of the smallest net costs, about.
    """

    sizes: tuple[int, ...]
    epochs: int
    examples: int
    tested: int
    validation: int
    seeds: tuple[int, ...]
    seconds: float


MNIST: Mapping[Profile, Errors] = {
    "smoke": Errors((50, 300), 1, 1500, 500, 500, (0, 1), 0.1),
    "laptop": Errors((50, 100, 300), 60, 50_000, 10_000, 10_000, tuple(range(5)), 2.0),
    "paper": Errors((50, 100, 300, 800), 100, 50_000, 10_000, 10_000, tuple(range(5)), 2.0),
}
CIFAR: Mapping[Profile, Errors] = {
    "smoke": Errors((1,), 1, 256, 128, 128, (0, 1), 1.0),
    "laptop": Errors((1,), 30, 45_000, 10_000, 5000, tuple(range(3)), 20.0),
    "paper": Errors((1, 2), 100, 45_000, 10_000, 5000, tuple(range(5)), 20.0),
}
HALVES: Mapping[str, Mapping[Profile, Errors]] = {"mnist": MNIST, "cifar10": CIFAR}


def table_trials(profile: Profile, noise: str = "b") -> list[Trial]:
    """Table 1 (type B), and appendix E (type A): one trained net a seed and number of epochs."""
    table = TABLE[profile]
    return [
        Trial(
            KEY,
            f"table 1 {noise}",
            (seed,),
            {
                "width": table.width,
                "examples": table.examples,
                "epochs": epochs,
                "batch": 1000,
                "batches": table.batches,
            },
            ("mnist",),
            movable=True,
            expected_seconds=table.seconds * (epochs + 3 * table.batches),
        )
        for epochs in (table.epochs if noise == "b" else table.epochs[:1])
        for seed in table.seeds
    ]


def error_trials(profile: Profile, data: str, method: str, size: int) -> list[Trial]:
    """The runs of one point of figure 1."""
    half = HALVES[data][profile]
    settings: dict[str, Json] = {
        "size": size,
        "epochs": half.epochs,
        "batch": 100,
        "examples": half.examples,
        "tested": half.tested,
        "validation": half.validation,
    }
    cost = half.seconds * half.epochs * size / half.sizes[0] * (2 if method.endswith("b") else 1)
    return [
        Trial(KEY, f"{data} {method}", (seed,), settings, (data,), movable=True, expected_seconds=cost)
        for seed in half.seeds
    ]


def speed_trials(profile: Profile) -> list[Trial]:
    """Section 5's comparison of times."""
    smoke = profile == "smoke"
    settings: dict[str, Json] = {"width": 100 if smoke else 1000, "batch": 100 if smoke else 1000}
    return [Trial(KEY, "speed", (0, 1, 2), settings, exclusive=True, expected_seconds=2 if smoke else 240)]


def runs_of(profile: Profile, records: Sequence[Record], data: str, method: str, size: int) -> list[Record]:
    """The records of one point of figure 1, those that there are yet."""
    return available(records, error_trials(profile, data, method, size))


def best_epoch(record: Record) -> int:
    """The measured point with the least validation error, the first of several; a run that diverged has its start."""
    return int(np.argmin([100.0 if value is None else value for value in record.curves["validation"]]))


def test_errors(runs: Sequence[Record]) -> list[float]:
    """Test errors in percent, each at the epoch that the validation error chose."""
    return [_or(100.0, run.curves["test"][best_epoch(run)]) for run in runs]


def rate_of(runs: Sequence[Record]) -> list[float]:
    """The mean dropout rate p = alpha / (1 + alpha) of the hidden layers, at the same epoch."""
    return [_or(0.0, run.curves["rate"][best_epoch(run)]) for run in runs]


def _or(instead: float, value: float | None) -> float:
    """A value, or what stands for it where a run that diverged has none; an error of 0 is a value."""
    return instead if value is None else float(value)
