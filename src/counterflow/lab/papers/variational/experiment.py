"""The trials behind table 1 and figure 1 of "Variational Dropout and the Local Reparameterization Trick".

Laptop trains table 1's nets at their full size for 10 epochs, paper for 100 as well. Figure 1 is drawn without numbers
in the paper, and its widths are not given; those here, and the multipliers k, are what two cores can train.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from counterflow.lab.papers.variational import errors, plan, speed, variance
from counterflow.lab.papers.variational.figures import exhibits
from counterflow.lab.trials import (
    Context,
    Group,
    Measurement,
    Outcome,
    Paper,
    Profile,
    Record,
    Trial,
    common,
    find,
    so_far,
)
from counterflow.variational import Estimator, dropout_kl

__all__ = ["PAPER"]

LATER = "100 epochs are for the profile paper"
_PAIRS: tuple[tuple[Estimator, Estimator], ...] = (
    ("none", "local"),
    ("local", "per_datum"),
    ("per_datum", "per_minibatch"),
)


def trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All trials: none follows from another."""
    return [
        *plan.speed_trials(profile),
        *plan.table_trials(profile),
        *plan.table_trials(profile, "a"),
        *(
            trial
            for data, half in plan.HALVES.items()
            for size in half[profile].sizes
            for method in plan.METHODS
            for trial in plan.error_trials(profile, data, method, size)
        ),
    ]


def run(trial: Trial, context: Context) -> Outcome:
    """One trial."""
    if trial.treatment == "speed":
        return speed.times(trial.settings, trial.seeds, context)
    kind, _, rest = trial.treatment.partition(" ")
    if kind == "table":
        return variance.measure(rest.split()[-1], trial.seeds[0], trial.settings, context)
    return errors.learn(kind, rest, trial.seeds[0], trial.settings, context)


def measure(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    """A measurement for every claim whose trials are there."""
    found: dict[str, Measurement] = {}
    _add_divergence(found)
    _add_table(found, profile, records)
    _add_appendix(found, profile, records)
    _add_speed(found, profile, records)
    for figure, data in (("1a", "mnist"), ("1b", "cifar10")):
        _add_figure(found, profile, records, figure, data)
    return found


def _table_setting(profile: Profile) -> dict[str, Any]:
    table = plan.TABLE[profile]
    if profile == "smoke":
        return {"setting": "smaller", "differs": f"3 x {table.width} units, {table.examples:,} pictures"}
    return {"setting": "same"}


def _samples(records: Sequence[Record], estimator: str, layer: str) -> list[float]:
    """One number an estimate of the gradient: its squared distance from the full gradient, the mean over weights."""
    return [float(v or 0.0) for record in records for v in record.curves[f"{estimator} {layer}"]]


def _gradients(samples: Sequence[float], of: Sequence[Record]) -> str:
    """How many nets are behind the samples: an interval is one of gradients, and says nothing of another net."""
    return f"{len(samples)} gradients of {len(of)} net{'s' if len(of) > 1 else ''}"


def _add_table(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    names = {10: plan.TABLE[profile].epochs[0]}
    names |= {100: plan.TABLE[profile].epochs[1]} if len(plan.TABLE[profile].epochs) > 1 else {}
    runs = {
        column: find(records, [t for t in plan.table_trials(profile) if t.settings["epochs"] == epochs])
        for column, epochs in names.items()
    }
    for column in (10, 100):
        of = runs.get(column, [])
        if not of:
            if column not in names:
                ids = [f"t1.{e}.{layer}100" for e in plan.ESTIMATORS for layer in ("top", "bottom")]
                ids += [f"t1.order.{a}.{b}.{layer}100" for a, b in _PAIRS for layer in ("top", "bottom")]
                ids += ["t1.factor.top100", "t1.factor.bottom100", "t1.error100", "t1.stable.top", "t1.stable.bottom"]
                ids += ["t1.early.top", "t1.early.bottom"]
                found |= {claim: Measurement((), reason=LATER) for claim in ids}
            continue
        setting = {**_table_setting(profile), "seconds": sum(r.seconds for r in of)}
        if names[column] != column:
            setting["differs"] += f", {names[column]} epochs"
        wrong = tuple(float(record.metrics["test"][0] or 0.0) for record in of)
        found[f"t1.error{column}"] = Measurement((Group(wrong),), **setting)
        for layer in ("top", "bottom"):
            samples = {e: tuple(_samples(of, e, layer)) for e in plan.ESTIMATORS}
            words = _gradients(samples["local"], of)
            for estimator, values in samples.items():
                found[f"t1.{estimator}.{layer}{column}"] = Measurement((Group(values),), reason=words, **setting)
            for a, b in _PAIRS:
                found[f"t1.order.{a}.{b}.{layer}{column}"] = Measurement(
                    (Group(samples[a]), Group(samples[b], -1.0)), reason=words, **setting
                )
            found[f"t1.factor.{layer}{column}"] = Measurement(
                (Group(samples["per_datum"]), Group(samples["local"], -1.0)), reason=words, **setting
            )
    if runs.get(10) and runs.get(100):
        setting = {**_table_setting(profile), "seconds": sum(r.seconds for of in runs.values() for r in of)}
        for layer in ("top", "bottom"):
            words = " and ".join(
                f"{_gradients(_samples(runs[column], 'local', layer), runs[column])} after {names[column]} epochs"
                for column in (10, 100)
            )
            for claim, above, below in (("stable", "per_datum", "local"), ("early", "per_minibatch", "per_datum")):
                terms = ((100, above, 1.0), (100, below, -1.0), (10, above, -1.0), (10, below, 1.0))
                found[f"t1.{claim}.{layer}"] = Measurement(
                    tuple(Group(tuple(_samples(runs[column], e, layer)), power) for column, e, power in terms),
                    reason=words,
                    **setting,
                )


def _add_divergence(found: dict[str, Measurement]) -> None:
    """The polynomial beside the exact divergence; the constant between them is free, so the best one is taken."""
    rates = torch.linspace(-8.0, 0.0, 81, dtype=torch.float64)
    exact = torch.stack([dropout_kl(rate, "exact") for rate in rates])
    off = torch.stack([dropout_kl(rate, "polynomial", 1.0) for rate in rates]) - exact
    share = float((off.max() - off.min()) / 2 / (exact.max() - exact.min()))
    found["kl.polynomial"] = Measurement((Group((share,), deterministic=True),), reason="computed")


def _add_appendix(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    of = find(records, plan.table_trials(profile, "a"))
    if of:
        samples = {e: tuple(_samples(of, e, "top")) for e in ("local", "per_minibatch")}
        found["appE.order"] = Measurement(
            (Group(samples["local"]), Group(samples["per_minibatch"], -1.0)),
            reason=f"top layer, {_gradients(samples['local'], of)}",
            seconds=sum(r.seconds for r in of),
            **_table_setting(profile),
        )


def _add_speed(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    of = find(records, plan.speed_trials(profile))
    if not of:
        return
    [record] = of
    values = {name: tuple(float(v or 0.0) for v in times) for name, times in record.metrics.items()}
    width, batch = record.settings["width"], record.settings["batch"]
    setting: dict[str, Any] = {
        "setting": "same" if profile != "smoke" else "smaller",
        "differs": "" if profile != "smoke" else f"{width} units, {batch} examples",
        "seconds": record.seconds,
    }
    found["speed"] = Measurement(
        (Group(values["per_datum"]), Group(values["local"], -1.0)),
        reason="an update each; an epoch has equally many. One processor core here, a graphics card in the paper",
        **setting,
    )
    found["cost"] = Measurement(
        (Group(tuple(a / b for a, b in zip(values["variational a"], values["gaussian a"], strict=True))),), **setting
    )


def _add_figure(
    found: dict[str, Measurement], profile: Profile, records: Sequence[Record], figure: str, data: str
) -> None:
    half = plan.HALVES[data][profile]
    runs = {
        (method, size): plan.runs_of(profile, records, data, method, size)
        for method in plan.METHODS
        for size in half.sizes
    }
    words = f"{half.epochs} epochs of {half.examples:,} pictures"
    setting: dict[str, Any] = {"setting": "smaller", "differs": words}
    if data == "cifar10":
        setting = {"setting": "other data", "differs": words + ", JPEG-compressed"}

    def add(claim: str, *terms: tuple[str, int, float], of: Any = plan.test_errors) -> None:
        groups = common(*(runs[method, size] for method, size, _ in terms))
        if groups[0]:
            found[claim] = Measurement(
                tuple(Group(tuple(of(group)), power) for group, (*_, power) in zip(groups, terms, strict=True)),
                reason=so_far(len(groups[0]), len(half.seeds)),
                seconds=sum(run.seconds for group in groups for run in group),
                **setting,
            )

    published = {"1a": (50, 100, 300), "1b": (1, 2)}[figure]
    for size in published:
        if size not in half.sizes:
            ids = [f"fig{figure}.{kind}.{letter}.{size}" for kind in ("adaptive", "binary") for letter in "ab"]
            ids += [f"fig{figure}.a2.{m.replace(' ', '_')}.{size}" for m in plan.METHODS if m != "variational a2"]
            found |= {claim: Measurement((), reason="this size is for a larger profile") for claim in ids}
            continue
        for letter in "ab":
            ours = (f"variational {letter}", size, 1.0)
            add(f"fig{figure}.adaptive.{letter}.{size}", ours, (f"gaussian {letter}", size, -1.0))
            add(f"fig{figure}.binary.{letter}.{size}", ours, ("binary", size, -1.0))
        for other in plan.METHODS:
            if other != "variational a2":
                name = f"fig{figure}.a2.{other.replace(' ', '_')}.{size}"
                add(name, ("variational a2", size, 1.0), (other, size, -1.0))
    small, large = published[0], published[-1]
    for letter in "ab":
        adaptive, fixed = f"variational {letter}", f"gaussian {letter}"
        if large not in half.sizes or small not in half.sizes:
            for claim in ("small", "rates"):
                found[f"fig{figure}.{claim}.{letter}"] = Measurement((), reason="one size alone in this profile")
            continue
        add(
            f"fig{figure}.small.{letter}",
            (adaptive, small, 1.0),
            (fixed, small, -1.0),
            (adaptive, large, -1.0),
            (fixed, large, 1.0),
        )
        add(f"fig{figure}.rates.{letter}", (adaptive, small, 1.0), (adaptive, large, -1.0), of=plan.rate_of)


PAPER = Paper(
    key=plan.KEY,
    revision=1,
    trials=trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
