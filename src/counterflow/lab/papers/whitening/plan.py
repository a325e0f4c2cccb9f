"""The trials of each profile, and how their records are read.

Which stage a trial belongs to is told by its seeds: rates are chosen on `SELECTION`, and everything that claims are
judged on has the seeds of `FRESH`. Trials are named by what decides their numbers and nothing else, so that two figures
that need one run share it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterflow.lab.papers.whitening.autoencoder import SIZES
from counterflow.lab.papers.whitening.fisher import METHODS as FISHER_METHODS
from counterflow.lab.trials import Json, Profile, Record, Trial, find

__all__ = [
    "AUTOENCODER",
    "EPSILON",
    "EPSILONS",
    "FRESH",
    "GRID",
    "KEY",
    "SELECTION",
    "SIZE",
    "after",
    "all_updates_to",
    "autoencoder",
    "autoencoder_trials",
    "batch_of",
    "best_rate",
    "chosen",
    "epsilon_cells",
    "epsilon_runs",
    "epsilons_of",
    "figure_2_trials",
    "final",
    "judged",
    "period_runs",
    "rate_trials",
    "time_trials",
    "updates_to",
]

KEY = "whitening"
DATA = ("mnist",)
SELECTION = 100
FRESH = (0, 1, 2)
AUTOENCODER = ("sgd", "rmsprop", "adam", "bn", "prong")


@dataclass(frozen=True)
class Size:
    """How large the auto-encoder's runs are in a profile.

    Args:
        sizes: Of the layers.
        examples: Training pictures; None for all 55,000.
        updates: Of a run that is judged.
        short: Of a run that chooses a rate, or belongs to figure 3a.
        period: Of a run of figure 3b.
        every: T of figure 3c's PRONG.
        periods: T of figure 3b's; the last is the length of a run, so that nothing but the initialization is whitened.
        samples: N_s.
        fresh: Seeds that are judged.
        seconds: What an update of SGD costs, about.
    """

    sizes: tuple[int, ...]
    examples: int | None
    updates: int
    short: int
    period: int
    every: int
    periods: tuple[int, ...]
    samples: int
    fresh: tuple[int, ...]
    seconds: float


SIZE: Mapping[Profile, Size] = {
    "smoke": Size((784, 32, 16, 8, 16, 32, 784), 2000, 60, 30, 40, 30, (20, 40), 256, FRESH[:2], 0.001),
    "laptop": Size(SIZES, None, 10_000, 1000, 1500, 500, (100, 500, 1500), 4096, FRESH, 0.032),
    "paper": Size(SIZES, None, 100_000, 1000, 100_000, 500, (100, 1000, 10_000, 100_000), 4096, FRESH, 0.032),
}
COST = {"sgd": 1.0, "rmsprop": 1.15, "adam": 1.15, "bn": 2.0, "prong": 1.45}

# Equally many rates for every method, three to a decade, around what earlier, shorter runs found stable.
GRID: Mapping[str, Sequence[float]] = {
    "sgd": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "rmsprop": (3e-6, 1e-5, 3e-5, 1e-4, 3e-4),
    "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    "bn": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    "prong": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
}
SMOKE_GRID: Mapping[str, Sequence[float]] = {
    "sgd": (3e-3, 1e-2),
    "rmsprop": (1e-4, 1e-3),
    "adam": (1e-3, 3e-3),
    "bn": (3e-3, 1e-2),
    "prong": (3e-3, 1e-2),
}
EPSILONS = (0.01, 0.1, 1.0, 10.0)
EPSILON = 1.0  # of figure 3c's PRONG


def autoencoder(
    profile: Profile,
    method: str,
    rate: float,
    seed: int,
    updates: int,
    *,
    epsilon: float = EPSILON,
    every: int | None = None,
    initial: bool = True,
) -> Trial:
    """A run of the auto-encoder.

    Args:
        profile: Which size.
        method: One of `AUTOENCODER`.
        rate: Its learning rate.
        seed: Of everything.
        updates: Its length.
        epsilon: PRONG's.
        every: PRONG's T; that of the profile if not given.
        initial: PRONG: whether the initialization is whitened.
    """
    size = SIZE[profile]
    settings: dict[str, Json] = {
        "rate": rate,
        "updates": updates,
        "batch": batch_of(method),
        "sizes": size.sizes,
        "examples": size.examples,
    }
    if method == "prong":
        settings |= {
            "every": size.every if every is None else every,
            "samples": size.samples,
            "epsilon": epsilon,
            "initial": initial,
        }
    seconds = (updates * size.seconds + 15 * (profile != "smoke")) * COST[method]
    return Trial(KEY, method, (seed,), settings, DATA, expected_seconds=seconds)


def final(record: Record, name: str = "error") -> float:
    """A run's error at its end; that of the untrained net where it diverged, or ended worse than it began."""
    start, end = record.metrics["start"][0], record.metrics[name][0]
    assert start is not None
    return start if end is None else min(end, start)


def chosen(records: Sequence[Record], candidates: Mapping[float, Trial]) -> float | None:
    """The rate whose trial has the least validation error, once all have records."""
    found = {rate: find(records, [trial]) for rate, trial in candidates.items()}
    if not all(found.values()):
        return None
    return min(found, key=lambda rate: final(found[rate][0], "validation"))


def rate_trials(profile: Profile, method: str, epsilon: float = EPSILON) -> dict[float, Trial]:
    """The short runs that choose a method's rate.

    In directions in which the inputs hardly vary, PRONG's step is the rate over epsilon: its grid moves with epsilon.
    """
    short = SIZE[profile].short
    grid = GRID[method] if profile != "smoke" else SMOKE_GRID[method]
    rates = [float(f"{rate * epsilon:g}") for rate in grid]
    return {rate: autoencoder(profile, method, rate, SELECTION, short, epsilon=epsilon) for rate in rates}


def best_rate(profile: Profile, method: str, records: Sequence[Record], epsilon: float = EPSILON) -> float | None:
    """A method's best rate, once all have been tried."""
    return chosen(records, rate_trials(profile, method, epsilon))


def judged_trials(profile: Profile, method: str, rate: float) -> list[Trial]:
    """The runs of figure 3c at a rate, one a seed."""
    size = SIZE[profile]
    return [autoencoder(profile, method, rate, seed, size.updates) for seed in size.fresh]


def judged(profile: Profile, method: str, records: Sequence[Record]) -> list[Record]:
    """The runs of figure 3c at the best rate; empty until all are there."""
    rate = best_rate(profile, method, records)
    return [] if rate is None else find(records, judged_trials(profile, method, rate))


def epsilon_cells(profile: Profile, records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """Figure 3a's combinations (epsilon, rate) that are judged, once the grid has been run.

    ``small``: of those with a smaller epsilon than the largest and a smaller rate than the largest's best, the best.
    ``large``: the largest epsilon at its best rate. ``fast``: the smallest epsilon at that rate.
    """
    epsilons = epsilons_of(profile)
    found = {epsilon: best_rate(profile, "prong", records, epsilon) for epsilon in epsilons}
    high = found[epsilons[-1]]
    if high is None or None in found.values():
        return {}
    slower = {
        (epsilon, rate): final(find(records, [trial])[0], "validation")
        for epsilon in epsilons[:-1]
        for rate, trial in rate_trials(profile, "prong", epsilon).items()
        if rate < high
    }
    if not slower:
        return {}
    return {
        "small": min(slower, key=lambda cell: slower[cell]),
        "large": (epsilons[-1], high),
        "fast": (epsilons[0], high),
    }


def epsilons_of(profile: Profile) -> tuple[float, ...]:
    """The epsilons of figure 3a."""
    return EPSILONS[::3] if profile == "smoke" else EPSILONS


def epsilon_runs(profile: Profile, cell: tuple[float, float]) -> list[Trial]:
    """The judged runs of one of figure 3a's combinations."""
    size, (epsilon, rate) = SIZE[profile], cell
    return [autoencoder(profile, "prong", rate, seed, size.short, epsilon=epsilon) for seed in size.fresh]


def period_runs(profile: Profile, rate: float, every: int, initial: bool) -> list[Trial]:
    """Figure 3b at one T."""
    size = SIZE[profile]
    return [autoencoder(profile, "prong", rate, seed, size.period, every=every, initial=initial) for seed in size.fresh]


def autoencoder_trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All of the auto-encoder's that are known now."""
    known = [trial for method in AUTOENCODER for trial in rate_trials(profile, method).values()]
    for method in AUTOENCODER:
        rate = best_rate(profile, method, records)
        if rate is not None:
            known += judged_trials(profile, method, rate)
    for epsilon in epsilons_of(profile):
        known += rate_trials(profile, "prong", epsilon).values()
    for cell in epsilon_cells(profile, records).values():
        known += epsilon_runs(profile, cell)
    rate = best_rate(profile, "prong", records)
    if rate is not None:
        for every in SIZE[profile].periods:
            for initial in (True, False):
                known += period_runs(profile, rate, every, initial)
    return known


def updates_to(record: Record, level: float) -> float | None:
    """After how many updates a run's training error first came down to a level, between points by its logarithm."""
    updates, errors = record.curves["update"], record.curves["error"]
    before: tuple[float, float] | None = None
    for update, value in zip(updates, errors, strict=True):
        if update is None or value is None:
            return None
        if value <= level:
            if before is None or value == before[1]:
                return update
            share = math.log(before[1] / level) / math.log(before[1] / value)
            return before[0] + share * (update - before[0])
        before = (update, value)
    return None


def after(record: Record, point: int) -> float:
    """A run's training error at one of its measured points; that of the untrained net where it had diverged."""
    errors = record.curves["error"]
    value = errors[min(point, len(errors) - 1)]
    return final(record) if value is None else value


# Figure 2

TINY: Mapping[Profile, Mapping[str, Json]] = {
    "smoke": {"hidden": 8, "examples": 2000, "fisher": 1500, "updates": 60, "points": 2, "every": 20},
    "laptop": {"hidden": 16, "examples": 20_000, "fisher": 10_000, "updates": 2000, "points": 10, "every": 100},
    "paper": {"hidden": 16, "examples": 20_000, "fisher": 10_000, "updates": 2000, "points": 10, "every": 100},
}


def figure_2_trials(profile: Profile) -> list[Trial]:
    """Figure 2: one run a method and seed, which chooses its own rate."""
    size, smoke = SIZE[profile], profile == "smoke"
    rates = {
        "sgd": (0.01, 0.03, 0.1),
        "rmsprop": (1e-4, 3e-4, 1e-3),
        "bn": (0.01, 0.03, 0.1),
        "prong": (0.003, 0.01, 0.03),
    }
    settings: dict[str, Json] = {
        **TINY[profile],
        "batch": 128,
        "rates": {method: list(values[1:2] if smoke else values) for method, values in rates.items()},
        "target": 0.25,
        "epsilon": 1e-3,
        "drawn": 60,
    }
    return [
        Trial(KEY, f"figure 2 {method}", (seed,), settings, DATA, expected_seconds=2 if smoke else 90)
        for method in FISHER_METHODS
        for seed in size.fresh
    ]


def time_trials(profile: Profile) -> list[Trial]:
    """Section 4.2's costs."""
    size, smoke = SIZE[profile], profile == "smoke"
    settings: dict[str, Json] = {
        "sizes": size.sizes,
        "batch": 128,
        "bn batch": 256,
        "steps": 5 if smoke else 20,
        "every": size.every,
        "samples": size.samples,
        "epsilon": EPSILON,
    }
    repeats = tuple(range(3 if smoke else 5))
    return [Trial(KEY, "times", repeats, settings, DATA, exclusive=True, expected_seconds=1 if smoke else 60)]


def all_updates_to(runs: Sequence[Record], level: float) -> tuple[list[float], str]:
    """Updates to a level of several runs; those that never got there count as their length, and are told of."""
    needed = [updates_to(run, level) for run in runs]
    missed = sum(updates is None for updates in needed)
    method = runs[0].treatment
    note = (
        f"; {missed} of {len(runs)} runs of {method} never came down to it, and count as their length" if missed else ""
    )
    return [float(r.settings["updates"]) if u is None else u for u, r in zip(needed, runs, strict=True)], note


def batch_of(method: str) -> int:
    """The size of a method's batches."""
    return 256 if method == "bn" else 128
