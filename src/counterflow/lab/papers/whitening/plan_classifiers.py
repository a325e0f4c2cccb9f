"""The trials of the classifiers, CIFAR-10's net and the deep perceptrons, in each profile, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterflow.lab.papers.whitening import deep, vgg
from counterflow.lab.papers.whitening.plan import FRESH, KEY, SELECTION
from counterflow.lab.trials import Json, Profile, Record, Trial, find

__all__ = [
    "CIFAR",
    "DEPTHS",
    "at_best",
    "cifar_best_rate",
    "cifar_grid",
    "cifar_judged",
    "cifar_trials",
    "deep_records",
    "deep_trials",
    "largest_rate",
]


@dataclass(frozen=True)
class Cifar:
    """How large CIFAR-10's runs are in a profile.

    Args:
        width: Channels of the first stage.
        examples: Training pictures.
        tested: Test pictures, and training pictures that the training error is taken of.
        batch: Of updates.
        epochs: Of a run that is judged.
        short: Epochs of a run that chooses a rate.
        patience: Epochs without a better validation error before the rate is divided by ten.
        every: T.
        samples: N_s.
        seconds: What an epoch of SGD costs, about.
        fresh: Seeds that are judged.
    """

    width: int
    examples: int
    tested: int
    batch: int
    epochs: int
    short: int
    patience: int
    every: int
    samples: int
    seconds: float
    fresh: tuple[int, ...] = FRESH


CIFAR: Mapping[Profile, Cifar] = {
    "smoke": Cifar(4, 320, 100, 32, 4, 1, 3, 10, 64, 0.05, FRESH[:2]),
    "laptop": Cifar(16, 10_000, 4000, 128, 10, 3, 3, 100, 1024, 6),
    "paper": Cifar(16, 45_000, 10_000, 128, 60, 5, 6, 350, 4096, 28),
}
CIFAR_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of every method
EPSILON = 0.1


def _cifar(profile: Profile, method: str, rate: float, seed: int, epochs: int) -> Trial:
    size = CIFAR[profile]
    settings: dict[str, Json] = {
        "rate": rate,
        "updates": epochs * (size.examples // size.batch),
        "batch": size.batch,
        "width": size.width,
        "examples": size.examples,
        "tested": size.tested,
        "patience": size.patience,
    }
    if method.startswith("prong"):
        settings |= {"every": size.every, "samples": size.samples, "epsilon": EPSILON}
    seconds = 1.3 * epochs * size.seconds
    return Trial(KEY, f"cifar {method}", (seed,), settings, ("cifar10",), expected_seconds=seconds)


def cifar_grid(profile: Profile, method: str) -> dict[float, Trial]:
    """The short runs that choose a method's rate; smoke knows one rate alone."""
    grid = CIFAR_RATES[2:3] if profile == "smoke" else CIFAR_RATES
    return {rate: _cifar(profile, method, rate, SELECTION, CIFAR[profile].short) for rate in grid}


def cifar_best_rate(profile: Profile, method: str, records: Sequence[Record]) -> float | None:
    """A method's best rate, once all have been tried."""
    grid = cifar_grid(profile, method)
    if len(grid) == 1:
        return next(iter(grid))
    found = {rate: find(records, [trial]) for rate, trial in grid.items()}
    # Not by `chosen`: here the validation error is in percent and the untrained net's a cross-entropy.
    return min(found, key=lambda rate: _validation(found[rate][0])) if all(found.values()) else None


def _validation(record: Record) -> float:
    """A run's validation error in percent; all are wrong where it diverged."""
    value = record.metrics["validation"][0]
    return 100.0 if value is None else value


def _judged_trials(profile: Profile, method: str, rate: float) -> list[Trial]:
    size = CIFAR[profile]
    return [_cifar(profile, method, rate, seed, size.epochs) for seed in size.fresh]


def cifar_judged(profile: Profile, method: str, records: Sequence[Record]) -> list[Record]:
    """The runs of figure 4a-b at the best rate; empty until all are there."""
    rate = cifar_best_rate(profile, method, records)
    return [] if rate is None else find(records, _judged_trials(profile, method, rate))


def cifar_trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All of CIFAR-10's that are known now."""
    known: list[Trial] = []
    for method in vgg.METHODS:
        grid = cifar_grid(profile, method)
        known += grid.values() if len(grid) > 1 else ()
        rate = cifar_best_rate(profile, method, records)
        if rate is not None:
            known += _judged_trials(profile, method, rate)
    return known


# The deep perceptrons

DEPTHS: Mapping[Profile, tuple[int, ...]] = {"smoke": (6,), "laptop": (3, 15), "paper": (3, 15)}
DEEP_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def deep_trials(profile: Profile) -> list[Trial]:
    """A trial a treatment and depth: all rates, the seed that chooses first and those that judge after it."""
    smoke = profile == "smoke"
    settings: dict[str, Json] = {
        "width": 16 if smoke else 64,
        "batch": 128,
        "updates": 30 if smoke else 400,
        "rates": list(DEEP_RATES[4:6] if smoke else DEEP_RATES),
        "every": 30 if smoke else 100,
        "samples": 256 if smoke else 1024,
        "epsilon": 0.1,
        "monitored": 500 if smoke else 2500,
    }
    seeds = (SELECTION, *(FRESH[:2] if smoke else FRESH))
    data = ("mnist",)
    return [
        Trial(KEY, f"deep {treatment}", seeds, {**settings, "depth": depth}, data, expected_seconds=1 if smoke else 60)
        for depth in DEPTHS[profile]
        for treatment in (deep.TREATMENTS[1:5] if smoke else deep.TREATMENTS)
    ]


def deep_records(profile: Profile, treatment: str, depth: int, records: Sequence[Record]) -> list[Record]:
    """The record of a treatment at a depth, if it is there."""
    trials = [
        trial
        for trial in deep_trials(profile)
        if trial.treatment == f"deep {treatment}" and trial.settings["depth"] == depth
    ]
    return find(records, trials)


def at_best(record: Record) -> tuple[float, list[float]]:
    """The rate with the least validation error on the first seed, and the other seeds' training errors at it."""
    rates = record.settings["rates"]
    best = min(rates, key=lambda rate: record.metrics[deep.key("validation", rate)][0] or 0.0)
    return best, [float(value or 0.0) for value in record.metrics[deep.key("error", best)][1:]]


def largest_rate(record: Record) -> float | None:
    """The largest rate at which every seed ended below the cross-entropy of chance; None if there is none."""
    learned = [
        float(rate)
        for rate in record.settings["rates"]
        if all((error or 0.0) < math.log(10) for error in record.metrics[deep.key("error", rate)])
    ]
    return max(learned, default=None)
