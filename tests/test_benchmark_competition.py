"""The benchmark of competing units: both nets learn in every form, and the bars are those that it states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "competition.py"


@pytest.fixture
def bench(script: Any) -> Any:
    return script(SCRIPT)


@pytest.mark.parametrize("net", ["perceptron", "convolutional"])
def test_each_net_is_timed_beside_relu(bench: Any, net: str) -> None:
    row = bench.ratios(net, 3, compiled=False, repeats=2)
    assert row["pass"] is None
    assert all(row[kind] > 0 for kind in ("again", "2", "4"))


def test_the_bar_decides(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for bar, verdict in ((1e9, True), (0.0, False)):
        monkeypatch.setitem(bench.bars.COMPETITION, ("perceptron", 3, "plain"), {2: bar})
        assert bench.ratios("perceptron", 3, compiled=False, repeats=1)["pass"] is verdict
