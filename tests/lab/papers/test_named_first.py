"""That readers are told of every claim that was named, or is judged otherwise, since results were known."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest

from counterflow.lab.trials import Claim, Group, Measurement, claims_of, judge, paper_keys
from counterflow.lab.trials.claim import before

# Of each claim what decides its verdict, as it was when the first records of its paper were committed.
FIRST = json.loads((Path(__file__).parent / "named_first.json").read_text("utf-8"))
DECIDES = ("kind", "value", "spread", "n", "scale", "margin", "statistic", "test", "direction", "tolerance")


def digest(claim: Claim) -> str:
    return hashlib.sha256(repr([getattr(claim, name) for name in DECIDES]).encode()).hexdigest()[:8]


@pytest.mark.parametrize("paper", paper_keys())
def test_what_was_changed_since_results_were_known_says_so(paper: str) -> None:
    silent = [c.id for c in claims_of(paper) if c.change is None and FIRST.get(paper, {}).get(c.id) != digest(c)]
    assert not silent, "give them a change in published.toml"


@pytest.mark.parametrize("paper", paper_keys())
def test_what_was_judged_before_is_what_was_named_first(paper: str) -> None:
    for claim in claims_of(paper):
        earlier = before(claim)
        if earlier is not None:
            assert digest(earlier) == FIRST[paper][claim.id], claim.id


def test_a_looser_bound_would_be_seen() -> None:
    claim = next(c for c in claims_of("bptt") if c.kind == "bound" and c.value)
    assert digest(msgspec.structs.replace(claim, value=2 * claim.value)) != FIRST["bptt"][claim.id]


def test_the_report_has_the_verdict_as_before_too() -> None:
    claim = next(c for c in claims_of("variational") if c.id == "fig1a.adaptive.a.50")
    tie = Measurement((Group((1.0, 1.01, 0.99, 1.0)), Group((1.0, 0.99, 1.01, 1.0), -1.0)), reason="a note")
    [found] = judge([claim], {claim.id: tie})
    assert found.verdict == "reproduced"
    assert found.reason.startswith(
        "a note; named so since 2026-11-27, when results were known, because the paper says equal"
    )
    assert found.reason.endswith("; judged as before it is inconclusive")
    [missing] = judge([claim], {})
    assert "as before" not in missing.reason
    assert "named so since 2026-11-27" in missing.reason
