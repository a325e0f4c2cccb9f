"""The benchmark of tempering compares equals: the same budget for all, and only what the ranges bear out is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "tempering.py"


@pytest.fixture
def bench(script: Any) -> Any:
    return script(SCRIPT)


def tuned(bench: Any, loss: Any, middle: float = 1.0) -> list[float]:
    tried: dict[float, float] = {}
    while (rate := bench.next_rate(tried, middle)) is not None:
        tried[rate] = loss(rate)
    return list(tried)


def test_every_treatment_gets_five_rates_and_two_more_at_an_edge(bench: Any) -> None:
    inside = tuned(bench, lambda rate: abs(math.log(rate)))
    assert sorted(inside) == pytest.approx([0.1, 0.1**0.5, 1, 10**0.5, 10], rel=1e-3)
    rising = tuned(bench, lambda rate: -rate)
    assert sorted(rising)[5:] == pytest.approx([10**1.5, 100], rel=1e-3)
    assert len(tuned(bench, lambda rate: rate)) == 7
    assert len(tuned(bench, lambda rate: abs(math.log(rate / 30)))) == 7  # the best came to lie inside on the way


def run(*curve: float, test: float = 1.0) -> dict[str, Any]:
    return {"diverged": False, "curve": list(curve), "test": test}


def test_ratios_say_no_more_than_the_ranges(bench: Any) -> None:
    plain = bench.summary([run(4, 2, 1), run(4, 2, 1.2)])
    ours = bench.summary([run(2, 1, 0.5, test=0.5), run(2, 1, 0.7, test=0.5)])
    found = bench.ratios({"tempering": ours, "SGD": plain}, "tempering", "SGD")
    assert found == {"train": pytest.approx(0.6 / 1.1), "test": 0.5, "steps": pytest.approx(2 / 3), "says": "helps"}
    close = bench.summary([run(2, 1, 0.5), run(2, 1, 1.1)])  # overlaps with the plain range
    assert bench.ratios({"tempering": close, "SGD": plain}, "tempering", "SGD")["says"] == "no clear difference"
    assert bench.ratios({"tempering": plain, "SGD": ours}, "tempering", "SGD") == {
        "train": pytest.approx(1.1 / 0.6),
        "test": 2.0,
        "steps": None,
        "says": "harms",
    }


def test_a_diverged_seed_is_not_averaged_away(bench: Any) -> None:
    found = bench.summary([run(1, 1), {"diverged": True}])
    assert found == {"diverged": 1}
    assert bench.ratios({"tempering": found, "SGD": bench.summary([run(1)])}, "tempering", "SGD") is None


@pytest.mark.parametrize("task", ["autoencoder", "relu", "transformer"])
def test_every_treatment_trains(bench: Any, task: str) -> None:
    torch.manual_seed(0)
    part = torch.rand(256, 784), torch.randint(10, (256,))
    data = bench.Pictures(part, part, part)
    for treatment in ("SGD", "Adam", *bench.TEMPERED):
        found = bench.train(bench.TASKS[task], treatment, 1e-3, 0, data, 3)
        assert not found["diverged"]
        assert math.isfinite(found["validation"])
        assert len(found["curve"]) == 1


def test_finished_runs_are_taken_up_again(bench: Any, tmp_path: Path) -> None:
    asked = []

    def train() -> dict[str, Any]:
        asked.append(1)
        return {"diverged": True}

    for _ in range(2):
        kept = bench.Kept(tmp_path / "runs.json")
        assert kept.run("relu/SGD/0.1/0", train) == {"diverged": True}
    assert len(asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]
