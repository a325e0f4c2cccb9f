"""The trials of each profile, and how their records are read.

Trials are named by what decides their numbers and nothing else. Where the paper leaves a setting open, it is chosen on
the last 10,000 training pictures (section 5.1) by a run of its own seed, on other domains than the one that is judged
(section 5.3), or all settings are reported (table 4); no error chooses the setting that it is measured at. Seeds of a
group that have no record yet are left out: the rest is then judged as fewer seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from counterflow.lab.trials import Json, Profile, Record, Trial, available, find

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "CONV",
    "CONVERGED",
    "DOMAINS",
    "FORGETTING",
    "KEY",
    "LIMIT",
    "MAIN",
    "PERCEPTRONS",
    "READINGS",
    "TEXTS",
    "TRIED",
    "accuracies",
    "best_rate",
    "best_setting",
    "cell_name",
    "conv_trials",
    "forgetting_trials",
    "judged",
    "number",
    "perceptron_trials",
    "rate_trials",
    "setting_trials",
    "text_rate_trials",
    "text_rates",
    "text_trials",
    "truth_trials",
    "whole_trials",
]

KEY = "competition"
LIMIT = 15**0.5  # of the norm of a unit's weights: that of Hinton et al. (arXiv:1207.0580), whom the setup follows
SELECTION = 100  # the seed of runs that choose


def number(record: Record, metric: str) -> float:
    """A trial's only value of a metric."""
    value = record.metrics[metric][0]
    assert value is not None
    return float(value)


def accuracies(record: Record, metric: str) -> list[float]:
    """Those of a record's folds."""
    return [float(value or 0.0) for value in record.metrics[metric]]


# Table 1


def truth_trials(profile: Profile) -> list[Trial]:
    """Table 1: pairs of net inputs that are drawn until every row has been met often."""
    return [Trial(KEY, "table 1", (0,), {"pairs": 10_000}, expected_seconds=0.1)]


# Table 2 and figure 3


@dataclass(frozen=True)
class Perceptrons:
    """Table 2's nets in a profile.

    Args:
        units: Of each hidden layer, by method: those cited have the size of their source.
        examples: Training pictures.
        held: How many of them, the last ones, choose the rate, and are learned from by the runs that are judged.
        tested: Test pictures.
        epochs: Of a run, at the most; and of one that chooses.
        seeds: Runs of each method.
        seconds: What an epoch costs at most, about.
    """

    units: Mapping[str, tuple[int, ...]]
    examples: int
    held: int
    tested: int
    epochs: tuple[int, int]
    seeds: tuple[int, ...]
    seconds: float


_UNITS = {
    "lwta": (1000, 1000, 1000),
    "relu": (1000, 1000, 1000),
    "sigmoid": (800,),
    "dropout": (800, 800),
    "dropout input": (800, 800),
}
PERCEPTRONS: Mapping[Profile, Perceptrons] = {
    "smoke": Perceptrons(
        {m: tuple(u // 25 for u in of) for m, of in _UNITS.items()}, 1500, 500, 1000, (3, 1), (0, 1), 0.3
    ),
    "laptop": Perceptrons(_UNITS, 60_000, 10_000, 10_000, (40, 3), (0, 1, 2), 30.0),
    "paper": Perceptrons(_UNITS, 60_000, 10_000, 10_000, (200, 10), (0, 1, 2, 3, 4), 30.0),
}
BATCH = {"lwta": 20, "relu": 20, "sigmoid": 20, "dropout": 100, "dropout input": 100}
COST = {"lwta": 1.0, "relu": 1.0, "sigmoid": 0.25, "dropout": 0.2, "dropout input": 0.2}  # of an epoch
TRIED: Mapping[str, tuple[float, ...]] = {
    "lwta": (0.01, 0.03, 0.1),
    "relu": (0.01, 0.03, 0.1),
    "sigmoid": (0.03, 0.1, 0.3),
    "dropout": (0.03, 0.1, 0.3),
    "dropout input": (0.03, 0.1, 0.3),
}


CONVERGED = 0.001  # the mean training error of an epoch; the paper trains "until convergence" and gives no number


def _perceptron(
    profile: Profile, method: str, rate: float, seed: int, epochs: int, held: int, enough: float = CONVERGED
) -> Trial:
    size = PERCEPTRONS[profile]
    settings: dict[str, Json] = {
        "rate": rate,
        "units": size.units[method],
        "batch": BATCH[method],
        "examples": size.examples,
        "held": held,
        "tested": size.tested,
        "epochs": epochs,
        "momentum": (0.5, 0.9),
        "floor": 0.05,
        "limit": LIMIT,
        "enough": enough,
    }
    seconds = size.seconds * epochs * COST[method]
    return Trial(KEY, method, (seed,), settings, ("mnist",), movable=True, expected_seconds=seconds)


def rate_trials(profile: Profile, method: str) -> dict[float, Trial]:
    """The short runs that choose a method's rate."""
    size = PERCEPTRONS[profile]
    rates = TRIED[method][1:] if profile == "smoke" else TRIED[method]
    return {rate: _perceptron(profile, method, rate, SELECTION, size.epochs[1], size.held) for rate in rates}


def best_rate(profile: Profile, method: str, records: Sequence[Record]) -> float | None:
    """The rate with the least error on the pictures held out; None until all have been tried."""
    runs = {rate: find(records, [trial]) for rate, trial in rate_trials(profile, method).items()}
    return min(runs, key=lambda rate: number(runs[rate][0], "held")) if all(runs.values()) else None


def perceptron_trials(profile: Profile, method: str, rate: float, enough: float = CONVERGED) -> list[Trial]:
    """The runs that are judged: on all training pictures, until they have converged."""
    size = PERCEPTRONS[profile]
    return [_perceptron(profile, method, rate, seed, size.epochs[0], 0, enough) for seed in size.seeds]


def whole_trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """The competing nets once more, to the last epoch of the schedule, to show what ending them early costs."""
    rate = best_rate(profile, "lwta", records)
    return [] if rate is None else perceptron_trials(profile, "lwta", rate, enough=0.0)


def judged(profile: Profile, method: str, records: Sequence[Record]) -> list[Record]:
    """The records of those that are there."""
    rate = best_rate(profile, method, records)
    return [] if rate is None else available(records, perceptron_trials(profile, method, rate))


# Table 3


@dataclass(frozen=True)
class Conv:
    """Table 3's net in a profile: pictures, epochs (judged, choosing), seeds, and about the seconds of an epoch."""

    examples: int
    held: int
    tested: int
    epochs: tuple[int, int]
    seeds: tuple[int, ...]
    seconds: float


CONV: Mapping[Profile, Conv] = {
    "smoke": Conv(500, 100, 500, (1, 1), (0, 1), 0.6),
    "laptop": Conv(60_000, 10_000, 10_000, (12, 3), (0, 1, 2), 16.0),
    "paper": Conv(60_000, 10_000, 10_000, (100, 10), (0, 1, 2, 3, 4), 16.0),
}
# A weight decay of .05 can stand beside the batch's mean error or beside its sum, which is 100 times as large.
READINGS: Mapping[str, float] = {"mean": 0.05, "sum": 0.0005, "none": 0.0}
CONV_RATES: Mapping[Profile, tuple[float, ...]] = {
    "smoke": (0.03,),
    "laptop": (0.01, 0.03, 0.1),
    "paper": (0.01, 0.03, 0.1),
}


def _conv(profile: Profile, rate: float, decay: float, seed: int, epochs: int, held: int) -> Trial:
    size = CONV[profile]
    settings: dict[str, Json] = {
        "rate": rate,
        "decay": decay,
        "batch": 100,
        "examples": size.examples,
        "held": held,
        "tested": size.tested,
        "epochs": epochs,
        "momentum": (0.5, 0.9),
        "floor": 0.05,
        "limit": None,
        "enough": 0.0,
    }
    seconds = size.seconds * epochs
    return Trial(KEY, "conv", (seed,), settings, ("mnist",), movable=True, expected_seconds=seconds)


def setting_trials(profile: Profile) -> dict[tuple[str, float], Trial]:
    """The short runs that choose how the weight decay is read, and the learning rate."""
    size = CONV[profile]
    return {
        (reading, rate): _conv(profile, rate, decay, SELECTION, size.epochs[1], size.held)
        for reading, decay in READINGS.items()
        if reading != "none"
        for rate in CONV_RATES[profile]
    }


def best_setting(profile: Profile, records: Sequence[Record]) -> tuple[str, float] | None:
    """The reading and rate with the least error on the pictures held out; None until all have been tried."""
    runs = {setting: find(records, [trial]) for setting, trial in setting_trials(profile).items()}
    return min(runs, key=lambda setting: number(runs[setting][0], "held")) if all(runs.values()) else None


def conv_trials(profile: Profile, reading: str, rate: float) -> list[Trial]:
    """The runs that are judged, with a decay or ``"none"``."""
    size = CONV[profile]
    return [_conv(profile, rate, READINGS[reading], seed, size.epochs[0], 0) for seed in size.seeds]


# Section 5.3


@dataclass(frozen=True)
class Sentiment:
    """Section 5.3 in a profile.

    Args:
        domains: Of the products.
        reviews: Of each class of a domain, at the most.
        titles: Whether reviews are read with their titles.
        units: Of each hidden layer.
        words: Features.
        folds: Those that are tested, of ten.
        epochs: Over nine folds.
        seconds: What one domain costs, about.
        rates: Learning rates to choose from.
        choosing: Domains and folds that choose; a domain that is judged has no say in its own rate.
    """

    domains: tuple[str, ...]
    reviews: int
    titles: tuple[bool, ...]
    units: tuple[int, ...]
    words: int
    folds: tuple[int, ...]
    epochs: int
    seconds: float
    rates: tuple[float, ...]
    choosing: tuple[tuple[str, ...], tuple[int, ...]]


DOMAINS = ("books", "dvd", "electronics", "kitchen")
# As many rates, and as many reviews to choose by (three folds of each other domain), as the logistic regression has
# penalties and reviews of its own.
_FULL = Sentiment(
    DOMAINS, 1000, (False, True), (1000, 1000, 1000), 5000, tuple(range(10)), 15, 250.0,
    (0.01, 0.03, 0.1, 0.3, 1.0), (DOMAINS, (0, 1, 2)),
)  # fmt: skip
TEXTS: Mapping[Profile, Sentiment] = {
    "smoke": Sentiment(("books",), 200, (False,), (20, 20), 300, (0, 1), 5, 2.0, (0.1, 0.3), (("dvd",), (0,))),
    "laptop": _FULL,
    "paper": _FULL,
}


def _text_settings(profile: Profile, domain: str, titles: bool, rate: float) -> dict[str, Json]:
    size = TEXTS[profile]
    return {
        "domain": domain,
        "reviews": size.reviews,
        "titles": titles,
        "units": size.units,
        "words": size.words,
        "folds": 10,
        "batch": 100,
        "epochs": size.epochs,
        "rate": rate,
        "momentum": (0.5, 0.9),
        "floor": 0.05,
        "limit": LIMIT,
    }


def text_rate_trials(profile: Profile, titles: bool) -> dict[tuple[float, str], Trial]:
    """The folds that choose rates, by rate and domain."""
    size = TEXTS[profile]
    domains, folds = size.choosing
    return {
        (rate, domain): Trial(
            KEY, "sentiment rate", folds, _text_settings(profile, domain, titles, rate), ("sentiment",),
            expected_seconds=size.seconds * len(folds) / len(size.folds),
        )
        for rate in size.rates
        for domain in domains
    }  # fmt: skip


def text_rates(profile: Profile, domain: str, titles: bool, records: Sequence[Record]) -> dict[float, float]:
    """By rate, the mean accuracy on the other domains, which choose a domain's; none until all have been tried."""
    tried = text_rate_trials(profile, titles)
    found = {}
    for rate in TEXTS[profile].rates:
        runs = find(records, [tried[rate, other] for other in TEXTS[profile].choosing[0] if other != domain])
        if not runs:
            return {}
        found[rate] = float(np.mean([accuracies(run, "lwta all") for run in runs]))
    return found


def text_trials(profile: Profile, domain: str, titles: bool, records: Sequence[Record]) -> list[Trial]:
    """A domain's ten folds, one a seed, at the rate that is best for others; none before all have been tried there."""
    size, found = TEXTS[profile], text_rates(profile, domain, titles, records)
    if not found:
        return []
    rate = max(found, key=lambda rate: found[rate])
    settings = _text_settings(profile, domain, titles, rate)
    return [Trial(KEY, "sentiment", size.folds, settings, ("sentiment",), expected_seconds=size.seconds)]


# Table 4


@dataclass(frozen=True)
class Memory:
    """Table 4 in a profile.

    Args:
        units: Of each of three hidden layers.
        examples: Of each task, at the most.
        tested: Likewise.
        epochs: For a task, at the most.
        seeds: Initializations.
        seconds: What an epoch of a task costs, about.
    """

    units: int
    examples: int
    tested: int
    epochs: int
    seeds: tuple[int, ...]
    seconds: float


ACTIVATIONS = ("lwta", "relu", "sigmoid")
FORGETTING: Mapping[Profile, Memory] = {
    "smoke": Memory(40, 500, 500, 2, (0, 1), 0.1),
    "laptop": Memory(1000, 60_000, 10_000, 30, tuple(range(10)), 25.0),
    "paper": Memory(1000, 60_000, 10_000, 30, tuple(range(10)), 25.0),
}
# Rates and momenta are not in the paper. The first cell is judged with all seeds; all are in the table. Its steps,
# 0.1 = rate / (1 - momentum) long, were the longest that was tried at which competing nets do not diverge: at 0.2
# (rate 0.1, momentum 0.5) they mostly did on the second task, at 0.17 some do.
CELLS: tuple[tuple[float, float], ...] = ((0.02, 0.8), (0.05, 0.7), (0.02, 0.5))
MAIN = CELLS[0]
FEWER: Mapping[Profile, int] = {"smoke": 2, "laptop": 3, "paper": 10}  # seeds of the other cells


def cell_name(cell: tuple[float, float]) -> str:
    """As claims name it, such as ``"r0.02m0.8"``."""
    return f"r{cell[0]:g}m{cell[1]:g}"


def forgetting_trials(profile: Profile, activation: str, cell: tuple[float, float]) -> list[Trial]:
    """One cell of the grid, one initialization a trial."""
    size = FORGETTING[profile]
    slow = activation == "sigmoid" and cell[0] / (1 - cell[1]) < 0.15  # some 20 epochs a task at 0.17
    settings: dict[str, Json] = {
        "rate": cell[0],
        "momentum": cell[1],
        "units": size.units,
        "examples": size.examples,
        "tested": size.tested,
        "epochs": size.epochs * (3 if slow else 1),
        "goal": 0.03,
        "batch": 20,
        "limit": LIMIT,
    }
    seeds = size.seeds if cell == MAIN else size.seeds[: FEWER[profile]]
    epochs = 4 if activation != "sigmoid" else 70 if slow else 37
    cost, name = epochs * size.seconds, f"forgetting {activation}"
    return [Trial(KEY, name, (seed,), settings, ("mnist",), movable=True, expected_seconds=cost) for seed in seeds]
