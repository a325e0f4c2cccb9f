"""The trials of each profile.

The same sweep for every model on each corpus: six settings, each with the same twelve pairs of grammar scale and word
penalty. On AN4 it learns from some of the training speakers, and others choose. On the prompts each fold that judges
has a sweep of its own: the next fold chooses, the other three are learned from. The winner, with its pair, then learns
from all but what judges. Models that are built on the networks take over their settings, and have a pair of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from counterflow.lab.papers.speech.listening import PENALTIES, SCALES
from counterflow.lab.papers.speech.models import BUILT_ON, CONFIGS, HAND_MODELS, LABELS, configured
from counterflow.lab.trials import Json, Profile, Record, Trial, find

__all__ = [
    "KEY",
    "SIZE",
    "an4_trial",
    "best",
    "hand_trials",
    "pair_of",
    "prompts_trials",
    "speed_trial",
    "sweep_trials",
]

KEY = "speech"
WEIGHT = {
    "lpnn": 4.0, "corrective": 6.0, "context": 5.0, "function": 4.0, "linear": 2.0, "global": 3.0, "gaussian": 1.0,
    "gaussian delta": 1.2, "mixture": 1.5, "two states": 3.0, "hidden control": 3.0,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much of it a profile does.

    Args:
        prompts: Utterances; None for all.
        an4: Utterances; None for all.
        folds: Folds of the prompts that judge.
        configs: Settings that the sweep tries for a model.
        passes: Over the utterances, for predictors.
        speakers: AN4's speakers that the sweep learns from; the choosing ones are others.
        choosing: Utterances at most that choose.
        models: Those that judge on the prompts, and on AN4.
        seconds: What training of the simplest model costs, about.
    """

    prompts: int | None
    an4: int | None
    folds: tuple[int, ...]
    configs: int
    passes: int
    speakers: int
    choosing: int
    models: tuple[Sequence[str], Sequence[str]]
    seconds: float


_REMEDIES = ("context", "function")
_ALL = (tuple(LABELS), tuple(name for name in LABELS if name not in _REMEDIES))
_FEW = (tuple(name for name in LABELS if name not in (*_REMEDIES, "mixture")), ("lpnn", "gaussian"))
SIZE: Mapping[Profile, Size] = {
    "smoke": Size(30, 60, (0, 1), 1, 2, 20, 3, _FEW, 0.2),
    "laptop": Size(None, None, (0, 1, 2, 3, 4), 6, 20, 20, 40, _ALL, 12.0),
    "paper": Size(None, None, (0, 1, 2, 3, 4), 6, 60, 52, 120, _ALL, 36.0),
}


def _trial(
    corpus: str,
    model: str,
    profile: Profile,
    seed: int,
    config: Mapping[str, Any],
    *,
    sweep: bool = False,
    **more: Json,
) -> Trial:
    size = SIZE[profile]
    settings: dict[str, Json] = {
        "utterances": size.prompts if corpus == "prompts" else size.an4,
        "passes": size.passes,
        **config,
        **more,
    }
    seconds = size.seconds * WEIGHT[model] * (1.0 if corpus == "prompts" else 2.0)
    if sweep:
        settings |= {"speakers": size.speakers, "choosing": size.choosing}
        seconds *= 0.6
    name = f"sweep {corpus} {model}" if sweep else f"{corpus} {model}"
    return Trial(KEY, name, (seed,), settings, data=(corpus,), expected_seconds=seconds)


def sweep_trials(profile: Profile, corpus: str, fold: int, model: str, records: Sequence[Record]) -> list[Trial]:
    """The settings that are tried for a model; none yet for one that waits for the networks that it is built on.

    The fold of the prompts is the one that will judge; AN4 has fold 0 only.
    """
    if model not in BUILT_ON:
        configs: Sequence[Mapping[str, Any]] = CONFIGS[model][: SIZE[profile].configs]
    else:
        chosen = best(profile, corpus, fold, configured(model), records)
        configs = [] if chosen is None else [chosen[0]]
    return [_trial(corpus, model, profile, fold, config, sweep=True) for config in configs]


def pair_of(record: Record) -> tuple[float, float, float]:
    """The best scale and penalty of a record that tried all, and their accuracy."""
    grid = np.array([-np.inf if v is None else v for v in record.curves["grid"]]).reshape(len(SCALES), len(PENALTIES))
    row, column = (int(n) for n in np.unravel_index(int(grid.argmax()), grid.shape))
    return SCALES[row], PENALTIES[column], float(grid[row, column])


def best(
    profile: Profile, corpus: str, fold: int, model: str, records: Sequence[Record]
) -> tuple[Mapping[str, Any], float, float] | None:
    """The settings that the sweep chose for a model, with scale and penalty; None before all are there."""
    trials = sweep_trials(profile, corpus, fold, model, records)
    found = find(records, trials)
    if not found:
        return None
    pairs = [pair_of(record) for record in found]
    number = int(np.argmax([accuracy for *_, accuracy in pairs]))
    names = CONFIGS[configured(model)][0]
    return {name: trials[number].settings[name] for name in names}, pairs[number][0], pairs[number][1]


def _judging(profile: Profile, corpus: str, fold: int, model: str, records: Sequence[Record]) -> list[Trial]:
    chosen = best(profile, corpus, fold, model, records)
    if chosen is None:
        return []
    config, scale, penalty = chosen
    seed = 1 if corpus == "an4" else fold
    return [_trial(corpus, model, profile, seed, config, scale=scale, penalty=penalty)]


def an4_trial(profile: Profile, model: str, records: Sequence[Record]) -> list[Trial]:
    """A model on AN4's test speakers, as the sweep chose it."""
    return _judging(profile, "an4", 0, model, records)


def prompts_trials(profile: Profile, model: str, records: Sequence[Record]) -> list[Trial]:
    """A model on the prompts, as far as the sweeps are done; the fold is the seed."""
    return [t for fold in SIZE[profile].folds for t in _judging(profile, "prompts", fold, model, records)]


def speed_trial(profile: Profile) -> Trial:
    """Hidden control against networks of their own."""
    settings: dict[str, Json] = {"frames": 200 if profile == "smoke" else 1000, "hidden": 16}
    return Trial(KEY, "speed", tuple(range(5)), settings, exclusive=True, expected_seconds=2.0)


def hand_trials(profile: Profile) -> list[Trial]:
    """Alignments beside labels by hand; ``shift`` is half of what a window is longer than a step, in seconds."""
    size = SIZE[profile]
    return [
        Trial(
            KEY,
            f"hand {model}",
            (0,),
            {"utterances": 24 if profile == "smoke" else None, "passes": size.passes, "shift": 0.0075, **config},
            data=("emodb",),
            expected_seconds=1.5 * size.seconds * WEIGHT[model],
        )
        for model, config in HAND_MODELS.items()
        if profile != "smoke" or model != "mixture"
    ]


def all_trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All trials that are known now."""
    found = [speed_trial(profile), *hand_trials(profile)]
    for number, (corpus, make) in enumerate((("prompts", prompts_trials), ("an4", an4_trial))):
        for model in SIZE[profile].models[number]:
            for fold in SIZE[profile].folds if corpus == "prompts" else (0,):
                found += sweep_trials(profile, corpus, fold, model, records)
            found += make(profile, model, records)
    return found
