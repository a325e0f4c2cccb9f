"""The trials behind figure 5 of "Active Noise Canceling using Analog Neuro-Chip", and what is measured from them.

The paper gives neither the size of its perceptron, nor levels, nor where the cubic sits, nor its sign: those are
settings, of which the paper's claims are judged in one and all are shown. The noises are not the paper's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from counterflow.lab.papers.noise_control import plan, runs, sensitivity
from counterflow.lab.papers.noise_control.figures import exhibits, reading
from counterflow.lab.trials import Context, Group, Measurement, Outcome, Paper, Profile, Record, Trial

__all__ = ["PAPER"]

SILICON = "a property of silicon; benchmarks/noise_control.py has the speed of the simulation"
BUILT_IN = "the simulation is built with this number"
NO_CHIP = "no run of the chip's model"
STUDIES = {
    "one at a time": sensitivity.one_at_a_time,
    "precision": sensitivity.precision,
    "attribution": sensitivity.attribution,
}


def trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All trials: none follows from another."""
    return plan.all_trials(profile)


def run(trial: Trial, context: Context) -> Outcome:
    """One trial."""
    study = STUDIES.get(trial.treatment)
    if study:
        return study(trial.seeds, trial.settings, context)
    return runs.line(trial.treatment, trial.seeds, trial.settings, context)


def paired(lines: Sequence[tuple[Sequence[float], float]]) -> Group:
    """The sum of several lines, each times its power, seed by seed."""
    return Group(
        tuple(sum(values) for values in zip(*([power * v for v in line] for line, power in lines), strict=True))
    )


def differs(profile: Profile) -> str:
    """Which noise the claims are judged on, how far its parts are one and the same, and in which reading."""
    plans, (_, rate) = plan.PLANS[profile], plan.PAPERS[0]
    starts = sorted(runs.first_of_part(plan.PAPERS_SAMPLES, rate, plans.seconds, seed) / rate for seed in plans.seeds)
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    which = "any two" if starts[-1] - starts[0] < plans.seconds else "some" if min(gaps) < plans.seconds else "no two"
    total = plan.PAPERS_SAMPLES / rate
    return (
        f"{len(starts)} parts of {plans.seconds:g} s of another car's noise, of which {which} overlap: they start "
        f"between {starts[0]:.2f} and {starts[-1]:.2f} s of one recording of {total:.1f} s; judged in "
        f"one reading of the paper, chosen because a sketch of it had the paper's shape: {reading(*plan.PAPERS)}"
    )


class _Lines:
    """The lines of one channel of figure 5 in the paper's reading."""

    def __init__(self, profile: Profile, records: Sequence[Record], channel: str) -> None:
        plans = plan.PLANS[profile]
        self.ratios = plans.ratios
        found = {
            arm: plan.record_of(records, plan.figure_trial(profile, arm, channel, *plan.PAPERS)) for arm in plan.ARMS
        }
        self.records = {arm: record for arm, record in found.items() if record}
        self.setting: dict[str, Any] = {"setting": "other data", "differs": differs(profile)}

    def at(self, arm: str, ratio: float) -> tuple[float, ...]:
        """Reductions, a run that diverged being none."""
        return tuple(float(value or 0.0) for value in self.records[arm].metrics[plan.key(ratio)])

    def mean(self, arm: str) -> tuple[float, ...]:
        """Each seed's mean over the ratios."""
        lines = [self.at(arm, ratio) for ratio in self.ratios]
        return tuple(sum(values) / len(values) for values in zip(*lines, strict=True))

    def measurement(self, *terms: tuple[str, float | None, float], reason: str = "") -> Measurement:
        """A contrast of arms at ratios, or over all where there is none.

        A seed is one part of the noise for all arms, so the contrast is taken seed by seed.
        """
        lines = [(self.mean(arm) if ratio is None else self.at(arm, ratio), power) for arm, ratio, power in terms]
        groups = (paired(lines),)
        lost = {
            arm: sum(value is None for values in self.records[arm].metrics.values() for value in values)
            for arm, _, _ in terms
        }
        diverged = "; ".join(f"{count} runs of {arm} diverged" for arm, count in lost.items() if count)
        seconds = sum(self.records[arm].seconds for arm in {arm for arm, _, _ in terms})
        return Measurement(groups, reason="; ".join(filter(None, (reason, diverged))), seconds=seconds, **self.setting)


def measure(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    """A measurement for every claim whose trials are there."""
    found: dict[str, Measurement] = {}
    lines = {figure: _Lines(profile, records, channel) for figure, channel in plan.CHANNELS.items()}
    for figure, of in lines.items():
        _add_software(found, f"fig5{figure}", of)
        _add_chip(found, f"fig5{figure}", of)
    both = list(lines.values())
    if all("chip" in of.records for of in both):
        last = both[0].ratios[-1]
        groups = (paired([(of.at("chip", last), power) for of, power in zip(both, (-1.0, 1.0), strict=True)]),)
        found["fig5.chip.channels"] = Measurement(groups, **both[0].setting)
        found["fig6.residual"] = both[0].measurement(("chip", last, 1.0), reason="behind H1, at the largest ratio")
    else:
        found |= {claim: Measurement((), reason=NO_CHIP) for claim in ("fig5.chip.channels", "fig6.residual")}
    _add_hardware(found)
    return found


def _add_software(found: dict[str, Measurement], figure: str, of: _Lines) -> None:
    first, last = of.ratios[0], of.ratios[-1]
    if "lms" in of.records:
        found[f"{figure}.lms.degrades"] = of.measurement(("lms", first, 1.0), ("lms", last, -1.0))
    if {"lms", "perceptron"} <= of.records.keys():
        found[f"{figure}.perceptron.degrades_less"] = of.measurement(
            ("lms", last, 1.0), ("lms", first, -1.0), ("perceptron", last, -1.0), ("perceptron", first, 1.0)
        )
        found[f"{figure}.perceptron.better"] = of.measurement(("perceptron", first, 1.0), ("lms", first, -1.0))
    for which in ("input", "target", "both"):
        arm = f"8-bit {which}"
        if {arm, "perceptron"} <= of.records.keys():
            words = "the whole range of the converter in use"
            found[f"{figure}.8bit.{which}"] = of.measurement((arm, None, 1.0), ("perceptron", None, -1.0), reason=words)
            found[f"{figure}.8bit.{which}.much"] = of.measurement(
                ("perceptron", None, 1.0), (arm, None, -1.0), reason=words
            )


def _add_chip(found: dict[str, Measurement], figure: str, of: _Lines) -> None:
    every = plan.TEN
    if not {"chip", "perceptron", "lms"} <= of.records.keys():
        names = [f"worse.{ratio:g}" for ratio in every] + ["saturates", "flat", "better", "only"]
        found |= {f"{figure}.chip.{name}": Measurement((), reason=NO_CHIP) for name in names}
        return
    first, last = of.ratios[0], of.ratios[-1]
    for ratio in every:
        found[f"{figure}.chip.worse.{ratio:g}"] = (
            of.measurement(("chip", ratio, 1.0), ("perceptron", ratio, -1.0))
            if ratio in of.ratios
            else Measurement((), reason="this ratio is for a larger profile")
        )
    found[f"{figure}.chip.saturates"] = of.measurement(("chip", last, 1.0))
    found[f"{figure}.chip.flat"] = (
        of.measurement(("chip", last, 1.0), ("chip", 15.0, -1.0))
        if 15.0 in of.ratios
        else Measurement((), reason="a ratio of 15 dB is for a larger profile")
    )
    found[f"{figure}.chip.better"] = of.measurement(("chip", first, 1.0), ("lms", first, -1.0))
    found[f"{figure}.chip.only"] = of.measurement(("chip", last, 1.0), ("lms", last, -1.0))


def _add_hardware(found: dict[str, Measurement]) -> None:
    for name in (
        "taps_capacitor",
        "synapse_width",
        "synapse_height",
        "neuron_width",
        "neuron_height",
        "die",
        "process",
    ):
        found[f"geometry.{name}"] = Measurement((), reason="a property of silicon")
    for claim in (
        "geometry.rows",
        "geometry.columns",
        "geometry.neurons",
        "geometry.synapse_chips",
        "geometry.neuron_chips",
        "geometry.taps",
        "converters.input",
        "converters.output",
    ):
        # Our board has these numbers because they were copied from the paper: comparing them with it shows nothing.
        found[claim] = Measurement((), reason=BUILT_IN)
    for name in ("forward", "recall", "learning", "recall_dsp", "learning_dsp"):
        found[f"speed.{name}"] = Measurement((), reason=SILICON)


PAPER = Paper(
    key=plan.KEY,
    revision=2,
    trials=trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
