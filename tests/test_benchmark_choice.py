"""The benchmark of multiple choice learning: its kinds do the same work, and the bars are those that it states."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "choice.py"


@pytest.fixture
def bench(script: Any) -> Any:
    return script(SCRIPT)


def test_the_bar_decides_and_memory_does(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "in_turn", lambda calls, repeats: {name: [2.0, 2.0] for name in calls})
    monkeypatch.setitem(bench.BARS, (2, 4), 1.0)
    row = bench.case(2, 4, "channels last", 2)
    assert (row["pass"], row["ratio"], row["again"], row["low"], row["high"]) == (True, 1.0, 1.0, 1.0, 1.0)
    assert row["floor"] == pytest.approx(1.5)
    monkeypatch.setitem(bench.BARS, (2, 4), 0.99)
    assert bench.case(2, 4, "channels last", 2)["pass"] is False
    monkeypatch.setitem(bench.BARS, (2, 4), 1.0)
    sizes = iter((1, 2))
    monkeypatch.setattr(bench, "peak", lambda call: next(sizes))
    assert bench.case(2, 4, "channels last", 2)["pass"] is False


def test_the_peak_is_that_of_what_lives_at_once(bench: Any) -> None:
    size = 2**20
    kept: list[Any] = []

    def call() -> None:
        kept.clear()
        for _ in range(3):
            torch.ones(size, dtype=torch.uint8)  # one after the other
        kept.append((torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)))
        kept.clear()

    assert 2 * size <= bench.peak(call) < 3 * size


def test_a_peer_that_is_missing_is_said(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchensemble", None)
    assert "not installed" in bench.peer(1)["missing"]
