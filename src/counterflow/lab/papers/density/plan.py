"""The trials of each profile, and how their records are read.

Trials are named by what decides their numbers and nothing else: one net, or one comparison, on one random split. No
setting is chosen by test results. A claim is measured on the splits that all of its nets have finished.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from counterflow.lab import stats
from counterflow.lab.papers.density.nets import NETS, SCALE
from counterflow.lab.trials import Json, Profile, Record, Trial
from counterflow.lab.trials.finding import identity

__all__ = [
    "KEY",
    "PANELS",
    "SIZES",
    "Runs",
    "index",
    "net_trials",
    "of_net",
    "overlap_of",
    "p_values",
    "paired",
    "samples",
    "trials",
]

KEY = "density"
PANELS: Mapping[str, int] = {"a": 12, "b": 16, "c": 20, "d": 24}
"""The paper's panels, and their HMMs for 12 speakers."""
RATIO: Mapping[str, int] = {"a": 8, "b": 11, "c": 13, "d": 16}
"""The same ratios for eight speakers."""
WHOLE = ("rdn", "alphanet", "mixture", "cdn", "cdn1")
SCALES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Size:
    """What a profile runs.

    Args:
        splits: Random splits.
        ratio: Panels at the paper's ratios, by the models that they have here.
        literal: The same with the paper's own numbers.
        an4: The same on cepstra.
        iterations: Of conjugate gradients.
        why: Models of the nets by which the reason is looked for, and features compared.
        sentences: For footnote 3.
        common: Settings that cut the corpus.
        cost: Seconds of one core that 90 iterations of eight models on all of it take, about.
    """

    splits: int
    ratio: Mapping[str, int]
    literal: Mapping[str, int]
    an4: Mapping[str, int]
    iterations: int
    why: int
    sentences: int
    timing: Mapping[str, Json]
    common: Mapping[str, Json] = field(default_factory=dict)
    cost: float = 25.0


# From where K^2 outweighs what a frame costs at any K, to where 8 MB of transitions still fit into a cache.
_STATES: list[Json] = [256, 512, 1024]
_FEW_STATES: list[Json] = [32, 64, 128, 256]
_TIMING: Mapping[str, Json] = {
    "states": _STATES, "models": 24, "classes": 12, "features": 24, "batch": 32, "frames": 200,
}  # fmt: skip
_SMALL: Mapping[str, Json] = {
    "states": _STATES,
    "models": 8,
    "classes": 4,
    "features": 8,
    "batch": 4,
    "frames": 60,
}
_FULL = Size(10, RATIO, PANELS, PANELS, 90, 8, 10, _TIMING)
SIZES: Mapping[Profile, Size] = {
    "smoke": Size(
        3, {"a": 4}, {}, {}, 8, 4, 0, _SMALL, {"speakers": 4, "clips": 12, "frames": 60}, 0.2
    ),
    "laptop": _FULL,
    "paper": _FULL,
}  # fmt: skip


def settings_of(profile: Profile, net: str, models: int, average: bool = True, **change: Json) -> dict[str, Json]:
    """The settings of one net."""
    size = SIZES[profile]
    return {
        "corpus": "emodb", "features": "log mel", "speakers": 0, "clips": 0, "frames": 0, "text": "",
        **size.common,
        "net": net, "models": models, "average": average, "scale": SCALE, "first": "random",
        "iterations": size.iterations, **change,
    }  # fmt: skip


def net_trials(
    profile: Profile, net: str, models: int, average: bool = True, *, count: int | None = None, **change: Json
) -> list[Trial]:
    """One net on all splits, one trial a split."""
    size = SIZES[profile]
    settings = settings_of(profile, net, models, average, **change)
    corpus = str(settings["corpus"])
    share = {"emodb": 1.0, "an4": 0.4}[corpus] * (0.15 if settings["text"] else 1.0)
    weight = models / 8 * (1.5 if net == "alphanet" else 1.0) * int(str(settings["iterations"])) / 90
    name = " ".join(filter(None, (net, "averaged" if average else "whole", corpus, str(settings["text"]))))
    return [
        Trial(KEY, name, (seed,), settings, (corpus,), expected_seconds=max(0.01, size.cost * share * weight))
        for seed in range(size.splits if count is None else count)
    ]


def panel_trials(profile: Profile) -> dict[str, dict[str, list[Trial]]]:
    """By the prefix of a panel's claims, by net and reading, such as ``"rdn whole"``."""
    size = SIZES[profile]
    two = WHOLE[:2]
    whole: tuple[str, ...] = two if profile == "smoke" else WHOLE
    an4: dict[str, Any] = {"corpus": "an4", "features": "cepstra", "speakers": 12}
    # By panel: models, what differs, nets that average over time, and that do not.
    cases: list[tuple[str, int, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = []
    for panel, models in size.ratio.items():
        cases.append((f"fig3{panel}", models, {}, NETS, whole))
    cases += [(f"models{PANELS[p]}", models, {}, NETS, two) for p, models in size.literal.items()]
    cases += [(f"an4.{PANELS[p]}", models, an4, NETS, two) for p, models in size.an4.items()]
    found: dict[str, dict[str, list[Trial]]] = {}
    for prefix, models, change, averaged, plain in cases:
        found[prefix] = {f"{net} averaged": net_trials(profile, net, models, True, **change) for net in averaged}
        found[prefix] |= {f"{net} whole": net_trials(profile, net, models, False, **change) for net in plain}
    return found


def reason_trials(profile: Profile) -> dict[str, list[Trial]]:
    """The experiments behind the reason, the features and the comparisons, by name."""
    size = SIZES[profile]
    models, longer = size.why, 3 * size.iterations
    found: dict[str, list[Trial]] = {}
    base = settings_of(profile, "cdn", models)
    looks = {key: value for key, value in base.items() if key not in ("net", "scale", "first", "iterations")}

    def others(name: str, settings: Mapping[str, Json]) -> list[Trial]:
        return [Trial(KEY, name, (s,), settings, ("emodb",), expected_seconds=size.cost) for s in range(size.splits)]

    found["errors"] = others("errors", {**looks, "scales": list(SCALES)})
    short = profile == "smoke"
    peers: dict[str, dict[str, Json]] = {
        "linear": {},
        "gru": {"epochs": 2 if short else 40},
        "hmmlearn": {"fitting": 2 if short else 20},
    }
    found |= {peer: others(f"peer {peer}", {**looks, **own}) for peer, own in peers.items()}
    if short:
        return found
    found["untempered"] = others("descent untempered", {**base, "tempered": False})
    found["tempered"] = others("descent tempered", {**base, "tempered": True})
    found["longer"] = net_trials(profile, "cdn", models, iterations=longer)
    found["scale 1"] = net_trials(profile, "cdn", models, scale=1.0)
    found["pairs"] = net_trials(profile, "cdn", models, first="pairs")
    found["cosine"] = net_trials(profile, "rdn", models, features="cosine")
    for text in ("same", "mixed") if size.sentences else ():
        for net in ("alphanet", "mixture"):
            found[f"{net} {text}"] = net_trials(profile, net, models, count=size.sentences, text=text)
    return found


def speed_trials(profile: Profile) -> list[Trial]:
    """The timed trials: with as many states as tell of K^2, and with few."""
    repeats = 3 if profile == "smoke" else 15
    return [
        Trial(
            KEY, "speed", tuple(range(repeats)), {**SIZES[profile].timing, "states": states}, exclusive=True,
            expected_seconds=2 if profile == "smoke" else 60,
        )
        for states in (_STATES, _FEW_STATES)
    ]  # fmt: skip


def trials(profile: Profile) -> list[Trial]:
    """All trials, each once."""
    every = [trial for panel in panel_trials(profile).values() for runs in panel.values() for trial in runs]
    every += [trial for runs in reason_trials(profile).values() for trial in runs]
    every += speed_trials(profile)
    return list({identity(trial): trial for trial in every}.values())


def samples(records: Sequence[Record], metric: str = "test") -> tuple[float, ...]:
    """One number a split."""
    return tuple(float(record.metrics[metric][0] or 0.0) for record in records)


def overlap_of(records: Sequence[Record]) -> float:
    """Test recordings over training recordings: the splits are of one corpus."""
    return float(np.mean(samples(records, "ratio")))


def p_values(first: Sequence[Record], second: Sequence[Record]) -> tuple[float, float]:
    """That the first net is better: two-sided p of the paired t test and of the corrected one, 1 where it is behind."""
    a, b = samples(first), samples(second)
    plain, corrected = (
        min(1.0, 2 * stats.contrast_p([stats.paired_term(a, b, "linear", overlap)])[1])
        for overlap in (0.0, overlap_of(first))
    )
    return plain, corrected


Runs = Mapping[int, Record]
"""The records of one net, by split."""


def index(records: Sequence[Record]) -> dict[bytes, Record]:
    """Records by what names their trial."""
    return {identity(record): record for record in records}


def of_net(found: Mapping[bytes, Record], wanted: Sequence[Trial]) -> dict[int, Record]:
    """Those of a net's trials that have a record in the `index`, by split."""
    names = {trial.seeds[0]: identity(trial) for trial in wanted}
    return {seed: found[name] for seed, name in names.items() if name in found}


def paired(*runs: Runs) -> list[list[Record]]:
    """The records of the splits that all of them have finished, in the order of the splits."""
    shared = sorted(set.intersection(*(set(each) for each in runs))) if runs else []
    return [[each[seed] for seed in shared] for each in runs]
