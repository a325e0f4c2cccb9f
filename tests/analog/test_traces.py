"""A chip in the loop, its trace, and what a trace refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from counterflow.analog import Board, Chip, DeviceModel, Recorder, Replay, SynapseArray, learn
from counterflow.exceptions import InputError, ShapeError

DRAW = np.random.default_rng(0)
X, T = DRAW.uniform(-1, 1, (60, 3)), DRAW.uniform(-1, 1, (60, 2))


def board() -> Board:
    return Board(3, 4, 2, DeviceModel.paper())


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    recorder = Recorder(board())
    learn(recorder, X[:5], T[:5], 0.1)
    recorder.save(tmp_path / "trace")
    return tmp_path / "trace"


def test_a_recorded_chip_is_the_chip_and_its_trace_stands_for_it(trace: Path) -> None:
    wanted, errors = learn(board(), X[:5], T[:5], 0.1)
    replay = Replay.load(trace)
    assert isinstance(replay, Chip)
    assert isinstance(Recorder(board()), Chip)
    got, residual = learn(replay, X[:5], T[:5], 0.1)
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(residual, errors)
    assert replay.remaining == 0
    with pytest.raises(InputError, match="the trace ends after 15 calls"):
        replay.forward(X[0])


def test_an_ideal_chip_in_the_loop_learns() -> None:
    chip = SynapseArray(3, 2)
    wanted = np.array([[0.5, -0.3, 0.1], [0.0, 0.2, 0.4]])
    learn(chip, np.tile(X, (10, 1)), np.tile(X @ wanted.T, (10, 1)), 0.3)
    np.testing.assert_allclose(chip.weights, wanted, atol=1e-6)


def test_a_trace_refuses_other_questions(trace: Path) -> None:
    replay = Replay.load(trace)
    with pytest.raises(InputError, match="call 0 of the trace is forward, not update"):
        replay.update(0.1)
    with pytest.raises(InputError, match=r"call 0 .* other numbers, off by up to 0.01; .* a tolerance \(now 0\)"):
        replay.forward(X[0] + 0.01)
    with pytest.raises(ShapeError):
        replay.forward(X[0, :2])
    replay.forward(X[0])
    near = Replay.load(trace, tolerance=0.02)
    np.testing.assert_array_equal(near.forward(X[0] + 0.01), board().forward(X[0]))
    with pytest.raises(InputError, match="off by up to nan"):
        near.backward([np.nan, 0.0])


def test_a_trace_that_is_damaged_or_empty_is_refused(trace: Path) -> None:
    with pytest.raises(InputError, match="nothing was recorded"):
        Recorder(board()).save(trace)
    described = json.loads((trace / "model.json").read_text())
    for calls, words in (
        (["forward"] * 9, "fewer answers than calls"),
        (["hop"], "does not say what was called"),
        ([["forward"]], "does not say what was called"),
    ):
        described["config"]["calls"] = calls
        (trace / "model.json").write_text(json.dumps(described))
        with pytest.raises(InputError, match=words):
            Replay.load(trace)
    with pytest.raises(ShapeError, match=r"give .examples, inputs. and .examples, outputs."):
        learn(board(), X[0], T[0], 0.1)
    with pytest.raises(ShapeError, match=r"targets have shape \(60, 1\), and the chip's outputs \(2,\) an example"):
        learn(board(), X, T[:, :1], 0.1)
