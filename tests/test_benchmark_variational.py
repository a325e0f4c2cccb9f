"""The benchmark of noise times what it says: every treatment learns what it claims, and peers mean what we mean."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from counterflow import variational

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "variational.py"


@pytest.fixture
def bench(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = script(SCRIPT)
    monkeypatch.setattr(module, "SIZES", (20, 12, 10))
    monkeypatch.setattr(module, "BATCH", 8)
    return module


def test_every_treatment_gives_all_parameters_a_gradient(bench: Any) -> None:
    x, y = bench.picture_batch()
    for name, (_, make, package) in bench.TREATMENTS.items():
        if package is not None and importlib.util.find_spec(package) is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peers warn of what they import
            net, loss = make(x, y)
        loss().backward()
        reached = [p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters()]
        assert any(reached) if package is not None else all(reached), name
        if package is None:
            # Where rates are learned the divergence is in the loss, without which they would cost less.
            assert any(n.endswith("rho") for n, _ in net.named_parameters()) == ("a rate" in name), name
            if "a rate" in name:
                with variational.estimating(net, "none"):
                    parts = torch.nn.functional.cross_entropy(net(x), y), variational.kl(net) / bench.DATA_SIZE
                    torch.testing.assert_close(loss(), sum(parts), msg=name)


def test_rows_hold_ratios_to_the_plain_net_and_say_what_is_missing(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: False)  # it would hold for all tests that follow
    target = tmp_path / "noise.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--repeats", "2", "--json", str(target)])
    assert bench.main() == 0
    found = json.loads(target.read_text())
    rows = {row["treatment"]: row for row in found["rows"]}
    assert rows["plain"]["ratio"] == 1.0
    assert all(row["ratio"] > 0 and row["low"] <= row["high"] for row in rows.values())
    assert all(row["pass"] == (row["ratio"] <= row["bar"]) for row in rows.values() if row["bar"] is not None)
    assert len(found["missing"]) == 4
    assert found["in blocks"] > 0
    assert found["keeps memory"] is False
    assert "cplxmodule is not installed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["noise.json"]


def test_loops_are_left_out_of_those_steps_alone(bench: Any) -> None:
    seen: list[int] = []
    layer = torch.nn.Linear(1, 1)

    def loss() -> torch.Tensor:
        seen.append(bench.loops._FEW)
        return layer(torch.ones(1)).sum()

    few = bench.loops._FEW
    for with_loops in (False, True):
        bench.step_of(layer, loss, with_loops)()
        assert few == bench.loops._FEW
    assert seen == [2**62, few]


def test_a_folder_that_is_not_there_is_named(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--json", "nowhere/noise.json"])
    with pytest.raises(SystemExit) as raised:
        bench.main()
    assert raised.value.code == 2


def test_cplxmodules_penalty_is_our_sigmoid(bench: Any) -> None:
    if importlib.util.find_spec("cplxmodule") is None:
        return  # an oracle where it is installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cplxmodule.nn.relevance import LinearVD, penalties
    layer = LinearVD(6, 5)
    ours = variational.dropout_kl(layer.log_alpha, "sigmoid")
    torch.testing.assert_close(ours, sum(penalties(layer, reduction="sum")))
