"""From records to one measurement a claim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from counterflow.lab.papers.speech import plan
from counterflow.lab.papers.speech.corpora import FOLDS
from counterflow.lab.trials import Group, Measurement, Profile, Record, find

__all__ = ["judged_an4", "judged_prompts", "measure", "values"]


def values(records: Sequence[Record], name: str) -> tuple[float, ...]:
    """A metric, one value a record."""
    return tuple(float(record.metrics[name][0] or 0.0) for record in records if name in record.metrics)


def judged_prompts(profile: Profile, model: str, records: Sequence[Record]) -> list[Record]:
    """The folds of a model; empty unless all are there."""
    trials = plan.prompts_trials(profile, model, records)
    return find(records, trials) if len(trials) == len(plan.SIZE[profile].folds) else []


def judged_an4(profile: Profile, model: str, records: Sequence[Record]) -> list[Record]:
    """The record of a model on AN4, if it is there."""
    trials = plan.an4_trial(profile, model, records)
    return find(records, trials) if trials else []


class _Evidence:
    """Samples of a model on a corpus: one a fold, or one a speaker."""

    def __init__(self, profile: Profile, records: Sequence[Record]) -> None:
        self.profile, self.records = profile, records
        self.found: dict[str, Measurement] = {}

    def runs(self, model: str, an4: bool) -> list[Record]:
        return (judged_an4 if an4 else judged_prompts)(self.profile, model, self.records)

    def samples(self, model: str, name: str, an4: bool) -> tuple[float, ...]:
        runs = self.runs(model, an4)
        if not runs:
            return ()
        if an4:
            return tuple(float(value or 0.0) for value in runs[0].curves.get(f"{name} speakers", ()))
        return values(runs, name)

    def setting(self, an4: bool, *runs: Sequence[Record]) -> dict[str, Any]:
        size = plan.SIZE[self.profile]
        words = "AN4's cepstra, 10 test speakers" if an4 else "telephone prompts at 8 kHz, one speaker, other sentences"
        count = size.an4 if an4 else size.prompts
        if count is not None:
            words += f", {count} utterances, {size.passes} passes"
        return {
            "setting": "other data",
            "differs": words,
            "seconds": sum(record.seconds for of in runs for record in of),
        }

    def value(self, claim: str, model: str, name: str, an4: bool = False, reason: str = "") -> None:
        samples = self.samples(model, name, an4)
        runs = self.runs(model, an4)
        if samples:
            note = reason
            near = values(runs, f"{name} perplexity")
            if near:
                note = f"at perplexity {sum(near) / len(near):.3g}{'; ' + reason if reason else ''}"
            self.found[claim] = Measurement((_group(samples, an4),), reason=note, **self.setting(an4, runs))

    def order(self, claim: str, first: str, second: str, name: str, an4: bool = False, other: str = "") -> None:
        """The metric ``name`` of one model against ``other``, or the same, of another."""
        above, below = self.samples(first, name, an4), self.samples(second, other or name, an4)
        if above and below:
            means = [sum(each) / len(each) for each in (above, below)]
            self.found[claim] = Measurement(
                (_group(above, an4), _group(below, an4, -1.0)),
                reason=f"{means[0]:.3g} against {means[1]:.3g}",
                **self.setting(an4, self.runs(first, an4), self.runs(second, an4)),
            )


def _group(samples: tuple[float, ...], an4: bool, power: float = 1.0) -> Group:
    """AN4's speakers are others each; the prompts' folds share what is learned from."""
    return Group(samples, power, overlap=0.0 if an4 else 1 / (FOLDS - 1))


def measure(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    """A measurement for every claim whose trials are there."""
    e = _Evidence(profile, records)
    for claim, name in (
        ("acc.5", "low"), ("acc.111", "middle"), ("acc.402", "loop"),
        ("acc.5.training", "low training"), ("acc.111.training", "middle training"),
    ):  # fmt: skip
        e.value(claim, "lpnn", name)
    e.value("acc.5.an4", "lpnn", "low", True)
    e.value("acc.111.an4", "lpnn", "loop", True, "all words as likely")
    e.found["acc.402.an4"] = Measurement((), reason="AN4 has 97 words")
    e.order("order.5_111", "lpnn", "lpnn", "low", other="middle")
    e.order("order.111_402", "lpnn", "lpnn", "middle", other="loop")
    for name in ("lpnn", "gaussian", "gaussian_delta"):
        e.value(f"cmp.{name}", name.replace("_", " "), "middle")
    for an4, suffix in ((False, ""), (True, ".an4")):
        e.order(f"cmp.order.gaussian{suffix}", "lpnn", "gaussian", "middle", an4)
        e.order(f"cmp.order.gaussian_delta{suffix}", "lpnn", "gaussian delta", "middle", an4)
        e.order(f"cmp.delta{suffix}", "gaussian delta", "gaussian", "middle", an4)
        e.order(f"linear.accuracy{suffix}", "lpnn", "linear", "middle", an4)
        e.order(f"hc.accuracy{suffix}", "hidden control", "two states", "middle", an4)
        e.order(f"hc.global{suffix}", "global", "hidden control", "middle", an4)
        e.order(f"corrective.accuracy{suffix}", "corrective", "lpnn", "middle", an4)
        e.order(f"linear.error{suffix}", "lpnn", "linear", "error", an4)
    e.order("corrective.frames", "corrective", "lpnn", "frame_error")
    e.order("context.accuracy", "context", "lpnn", "middle")
    e.order("function.accuracy", "function", "lpnn", "middle")
    e.found["fig3.score"] = Measurement((), reason="the paper does not say of what the score is a sum")
    e.value("fig3.similar", "lpnn", "explained")
    e.value("fig5.eh", "lpnn", "explained by EH")
    e.value("fig5.z", "lpnn", "explained by Z")
    e.value("disc.ratio", "lpnn", "ratio")
    e.value("disc.frames", "lpnn", "frame_error")
    _add_speed(e.found, profile, records)
    return e.found


def _add_speed(found: dict[str, Measurement], profile: Profile, records: Sequence[Record]) -> None:
    timed = find(records, [plan.speed_trial(profile)])
    if not timed:
        return
    [record] = timed
    setting: dict[str, Any] = {"setting": "other data", "differs": "random frames", "seconds": record.seconds}
    times = {name: tuple(float(v or 0.0) for v in record.metrics[name]) for name in ("hidden control", "two states")}
    ratios = tuple(a / b for a, b in zip(*times.values(), strict=True))
    found["hc.speed"] = found["hc.speed.much"] = Measurement(
        (Group(ratios),), reason=f"{100 * sum(ratios) / len(ratios):.3g}% of the time, 40 phonemes", **setting
    )
    for claim, name in (("hc.params", "parameters"), ("hc.memory", "bytes"), ("hc.passes", "predictions")):
        ours, theirs = (float(record.metrics[f"{bank} {name}"][0] or 0.0) for bank in times)
        found[claim] = Measurement(
            (Group((ours / theirs,), deterministic=True),), reason=f"{ours:,.0f} against {theirs:,.0f}", **setting
        )
