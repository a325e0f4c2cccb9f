"""The trials behind the BPTT paper's figures and statements, and what is measured from them.

Most claims are numbers of forward operations and are computed (`counterflow.lab.papers.bptt.costs`), the same in all
profiles but for figure 7, which smoke ends at shorter sequences. The rest is measured on an LSTM
(`counterflow.lab.papers.bptt.timing`): smoke takes a narrow one; laptop the paper's, with sequences up to 1,000 steps
in figure 2b; paper those up to 2,000.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from counterflow.bptt.costs import hidden_cost
from counterflow.lab.papers.bptt import costs, timing
from counterflow.lab.papers.bptt.figures import exhibits, longest
from counterflow.lab.trials import Context, Group, Json, Measurement, Outcome, Paper, Profile, Record, Trial, claims_of

__all__ = ["PAPER"]

KEY = "bptt"

PAPERS_NET: Mapping[str, int] = {"width": 256, "batch": 64}
NARROW_NET: Mapping[str, int] = {"width": 128, "batch": 32}
COUNTED_NET: Mapping[str, int] = {"width": 32, "batch": 8, "steps": 100}  # bytes do not depend on its size
LENGTHS: Mapping[Profile, Sequence[int]] = {
    "smoke": (100, 300),
    "laptop": (100, 200, 400, 700, 1000),
    "paper": (100, 200, 400, 700, 1000, 1500, 2000),
}
REPEATS: Mapping[Profile, int] = {"smoke": 3, "laptop": 5, "paper": 5}
ITERATIONS: Mapping[Profile, int] = {"smoke": 3, "laptop": 10, "paper": 10}  # of the one length that the abstract names


def _place(bound: str, numbers: Mapping[str, float]) -> str:
    return f"the most at t = {numbers[f'{bound}.steps']:.0f}, m = {numbers[f'{bound}.slots']:.0f}"


# What a reader of a claim must know beside its number, from the numbers of its trial.
NOTES: Mapping[str, Callable[[Mapping[str, float]], str]] = {
    **{bound: functools.partial(_place, bound) for bound in ("bound1", "bound2", "bound4")},
    "bound3": lambda n: (
        f"{_place('bound3', n)}; it fails in {n['bound3.broken']:.0f} "
        f"of {n['bound3.cells']:.0f} cells, for t from {n['bound3.from']:.0f} on"
    ),
    "fig6a.crossing": lambda n: f"at {n['fig6a.crossed at']:.0f} steps",
    "fig6b.crossing": lambda n: f"at {n['fig6b.crossed at']:.0f} steps",
    "opt.search": lambda n: (
        f"{n['opt.cases']:.0f} cases of hidden, internal and mixed states (alpha = 2 and 3; beta = alpha and alpha - 1)"
    ),
}


def trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All trials; none depends on another one's record."""
    smoke = profile == "smoke"
    net: Mapping[str, Json] = NARROW_NET if smoke else PAPERS_NET
    scale = 1 if smoke else 6
    seeds = tuple(range(REPEATS[profile]))
    return [
        _computed("plans", 4, steps=1000),
        _computed("strategies", 4, steps=10_000),
        _computed("chen", 10, steps=1000 if smoke else 10_000),
        _computed("bounds", 8, steps=100_000, slots=1000),
        _computed("search", 2, steps=6),
        Trial(KEY, "budgets", (0,), COUNTED_NET, expected_seconds=5),
        Trial(
            KEY,
            "iteration",
            tuple(range(ITERATIONS[profile])),
            {**net, "steps": 1000, "slots": 50},
            exclusive=True,
            expected_seconds=2.5 * ITERATIONS[profile] * scale,
        ),
        *(
            Trial(
                KEY,
                "figure 2b",
                seeds,
                {**net, "steps": steps},
                exclusive=True,
                expected_seconds=0.008 * steps * len(seeds) * scale,
            )
            for steps in LENGTHS[profile]
        ),
    ]


def _computed(treatment: str, seconds: float, **settings: int) -> Trial:
    return Trial(KEY, treatment, (0,), settings, expected_seconds=seconds)


def run(trial: Trial, context: Context) -> Outcome:
    """One trial: numbers of forward operations, or times and bytes."""
    settings: Mapping[str, Any] = trial.settings
    if trial.treatment in costs.TRIALS:
        return costs.TRIALS[trial.treatment](settings, context)
    return timing.TRIALS[trial.treatment](settings, trial.seeds, context)


def measure(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    """A measurement for every claim whose trials are there."""
    found: dict[str, Measurement] = {}
    for record in records:
        if record.treatment in costs.TRIALS or record.treatment == "budgets":
            _add_computed(found, profile, record)
        elif record.treatment == "iteration":
            _add_iteration(found, profile, record)
    last = longest(records)
    if last is not None:
        _add_lengths(found, profile, last)
    return found


def _add_computed(found: dict[str, Measurement], profile: Profile, record: Record) -> None:
    numbers = {name: float(values[0]) for name, values in record.metrics.items() if values[0] is not None}
    shorter: dict[str, Any] = {}
    if record.treatment == "chen" and profile == "smoke":
        shorter = {"setting": "smaller", "differs": f"sequences up to {record.settings['steps']} steps"}
    elif record.treatment == "budgets":
        shorter = {"setting": "smaller", "differs": _net(record)}
    for claim in (claim.id for claim in claims_of(KEY) if claim.id in numbers):
        found[claim] = Measurement(
            (Group((numbers[claim],), deterministic=True),),
            reason=NOTES[claim](numbers) if claim in NOTES else "",
            seconds=record.seconds,
            **shorter,
        )


def _net(record: Record) -> str:
    return "an LSTM from {0} to {0}, batches of {1}, {2} steps".format(
        record.settings["width"], record.settings["batch"], record.settings["steps"]
    )


def _add_iteration(found: dict[str, Measurement], profile: Profile, record: Record) -> None:
    times = {name: tuple(float(value or 0.0) for value in values) for name, values in record.metrics.items()}
    setting = _setting(profile, record, "")
    ratio = (_ratio(times["planned"], times["plain"]),)
    calls = times["planned calls"][0] / record.settings["steps"]
    counted = f"{calls:.4g} forward operations a step counted in the core"
    for claim in ("abs.time.measured", "abs.third.measured"):
        found[claim] = Measurement(
            ratio,
            reason=counted,
            seconds=record.seconds,
            **setting,
        )
    found["sec4.backward"] = Measurement(
        (_ratio(times["backward"], times["forward"]),),
        reason="the backward and the forward pass of standard BPTT",
        seconds=record.seconds,
        **setting,
    )
    saved = 1 - times["planned bytes"][0] / times["plain bytes"][0]
    found["abs.memory.measured"] = Measurement(
        (Group((saved,), deterministic=True),),
        reason=f"{times['planned bytes'][0]:.4g} bytes in place of {times['plain bytes'][0]:.4g}",
        seconds=record.seconds,
        **setting,
    )


def _add_lengths(found: dict[str, Measurement], profile: Profile, record: Record) -> None:
    times = {name: tuple(float(value or 0.0) for value in values) for name, values in record.metrics.items()}
    steps = record.settings["steps"]
    setting = _setting(profile, record, f"sequences up to {steps} steps")
    for m in costs.MEMORIES:
        theory = hidden_cost(steps, min(m, steps)) / steps
        found[f"fig2b.less_severe.m{m}"] = Measurement(
            (
                _ratio(times[f"m{m}"], times["plain"]),
                Group((theory,), -1.0, deterministic=True),
            ),
            reason=f"measured over standard BPTT, over the {theory:.4g} of the theory",
            seconds=record.seconds,
            **setting,
        )
    for claim, other in (("fig2b.slower", "plain"), ("fig2b.scarce", f"m{costs.MEMORIES[-1]}")):
        found[claim] = Measurement((_ratio(times["m10"], times[other]),), seconds=record.seconds, **setting)


def _ratio(above: Sequence[float], below: Sequence[float]) -> Group:
    """One ratio a repeat: what is compared ran side by side in it, so that it met the same machine."""
    return Group(tuple(a / b for a, b in zip(above, below, strict=True)))


def _setting(profile: Profile, record: Record, shorter: str) -> dict[str, Any]:
    if profile == "smoke":
        return {"setting": "smaller", "differs": _net(record)}
    if shorter and profile == "laptop":
        return {"setting": "smaller", "differs": shorter}
    return {"setting": "same"}


PAPER = Paper(
    key=KEY,
    revision=1,
    trials=trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
