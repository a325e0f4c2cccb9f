"""The benchmark of speech: the ways that it compares find one path, and its bars decide."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speech.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_of_speech", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    # One call is enough to see that all run.
    monkeypatch.setattr(module, "median_time", lambda call, repeats: (call(), 1.0)[1])
    return module


def test_alignments_agree_and_the_bars_decide(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["way"]: row for row in bench.alignment(1, frames=12, states=5)}
    assert {"bare", "best_path", *bench.BARS} <= {*rows}
    assert rows["numpy rows"]["pass"] is False
    assert rows["bare"]["pass"] is None
    monkeypatch.setitem(bench.BARS, "numpy rows", 1)
    assert {row["way"]: row for row in bench.alignment(1, frames=12, states=5)}["numpy rows"]["pass"] is True


def test_predictors_and_recognition_are_timed(bench: Any) -> None:
    rows = bench.predictors(1, frames=20)
    assert rows[0]["pass"] is False  # a second
    assert rows[2]["parameters"] < rows[1]["parameters"]
    assert [row["pass"] for row in bench.recognition(1)].count(None) == 6
