"""The benchmark of noise control: filters agree with padasip's, and the bars decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("padasip", reason="padasip is a peer: pip install padasip")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "noise_control.py"


@pytest.fixture
def bench(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = script(SCRIPT)
    # One call is enough to see that all run.
    monkeypatch.setattr(
        module, "best_times", lambda works, repeats: {name: (work(), 1.0)[1] for name, work in works.items()}
    )
    return module


def test_filters_agree_with_padasip_and_the_bars_decide(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bench.filters(1, samples=400)
    assert [row["filter"] for row in rows] == ["lms", "nlms", "rls"]
    assert all(row["apart"] < 1e-10 for row in rows)
    assert [row["pass"] for row in rows] == [False, False, False]  # 20 times, as each took a second
    for name in ("lms", "nlms", "rls"):
        monkeypatch.setitem(bench.BARS, name, 1.0)
    assert all(row["pass"] for row in bench.filters(1, samples=400))


def test_filters_are_left_out_where_padasip_is_missing(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert bench.filters(1, samples=400) == []


def test_the_perceptron_is_timed_beside_autograd(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = bench.perceptron(1, samples=260, steps=3)
    assert row["updates"] == pytest.approx(260 * 260)
    assert row["pass"] == {"updates": False, "autograd": False}
    monkeypatch.setitem(bench.BARS, "updates", 1.0)
    assert bench.perceptron(1, samples=260, steps=3)["pass"]["updates"]


def test_the_chip_is_timed_beside_the_perceptron(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bench.chip(1, samples=200)
    assert [row["pass"] for row in rows] == [None, True, None]
    monkeypatch.setitem(bench.BARS, "chip", 0.5)
    assert bench.chip(1, samples=200)[1]["pass"] is False


def test_the_others_and_the_scaling_are_timed(bench: Any) -> None:
    assert all(row["nanoseconds"] > 0 for row in bench.others(1, samples=200))
    assert len(bench.scaling(1, samples=50)) == 6
