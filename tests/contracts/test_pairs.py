"""Methods in pairs: what the docs' table of combinations says of them is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .pairs import KINDS, outcome, pairable

TABLE = json.loads((Path(__file__).resolve().parents[2] / "docs" / "combinations.json").read_text("utf-8"))


def chosen(kind: str) -> list[object]:
    """Each method under another one, and over it: `pairs.py` tries all."""
    every = pairable(kind)
    return [
        pytest.param(kind, *pair, id=f"{kind}-{pair[0].key}-{pair[1].key}")
        for number, method in enumerate(every)
        for pair in [(method, every[(number * 7 + 3) % len(every)])]
    ]


@pytest.mark.parametrize(("kind", "first", "second"), [case for kind in KINDS for case in chosen(kind)])
def test_a_pair_does_what_the_table_says(kind, first, second) -> None:
    assert outcome(first, second, kind) == TABLE[kind][f"{first.key}, {second.key}"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_ordered_pair_is_in_the_table(kind) -> None:
    keys = [method.key for method in pairable(kind)]
    assert list(TABLE[kind]) == [f"{first}, {second}" for first in keys for second in keys]
