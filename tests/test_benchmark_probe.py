"""The benchmark of the probe: pairs of rounds, a floor, and a bar that decides."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "probe.py"


@pytest.fixture
def bench(script: Any) -> Any:
    return script(SCRIPT)


def test_the_record_goes_where_it_is_asked_for(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "WIDTHS", (8,))
    monkeypatch.setattr(bench, "seconds_of", lambda step, times: (step(), 0.01)[1])
    monkeypatch.setattr(bench, "read_bandwidth", lambda: 10 * 128 * 8 * 4 / 0.01)
    target = tmp_path / "probe.json"
    monkeypatch.setattr(sys, "argv", ["probe.py", "--seconds", "0", "--json", str(target)])
    assert bench.main() == 0
    assert "step with probe / plain step" in capsys.readouterr().out
    (row,) = json.loads(target.read_text())["results"]
    assert (row["ratio"], row["quartiles"], row["rounds"]) == (1.0, [1.0, 1.0], 9)
    assert row["floor"] == pytest.approx(1 + 1 / row["k"])  # all errors are read in the time of a step
    assert row["pass"] is True


def test_the_bar_decides(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "seconds_of", lambda step, times: 0.01)
    monkeypatch.setattr(bench, "BAR", 1.0)  # a ratio of 1 is not below it
    assert bench.measure(8, 0.0, 1e9)["pass"] is False
