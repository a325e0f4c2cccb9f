"""The trials of each profile.

No trial chooses a setting for another, and all methods of a domain get the same settings. Laptop shrinks what costs
most: CIFAR-10 to 15,000 of its pictures and 4 epochs of them; the sizes of ensembles to those listed. The profile paper
takes every size from 2 to 6, more updates, and one run of four members at the published size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from counterflow.lab.trials import Json, Profile, Record, Trial

__all__ = [
    "CAPTIONS",
    "CIFAR",
    "KEY",
    "ROUNDS",
    "SCENES",
    "caption_trials",
    "classification_trials",
    "differs",
    "full_trials",
    "scene_trials",
    "seeds_of",
    "trials",
]

KEY = "choice"
ROUNDS = 5  # MCL's meta-iterations


@dataclass(frozen=True)
class Classification:
    """Figure 4 in a profile.

    Args:
        sizes: Ensembles of sMCL.
        alternated: Ensembles of MCL.
        ks: Of four members, beside 1 and 4.
        updates: Of a schedule.
        batch: Pictures an update.
        examples: Training pictures.
        tested: Test pictures.
        seeds: Runs of each.
        rounds: MCL's meta-iterations.
        restarts: Whether MCL is run with members that start anew in each round, too.
        seconds: What an update of one member costs, about.
    """

    sizes: tuple[int, ...]
    alternated: tuple[int, ...]
    ks: tuple[int, ...]
    updates: int
    batch: int
    examples: int
    tested: int
    seeds: tuple[int, ...]
    rounds: int
    restarts: bool
    seconds: float


CIFAR: Mapping[Profile, Classification] = {
    "smoke": Classification((2, 4), (2,), (2,), 4, 10, 60, 60, (0, 1), ROUNDS, False, 1.0),
    "laptop": Classification((2, 4, 6), (4,), (2, 3), 600, 100, 15_000, 10_000, (0, 1, 2), ROUNDS, False, 0.15),
    "paper": Classification(
        (2, 3, 4, 5, 6), (2, 3, 4, 5, 6), (2, 3), 2000, 100, 50_000, 10_000, (0, 1, 2), ROUNDS, True, 0.15
    ),
}


@dataclass(frozen=True)
class Segmentation:
    """Figure 5 in a profile.

    Args:
        sizes: Ensembles of sMCL; the last is that of all methods.
        epochs: Of the plain ensemble that sMCL starts from.
        fine: Epochs of fine-tuning.
        examples: Training scenes.
        tested: Test scenes.
        seeds: Runs of each.
        rounds: MCL's meta-iterations.
        seconds: What an epoch of one member costs, about.
    """

    sizes: tuple[int, ...]
    epochs: int
    fine: int
    examples: int
    tested: int
    seeds: tuple[int, ...]
    rounds: int
    seconds: float


SCENES: Mapping[Profile, Segmentation] = {
    "smoke": Segmentation((2,), 1, 1, 16, 6, (0, 1), 2, 5.0),
    "laptop": Segmentation((2, 4), 16, 5, 367, 233, (0, 1, 2), ROUNDS, 3.0),
    "paper": Segmentation((2, 3, 4, 5, 6), 50, 15, 367, 233, (0, 1, 2), ROUNDS, 3.0),
}


@dataclass(frozen=True)
class Captioning:
    """Table 1 in a profile.

    Args:
        sizes: Ensembles of sMCL; the last is that of all methods.
        updates: Of a schedule.
        width: Of embedding and state.
        rare: Words that occur less often in training are unknown.
        examples: Training pictures, of four sentences each.
        tested: Test pictures.
        seeds: Runs of each.
        rounds: MCL's meta-iterations.
        seconds: What an update of one member costs, about.
    """

    sizes: tuple[int, ...]
    updates: int
    width: int
    rare: int
    examples: int
    tested: int
    seeds: tuple[int, ...]
    rounds: int
    seconds: float


CAPTIONS: Mapping[Profile, Captioning] = {
    "smoke": Captioning((2, 5), 3, 16, 20, 40, 10, (0, 1), 2, 0.02),
    "laptop": Captioning((2, 5), 1400, 64, 20, 6000, 1000, (0, 1, 2), ROUNDS, 0.02),
    "paper": Captioning((2, 3, 4, 5), 2400, 256, 5, 6000, 1000, (0, 1, 2), ROUNDS, 0.2),
}


def classification_trials(profile: Profile, method: str, size: int = 0, k: int = 1) -> list[Trial]:
    """The runs of one ensemble of figure 4; of independent members and Dey's method the largest is all of them."""
    plan = CIFAR[profile]
    members = size if method in ("smcl", "mcl", "mcl restarts") else max(plan.sizes)
    settings: dict[str, Json] = {
        "members": members,
        "updates": plan.updates,
        "batch": plan.batch,
        "examples": plan.examples,
        "tested": plan.tested,
    }
    units = float(members)
    if method == "dey":
        units *= 0.6  # examples that are right already are not run
    if method == "smcl":
        settings["k"] = k
        units = 0.3 * members + k
    if method.startswith("mcl"):
        settings["rounds"] = units = plan.rounds
    cost = plan.seconds * plan.batch / 100 * plan.updates * units
    return [
        Trial(KEY, f"cifar10 {method}", (seed,), settings, ("cifar10",), movable=True, expected_seconds=cost)
        for seed in plan.seeds
    ]


def full_trials(method: str) -> list[Trial]:
    """One run of four members at the published size."""
    settings: dict[str, Json] = {"members": 4, "updates": 5000, "batch": 350, "examples": 50_000, "tested": 10_000}
    settings |= {"k": 1} if method == "smcl" else {}
    cost = 5000 * 0.5 * (2.2 if method == "smcl" else 4.0)
    return [Trial(KEY, f"full {method}", (0,), settings, ("cifar10",), movable=True, expected_seconds=cost)]


def scene_trials(profile: Profile, method: str) -> list[Trial]:
    """The runs of ``"warm"``, ``"dey"`` or ``"mcl"`` in figure 5."""
    plan = SCENES[profile]
    settings: dict[str, Json] = {
        "members": plan.sizes[-1],
        "epochs": plan.epochs,
        "fine": plan.fine,
        "examples": plan.examples,
        "tested": plan.tested,
    }
    units = plan.sizes[-1]
    if method == "warm":
        settings["sizes"] = list(plan.sizes)
    if method == "mcl":
        settings["rounds"] = units = plan.rounds
    cost = plan.seconds * plan.examples / 367 * units * (plan.epochs + plan.fine)
    return [
        Trial(KEY, f"scenes {method}", (seed,), settings, ("camvid",), movable=True, expected_seconds=cost)
        for seed in plan.seeds
    ]


def caption_trials(profile: Profile, method: str) -> list[Trial]:
    """The runs of ``"main"``, ``"dey"`` or ``"mcl"`` in table 1."""
    plan = CAPTIONS[profile]
    settings: dict[str, Json] = {
        "members": plan.sizes[-1],
        "updates": plan.updates,
        "width": plan.width,
        "rare": plan.rare,
        "examples": plan.examples,
        "tested": plan.tested,
    }
    units = plan.sizes[-1] + 1
    if method == "main":
        settings["sizes"] = list(plan.sizes)
        units *= 3
    if method == "mcl":
        settings["rounds"] = plan.rounds
        units = plan.rounds + 3
    cost = plan.seconds * plan.updates * units
    return [
        Trial(KEY, f"captions {method}", (seed,), settings, ("captions",), expected_seconds=cost) for seed in plan.seeds
    ]


def trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All trials: none follows from another."""
    plan = CIFAR[profile]
    found = [
        *classification_trials(profile, "independent"),
        *classification_trials(profile, "dey"),
        *(trial for size in plan.sizes for trial in classification_trials(profile, "smcl", size)),
        *(trial for k in plan.ks for trial in classification_trials(profile, "smcl", 4, k)),
        *(trial for size in plan.alternated for trial in classification_trials(profile, "mcl", size)),
        *(trial for method in ("warm", "dey", "mcl") for trial in scene_trials(profile, method)),
        *(trial for method in ("main", "dey", "mcl", "annealed") for trial in caption_trials(profile, method)),
    ]
    if plan.restarts:
        found += classification_trials(profile, "mcl restarts", 4)
    if profile == "paper":
        found += [trial for method in ("smcl", "independent") for trial in full_trials(method)]
    return found


def seeds_of(profile: Profile, domain: str) -> tuple[int, ...]:
    """The seeds of a domain's trials."""
    if domain == "cifar10":
        return CIFAR[profile].seeds
    return SCENES[profile].seeds if domain == "scenes" else CAPTIONS[profile].seeds


def differs(profile: Profile, domain: str) -> str:
    """What is not as in the paper."""
    if domain == "cifar10":
        a = CIFAR[profile]
        return f"{a.examples:,} JPEG-compressed training pictures, {a.updates:,} updates of {a.batch} pictures"
    if domain == "scenes":
        b = SCENES[profile]
        words = f"{b.epochs} + {b.fine} epochs of {b.examples} scenes"
        return f"CamVid at 80x60 and a small net without pretraining in place of PASCAL VOC and VGG16; {words}"
    c = CAPTIONS[profile]
    words = f"{c.updates:,} updates of 50 sentences, {c.width} units"
    return f"Flickr8k's captions, each picture stood for by another caption of it; no pictures, no VGG16; {words}"
