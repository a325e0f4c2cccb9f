"""The trials behind the tables and figure 3 of "Compete to Compute", and what is measured from them.

Laptop trains all nets at their full size: table 2's for 40 epochs at the most, with three seeds; table 4 with ten
initializations in the first cell of its grid and three in the others, where paper has ten in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from counterflow.lab.loop import keep_freed_memory
from counterflow.lab.papers.competition import digits, memory, plan, reviews
from counterflow.lab.papers.competition.figures import exhibits
from counterflow.lab.trials import (
    Context,
    Group,
    Measurement,
    Outcome,
    Paper,
    Profile,
    Record,
    Trial,
    available,
    find,
    so_far,
)

__all__ = ["PAPER"]

DIVERGED = 90.0  # the error of a run that diverged: that of guessing
CITED = "cited by the paper from elsewhere; this net is not rebuilt here"
LAYERS = ("first", "second", "last")


def trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All trials that are known now; what is judged follows from the records of what chooses."""
    known = plan.truth_trials(profile)
    for cell in plan.CELLS:
        for activation in plan.ACTIVATIONS:
            known += plan.forgetting_trials(profile, activation, cell)
    for titles in plan.TEXTS[profile].titles:
        known += plan.text_rate_trials(profile, titles).values()
        for domain in plan.TEXTS[profile].domains:
            known += plan.text_trials(profile, domain, titles, records)
    for method in plan.TRIED:
        known += plan.rate_trials(profile, method).values()
        rate = plan.best_rate(profile, method, records)
        known += [] if rate is None else plan.perceptron_trials(profile, method, rate)
    known += plan.whole_trials(profile, records)
    known += plan.setting_trials(profile).values()
    best = plan.best_setting(profile, records)
    if best is not None:
        reading, rate = best
        known += [*plan.conv_trials(profile, "none", rate), *plan.conv_trials(profile, reading, rate)]
    return known


def run(trial: Trial, context: Context) -> Outcome:
    """One trial."""
    if trial.treatment == "table 1":
        return memory.truth_table(trial.seeds[0], int(str(trial.settings["pairs"])))
    keep_freed_memory()
    if trial.treatment in ("sentiment", "sentiment rate"):
        return reviews.classify(trial.seeds, trial.settings, context, beside=trial.treatment == "sentiment")
    kind, _, activation = trial.treatment.partition(" ")
    if kind == "forgetting":
        return memory.forget(activation, trial.seeds[0], trial.settings, context)
    return digits.learn(trial.treatment, trial.seeds[0], trial.settings, context)


def measure(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    """A measurement for every claim whose trials are there."""
    found: dict[str, Measurement] = {}
    _add_table_1(found, profile, records)
    _add_table_2(found, profile, records)
    _add_table_3(found, profile, records)
    _add_sentiment(found, profile, records)
    _add_table_4(found, profile, records)
    _add_figure_3(found, profile, records)
    return found


def _seconds(*groups: Sequence[Record]) -> float:
    return sum(record.seconds for group in groups for record in group)


def _errors(runs: Sequence[Record]) -> tuple[float, ...]:
    """Test errors in percent at the end."""
    return tuple(DIVERGED if run.metrics["test"][0] is None else plan.number(run, "test") for run in runs)


def _add_table_1(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    for record in find(records, plan.truth_trials(profile)):
        for claim, metric in (
            ("t1.lwta", "lwta wrong"),
            ("t1.relu", "relu wrong"),
            ("t1.half.lwta", "lwta passed"),
            ("t1.half.relu", "relu passed"),
            ("t1.one", "both"),
        ):
            found[claim] = Measurement(
                (Group((plan.number(record, metric),), deterministic=True),), seconds=record.seconds
            )


def _missing(there: Sequence[Record], wanted: Sequence[object], what: str = "seeds") -> str:
    said = so_far(len(there), len(wanted), what)
    return f"; {said}" if said else ""


def _add_table_2(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    size = plan.PERCEPTRONS[profile]
    runs = {method: plan.judged(profile, method, records) for method in plan.TRIED}
    setting: dict[str, Any] = {"setting": "smaller", "differs": f"at most {size.epochs[0]} epochs"}
    if profile == "smoke":
        setting["differs"] += f" of {size.examples:,} pictures, a twenty-fifth of the units"

    def said(method: str) -> str:
        rate, epochs = runs[method][0].settings["rate"], np.mean([plan.number(r, "epochs") for r in runs[method]])
        return f"{method} at rate {rate:g}, {epochs:.0f} epochs{_missing(runs[method], size.seeds)}"

    for method, of in runs.items():
        if of:
            found[f"t2.{method.replace(' ', '_')}"] = Measurement(
                (Group(_errors(of)),), reason=said(method), seconds=_seconds(of), **setting
            )
    found["t2.maxout"] = Measurement((), reason=CITED)
    for claim, first, second in (
        ("t2.order.sigmoid", "lwta", "sigmoid"),
        ("t2.order.relu", "lwta", "relu"),
        ("t2.comparable", "lwta", "dropout"),
        ("t2.order.dropout_input", "dropout input", "lwta"),
    ):
        if runs[first] and runs[second]:
            found[claim] = Measurement(
                (Group(_errors(runs[first])), Group(_errors(runs[second]), -1.0)),
                reason=f"{said(first)}; {said(second)}",
                seconds=_seconds(runs[first], runs[second]),
                **setting,
            )


def _add_table_3(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    for name in ("pretrained_34", "relu", "pretrained_36", "stochastic", "maxout"):
        found[f"t3.{name}"] = Measurement((), reason=CITED)
    size, best = plan.CONV[profile], plan.best_setting(profile, records)
    if best is None:
        return
    reading, rate = best
    decayed = available(records, plan.conv_trials(profile, reading, rate))
    plain = available(records, plan.conv_trials(profile, "none", rate))
    words = f"{size.epochs[0]} epochs" + (f" of {size.examples:,} pictures" if profile == "smoke" else "")
    setting: dict[str, Any] = {"setting": "smaller", "differs": words}
    why = (
        f"rate {rate:g} and decay {plan.READINGS[reading]:g}, which is .05 beside the {reading} of a batch's errors, "
        "chosen on held-out pictures"
    )
    if decayed:
        found["t3.lwta"] = Measurement(
            (Group(_errors(decayed)),),
            reason=why + _missing(decayed, size.seeds),
            seconds=_seconds(decayed),
            **setting,
        )
    if decayed and plain:
        found["t3.decay"] = Measurement(
            (Group(_errors(decayed)), Group(_errors(plain), -1.0)),
            reason=why + _missing(plain, size.seeds),
            seconds=_seconds(decayed, plain),
            **setting,
        )


def _add_sentiment(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    size = plan.TEXTS[profile]
    smaller = f"{len(size.folds)} folds, {size.units[0] // 2} blocks, {size.words} words"
    setting: dict[str, Any] = {"setting": "smaller", "differs": smaller} if profile == "smoke" else {"setting": "same"}
    overlap = 1 / 9  # of ten folds
    for titles, kind in ((False, "text"), (True, "title")):
        domains = [domain for domain in size.domains if titles in size.titles]
        of = {domain: find(records, plan.text_trials(profile, domain, titles, records)) for domain in domains}
        for counted in ("all", "unique"):
            samples = {d: plan.accuracies(of[d][0], f"lwta {counted}") for d in of if of[d]}
            for domain in plan.DOMAINS:
                claim = f"s.{domain}.{kind}.{counted}"
                if domain in samples:
                    beside = np.mean(plan.accuracies(of[domain][0], f"logistic {counted}"))
                    found[claim] = Measurement(
                        (Group(tuple(samples[domain]), overlap=overlap),),
                        reason=f"rate {of[domain][0].settings['rate']:g}; a logistic regression has {beside:.2f}",
                        seconds=_seconds(of[domain]),
                        **setting,
                    )
                elif profile == "smoke":
                    found[claim] = Measurement((), reason="smoke has one domain, without titles")
            means = (f"s.mean.{kind}.{counted}", f"s.glorot.{kind}.{counted}")
            if len(samples) == len(plan.DOMAINS):
                mean = tuple(np.mean(list(samples.values()), axis=0).tolist())
                whole = Measurement((Group(mean, overlap=overlap),), seconds=_seconds(*of.values()), **setting)
                found |= dict.fromkeys(means, whole)
            elif profile == "smoke":
                found |= dict.fromkeys(means, Measurement((), reason="smoke has one domain, without titles"))


def _add_table_4(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    size = plan.FORGETTING[profile]
    setting: dict[str, Any] = {"setting": "same"}
    if profile == "smoke":
        words = f"3 x {size.units} units, {size.examples:,} pictures, at most {size.epochs} epochs"
        setting = {"setting": "smaller", "differs": words}
    for cell in plan.CELLS:
        trials = {a: plan.forgetting_trials(profile, a, cell) for a in plan.ACTIVATIONS}
        runs = {a: available(records, of) for a, of in trials.items()}

        def said(activation: str, runs: Any = runs, trials: Any = trials) -> str:
            of = runs[activation]
            short = sum(plan.number(run, "reached") == 0 for run in of)
            epochs = [np.mean([plan.number(run, f"epochs {task}") for run in of]) for task in ("first", "second")]
            stuck = f"; {short} of {len(of)} did not come down to .03" if short else ""
            part = _missing(of, trials[activation], "initializations")
            return f"{activation}: {epochs[0]:.1f} and {epochs[1]:.1f} epochs{stuck}{part}"

        def group(activation: str, metric: str, power: float = 1.0, runs: Any = runs) -> Group:
            return Group(tuple(plan.number(run, metric) for run in runs[activation]), power)

        for activation, of in runs.items():
            if of and cell == plan.MAIN:
                for claim, metric in (("after1", "before"), ("after2", "after")):
                    found[f"t4.{claim}.{activation}"] = Measurement(
                        (group(activation, metric),),
                        reason=f"rate {cell[0]:g}, momentum {cell[1]:g}; {said(activation)}",
                        seconds=_seconds(of),
                        **setting,
                    )
        name = plan.cell_name(cell)
        for claim, first, second in (
            (f"t4.factor.{name}", "relu", "lwta"),
            (f"t4.order.lwta.relu.{name}", "lwta", "relu"),
            (f"t4.order.lwta.sigmoid.{name}", "lwta", "sigmoid"),
            (f"t4.order.relu.sigmoid.{name}", "relu", "sigmoid"),
        ):
            if runs[first] and runs[second]:
                found[claim] = Measurement(
                    (group(first, "after"), group(second, "after", -1.0)),
                    reason=f"{said(first)}; {said(second)}",
                    seconds=_seconds(runs[first], runs[second]),
                    **setting,
                )


def _add_figure_3(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    runs = plan.judged(profile, "lwta", records)
    if not runs:
        return
    size = plan.PERCEPTRONS[profile]
    setting: dict[str, Any] = {"setting": "same"}
    if profile == "smoke":
        setting = {"setting": "smaller", "differs": f"a twenty-fifth of the units, {size.tested:,} examples"}
    for layer, name in enumerate(LAYERS):
        shares = {when: np.array([run.curves[f"{when} {layer}"] for run in runs]) for when in ("untrained", "trained")}

        def pair(first: int, second: int, of: Any = shares["trained"]) -> tuple[float, ...]:
            return tuple(of[:, digits.PAIRS.index((first, second))].tolist())

        contrasts = {
            f"fig3a.12.{name}": (pair(3, 8), pair(1, 2)),
            f"fig3a.15.{name}": (pair(3, 8), pair(1, 5)),
            f"fig3b.{name}": tuple(tuple(shares[w].mean(1).tolist()) for w in ("trained", "untrained")),
        }
        for claim, (first, second) in contrasts.items():
            found[claim] = Measurement(
                (Group(first), Group(second, -1.0)),
                reason=f"{np.mean(first):.3g} against {np.mean(second):.3g}{_missing(runs, size.seeds)}",
                seconds=_seconds(runs),
                **setting,
            )


PAPER = Paper(
    key=plan.KEY,
    revision=1,
    trials=trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
