"""The trials behind the figures of "Natural Neural Networks", and what is measured from them.

Figure 2 is of its own size in all profiles but smoke. Figure 3's auto-encoder has its full size from the laptop
profile on, with a tenth of the updates; paper has all 100,000. What a trial is named by, and which seeds choose and
which judge, is in `counterflow.lab.papers.whitening.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from counterflow.lab.papers.whitening import autoencoder, deep, fisher, plan, plan_classifiers, timing, vgg
from counterflow.lab.papers.whitening.figures import exhibits
from counterflow.lab.trials import Context, Group, Measurement, Outcome, Paper, Profile, Record, Trial, find

__all__ = ["PAPER"]

IMAGENET = ("fig4d.bn", "fig4d.prong_plus", "fig4d.sgd", "fig4d.prong_plus.early", "fig4d.bn.early", "fig4d.inception")
CHANCE = 0.9  # the share of wrong answers of a run that diverged


def trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All trials that are known now; what is judged follows from the records of what chooses."""
    return [
        *plan.figure_2_trials(profile),
        *plan.autoencoder_trials(profile, records),
        *plan.time_trials(profile),
        *plan_classifiers.cifar_trials(profile, records),
        *plan_classifiers.deep_trials(profile),
    ]


def run(trial: Trial, context: Context) -> Outcome:
    """One trial."""
    for kind, work in (("figure 2 ", fisher.conditioning), ("cifar ", vgg.learn)):
        if trial.treatment.startswith(kind):
            return work(trial.treatment.removeprefix(kind), trial.seeds[0], trial.settings, context)
    if trial.treatment.startswith("deep "):
        return deep.compare(trial.treatment.removeprefix("deep "), trial.seeds, trial.settings, context)
    if trial.treatment == "times":
        return timing.times(trial.settings, trial.seeds, context)
    return autoencoder.learn(trial.treatment, trial.seeds[0], trial.settings, context)


def measure(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    """A measurement for every claim whose trials are there."""
    found: dict[str, Measurement] = {}
    _add_figure_2(found, profile, records)
    _add_figure_3a(found, profile, records)
    _add_figure_3b(found, profile, records)
    _add_figure_3cd(found, profile, records)
    _add_times(found, profile, records)
    _add_figure_4(found, profile, records)
    _add_negatives(found, profile, records)
    for claim in IMAGENET:
        found[claim] = Measurement((), reason="ImageNet is not here, nor a machine to train Inception on it")
    return found


def _group(samples: Sequence[float], power: float = 1.0) -> Group:
    return Group(tuple(samples), power)


def _seconds(*records: Sequence[Record]) -> float:
    return sum(record.seconds for group in records for record in group)


def _add_figure_2(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    runs = {
        method: find(records, [t for t in plan.figure_2_trials(profile) if t.treatment == f"figure 2 {method}"])
        for method in fisher.METHODS
    }
    setting: dict[str, Any] = {"setting": "same"}
    if profile == "smoke":
        setting = {"setting": "smaller", "differs": f"{plan.TINY[profile]['updates']} updates of a smaller MLP"}

    def values(method: str, name: str) -> list[float]:
        return [float(record.metrics[name][0] or 0.0) for record in runs[method]]

    if runs["prong"]:
        for claim, name in (("fig2ab.reduction", "first"), ("fig2c.reduction", "last")):
            worst = max(values("prong", name))
            found[claim] = Measurement(
                (_group(values("prong", name)),),
                reason=f"of its initial value; {worst:.2g} at worst",
                seconds=_seconds(runs["prong"]),
                **setting,
            )
    for method in ("sgd", "rmsprop", "bn"):
        if runs[method] and runs["prong"]:
            errors = {m: np.mean(values(m, "error")) for m in (method, "prong")}
            found[f"fig2c.{method}"] = Measurement(
                (_group(values("prong", "last")), _group(values(method, "last"), -1.0)),
                reason=f"at training errors of {errors['prong']:.2g} (PRONG) and {errors[method]:.2g}",
                seconds=_seconds(runs["prong"], runs[method]),
                **setting,
            )


def _setting(profile: Profile, updates: int) -> dict[str, Any]:
    if profile == "smoke":
        return {"setting": "smaller", "differs": f"{updates} updates of a smaller auto-encoder"}
    if profile == "laptop":
        return {"setting": "smaller", "differs": f"{updates:,} updates"}
    return {"setting": "same"}


def _add_figure_3a(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    cells = plan.epsilon_cells(profile, records)
    runs = {name: find(records, plan.epsilon_runs(profile, cell)) for name, cell in cells.items()}
    for claim, name in (("fig3a.small_epsilon", "small"), ("fig3a.sensitive", "fast")):
        if runs.get(name) and runs.get("large"):
            words = "; ".join(f"epsilon {cells[n][0]:g} at rate {cells[n][1]:g}" for n in (name, "large"))
            found[claim] = Measurement(
                (_group([plan.final(r) for r in runs[name]]), _group([plan.final(r) for r in runs["large"]], -1.0)),
                reason=f"{words}{_diverged([*runs[name], *runs['large']])}",
                seconds=_seconds(runs[name], runs["large"]),
                **_setting(profile, plan.SIZE[profile].short),
            )
        elif _grid_done(profile, records):
            found[claim] = Measurement((), reason="no rate below the best one of the largest epsilon was in the grid")


def _grid_done(profile: Profile, records: Sequence[Record]) -> bool:
    rates = [plan.best_rate(profile, "prong", records, epsilon) for epsilon in plan.epsilons_of(profile)]
    return None not in rates


def _diverged(runs: Sequence[Record]) -> str:
    count = sum(record.metrics["error"][0] is None for record in runs)
    return f"; {count} of {len(runs)} runs diverged, and count as the untrained net" if count else ""


def _add_figure_3b(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    rate = plan.best_rate(profile, "prong", records)
    if rate is None:
        return
    size = plan.SIZE[profile]
    never, often = size.periods[-1], size.periods[0]

    def add(claim: str, above: tuple[int, bool], below: tuple[int, bool]) -> None:
        runs = [find(records, plan.period_runs(profile, rate, *case)) for case in (above, below)]
        if all(runs):
            found[claim] = Measurement(
                tuple(_group([plan.final(r) for r in of], power) for of, power in zip(runs, (1.0, -1.0), strict=True)),
                reason=f"T = {above[0]} against T = {below[0]}, rate {rate:g}{_diverged(runs[0] + runs[1])}",
                seconds=_seconds(*runs),
                **_setting(profile, size.period),
            )

    add("fig3b.initialization", (never, True), (never, False))
    add("fig3b.period", (never, True), (often, True))
    if profile == "paper":
        add("fig3b.degrades", (100_000, True), (1000, True))
    else:
        found["fig3b.degrades"] = Measurement((), reason="runs of more than 100,000 updates are for the profile paper")


def _add_figure_3cd(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    runs = {method: plan.judged(profile, method, records) for method in plan.AUTOENCODER}
    setting = _setting(profile, plan.SIZE[profile].updates)
    prong, sgd = runs["prong"], runs["sgd"]
    if not prong:
        return
    for method in ("sgd", "rmsprop", "bn"):
        if runs[method]:
            rates = [runs[m][0].settings["rate"] for m in ("prong", method)]
            found[f"fig3c.{method}"] = Measurement(
                (_group([plan.final(r) for r in prong]), _group([plan.final(r) for r in runs[method]], -1.0)),
                reason=f"rates {rates[0]:g} and {rates[1]:g}{_diverged([*prong, *runs[method]])}",
                seconds=_seconds(prong, runs[method]),
                **setting,
            )
    if not sgd:
        return
    level = float(np.mean([plan.final(r) for r in sgd]))
    needed = {method: plan.all_updates_to(of, level) for method, of in runs.items() if of}
    found["fig3c.updates"] = found["fig3c.up_to"] = Measurement(
        (_group(needed["sgd"][0]), _group(needed["prong"][0], -1.0)),
        reason=f"to SGD's mean final error of {level:.3g}{needed['prong'][1]}",
        seconds=_seconds(prong, sgd),
        **setting,
    )
    times = find(records, plan.time_trials(profile))
    if not times:
        return
    cost = {m: float(np.mean([v or 0.0 for v in times[0].metrics[m]])) * plan.batch_of(m) for m in needed}
    for method in ("sgd", "rmsprop", "bn"):
        if method in needed:
            found[f"fig3d.{method}"] = Measurement(
                tuple(
                    _group([updates * cost[m] for updates in needed[m][0]], power)
                    for m, power in (("prong", 1.0), (method, -1.0))
                ),
                reason=(
                    f"to an error of {level:.3g}, at {1e3 * cost['prong']:.3g} and {1e3 * cost[method]:.3g} ms an "
                    f"update{needed['prong'][1]}{needed[method][1]}"
                ),
                seconds=_seconds(prong, runs[method]),
                **setting,
            )


def _add_times(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    timed = find(records, plan.time_trials(profile))
    if not timed:
        return
    [record] = timed
    values = {name: [float(v or 0.0) for v in of] for name, of in record.metrics.items()}
    size = plan.SIZE[profile]
    smaller = {"setting": "smaller", "differs": "a smaller auto-encoder"}
    setting: dict[str, Any] = smaller if profile == "smoke" else {"setting": "same"}
    for method in ("prong", "bn", "rmsprop"):
        found[f"time.{method}"] = Measurement(
            (_group([a / b for a, b in zip(values[method], values["sgd"], strict=True)]),),
            reason=f"per example; T = {size.every}, {size.samples} examples" if method == "prong" else "per example",
            seconds=record.seconds,
            **setting,
        )
    for share in ("whitening", "statistics"):
        found[f"share.{share}"] = Measurement(
            (_group([100 * part / whole for part, whole in zip(values[share], values["prong"], strict=True)]),),
            reason=f"T = {size.every}, N_s = {size.samples}",
            seconds=record.seconds,
            **setting,
        )


def _add_figure_4(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    size = plan_classifiers.CIFAR[profile]
    words = f"a net of width {size.width} and {size.epochs} epochs of {size.examples:,} pictures, JPEG-compressed"
    setting: dict[str, Any] = {"setting": "other data", "differs": words}
    runs = {method: plan_classifiers.cifar_judged(profile, method, records) for method in vgg.METHODS}

    def add(claim: str, samples: Mapping[str, Sequence[float]], reason: str = "") -> None:
        of = [runs[method] for method in samples]
        rates = ", ".join(f"{m} {runs[m][0].settings['rate']:g}" for m in samples)
        found[claim] = Measurement(
            tuple(_group(values, power) for values, power in zip(samples.values(), (1.0, -1.0), strict=False)),
            reason=f"rates: {rates}{reason}{_diverged([run for part in of for run in part])}",
            seconds=_seconds(*of),
            **setting,
        )

    def tests(method: str) -> list[float]:
        return [100.0 * CHANCE if run.metrics["test"][0] is None else run.metrics["test"][0] for run in runs[method]]

    for method in ("prong", "bn"):
        if profile != "paper":
            found[f"fig4b.{method}"] = Measurement((), reason="training to the end is for the profile paper")
        elif runs[method]:
            add(f"fig4b.{method}", {method: tests(method)})
    if runs["prong"] and runs["bn"]:
        add("fig4b.order", {method: tests(method) for method in ("prong", "bn")})
    if runs["sgd"]:
        level = float(np.mean([plan.final(run) for run in runs["sgd"]]))
        needed = {method: plan.all_updates_to(of, level) for method, of in runs.items() if of}
        for claim, pair in (
            ("fig4a.prong", ("prong", "sgd")),
            ("fig4a.bn", ("bn", "sgd")),
            ("fig4a.alike", ("prong", "bn")),
        ):
            if all(method in needed for method in pair):
                missed = "".join(needed[method][1] for method in pair)
                note = f"; to SGD's mean final cross-entropy of {level:.3g}{missed}"
                add(claim, {method: needed[method][0] for method in pair}, note)
    if runs["prong+"] and runs["bn"]:
        early = size.epochs // 5 or 1
        note = f"; after {early} of {size.epochs} epochs"
        add("plus.early", {m: [plan.after(run, early) for run in runs[m]] for m in ("prong+", "bn")}, note)


def _add_negatives(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    depth = plan_classifiers.DEPTHS[profile][-1]
    for claim, first, second in (
        ("unstable.plain", "prong", "prong+"),
        *((f"unstable.two_sided.{name.split()[1]}", name, "prong") for name in deep.TREATMENTS if " " in name),
    ):
        if not any(trial.treatment == f"deep {first}" for trial in plan_classifiers.deep_trials(profile)):
            found[claim] = Measurement((), reason="this damping is for a larger profile")
            continue
        pair = [plan_classifiers.deep_records(profile, name, depth, records) for name in (first, second)]
        if all(pair):
            rates, errors = zip(*(plan_classifiers.at_best(record) for [record] in pair), strict=True)
            net = pair[0][0].settings
            found[claim] = Measurement(
                (_group(errors[0]), _group(errors[1], -1.0)),
                setting="other data",
                differs=f"MNIST, {depth} rectified layers of {net['width']}, {net['updates']} updates",
                reason=f"{first} at rate {rates[0]:g}, {second} at rate {rates[1]:g}, each the best of its grid",
                seconds=_seconds(*pair),
            )


PAPER = Paper(
    key=plan.KEY,
    revision=1,
    trials=trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
