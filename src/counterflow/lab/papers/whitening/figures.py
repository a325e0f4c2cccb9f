"""The paper's figures redrawn with our numbers in them."""

from __future__ import annotations

from collections.abc import Sequence

from counterflow.lab.report import Exhibit
from counterflow.lab.trials import ClaimResult, Profile, Record

__all__ = ["exhibits"]


def exhibits(profile: Profile, records: Sequence[Record], claims: Sequence[ClaimResult]) -> list[Exhibit]:
    """All figures and tables whose trials are there."""
    return []
