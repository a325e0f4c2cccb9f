"""The benchmark of separation: its rooms are as stated, each method separates, and the bars decide."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "separation.py"


@pytest.fixture
def bench(script: Any) -> Any:
    return script(SCRIPT)


@pytest.mark.parametrize("method", ["iva", "natural gradient", "on line", "auxiva"])
def test_each_method_separates(bench: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    loud = (torch.rand(2, 1, 60, generator=generator) ** 4).repeat_interleave(800, 2)
    parts = (
        (loud + 0.01) * torch.randn(2, 1, 48000, generator=generator) * torch.tensor([[[1.0], [0.6]], [[0.7], [1.0]]])
    )
    # Theirs divides by silence.
    parts = parts + 1e-3 * torch.randn(parts.shape, generator=generator)
    monkeypatch.setattr(bench, "drawn", lambda *_: parts)
    monkeypatch.setattr(bench, "TRANSFORM", bench.ShortTime(256, 64, "hann"))
    found = bench.one(0, 0.1, "voice", method)
    assert found["gain"] > (2 if method == "on line" else 5)
    assert 0 < found["iterations"] <= found["whole"]


def _row(**medians: float) -> dict[str, Any]:
    each = {"worst": 0.0, "real-time factor": 0.008}
    times = {"iva": 0.1, "auxiva": 1.5}
    each["the default in these rooms"] = medians["iva"]
    return {"methods": {name: {**each, "median": m, "iterations": times.get(name, 1.0)} for name, m in medians.items()}}


def test_the_bars_decide(bench: Any) -> None:
    good = _row(iva=9.0, auxiva=8.5, ilrma=9.4, **{"on line": 5.0})
    assert [bar["pass"] for bar in bench.bars([good])] == [True] * 6
    bad = _row(iva=8.0, auxiva=8.5, ilrma=9.4, **{"on line": 5.0})
    bad["methods"]["iva"] |= {"worst": -2.0, "iterations": 0.2, "real-time factor": 0.1}
    bad["methods"]["on line"]["real-time factor"] = 0.7
    assert [bar["pass"] for bar in bench.bars([good, bad])][:3] == [False] * 3
    assert [bar["pass"] for bar in bench.bars([bad])] == [False] * 6


def test_bars_of_what_was_not_measured_are_left_out(bench: Any) -> None:
    assert len(bench.bars([_row(iva=9.0, auxiva=8.5)])) == 5
    assert bench.bars([_row(iva=9.0)]) == []


def test_a_method_that_is_not_there_is_named(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["separation.py", "--only", "iva,ilrna"])
    with pytest.raises(SystemExit) as raised:
        bench.main()
    assert raised.value.code == 2
    assert "there is no method 'ilrna'; there are iva," in capsys.readouterr().err


@pytest.mark.data
def test_levels_are_as_stated(bench: Any) -> None:
    from counterflow.audio import active_power
    from counterflow.exceptions import DataNotFoundError

    try:
        found = bench.drawn(0, 0.1, "engine")
    except DataNotFoundError as error:
        pytest.skip(str(error))
    assert found.shape == (2, 2, 160000)
    ratio = active_power(found[0, 0], 16000) / found[1, 0].square().mean()
    assert float(10 * ratio.log10()) == pytest.approx(5.0, abs=1e-3)
