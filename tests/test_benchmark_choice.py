"""The benchmark of multiple choice learning: its kinds do the same work, and the bars are those that it states."""

from __future__ import annotations

import json
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
    monkeypatch.setattr(bench, "in_turns", lambda ways, rounds, warm: {name: [2.0, 2.0] for name in ways})
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


def test_a_run_that_is_stopped_loses_no_older_row(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def row(batch: int, ratio: float) -> dict[str, Any]:
        case = {"members": 5, "batch": batch, "format": "contiguous", "pass": True}
        return {**case, "ratio": ratio, "low": ratio, "high": ratio, "floor": 0.4, "again": 1.0} | dict.fromkeys(
            ("bytes", "naive bytes"), 2**20
        )

    def case(members: int, batch: int, form: str, repeats: int) -> dict[str, Any]:
        if batch == 350:
            raise KeyboardInterrupt
        return row(batch, 0.6)

    target = tmp_path / "choice.json"
    target.write_text(json.dumps({"rows": [row(128, 0.5), row(350, 0.5)], "peer": {"ratio": 1.0}}))
    monkeypatch.setattr(bench, "case", case)
    monkeypatch.setattr(sys, "argv", ["choice.py", "--json", str(target), "--formats", "contiguous"])
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    found = json.loads(target.read_text())
    assert {each["batch"]: each["ratio"] for each in found["rows"]} == {128: 0.6, 350: 0.5}
    assert found["peer"] == {"ratio": 1.0}


def test_a_peer_that_is_missing_is_said(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchensemble", None)
    assert "not installed" in bench.peer(1)["missing"]
