"""The benchmark of speech: the ways that it compares find one path, and its bars decide."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speech.py"


@pytest.fixture
def bench(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = script(SCRIPT)
    # The peer's kernels are compiled when it is imported, for most of a minute.
    peer = types.SimpleNamespace(viterbi=lambda likelihood, step, p_init: None, dtw=lambda **given: None)
    monkeypatch.setitem(sys.modules, "librosa", types.SimpleNamespace(sequence=peer))
    # One call is enough to see that all run.
    monkeypatch.setattr(
        module, "seconds_of", lambda calls, repeats: {name: [(call(), 1.0)[1]] for name, call in calls.items()}
    )
    return module


def test_alignments_agree_and_the_bars_decide(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.bars.ALIGNMENT, "torch rows", 1)
    rows = {row["way"]: row for row in bench.alignment(1, frames=12, states=5)}
    assert {"bare", "best_path", *bench.bars.ALIGNMENT} <= {*rows}
    assert rows["numpy rows"]["pass"] is False
    assert rows["torch rows"]["pass"] is True
    assert rows["bare"]["pass"] is None
    # A kernel is no public call, neither ours nor theirs.
    assert {name for name, row in rows.items() if "over best_path" in row} == {*bench.bars.PUBLIC_CALLS}
    assert rows["numpy rows"]["over best_path"]["pass"] is False
    assert rows["torch rows"]["over best_path"]["pass"] is True
    assert bench.said(rows["numpy rows"]).endswith("MISS  MISS")
    # A way that goes wrong is found.
    monkeypatch.setattr(bench, "numpy_rows", lambda costs: bench.torch_rows(bench.torch.from_numpy(1 - costs)))
    with pytest.raises(AssertionError, match="numpy rows"):
        bench.alignment(1, frames=12, states=5)


def test_a_call_is_repeated_until_the_clock_can_tell(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = script(SCRIPT)
    monkeypatch.setattr(bench, "timed", lambda call, count: lambda: 0.001 if count < 4 else 0.0015)
    assert bench.enough(lambda: None) == 4


def test_a_peer_that_is_missing_is_said(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "librosa", None)
    rows = bench.alignment(1, frames=12, states=5)
    assert [row["way"] for row in rows if "librosa" in row["way"] and "missing" in row]
    assert not {"librosa viterbi", "librosa dtw"} & {row["way"] for row in rows}


def test_predictors_and_recognition_are_timed(bench: Any) -> None:
    rows = bench.predictors(1, frames=20)
    assert rows[0]["pass"] is False  # a second
    assert rows[2]["parameters"] < rows[1]["parameters"]
    rows = bench.recognition(1, ((10, 1), (100, 10), (20, 1)))
    assert [row["pass"] for row in rows] == [None, False, None]  # a second is a real-time factor of 0.1


def test_growth_is_drawn(bench: Any, tmp_path: Path) -> None:
    rows = [
        {"words": words, "seconds": seconds, "real-time factor": 1e-5 * words}
        for words, seconds in ((50, 10), (100, 10), (200, 10), (100, 5), (100, 20))
    ]
    powers = bench.growth(rows)
    assert powers == {"words": pytest.approx(1.0), "seconds": pytest.approx(1.0)}
    bench.draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
