"""No claim is measured where nothing was run: a number that was copied from a paper confirms nothing in it."""

from __future__ import annotations

from typing import Any

import pytest

from counterflow.lab.trials import claims_of, judge, load_paper, paper_keys

# What our code computes while it measures, from several numbers of its own, without a trial.
COMPUTED = {"variational": {"kl.polynomial"}}  # the polynomial's distance from the exact divergence, over 81 rates


@pytest.mark.parametrize("profile", ["smoke", "laptop", "paper"])
@pytest.mark.parametrize("key", paper_keys())
def test_no_claim_is_reproduced_from_a_folder_without_records(key: str, profile: Any) -> None:
    results = judge(claims_of(key), load_paper(key).measure(profile, []))
    assert {result.id for result in results if result.verdict != "not run"} == COMPUTED.get(key, set())


def test_there_are_ten_papers() -> None:
    assert len(paper_keys()) == 10
