"""Alignments beside labels by hand."""

from __future__ import annotations

import pytest

from counterflow.exceptions import InputError
from counterflow.speech import Segment, boundary_error


def test_differences_are_of_beginnings_without_silence_and_the_first():
    found = [
        [Segment("SIL", 0.0, 0.1), Segment("a", 0.1, 0.3), Segment("b", 0.3, 0.5), Segment("c", 0.5, 0.6)],
        [Segment("a", 0.0, 0.2), Segment("SIL", 0.2, 0.3), Segment("b", 0.3, 0.4)],
    ]
    by_hand = [
        [Segment("a", 0.0, 0.31), Segment("b", 0.31, 0.44), Segment("c", 0.44, 0.6)],
        [Segment("SIL", 0.0, 0.1), Segment("a", 0.1, 0.28), Segment("b", 0.28, 0.4)],
    ]
    error = boundary_error(found, by_hand)
    assert error.count == 3
    assert error.mean == pytest.approx((0.01 + 0.06 + 0.02) / 3)
    assert error.median == pytest.approx(0.02)
    assert error.bias == pytest.approx((-0.01 + 0.06 + 0.02) / 3)
    assert error.within == pytest.approx(2 / 3)


def test_what_cannot_be_compared_is_said():
    one = [Segment("a", 0.0, 0.2), Segment("b", 0.2, 0.3)]
    for found, by_hand, match in (
        ([one], [], "as many alignments as labels"),
        ([one], [one[:1]], "utterance 0 was aligned as 'a b', and its labels say 'a'"),
        ([one[:1]], [one[:1]], "no boundaries to compare"),
    ):
        with pytest.raises(InputError, match=match):
            boundary_error(found, by_hand)
