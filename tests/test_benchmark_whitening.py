"""The benchmark of whitening: the floor, equal budgets, and verdicts that say no more than the ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "whitening.py"


@pytest.fixture
def bench(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = script(SCRIPT)
    for name, value in {
        "STEPS": 12,
        "WINDOW": 4,
        "PRONG_EVERY": 6,
        "PRONG_OFTEN": 3,
        "OTHERS_EVERY": 4,
        "BATCH": 16,
    }.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def toy(bench: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 5, generator=generator), torch.randint(3, (300,), generator=generator)
    task = bench.Task(
        "toy",
        (5, 8, 3),
        lambda: {"train": (x[:200], y[:200]), "validation": (x[200:], y[200:])},
        torch.nn.CrossEntropyLoss,
        dict.fromkeys(bench.OTHER, 0.01),
    )
    monkeypatch.setitem(bench.TASKS, "toy", task)
    return "toy"


def test_the_floor_counts_products(bench: Any) -> None:
    bench.BATCH = 128
    n, m, samples, period = 784, 1000, 4096, 1000
    extra = 2 * n**2 * samples + 9 * n**3 + 4 * m * n**2 + 2 * 128 * period * n**2
    assert bench.counted_floor((n, m), samples, period) == pytest.approx(extra / (6 * 128 * n * m * period))


def test_a_step_is_timed_over_two_whole_periods(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = type("Pictures", (), {"training": torch.rand(128, 20)})
    monkeypatch.setattr(bench.autoencoder, "load_pictures", lambda: pictures)
    found = bench.step(blocks=2, sizes=(20, 8, 4, 8, 20), period=10)
    assert found["ratio"] > 0
    assert len(found["periods"]) == 2
    assert found["share of projections"] > 0  # one in each period
    assert found["pass"] == (found["ratio"] <= 1.5)


@pytest.mark.parametrize(
    "method", ["PRONG", "PRONG often", "PRONG two-sided", "SGD", "Adam", "Muon", "K-FAC", "Shampoo", "SOAP"]
)
def test_every_method_learns(bench: Any, toy: str, method: str) -> None:
    peer = bench.PEERS.get(method)
    if peer is not None:
        pytest.importorskip(peer)
    task = bench.TASKS[toy]
    other = bench.OTHER[method][1][0]
    found = bench.train(task, method, 0.01, other, 1, task.data())
    assert not found["diverged"]
    assert len(found["curve"]) == 3
    model, losses = bench.learner(task, method, 0.01, other, 0, task.data())
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(5):
        next(losses)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_race_is_run_judged_and_taken_up_again(
    bench: Any, toy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "OTHER", {m: bench.OTHER[m] for m in ("PRONG", "PRONG two-sided", "SGD")})
    kept = bench.Kept(tmp_path / "race.json")
    found = bench.race(toy, kept, rounds=1)
    budgets = {method: row["tried"] for method, row in found["methods"].items()}
    assert all(10 <= tried <= 14 for tried in budgets.values())
    assert list(found["compared"]) == ["PRONG", "PRONG two-sided"]
    assert all(list(rows) == ["SGD"] for rows in found["compared"].values())
    row = found["compared"]["PRONG"]["SGD"]
    assert {row["updates"], row["time"]} <= {"ahead", "level", "behind"}
    assert found["behind on time"] == (["SGD"] if row["time"] == "behind" else [])
    assert "ahead of all on updates" in bench.show(found)
    monkeypatch.setattr(bench, "train", lambda *_: pytest.fail("ran again"))
    again = bench.race(toy, bench.Kept(kept.path), rounds=1)
    assert again["methods"] == found["methods"]


def test_verdicts_say_no_more_than_the_ranges(bench: Any) -> None:
    assert bench.says([1, 2], [3, 4]) == "ahead"
    assert bench.says([3, 4], [1, 2]) == "behind"
    assert bench.says([1, 3], [2, 4]) == "level"


def test_equal_time_is_that_of_the_faster(bench: Any) -> None:
    def row(*curve: float) -> dict[str, Any]:
        return {"diverged": 0, "curves": [list(curve)], "validation": 1.0}

    found = {"PRONG": row(4, 3, 2, 1), "Slow": row(3, 2, 1, 0.5)}
    [compared] = bench.compared(found, {"PRONG": 1.0, "Slow": 2.0}).values()
    assert compared["updates"] == "behind"
    assert compared["loss in time"] == pytest.approx(1 / 2)  # the slow one had come half way
    assert compared["time"] == "ahead"


def test_the_verdict_is_on_the_form_that_had_the_equal_budget(bench: Any) -> None:
    def row(last: float, diverged: int = 0) -> dict[str, Any]:
        return {"diverged": diverged, "curves": [[4.0, last]]}

    seconds = {"PRONG": 1.0, "PRONG often": 1.0, "SGD": 1.0}
    found = {"PRONG": row(2), "PRONG often": row(0.5), "SGD": row(1)}
    judged = bench.judged(found, seconds)
    assert judged["compared"]["PRONG often"]["SGD"]["updates"] == "ahead"
    assert not judged["ahead of all on updates"]
    assert judged["behind on time"] == ["SGD"]
    # Who diverges is not ahead of all for want of anything to compare.
    fallen = bench.judged(found | {"PRONG": row(2, diverged=1)}, seconds)
    assert not fallen["ahead of all on updates"]
    assert fallen["behind on time"] == ["SGD"]
