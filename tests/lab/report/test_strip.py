"""The geometry of the overview: positions are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from counterflow.lab.report.strip import Axis, axis_for, mark_for
from counterflow.lab.trials import ClaimResult


@pytest.fixture
def claim(sections) -> ClaimResult:
    [found] = [claim for claim in sections[0].claims if claim.id == "t2.mom.tempered"]
    return replace(
        found, published=100.0, measured=200.0, relative=2.0, relative_low=1.0, relative_high=4.0, margin=1.5
    )


def test_positions_are_logarithmic_around_one(claim):
    mark = mark_for(claim, Axis(10.0))
    assert mark is not None
    assert mark.one == 50.0
    assert mark.dot == pytest.approx(50 + 50 * math.log10(2), abs=0.01)
    assert mark.span == pytest.approx((50.0, 50 + 50 * math.log10(4)), abs=0.01)
    assert mark.band == pytest.approx((50 - 50 * math.log10(1.5), 100 * math.log10(1.5)), abs=0.01)
    assert (mark.beyond_left, mark.beyond_right) == (False, False)
    assert mark.label == ("t2.mom.tempered: measured over published 2, 95% interval [1, 4], margin 0.667 to 1.5")


def test_what_lies_beyond_the_axis_gets_an_arrowhead(claim):
    mark = mark_for(replace(claim, relative=26.0, relative_low=5.0, relative_high=40.0), Axis(10.0))
    assert mark is not None
    assert mark.dot is None
    assert mark.span is not None
    assert mark.span[1] == 100.0
    assert (mark.beyond_left, mark.beyond_right) == (False, True)
    mark = mark_for(replace(claim, relative=2.0, relative_low=0.1, relative_high=10.0), Axis(10.0))
    assert mark is not None
    assert (mark.span, mark.beyond_left, mark.beyond_right) == ((0.0, 100.0), False, False)  # just on it
    ends = [mark_for(replace(claim, relative=relative), Axis(10.0)) for relative in (0.1, 10.0)]
    assert [mark and mark.dot for mark in ends] == [0.0, 100.0]


def test_what_is_computed_has_a_dot_and_no_interval(claim):
    exact = replace(claim, kind="exact", relative=None, relative_low=None, relative_high=None, low=200.0, high=200.0)
    mark = mark_for(exact, Axis(10.0))
    assert mark is not None
    assert (mark.ratio, mark.span, mark.band) == (2.0, None, None)
    assert mark.label == "t2.mom.tempered: measured over published 2"


def test_an_interval_without_ends_spans_the_axis(claim):
    mark = mark_for(replace(claim, low=None, high=None, relative_low=None, relative_high=None), Axis(10.0))
    assert mark is not None
    assert mark.span == (0.0, 100.0)
    assert (mark.beyond_left, mark.beyond_right) == (True, True)
    assert "no finite 95% interval" in mark.label


def test_a_difference_from_a_published_number_becomes_a_ratio(claim):
    linear = replace(
        claim,
        scale="linear",
        margin=20.0,
        measured=90.0,
        relative=-10.0,
        relative_low=-30.0,
        relative_high=10.0,
    )
    mark = mark_for(linear, Axis(10.0))
    assert mark is not None
    assert mark.ratio == pytest.approx(0.9)
    assert "95% interval [0.7, 1.1], margin 0.8 to 1.2" in mark.label
    negative = mark_for(replace(linear, published=-100.0, measured=-90.0, relative=10.0), Axis(10.0))
    assert negative is not None
    assert "95% interval [0.9, 1.3], margin 0.8 to 1.2" in negative.label


def test_a_ratio_has_a_margin_as_a_value_has(claim):
    value, ratio = (mark_for(replace(claim, kind=kind), Axis(10.0)) for kind in ("value", "ratio"))
    assert value == ratio
    assert ratio is not None
    assert ratio.band is not None


def test_order_and_equivalence_show_the_ratio_of_their_groups(claim):
    order = replace(claim, kind="order", published=None, measured=4.0, low=3.0, high=5.0, relative=None)
    mark = mark_for(order, Axis(10.0))
    assert mark is not None
    assert mark.ratio == 4.0
    assert mark.band is None
    equal = mark_for(replace(order, kind="equivalence", margin=1.2), Axis(10.0))
    assert equal is not None
    assert equal.band == pytest.approx((50 - 50 * math.log10(1.2), 100 * math.log10(1.2)), abs=0.01)


def test_a_bound_is_compared_with_its_interval(claim):
    bound = replace(claim, kind="bound", relative=None, relative_low=None, relative_high=None, low=150.0, high=250.0)
    mark = mark_for(bound, Axis(10.0))
    assert mark is not None
    assert "95% interval [1.5, 2.5]" in mark.label
    assert mark.band is None


@pytest.mark.parametrize(
    "change",
    [
        {"measured": None},
        {"published": 0.0},
        {"published": None},
        {"measured": -3.0},
        {"measured": 0.0},
        {"kind": "effect", "scale": "linear"},
    ],
)
def test_no_mark_where_there_is_no_ratio(claim, change):
    assert mark_for(replace(claim, **change), Axis(10.0)) is None


def test_the_axis_is_the_narrowest_that_holds_all(claim):
    assert axis_for([]).half == 3.0
    assert axis_for([replace(claim, relative_high=2.9)]).half == 3.0
    assert axis_for([claim]).half == 5.0
    assert axis_for([claim, replace(claim, relative=80.0)]).half == 10.0
    near = replace(claim, relative=1.0, relative_low=0.9, relative_high=1.1)
    assert axis_for([replace(near, relative_low=0.25)]).half == 5.0
    assert axis_for([replace(near, margin=4.0)]).half == 5.0
    assert axis_for([replace(near, relative_high=3.0)]).half == 3.0  # just on it
    assert [tick.text for tick in Axis(5.0).ticks] == ["0.2", "0.33", "0.5", "1", "2", "3", "5"]
    assert [Axis(5.0).ticks[0].at, Axis(5.0).ticks[3].at, Axis(5.0).ticks[-1].at] == [0.0, 50.0, 100.0]
