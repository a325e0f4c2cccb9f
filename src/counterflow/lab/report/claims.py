"""All claims and their verdicts as a program reads them, for ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from counterflow.lab.report.exhibit import Section

__all__ = ["JSON_FIELDS", "claims_document"]

JSON_FIELDS = (
    "id",
    "claim",
    "published",
    "measured",
    "low",
    "high",
    "n",
    "unit",
    "setting",
    "verdict",
    "seconds",
)


def claims_document(sections: Sequence[Section], profile: str) -> dict[str, Any]:
    """What can be written as JSON: the profile and, for each paper, its claims with ``JSON_FIELDS`` of each.

    Args:
        sections: One a paper, in the order of reading.
        profile: What they show.

    Example:
        >>> section = Section("toy", "A toy", "Nobody, 1995.", "counterflow reproduce toy", claims=())
        >>> claims_document([section], "smoke")
        {'profile': 'smoke', 'papers': [{'paper': 'toy', 'claims': []}]}
    """
    papers = [
        {"paper": each.key, "claims": [{name: getattr(claim, name) for name in JSON_FIELDS} for claim in each.claims]}
        for each in sections
    ]
    return {"profile": profile, "papers": papers}
