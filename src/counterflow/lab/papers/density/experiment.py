"""The trials behind figure 3 of "Relative Density Nets", and behind what its text says of it.

The paper's corpus is not to be had: emodb and an4 stand in its place, so that every setting is *other data*. Samples
are random splits, and nets are compared split by split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from counterflow.lab.papers.density import nets, peers, plan, timing
from counterflow.lab.papers.density.figures import exhibits
from counterflow.lab.papers.density.plan import overlap_of, p_values, samples
from counterflow.lab.trials import Context, Group, Measurement, Outcome, Paper, Profile, Record, Trial

__all__ = ["PAPER", "READINGS"]

READINGS: Mapping[str, tuple[str, str]] = {
    "averaged": ("averaged", "averaged"),
    "literal": ("averaged", "whole"),
    "whole": ("whole", "whole"),
    "crossed": ("whole", "averaged"),
}
"""How the log-likelihoods of the RDN and of the Alphanet are taken."""
LEAST = 3  # splits, below which nothing is said
FEW = "fewer than three splits are finished"
ELSEWHERE = "these sizes are for a larger profile"


def trials(profile: Profile, records: Sequence[Record]) -> list[Trial]:
    """All trials: none follows from another."""
    return plan.trials(profile)


def run(trial: Trial, context: Context) -> Outcome:
    """One trial."""
    kind, _, rest = trial.treatment.partition(" ")
    if kind == "speed":
        return timing.times(trial.settings, trial.seeds, context)
    [seed] = trial.seeds
    if kind == "errors":
        return nets.errors(trial.settings, seed, context)
    if kind == "descent":
        return nets.descend(trial.settings, seed, context)
    if kind == "peer":
        return peers.compare(rest, trial.settings, seed, context)
    return nets.learn(trial.settings, seed, context)


def measure(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    """A measurement for every claim."""
    found: dict[str, Measurement] = {}
    there = plan.index(records)
    panels = {
        prefix: {name: plan.of_net(there, wanted) for name, wanted in runs.items()}
        for prefix, runs in plan.panel_trials(profile).items()
    }
    prefixes = [f"fig3{p}" for p in plan.PANELS]
    prefixes += [f"{kind}{models}" for kind in ("models", "an4.") for models in plan.PANELS.values()]
    for prefix in prefixes:
        _add_panel(found, prefix, panels.get(prefix), _differs(profile, prefix))
    _add_reasons(found, profile, there)
    _add_speed(found, profile, there)
    return found


def _differs(profile: Profile, prefix: str) -> str:
    size = plan.SIZES[profile]
    panel = prefix.removeprefix("fig3")
    if prefix.startswith("an4"):
        words = "an4, 13 cepstra, 12 speakers, about 13 recordings of each"
    else:
        models = f", {size.ratio[panel]} HMMs" if panel in size.ratio else ""
        words = f"emodb, {size.common.get('speakers') or 8} speakers{models}"
    return words + ("" if size.iterations == 90 else f", {size.iterations} iterations")


def _compared(
    runs: Sequence[Mapping[int, Record]],
    differs: str,
    groups: Callable[..., tuple[Group, ...]],
    reason: Callable[..., str] = lambda *each: "",
) -> Measurement:
    """What is measured on the splits that all have finished."""
    records = plan.paired(*runs)
    if len(records[0]) < LEAST:
        return Measurement((), setting="other data", differs=differs, reason=FEW)
    return Measurement(
        groups(*records),
        setting="other data",
        differs=differs,
        reason=reason(*records),
        seconds=sum(record.seconds for each in records for record in each),
    )


def _order(metric: str = "test") -> Callable[..., tuple[Group, ...]]:
    return lambda a, b: (_group(a, metric), _group(b, metric, -1.0))


def _group(records: Sequence[Record], metric: str = "test", power: float = 1.0) -> Group:
    return Group(samples(records, metric), power, overlap=overlap_of(records))


def _difference(a: Sequence[Record], b: Sequence[Record]) -> tuple[Group, ...]:
    return (Group(tuple(x - y for x, y in zip(samples(a), samples(b), strict=True)), overlap=overlap_of(a)),)


def _beside(a: Sequence[Record], b: Sequence[Record]) -> str:
    plain, corrected = map(min, p_values(a, b), p_values(b, a))  # whichever is ahead
    return f"two-sided p {plain:.2g} in a paired t test, {corrected:.2g} in the corrected resampled one"


def _add_panel(
    found: dict[str, Measurement], prefix: str, runs: Mapping[str, Mapping[int, Record]] | None, differs: str
) -> None:
    """The claims of one panel, or of the same sizes elsewhere."""
    figure = prefix.startswith("fig3")
    both = ("averaged", "whole") if figure else ("averaged",)

    def add(claim: str, first: str, second: str, groups: Any, reason: Any) -> None:
        if runs is None or first not in runs or second not in runs:
            found[f"{prefix}.{claim}"] = Measurement((), setting="other data", differs=differs, reason=ELSEWHERE)
        else:
            found[f"{prefix}.{claim}"] = _compared((runs[first], runs[second]), differs, groups, reason)

    def p_of(a: Sequence[Record], b: Sequence[Record]) -> tuple[Group, ...]:
        return (Group((p_values(a, b)[0],), deterministic=True),)

    for reading, (rdn, alphanet) in READINGS.items():
        pair = (f"rdn {rdn}", f"alphanet {alphanet}")
        add(f"alphanet.{reading}", *pair, _order(), _beside)
        if figure:
            add(f"p.{reading}", *pair, p_of, _beside)
    for way in both:
        add(f"mixture.{way}", f"mixture {way}", f"alphanet {way}", _difference, lambda a, b: "")
        add(f"rdn.mixture.{way}", f"rdn {way}", f"mixture {way}", _order(), _beside)
        for net in ("cdn", "cdn1"):
            add(f"{net}.{way}", f"{net} {way}", f"rdn {way}", _order(), _beside)


def _add_reasons(found: dict[str, Measurement], profile: Profile, there: Mapping[bytes, Record]) -> None:
    size = plan.SIZES[profile]
    runs = {name: plan.of_net(there, wanted) for name, wanted in plan.reason_trials(profile).items()}
    for net in ("rdn", "alphanet", "cdn"):
        runs[net] = plan.of_net(there, plan.net_trials(profile, net, size.why))
    differs = f"{_differs(profile, '')}, {size.why} HMMs"

    def add(claim: str, names: Sequence[str], groups: Any, reason: Any = lambda *each: "") -> None:
        if any(name not in runs for name in names):
            found[claim] = Measurement((), setting="other data", differs=differs, reason=ELSEWHERE)
        else:
            found[claim] = _compared([runs[name] for name in names], differs, groups, reason)

    def errors(*names: str) -> Callable[..., tuple[Group, ...]]:
        # Of nets that have learned nothing, so that splits share nothing.
        return lambda a: tuple(
            Group(samples(a, name), power) for name, power in zip(names, (1.0, -1.0), strict=True)
        )  # fmt: skip

    small = f"{nets.SCALE:g}"
    add("discriminative", ("alphanet", "hmmlearn"), _order(), _beside)
    add("reason.attenuated.cdn", ("errors",), errors(f"cdn {small}", "rdn"))
    add("reason.attenuated.cdn1", ("errors",), errors(f"cdn1 {small}", "rdn"))
    add("reason.scale", ("errors",), errors("cdn 1", f"cdn {small}"))
    add("reason.unconverged", ("cdn", "rdn"), _order("loss"))
    add("reason.longer", ("longer", "cdn"), _order(), _beside)
    add("reason.scale1", ("scale 1", "cdn"), _order(), _beside)
    add("reason.scale1.reaches", ("scale 1", "rdn"), _difference)
    add("reason.pairs.reaches", ("pairs", "rdn"), _difference)
    add("reason.tempering", ("tempered", "untempered"), _order(), _beside)
    add("features.logmel", ("rdn", "cosine"), _order(), _beside)
    add("features.bands", ("rdn", "cosine"), _order("bands"))
    add("footnote3.same", ("alphanet same", "mixture same"), _order(), _beside)
    add(
        "footnote3.more",
        ("alphanet same", "mixture same", "alphanet mixed", "mixture mixed"),
        lambda a, b, c, d: tuple(
            _group(each, power=power) for each, power in zip((a, b, c, d), (1.0, -1.0, -1.0, 1.0), strict=True)
        ),
    )


def _add_speed(found: dict[str, Measurement], profile: Profile, there: Mapping[bytes, Record]) -> None:
    for trial, claim in zip(plan.speed_trials(profile), ("speed.quadratic", "speed.quadratic.few"), strict=True):
        for record in plan.of_net(there, [trial]).values():
            values = {name: tuple(float(v or 0.0) for v in times) for name, times in record.metrics.items()}
            common: dict[str, Any] = {"setting": "same" if profile != "smoke" else "smaller", "seconds": record.seconds}
            if profile == "smoke":
                common["differs"] = "{batch} sequences of {frames} frames".format(**record.settings)
            found[claim] = Measurement((Group(values["power"]),), **common)
            if claim == "speed.quadratic":
                both = (Group(values["rdn"]), Group(values["alphanet"], -1.0))
                found["speed.small"] = Measurement(both, **common)


PAPER = Paper(
    key=plan.KEY,
    revision=1,
    trials=trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
