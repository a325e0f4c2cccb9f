"""The benchmark of budgets counts what it says it counts: each of its parts once, at a small size."""

from __future__ import annotations

import importlib.util
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from counterflow import bptt

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bptt.py"


@pytest.fixture
def bench(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = script(SCRIPT)
    small = {"WIDTH": 64, "BATCH": 16, "STEPS": 100, "LONG_STEPS": 300, "LONG_BUDGET": 2**20, "PREFIX": 30}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_the_overhead_is_of_the_plan_that_ran(bench: Any) -> None:
    rows = {row["strategy"]: row for row in bench.overhead(1)}
    for strategy in ("internal", "hidden"):
        assert rows[strategy]["forwards"] == bptt.plan(100, 50, strategy).forwards
    assert all(row["ratio"] > 0 for row in rows.values())


def test_segments_give_the_gradients_of_the_plain_loop(bench: Any) -> None:
    net = bench.Net(20)
    net.seconds_plain()
    exact = net.core.weight_hh.grad.clone()
    net.seconds(lambda: bench.segmented(net.core, net.x, net.start, 6))
    torch.testing.assert_close(net.core.weight_hh.grad, exact)


def test_beside_segments_ours_is_within_their_memory_and_below_it(bench: Any) -> None:
    bench.STEPS = 400
    rows = list(bench.peer(1))
    assert len(rows) == 3
    assert all(row["kept"] <= row["budget"] for row in rows)
    assert rows[0]["budget"] == rows[0]["segments keep"]
    assert rows[2]["budget"] < rows[0]["least of segments"]
    assert rows[0]["calls"] <= rows[0]["segments call"]


def test_chunks_are_counted_in_the_layer_itself(bench: Any) -> None:
    bench.STEPS = 400
    (row,) = bench.chunks(1)
    assert row["executed"] == row["planned"]
    assert row["kept"] <= row["budget"]
    assert row["chunk"] > 1


def test_solvers_are_compared_on_the_same_problem(bench: Any) -> None:
    ours = bench._listed("hidden", 100, 10)
    assert ours == bptt.plan(100, 10, "hidden").forwards
    if importlib.util.find_spec("pyrevolve") is not None:
        assert bench._pyrevolve(100, 10) == ours
    if importlib.util.find_spec("checkpoint_schedules") is not None:
        assert bench._schedule("Multistage", 100, 10) == ours
    rows = [row for row in bench.solvers([(100, 10)]) if "missing" not in row]
    assert {row["solver"]: row["forwards"] for row in rows}["counterflow, hidden"] == ours
    assert all(row["warm"] and row["seconds"] >= 0 for row in rows)


def test_the_long_run_streams_from_disk_and_compares_its_prefix(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "streamed_apart", bench.stream)  # a process of its own would not know the small sizes
    (row,) = bench.long(tmp_path)
    assert row["prefix error"] < 1e-5
    assert row["predicted"] <= row["budget"]
    assert list(tmp_path.iterdir()) == []


def test_the_inputs_of_a_long_run_that_fails_do_not_stay(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "streamed_apart", fail)
    with pytest.raises(KeyboardInterrupt):
        list(bench.long(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_watch_sees_memory_that_is_taken(bench: Any) -> None:
    size = 64 * 2**20
    with bench.Watch() as watch:
        taken = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not what earlier tests have freed
        taken[:: mmap.PAGESIZE] = bytes(size // mmap.PAGESIZE)
    assert 60 * 2**20 <= watch.grown <= 80 * 2**20
    taken.close()


def test_the_table_is_timed_at_whole_and_fractional_costs(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TABLE_STEPS", 60)
    monkeypatch.setattr(bench, "TABLE_SLOTS", 20)
    rows = list(bench.table())
    assert {row["internal cost"] for row in rows} == {2.0, 5.0, 3.5}
    assert [row["forwards"] for row in rows] == [
        bptt.plan(60, 20, "mixed", internal_cost=row["internal cost"]).forwards for row in rows
    ]
