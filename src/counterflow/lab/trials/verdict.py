"""What was measured for a claim, and the verdict, which is computed and never typed.

How a verdict is reached (`judge`). The estimate of every claim is a contrast of groups of samples: on the
log scale ``prod_i T(samples_i) ** power_i``, on the linear scale ``sum_i power_i T(samples_i)``, with the
interval of `counterflow.lab.stats`; that of a paired test is the mean over the pairs. All intervals are at 95%,
all tests one-sided at .05 in the claimed direction.

==============  =============================================================================================
value, ratio    The interval of measured over published (linear: of their difference), which counts the
                published number's own uncertainty. Inside the margin: *reproduced*. Wholly outside:
                *direction only* if the direction is significant, else *not reproduced*. Across an edge of the
                margin: *inconclusive*.
exact           Every sample within the tolerance: *reproduced*, else *not reproduced*.
order, effect   The named test is significant: *reproduced*; in the opposite direction: *not reproduced*; else
                *inconclusive*.
equivalence     The interval lies inside the margin around 1 (linear: 0): *reproduced*; wholly outside:
                *not reproduced*; else *inconclusive*.
bound           The whole interval respects the bound: *reproduced*; all of it breaks it: *not reproduced*;
                else *inconclusive*.
==============  =============================================================================================

An interval across an edge stays *inconclusive* even where the direction is significant: *direction only* says
that the size is wrong, which such an interval does not show, and more seeds may yet find it right.

The direction of a value is ``direction`` against the measurement's ``reference``; that of a ratio is the side
of 1 (linear: 0) on which the published ratio lies, unless ``direction`` or ``reference`` say otherwise.

Fewer seeds never make a better verdict: with the groups' means and deviations held, an interval only widens
and a p value only grows. ``exact`` is apart, since its samples are computed, not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from counterflow.exceptions import InputError
from counterflow.lab import stats
from counterflow.lab.trials.claim import Claim, Kind, before

__all__ = ["ClaimResult", "Group", "Measurement", "Setting", "Verdict", "judge"]

SIGNIFICANT = 0.05
ROUNDING = 1e-9  # relative: a number that lies on an edge stays there, whichever way its logarithm is rounded

Setting = Literal["same", "smaller", "other data"]
Verdict = Literal["reproduced", "direction only", "not reproduced", "inconclusive", "not run"]


@dataclass(frozen=True)
class Group:
    """Samples of one treatment, one a seed, and how they enter the claim's contrast.

    Args:
        samples: One number a seed.
        power: The exponent of the group's statistic on the log scale, its coefficient on the linear scale.
            A value is one group of power 1; a ratio is two, of 1 and -1.
        deterministic: The number was computed, not drawn: another seed would give the same, so that one
            sample is all there is to know. Without it, one sample has an infinite interval.
        overlap: Where the samples are splits of one data set, which share what is learned from: test examples over
            training examples. Intervals and tests are corrected for it (`counterflow.lab.stats.sample_term`).
    """

    samples: tuple[float, ...]
    power: float = 1.0
    deterministic: bool = False
    overlap: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """What was measured for one claim.

    Args:
        groups: The samples; empty if the claim was not run.
        setting: *same* as the paper's, *smaller*, or *other data*.
        differs: What was shrunk, or which data.
        reason: Why it was not run, or what the reader must know ("3 of 30 restarts never converged").
        reference: Value, ratio: what its direction is measured against, such as the conventional treatment.
        seconds: What the trials behind it took.
        command: The command that reruns it.
    """

    groups: tuple[Group, ...]
    setting: Setting = "same"
    differs: str = ""
    reason: str = ""
    reference: tuple[Group, ...] = ()
    seconds: float = 0.0
    command: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """A claim, what was measured, and the verdict.

    Attributes:
        id: The claim's id.
        claim: The claim's sentence.
        kind: The claim's kind.
        unit: Unit of the numbers.
        at: Where in the paper.
        test: The test that was named for it.
        scale: ``"log"`` or ``"linear"``.
        margin: The claim's margin, where it has one.
        published: The published number, if there is one.
        published_spread: Its standard deviation, if there is one.
        published_n: How many restarts are behind the published number.
        measured: Our number: the contrast of the groups.
        low: Lower end of its 95% interval; ``None`` where it has none.
        high: Upper end.
        relative: Measured over published (log) or measured minus published (linear), where both exist.
        relative_low: Lower end of its interval, which counts the published number's own uncertainty too;
            this is the interval that a value's or ratio's verdict is read from.
        relative_high: Upper end.
        p: One-sided p of the named test in the claimed direction, for an order or an effect.
        n: Seeds in the smallest group that was drawn.
        setting: *same*, *smaller* or *other data*.
        differs: What differs from the paper's setting.
        verdict: Computed.
        reason: Why it was not run, or what the reader must know.
        seconds: What the trials behind it took.
        command: The command that reruns it.
    """

    id: str
    claim: str
    kind: Kind
    unit: str
    at: str
    test: str
    scale: str
    margin: float | None
    published: float | None
    published_spread: float | None
    published_n: int | None
    measured: float | None
    low: float | None
    high: float | None
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    p: float | None
    n: int | None
    setting: Setting
    differs: str
    verdict: Verdict
    reason: str
    seconds: float
    command: str


def judge(
    claims: Sequence[Claim], measurements: Mapping[str, Measurement], missing: str = "no measurement"
) -> list[ClaimResult]:
    """Give every claim its verdict.

    Args:
        claims: All claims of a paper.
        measurements: Claim id to what was measured for it.
        missing: The reason given for a claim that has no measurement, or one without groups and reason.

    Returns:
        One result a claim, in the order of the claims.

    Raises:
        InputError: A measurement belongs to no claim, or its samples cannot be judged (NaN, the wrong number
            of groups). Samples that merely lack the statistic (one seed has no deviation, zero has no
            logarithm) make the claim inconclusive, with the reason.

    Example:
        >>> claim = Claim(id="t1.epochs", claim="It takes 100 epochs.", kind="value", value=100.0)
        >>> measured = Measurement(groups=(Group((95.0, 100.0, 110.0, 104.0)),))
        >>> [result] = judge([claim], {"t1.epochs": measured})
        >>> result.verdict, round(result.measured, 2)
        ('reproduced', 102.25)
    """
    stray = sorted(set(measurements) - {claim.id for claim in claims})
    if stray:
        raise InputError(f"claim {stray[0]} is measured, and is not among the published claims")
    results = []
    for claim in claims:
        measurement = measurements.get(claim.id, Measurement(groups=()))
        found = _judged(claim, measurement, missing)
        if claim.change is not None:
            found = replace(found, reason="; ".join(filter(None, (found.reason, _changed(claim, measurement)))))
        results.append(found)
    return results


def _judged(claim: Claim, measurement: Measurement, missing: str) -> ClaimResult:
    try:
        return _judge_one(claim, measurement, missing)
    except stats.NoStatisticError as error:
        reason = "; ".join(filter(None, (measurement.reason, str(error))))
        return _result(claim, measurement, "inconclusive", reason=reason)
    except InputError as error:
        raise InputError(f"claim {claim.id}: {error}") from error


def _changed(claim: Claim, measurement: Measurement) -> str:
    """What the reader is told of a claim that was changed since results were known."""
    assert claim.change is not None
    told = f"named so since {claim.change.on}, when results were known, because {claim.change.why}"
    earlier = before(claim)
    if earlier is None or not measurement.groups:
        return told
    return f"{told}; judged as before it is {_judged(earlier, measurement, '').verdict}"


def _judge_one(claim: Claim, measurement: Measurement, missing: str) -> ClaimResult:
    if not measurement.groups:
        return _result(claim, measurement, "not run", reason=measurement.reason or missing)
    if claim.kind == "exact":
        return _judge_exact(claim, measurement)
    terms = _terms(claim, measurement.groups)
    if claim.kind in ("value", "ratio"):
        return _judge_size(claim, measurement, terms)
    interval = stats.contrast(terms)
    if claim.kind in ("order", "effect"):
        less, greater = _test(claim, measurement.groups, terms)
        p, opposite = (less, greater) if claim.direction == "less" else (greater, less)
        verdict = _three(p < SIGNIFICANT, opposite < SIGNIFICANT)
        return _result(claim, measurement, verdict, interval, p=p)
    _, low, high = interval
    if claim.kind == "equivalence":
        return _result(claim, measurement, _three(*_within(claim, low, high)), interval)
    assert claim.value is not None  # a bound is left
    low, high = _number(claim, low), _number(claim, high)
    if claim.direction == "less":
        verdict = _three(_at_most(high, claim.value), not _at_most(low, claim.value))
    else:
        verdict = _three(_at_most(-low, -claim.value), not _at_most(-high, -claim.value))
    return _result(claim, measurement, verdict, interval)


def _three(holds: bool, fails: bool) -> Verdict:
    return "reproduced" if holds else "not reproduced" if fails else "inconclusive"


def _at_most(number: float, limit: float) -> bool:
    return number <= limit + ROUNDING * abs(limit)


def _within(claim: Claim, low: float, high: float) -> tuple[bool, bool]:
    """Whether an interval lies inside the margin, and whether it lies wholly outside."""
    assert claim.margin is not None  # a claim without one has been refused
    reach = math.log(claim.margin) if claim.scale == "log" else claim.margin
    inside = _at_most(-low, reach) and _at_most(high, reach)
    return inside, not _at_most(-high, reach) or not _at_most(low, reach)


def _judge_exact(claim: Claim, measurement: Measurement) -> ClaimResult:
    if len(measurement.groups) != 1:
        raise InputError(f"an exact number is one group, not {len(measurement.groups)}")
    samples = measurement.groups[0].samples
    mean = stats.sample_term(samples, scale="linear").estimate  # it refuses what is not finite
    assert claim.value is not None
    assert claim.tolerance is not None
    allowed = claim.tolerance * (abs(claim.value) or 1.0)
    close = all(abs(sample - claim.value) <= allowed for sample in samples)
    measured = mean if min(samples) < max(samples) else samples[0]
    return _result(
        claim,
        measurement,
        "reproduced" if close else "not reproduced",
        numbers=(measured, min(samples), max(samples)),
    )


def _judge_size(claim: Claim, measurement: Measurement, terms: list[stats.Term]) -> ClaimResult:
    assert claim.value is not None
    n = claim.n if claim.kind == "value" or claim.spread is not None else None
    published = stats.published_term(claim.value, claim.spread, n, claim.statistic, claim.scale)
    relative = stats.contrast([*terms, published])
    _, low, high = relative
    inside, outside = _within(claim, low, high)
    if inside:
        verdict: Verdict = "reproduced"
    elif outside:
        verdict = "direction only" if _direction_holds(claim, measurement, terms) else "not reproduced"
    else:
        verdict = "inconclusive"
    return _result(claim, measurement, verdict, stats.contrast(terms), relative)


def _direction_holds(claim: Claim, measurement: Measurement, terms: list[stats.Term]) -> bool:
    assert claim.value is not None
    if claim.kind == "value" and (claim.direction is None or not measurement.reference):
        return False
    null = 1.0 if claim.scale == "log" else 0.0
    side = claim.direction or ("greater" if claim.value > null else "less" if claim.value < null else None)
    against = [replace(group, power=-group.power) for group in measurement.reference]
    less, greater = stats.contrast_p([*terms, *_terms(claim, against)])
    return {"less": less, "greater": greater, None: 1.0}[side] < SIGNIFICANT


def _terms(claim: Claim, groups: Sequence[Group]) -> list[stats.Term]:
    if claim.test == "paired_t":
        first, second = _pair(claim, groups)
        overlap = max(group.overlap for group in groups)
        return [stats.paired_term(first, second, claim.scale, overlap)]
    return [
        stats.sample_term(group.samples, claim.statistic, claim.scale, group.power, group.deterministic, group.overlap)
        for group in groups
    ]


def _test(claim: Claim, groups: Sequence[Group], terms: list[stats.Term]) -> tuple[float, float]:
    if claim.test == "mann_whitney":
        if any(group.overlap for group in groups):
            raise InputError("the test mann_whitney cannot be corrected for splits that overlap; name another")
        return stats.mann_whitney_p(*_pair(claim, groups))
    return stats.contrast_p(terms)


def _pair(claim: Claim, groups: Sequence[Group]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The samples of the two groups that a test compares."""
    if sorted(group.power for group in groups) != [-1.0, 1.0]:
        raise InputError(f"the test {claim.test} compares two groups, of powers 1 and -1")
    if any(group.deterministic for group in groups):
        raise InputError(f"the test {claim.test} is of samples that were drawn; a deterministic group has the contrast")
    first, second = sorted(groups, key=lambda group: -group.power)
    return first.samples, second.samples


def _seeds(groups: Sequence[Group]) -> int | None:
    """Those of the smallest group; of what was computed only where there is nothing else."""
    drawn = [group for group in groups if not group.deterministic]
    return min((len(group.samples) for group in drawn or groups), default=None)


def _number(claim: Claim, value: float) -> float:
    """From the claim's scale to the number that a reader sees."""
    if claim.scale == "linear":
        return value
    return math.exp(value) if value < 709 else math.inf  # exp overflows above


def _result(
    claim: Claim,
    measurement: Measurement,
    verdict: Verdict,
    interval: tuple[float, float, float] | None = None,
    relative: tuple[float, float, float] | None = None,
    *,
    numbers: tuple[float, float, float] | None = None,
    p: float | None = None,
    reason: str | None = None,
) -> ClaimResult:
    def shown(triple: tuple[float, float, float] | None) -> tuple[float | None, float | None, float | None]:
        if triple is None:
            return None, None, None
        number, low, high = (_number(claim, end) for end in triple)
        return (number, low, high) if math.isfinite(low) and math.isfinite(high) else (number, None, None)

    measured, low, high = numbers or shown(interval)
    ratio, ratio_low, ratio_high = shown(relative)
    return ClaimResult(
        id=claim.id,
        claim=claim.claim,
        kind=claim.kind,
        unit=claim.unit,
        at=claim.at,
        test=claim.test or "none",
        scale=claim.scale,
        margin=claim.margin,
        published=claim.value,
        published_spread=claim.spread,
        published_n=claim.n,
        measured=measured,
        low=low,
        high=high,
        relative=ratio,
        relative_low=ratio_low,
        relative_high=ratio_high,
        p=p,
        n=_seeds(measurement.groups),
        setting=measurement.setting,
        differs=measurement.differs,
        verdict=verdict,
        reason=measurement.reason if reason is None else reason,
        seconds=measurement.seconds,
        command=measurement.command,
    )
