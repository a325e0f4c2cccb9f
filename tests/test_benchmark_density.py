"""The benchmark of hidden Markov models as layers: equal work, ratios, and bars that can be missed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "density.py"


@pytest.fixture
def bench(script: Any) -> Any:
    return script(SCRIPT)


def test_peers_do_the_same_work(bench: Any) -> None:
    pytest.importorskip("hmmlearn")
    bank, x = bench.bank_of(3, 4, 2), torch.randn(5, 9, 2, dtype=torch.float64)
    peers = bench.hmmlearns(bank)
    ours = bank.log_likelihood(x)
    for m, peer in enumerate(peers):
        theirs = peer.score(x.flatten(0, 1).numpy(), [9] * 5)
        assert ours[:, m].sum().item() == pytest.approx(theirs, abs=1e-8)
    values = bench.gradients(bank, x)()
    assert [value.shape for value in values] == [parameter.shape for parameter in bank.parameters()]
    assert not bench.forward(bank, x)().requires_grad


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a peer's own affair
def test_all_peers_are_timed_or_said_to_be_missing(bench: Any) -> None:
    (row,) = bench.one(rounds=2, batch=2, steps=5, sizes=(3,))
    assert {*row["faster than"], *row["missing"]} == {"torch loop", "hmmlearn", "dynamax", "pomegranate"}
    found = bench.paper(rounds=2, batch=2, steps=5, models=5)
    assert len(found["faster than"]) == (0 if found["missing"] else 4)
    text = bench.show({"torch": "x", "threads": 1, "one": [row], "paper": found})
    assert "S = 3" in text


def test_bars_can_be_missed(bench: Any) -> None:
    slow, fast = bench.Times([2.0, 2.0], [9.0, 9.0]), bench.Times([1.0, 1.0], [3.0, 3.0])
    assert bench.ratio(slow, fast, 1.5)["pass"]
    assert not bench.ratio(slow, fast, 2.5)["pass"]
    assert bench.ratio(slow, fast, 1.5)["wall"] == 3.0


def test_all_works_are_called_equally_often(bench: Any) -> None:
    calls = {"short": 0, "long": 0}

    def work(name: str, seconds: float) -> None:
        calls[name] += 1
        began = time.process_time()
        while time.process_time() - began < seconds:
            pass

    bench.in_turns({"short": lambda: work("short", 0.0), "long": lambda: work("long", 0.04)}, rounds=1)
    assert calls["short"] == calls["long"] == 1 + 3  # one warms up, and three of 40 ms are more than 100
    calls |= {"short": 0, "long": 0}
    found = bench.in_turns({name: lambda name=name: work(name, 0.0) for name in calls}, rounds=2)
    assert calls == {"short": 21, "long": 21}
    assert all(len(each.processor) == len(each.wall) == 2 for each in found.values())


def test_other_parts_of_a_record_stay(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "density.json"
    target.write_text(json.dumps({"machine": "a quiet one", "paper": {"kept": 1}}))
    cold = {"seconds": 0.1, "numba loads": 0.0, "bar": 0.3, "pass": True, "imports": 1.0}
    monkeypatch.setattr(bench, "cold", lambda: cold)
    monkeypatch.setattr(bench.os, "sched_setaffinity", lambda *_: None, raising=False)
    monkeypatch.setattr(sys, "argv", ["density.py", "--only", "cold", "--json", str(target)])
    assert bench.main() == 0
    found = json.loads(target.read_text())
    assert (found["machine"], found["paper"], found["cold"]) == ("a quiet one", {"kept": 1}, cold)


def test_cost_is_measured_and_drawn(bench: Any, tmp_path: Path) -> None:
    found = bench.cost(rounds=1, sizes={"frames": 40, "models": 2, "sequences": 4})
    assert set(found["curves"]) == {"frames", "models", "sequences"}
    assert found["pass"]  # what is kept does not depend on the machine
    bench.draw(found, tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 5_000
