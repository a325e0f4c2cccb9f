"""The trials of each profile.

One sweep, the same for every model: four settings, each with the same nine pairs of grammar scale and word penalty,
learned from some of AN4's training speakers and judged by others. Its winner, with its pair, serves both corpora, so
that nothing of the prompts has chosen anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from counterflow.lab.papers.speech.listening import PENALTIES, SCALES
from counterflow.lab.papers.speech.models import CONFIGS, HAND_MODELS, LABELS, configured
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
    "laptop": Size(None, None, (0, 1, 2, 3, 4), 4, 8, 20, 60, _ALL, 20.0),
    "paper": Size(None, None, (0, 1, 2, 3, 4), 4, 20, 52, 120, _ALL, 40.0),
}


def _trial(kind: str, model: str, profile: Profile, seed: int, config: Mapping[str, Any], **more: Json) -> Trial:
    size = SIZE[profile]
    name = "prompts" if kind == "prompts" else "an4"
    settings: dict[str, Json] = {
        "utterances": size.prompts if name == "prompts" else size.an4,
        "passes": size.passes,
        **config,
        **more,
    }
    if kind == "sweep":
        settings |= {"speakers": size.speakers, "choosing": size.choosing}
    seconds = size.seconds * WEIGHT[model] * {"sweep": 0.6, "an4": 2.0}.get(kind, 1.0)
    return Trial(KEY, f"{kind} {model}", (seed,), settings, data=(name,), expected_seconds=seconds)


def sweep_trials(profile: Profile, model: str) -> list[Trial]:
    """The settings that are tried for a model."""
    return [_trial("sweep", model, profile, 0, config) for config in CONFIGS[model][: SIZE[profile].configs]]


def pair_of(record: Record) -> tuple[float, float, float]:
    """The best scale and penalty of a record that tried all, and their accuracy."""
    grid = np.array([-np.inf if v is None else v for v in record.curves["grid"]]).reshape(len(SCALES), len(PENALTIES))
    row, column = (int(n) for n in np.unravel_index(int(grid.argmax()), grid.shape))
    return SCALES[row], PENALTIES[column], float(grid[row, column])


def best(profile: Profile, model: str, records: Sequence[Record]) -> tuple[Mapping[str, Any], float, float] | None:
    """The settings that the sweep chose for a model, with scale and penalty; None before all are there."""
    found = find(records, sweep_trials(profile, configured(model)))
    if not found:
        return None
    pairs = [pair_of(record) for record in found]
    number = int(np.argmax([accuracy for *_, accuracy in pairs]))
    return CONFIGS[configured(model)][number], pairs[number][0], pairs[number][1]


def an4_trial(profile: Profile, model: str, records: Sequence[Record]) -> list[Trial]:
    """A model on AN4's test speakers, as the sweep chose it."""
    chosen = best(profile, model, records)
    if chosen is None:
        return []
    config, scale, penalty = chosen
    return [_trial("an4", model, profile, 1, config, scale=scale, penalty=penalty)]


def prompts_trials(profile: Profile, model: str, records: Sequence[Record]) -> list[Trial]:
    """A model on the prompts; the fold is the seed."""
    chosen = best(profile, model, records)
    if chosen is None:
        return []
    config, scale, penalty = chosen
    folds = SIZE[profile].folds
    return [_trial("prompts", model, profile, fold, config, scale=scale, penalty=penalty) for fold in folds]


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
    for model in CONFIGS:
        found += sweep_trials(profile, model)
    for number, make in enumerate((prompts_trials, an4_trial)):
        for model in SIZE[profile].models[number]:
            found += make(profile, model, records)
    return found
