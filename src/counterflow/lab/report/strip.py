"""Where a claim's interval is drawn on the overview's common axis.

The axis is logarithmic, its middle is 1 (measured equals published, or the groups are equal), and positions
are percentages of its width. What lies beyond its ends is drawn as an arrowhead, never left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from counterflow.lab.report.numbers import format_interval, format_number
from counterflow.lab.trials import ClaimResult

__all__ = ["Axis", "Mark", "Tick", "axis_for", "mark_for"]

# Kinds whose verdict compares the measured groups with each other, not with a published number.
CONTRASTS = ("order", "effect", "equivalence")
# Half widths that the axis may have, with the ticks right of the middle.
TICKS = {3.0: (1.5, 2.0, 3.0), 5.0: (2.0, 3.0, 5.0), 10.0: (2.0, 5.0, 10.0)}


@dataclass(frozen=True)
class Tick:
    """A tick: its position in percent and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from ``1 / half`` to ``half``."""

    half: float

    def position(self, ratio: float) -> float:
        """Percent of the width; 0 or 100 for what lies beyond an end."""
        if ratio <= 1 / self.half:
            return 0.0
        if ratio >= self.half:
            return 100.0
        return round(50 + 50 * math.log(ratio) / math.log(self.half), 2)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """The ticks, from left to right."""
        right = TICKS[self.half]
        ratios = [1 / x for x in reversed(right)] + [1.0, *right]
        return tuple(Tick(self.position(ratio), f"{ratio:.2g}") for ratio in ratios)


@dataclass(frozen=True)
class Mark:
    """A claim on the axis: all positions in percent.

    Args:
        ratio: The estimate.
        one: Where the ratio is 1.
        band: Left end and width of the margin, if the claim has one.
        span: Ends of the interval, if it has one.
        dot: The estimate, unless it lies beyond the axis.
        beyond_left: The interval or the estimate goes on to the left of the axis.
        beyond_right: The same to the right.
        label: All of it in words.
    """

    ratio: float
    one: float
    band: tuple[float, float] | None
    span: tuple[float, float] | None
    dot: float | None
    beyond_left: bool
    beyond_right: bool
    label: str


@dataclass(frozen=True)
class _Ratio:
    value: float
    low: float | None
    high: float | None
    margin: tuple[float, float] | None
    name: str


def _ratio(claim: ClaimResult) -> _Ratio | None:
    """What the axis shows of a claim, or None where there is no ratio to show."""
    if claim.measured is None:
        return None
    margin = claim.margin
    if claim.kind in CONTRASTS:
        if claim.scale != "log":
            return None
        band = (1 / margin, margin) if claim.kind == "equivalence" and margin else None
        return _Ratio(claim.measured, claim.low, claim.high, band, "ratio of the groups")
    if not claim.published or claim.measured / claim.published <= 0:
        return None
    published = claim.published
    value = claim.measured / published
    reach = margin if margin and claim.kind in ("value", "ratio") else None
    if claim.relative is None:  # exact, bound: the published number has no uncertainty of its own
        ends = [None if end is None else end / published for end in (claim.low, claim.high)]
    elif claim.scale == "log":
        value = claim.relative
        ends = [claim.relative_low, claim.relative_high]
    else:  # a difference d to a published number p is a ratio of (p + d) / p
        ends = [None if end is None else 1 + end / published for end in (claim.relative_low, claim.relative_high)]
    low, high = ends if published > 0 or claim.scale == "log" else reversed(ends)
    band = None
    if reach is not None:
        distance = reach / abs(published)
        band = (1 / reach, reach) if claim.scale == "log" else (1 - distance, 1 + distance)
    return _Ratio(value, low, high, band, "measured over published")


def axis_for(claims: Iterable[ClaimResult]) -> Axis:
    """The narrowest axis that holds every estimate and every finite end, as far as the widest one goes."""
    reach = 0.0
    for claim in claims:
        ratio = _ratio(claim)
        if ratio is not None:
            ends = (ratio.value, ratio.low, ratio.high, *(ratio.margin or ()))
            reach = max([reach, *(abs(math.log(end)) for end in ends if end and 0 < end < math.inf)])
    half = next((half for half in TICKS if math.log(half) >= reach), max(TICKS))
    return Axis(half)


def mark_for(claim: ClaimResult, axis: Axis) -> Mark | None:
    """A claim's mark, or None where there is no ratio to draw (not run, a difference, published zero)."""
    ratio = _ratio(claim)
    if ratio is None:
        return None
    label = f"{claim.id}: {ratio.name} {format_number(ratio.value)}"
    low = -math.inf if ratio.low is None else ratio.low
    high = math.inf if ratio.high is None else ratio.high
    if math.isinf(low) or math.isinf(high):
        label += ", no finite 95% interval"
    elif low < high:
        label += f", 95% interval {format_interval(low, high)}"
    band = None
    if ratio.margin is not None:
        left, right = (axis.position(end) for end in ratio.margin)
        band = (left, round(right - left, 2))
        label += f", margin {format_number(ratio.margin[0])} to {format_number(ratio.margin[1])}"
    return Mark(
        ratio=ratio.value,
        one=50.0,
        band=band,
        span=(axis.position(low), axis.position(high)) if low < high else None,
        dot=axis.position(ratio.value) if 1 / axis.half <= ratio.value <= axis.half else None,
        beyond_left=low < 1 / axis.half,
        beyond_right=high > axis.half,
        label=label,
    )
