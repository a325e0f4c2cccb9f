"""The trials behind figures 4, 5, 7 and table 1 of "Stochastic Multiple Choice Learning ...", NIPS 2016.

Figures 4a, 4b and 5a are drawn without numbers, so that their claims are orders. Table 1's numbers belong to pictures
that are not here: they are not run, and its orders are tested on other data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from counterflow.lab.papers.choice import captioning, classification, plan, segmentation
from counterflow.lab.papers.choice.figures import exhibits
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
    claims_of,
    common,
    so_far,
)

__all__ = ["PAPER"]

SIZE = "this size is for a larger profile"
PICTURES = (
    "the captions' pictures and the pretrained net are not here; the orders in this table are tested on other data"
)


def run(trial: Trial, context: Context) -> Outcome:
    """One trial."""
    domain, _, method = trial.treatment.partition(" ")
    learn = {
        "cifar10": classification.learn,
        "full": classification.learn,
        "scenes": segmentation.learn,
        "captions": captioning.learn,
    }[domain]
    return learn(method, trial.seeds[0], trial.settings, context)


class _Found:
    """Measurements as they are found."""

    def __init__(self, profile: Profile, domain: str, setting: str) -> None:
        self.all: dict[str, Measurement] = {}
        self.seeds = len(plan.seeds_of(profile, domain))
        self.setting: dict[str, Any] = {"setting": setting, "differs": plan.differs(profile, domain)}

    def add(self, claim: str, *terms: tuple[Sequence[Record], str, float], reason: str = "") -> None:
        """A claim of metrics by name, each with its power, over the seeds that all of them have, if there are any."""
        of = [(records, lambda record, name=name: record.metrics[name][0], power) for records, name, power in terms]
        self.add_of(claim, *of, reason=reason)

    def add_of(
        self,
        claim: str,
        *terms: tuple[Sequence[Record], Callable[[Record], Any], float],
        reason: str = "",
    ) -> None:
        """The same, of whatever is read from a record."""
        runs = common(*(records for records, _, _ in terms))
        if not runs[0]:
            return
        groups = []
        counted: dict[int, float] = {}
        for of, (_, read, power) in zip(runs, terms, strict=True):
            samples = [read(record) for record in of]
            if any(sample is None for sample in samples):
                self.all[claim] = Measurement((), reason="a run diverged")
                return
            groups.append(Group(tuple(map(float, samples)), power))
            counted |= {id(record): record.seconds for record in of}  # a record in two terms once
        seconds = sum(counted.values())
        said = self.with_seeds(reason, len(runs[0]))
        self.all[claim] = Measurement(tuple(groups), reason=said, seconds=seconds, **self.setting)

    def with_seeds(self, reason: str, there: int) -> str:
        """A reason, and how many seeds are there yet where it is not all."""
        return "; ".join(filter(None, (reason, so_far(there, self.seeds))))

    def skip(self, claims: Sequence[str], reason: str) -> None:
        """Claims that are not run."""
        self.all |= {claim: Measurement((), reason=reason) for claim in claims}


def measure(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    """A measurement for every claim whose trials are there, and a reason for those that are not run."""
    return {
        **_classification(profile, records),
        **_full(profile, records),
        **_segmentation(profile, records),
        **_captions(profile, records),
    }


def _classification(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    sizes = plan.CIFAR[profile]
    found = _Found(profile, "cifar10", "other data")

    def of(method: str, size: int = 0, k: int = 1) -> list[Record]:
        return available(records, plan.classification_trials(profile, method, size, k))

    plain, dey, largest = of("independent"), of("dey"), max(sizes.sizes)
    for size in range(2, 7):
        if size not in sizes.sizes:
            found.skip([f"fig4a.{method}.{size}" for method in ("independent", "dey", "mcl")], SIZE)
            found.skip([f"fig4a.dey_below.{size}"] if size > 3 else [], SIZE)
            continue
        name, smcl = f"accuracy {size}", of("smcl", size)
        found.add(f"fig4a.independent.{size}", (smcl, name, 1.0), (plain, name, -1.0))
        found.add(f"fig4a.dey.{size}", (smcl, name, 1.0), (dey, name, -1.0))
        if size > 3:
            found.add(f"fig4a.dey_below.{size}", (dey, name, 1.0), (plain, name, -1.0))
        if size in sizes.alternated:
            found.add(f"fig4a.mcl.{size}", (smcl, name, 1.0), (of("mcl", size), name, -1.0))
        else:
            found.skip([f"fig4a.mcl.{size}"], SIZE)
    big, small = f"accuracy {largest}", "accuracy 2"
    words = "" if largest == 6 else f"up to {largest} members"
    found.add(
        "fig4a.dey_falls", (dey, big, 1.0), (plain, big, -1.0), (dey, small, -1.0), (plain, small, 1.0), reason=words
    )
    found.add("fig4a.grows.smcl", (of("smcl", largest), big, 1.0), (of("smcl", 2), small, -1.0), reason=words)
    found.add("fig4a.grows.independent", (plain, big, 1.0), (plain, small, -1.0), reason=words)
    for method, other in (("independent", plain), ("dey", dey)):
        found.add(f"gain.cifar10.{method}", (of("smcl", largest), big, 1.0), (other, big, -1.0))
    _cost(found, of("mcl", sizes.alternated[-1]), of("smcl", sizes.alternated[-1]))
    _matrices(found, sizes.ks, of)
    return found.all


def _cost(found: _Found, mcl: Sequence[Record], smcl: Sequence[Record]) -> None:
    pairs = [(a, b) for a in mcl for b in smcl if a.seeds == b.seeds]
    if pairs:
        rows = [float(a.metrics["rows"][0] or 0.0) / float(b.metrics["rows"][0] or 0.0) for a, b in pairs]
        # Rows are counted, time is not compared: the records may be of machines that are not equally fast.
        words = "rows are counted; sMCL runs the losers' forward as well, MCL does not"
        found.all["cost.mcl"] = Measurement(
            (Group(tuple(rows)),),
            reason=found.with_seeds(words, len(pairs)),
            seconds=sum(a.seconds + b.seconds for a, b in pairs),
            **found.setting,
        )


def _matrices(found: _Found, ks: Sequence[int], of: Callable[..., list[Record]]) -> None:
    by_k = {1: of("smcl", 4), 4: of("independent")} | {k: of("smcl", 4, k) for k in ks}
    ours, plain = by_k[1], by_k[4]
    found.add_of(
        "fig4b.lower", (ours, lambda r: r.curves["error"][-1], 1.0), (plain, lambda r: r.curves["error"][-1], -1.0)
    )
    if ours and plain:
        goals = {record.seeds: record.curves["error"][-1] for record in plain}
        found.add_of(
            "fig4b.faster",
            (ours, lambda r: _reached(r, goals[r.seeds]), 1.0),
            (plain, lambda r: r.curves["update"][-1], -1.0),
        )
    found.add("fig4c.classes", (ours, "sure", 1.0))
    found.add("fig4c.share", (ours, "share 1", 1.0))
    found.add("fig4f.largest", (plain, "largest", 1.0))
    found.add("fig4f.smallest", (plain, "smallest", 1.0))
    for claim, k in (("fig4d.two", 2), ("fig4e.three", 3)):
        if k in by_k:
            found.add(claim, (by_k[k], f"share {k}", 1.0))
        else:
            found.skip([claim], SIZE)
    for a, b in ((1, 2), (2, 3), (3, 4), (1, 4)):
        if a not in by_k or b not in by_k:
            found.skip([f"fig4.accuracy.{a}.{b}", f"fig4.special.{a}.{b}"], SIZE)
            continue
        found.add(f"fig4.accuracy.{a}.{b}", (by_k[a], "accuracy 4", 1.0), (by_k[b], "accuracy 4", -1.0))
        found.add(f"fig4.special.{a}.{b}", (by_k[a], "share 1", 1.0), (by_k[b], "share 1", -1.0))


def _reached(record: Record, goal: float | None) -> float | None:
    """The first measured update at which the oracle loss was as low; the last where it never was."""
    updates = zip(record.curves["update"], record.curves["error"], strict=True)
    return next(
        (update for update, loss in updates if loss is not None and goal is not None and loss <= goal),
        record.curves["update"][-1],
    )


def _full(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    found = _Found(profile, "cifar10", "other data")
    claims = ("full.accuracy", "full.loss", "full.classes")
    if profile != "paper":
        found.skip(claims, "one run at the published size is for the profile paper")
        return found.all
    ours, plain = (available(records, plan.full_trials(method)) for method in ("smcl", "independent"))
    if not ours or not plain:
        return {}
    setting: dict[str, Any] = {"setting": "other data", "differs": "JPEG-compressed pictures"}
    seconds = ours[0].seconds + plain[0].seconds
    for claim, curve in (("full.accuracy", "tenths"), ("full.loss", "tenths loss")):
        groups = [
            Group(tuple(float(v or 0.0) for v in record.curves[curve]), power)
            for record, power in ((ours[0], 1.0), (plain[0], -1.0))
        ]
        reason = "tenths of the test pictures, one ensemble each"
        found.all[claim] = Measurement(tuple(groups), reason=reason, seconds=seconds, **setting)
    found.all["full.classes"] = Measurement(
        (Group((float(ours[0].metrics["sure"][0] or 0.0),)),), seconds=ours[0].seconds, **setting
    )
    return found.all


def _segmentation(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    sizes = plan.SCENES[profile].sizes
    found = _Found(profile, "scenes", "other data")
    warm, dey, mcl = (available(records, plan.scene_trials(profile, method)) for method in ("warm", "dey", "mcl"))
    largest = sizes[-1]
    for size in range(2, 7):
        if size > largest or size not in sizes:
            found.skip([f"fig5a.{method}.{size}" for method in ("independent", "dey", "mcl")], SIZE)
            found.skip([f"fig5a.dey_below.{size}"] if size > 3 else [], SIZE)
            continue
        ours = (warm, f"smcl {size}", 1.0)
        found.add(f"fig5a.independent.{size}", ours, (warm, f"independent {size}", -1.0))
        found.add(f"fig5a.dey.{size}", ours, (dey, f"dey {size}", -1.0))
        if size > 3:
            found.add(f"fig5a.dey_below.{size}", (dey, f"dey {size}", 1.0), (warm, f"independent {size}", -1.0))
        if size == largest:
            found.add(f"fig5a.mcl.{size}", ours, (mcl, f"mcl {size}", -1.0))
        else:
            found.skip([f"fig5a.mcl.{size}"], "MCL is run at the largest size only")
    words = f"up to {largest} members"
    terms = [(dey, f"dey {largest}", 1.0), (warm, f"independent {largest}", -1.0)]
    less = [(dey, "dey 2", -1.0), (warm, "independent 2", 1.0)]
    if largest > 2:
        found.add("fig5a.dey_falls", *terms, *less, reason=words)
    else:
        found.skip(["fig5a.dey_falls"], SIZE)
    gain = (warm, f"smcl {largest}", 1.0), (warm, f"independent {largest}", -1.0)
    found.add("fig5a.gain", *gain, reason=f"{largest} members")
    found.add("gain.scenes.independent", *gain)
    found.add("gain.scenes.dey", (warm, f"smcl {largest}", 1.0), (dey, f"dey {largest}", -1.0))
    if 4 in sizes and 4 in plan.CIFAR[profile].sizes:
        pictures = available(records, plan.classification_trials(profile, "smcl", 4))
        found.add("fig5b.less", (warm, "share 4", 1.0), (pictures, "share 1", -1.0))
    else:
        found.skip(["fig5b.less"], SIZE)
    return found.all


def _captions(profile: Profile, records: Sequence[Record]) -> dict[str, Measurement]:
    sizes = plan.CAPTIONS[profile].sizes
    found = _Found(profile, "captions", "other data")
    found.skip([c.id for c in claims_of(plan.KEY) if c.id.startswith("t1.") and c.kind == "value"], PICTURES)
    main, dey, mcl = (available(records, plan.caption_trials(profile, method)) for method in ("main", "dey", "mcl"))
    for size in range(2, 6):
        found.add(f"t1.order.dey_independent.{size}", (dey, f"dey {size}", 1.0), (main, f"independent {size}", -1.0))
        ids = [f"t1.order.{other}.{size}" for other in ("independent", "dey", "mcl", "tuned")]
        ids += [f"t1.order.beam.{size}"] if size < 5 else []
        if size not in sizes:
            found.skip(ids, SIZE)
            continue
        ours = (main, f"smcl {size}", 1.0)
        found.add(f"t1.order.independent.{size}", ours, (main, f"independent {size}", -1.0))
        found.add(f"t1.order.dey.{size}", ours, (dey, f"dey {size}", -1.0))
        if size == sizes[-1]:
            found.add(f"t1.order.mcl.{size}", ours, (mcl, f"mcl {size}", -1.0))
            tuned = (main, f"smcl tuned {size}", 1.0), (main, f"independent tuned {size}", -1.0)
            found.add(f"t1.order.tuned.{size}", *tuned)
        else:
            one = "MCL and independent members with a fine-tuned encoder are run at the largest size only"
            found.skip([f"t1.order.mcl.{size}", f"t1.order.tuned.{size}"], one)
        if size < 5:
            found.add(f"t1.order.beam.{size}", ours, (main, f"beam {size}", -1.0))
    found.add("t1.beam_wins", (main, "beam 5", 1.0), (main, "smcl 5", -1.0))
    found.add("t1.tuning", (main, "smcl tuned 5", 1.0), (main, "smcl 5", -1.0))
    for n in range(1, 5):
        ours = (main, f"smcl grams {n}", 1.0)
        of = {"independent": main, "dey": dey, "mcl": mcl, "beam": main}
        for method, others in of.items():
            found.add(f"t1.grams.{method}.{n}", ours, (others, f"{method} grams {n}", -1.0))
        tuned = (main, f"smcl tuned grams {n}", 1.0), (main, f"independent tuned grams {n}", -1.0)
        found.add(f"t1.grams.tuned.{n}", *tuned)
        plain = (main, f"independent grams {n}", -1.0)
        found.add(f"t1.grams.mcl_independent.{n}", (mcl, f"mcl grams {n}", 1.0), plain)
    ours = (main, "smcl length", 1.0)
    found.add("t1.length.equal", ours, (main, "independent length", -1.0))
    found.add("t1.length.beam", (main, "beam length", 1.0), (main, "smcl length", -1.0))
    found.add("t1.length.mcl", (mcl, "mcl length", 1.0), (main, "smcl length", -1.0))
    found.add("fig7.same", (main, "independent same", 1.0), (main, "smcl same", -1.0))
    for method, others in (("independent", main), ("dey", dey)):
        found.add(f"gain.captions.{method}", (main, "smcl 5", 1.0), (others, f"{method} 5", -1.0))
    return found.all


PAPER = Paper(
    key=plan.KEY,
    revision=2,
    trials=plan.trials,
    run=run,
    measure=measure,
    exhibits=exhibits,
)
