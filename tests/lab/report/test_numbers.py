"""Numbers and times at the places where the way of writing them changes."""

from __future__ import annotations

import pytest

from counterflow.lab.report.numbers import (
    format_computing,
    format_interval,
    format_number,
    format_p,
    format_seconds,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0009999, "1e-3"), (0.001, "0.001"), (99.96, "100"), (100.4, "100"), (999_999.0, "999999"), (1e6, "1e6")],
)
def test_numbers_between_a_thousandth_and_a_million_have_no_exponent(value, text):
    assert format_number(value) == text
    assert format_number(-value) == f"−{text}"


def test_an_interval_without_one_end_goes_on_for_ever():
    assert format_interval(None, 2.0) == "[−∞, 2]"
    assert format_interval(2.0, None) == "[2, ∞]"


def test_p_of_one_in_a_thousand_is_told():
    assert (format_p(0.001), format_p(0.00099)) == ("p = 0.001", "p < 0.001")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9.994, "9.99 s"), (59.4, "59 s"), (59.6, "1 min"), (60.0, "1 min"), (3599.4, "59 min 59 s"), (3600.0, "1 h")],
)
def test_a_time_is_rounded_before_its_units_are_chosen(seconds, text):
    assert format_seconds(seconds) == text


def test_a_processor_that_took_no_time_is_not_told():
    assert format_computing(5.0, 5.0) == "5 s of a graphics card"
