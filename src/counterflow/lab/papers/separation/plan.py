"""The trials of each profile: a trial is a room with a noise, and all methods in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from counterflow.lab.trials import Json, Profile, Record, Trial, find

__all__ = ["KEY", "KINDS", "METHODS", "NOISES", "SIZES", "SNRS", "SPLITS", "rates_of", "runs_of", "trials_of", "wrong"]

KEY = "separation"
NOISES = {"t1": "engine", "t2": "babble"}
SNRS = {"clean": 99, "15": 15, "10": 10, "5": 5}
SPLITS = ("train", "test")
METHODS = ("mlp", "ica", "att", "gamma0", "inverse", "oracle", "half")


@dataclass(frozen=True)
class Size:
    """How much of it a profile runs.

    Args:
        rooms: Seeds of the rooms.
        folds: Of the words.
        words: That are scored, of each kind.
        learned: That the classifier learns from.
        epochs: Of the classifier.
        iterations: Of ICA, of each score.
        passes: Of attention.
        rates: Learning rates of attention, over ICA's, that figure 3 has; the first is that of the tables.
        speakers: Pairs of speakers that are held out in the harder test.
        seconds: What a trial costs, about.
        slow: Learning rates that figure 3 has in trials of their own, of more passes, so that the slowest gets there.
    """

    rooms: tuple[int, ...]
    folds: tuple[int, ...]
    words: int
    learned: int
    epochs: int
    iterations: int
    passes: int
    rates: tuple[float, ...]
    speakers: tuple[int, ...]
    seconds: float
    slow: tuple[float, ...] = ()


SIZES: Mapping[Profile, Size] = {
    "smoke": Size((0,), (0,), 30, 200, 12, 8, 2, (1.0,), (), 10),
    "laptop": Size(tuple(range(6)), (0,), 300, 2700, 30, 40, 10, (1.0,), (0,), 400, (1.0, 0.5, 0.25)),
    "paper": Size(tuple(range(6)), tuple(range(5)), 600, 2700, 60, 60, 15, (1.0, 0.5, 0.25), (0, 1, 2), 2000),
}
# Chosen in two rooms and on words that no profile has: the largest weights at which no matrix ran away.
GAMMAS = (25.0, 50.0, 100.0)
GAMMA = 100.0
SLOW_PASSES = 30
# What there is beside the tables: the harder test, microphones that saturate, figure 3's learning rates.
KINDS = ("speakers", "microphones", "rates")
INVERSE = 30.0


def trials_of(profile: Profile, noise: str, kind: str = "words") -> list[Trial]:
    """The trials of one table (``"words"``), or of what `KINDS` has beside it; none where the profile lacks them."""
    size = SIZES[profile]
    if kind == "rates" and not size.slow:
        return []
    settings: dict[str, Json] = {
        "noise": noise,
        "reverberation": 0.1,
        "words": size.words,
        "learned": size.learned,
        "epochs": size.epochs,
        "iterations": size.iterations,
        "rate": 0.3,
        "passes": size.passes,
        "gamma": GAMMA,
        "inverse": INVERSE,
        "gammas": list(GAMMAS) if kind == "words" else [],
        "rates": list(size.rates) if kind == "words" else [],
        "snrs": list(SNRS.values()),
        "splits": list(SPLITS),
        "held out": "recordings",
        "drive": 0.0,
    }
    folds = size.folds
    if kind == "speakers":
        settings |= {"held out": "speakers", "splits": ["test"], "snrs": [SNRS["clean"], 15]}
        folds = size.speakers
    if kind == "microphones":
        settings |= {"drive": 2.0, "snrs": [SNRS["clean"], 15]}
        folds = size.folds[:1] if size.speakers else ()
    if kind == "rates":
        settings |= {
            "splits": ["train"], "methods": False, "gammas": [GAMMA], "rates": list(size.slow), "passes": SLOW_PASSES,
        }  # fmt: skip
    rooms = size.rooms if kind in ("words", "rates") else size.rooms[:1]
    return [
        Trial(
            KEY,
            f"{kind} {noise}",
            (room,),
            {**settings, "fold": fold},
            ("fsdd", "noise"),
            expected_seconds=size.seconds,
        )
        for fold in folds
        for room in rooms
    ]


def runs_of(profile: Profile, records: Sequence[Record], noise: str, kind: str = "words") -> list[Record]:
    """Their records; empty until all are there."""
    trials = trials_of(profile, noise, kind)
    return find(records, trials) if trials else []


def rates_of(profile: Profile, records: Sequence[Record]) -> tuple[tuple[float, ...], list[Record]]:
    """Figure 3's learning rates, and the records that have them."""
    size = SIZES[profile]
    kind = "rates" if size.slow else "words"
    return size.slow or size.rates, runs_of(profile, records, NOISES["t1"], kind)


def wrong(records: Sequence[Record], name: str) -> NDArray[np.float64]:
    """For each room the share of words that were not recognized in it, in percent.

    Rooms are the samples: a room has one classifier and one analysis, and they differ by far more than words do.
    """
    rooms: dict[int, list[NDArray[np.float64]]] = {}
    for record in records:
        values = np.array([float(v or 0.0) for v in record.curves[name]])
        rooms.setdefault(record.seeds[0], []).append(values)
    return np.array([100 * np.concatenate(each).mean() for _, each in sorted(rooms.items())])
