"""Where a trial runs: what the run asks for, where the trial can leave the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from counterflow.exceptions import InputError
from counterflow.lab.trials import Context, Outcome, Paper, Trial, load_paper, read_environments, require_device, run
from counterflow.lab.trials.record import environment, trial_key


def where(trial: Trial, context: Context) -> Outcome:
    """Whether the trial was sent elsewhere, and whether sums are to be in one order there."""
    exact = torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.allow_tf32
    return Outcome({"elsewhere": [float(context.device != "cpu")], "exact": [float(exact)]})


def paper(*movable: bool) -> Paper:
    """A paper of trials that can leave the CPU or not."""
    trials = [Trial("simple", f"trial {n}", (0,), {"n": n}, movable=each) for n, each in enumerate(movable)]
    return Paper("simple", 1, lambda profile, records: trials, where, lambda *_: {}, lambda *_: [])


@pytest.mark.parametrize(("device", "found"), [("cpu", [0.0, 0.0]), ("cuda", [1.0, 0.0])])
def test_only_movable_trials_leave_the_cpu(device: str, found: list[float], tmp_path: Path) -> None:
    [records] = run([paper(True, False)], "smoke", tmp_path, jobs=1, device=device).values()  # type: ignore[arg-type]
    assert [record.metrics["elsewhere"][0] for record in records] == found
    first, second = (read_environments(tmp_path)[record.environment] for record in records)
    assert "graphics card" not in second
    assert ("graphics card" in first) == bool(found[0])


def test_a_card_is_asked_to_be_exact(tmp_path: Path) -> None:
    [[record]] = run([paper(True)], "smoke", tmp_path, jobs=1, device="cuda").values()
    assert record.metrics["exact"] == (1.0,)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ  # the worker's alone


def test_exactness_ends_with_the_trial(tmp_path: Path) -> None:
    """One worker runs them in turn; the second, which stays on the CPU, may be timed."""
    [records] = run([paper(True, False)], "smoke", tmp_path, jobs=1, device="cuda").values()
    assert [record.metrics["exact"] for record in records] == [(1.0,), (0.0,)]


def test_where_it_ran_is_not_part_of_the_name(tmp_path: Path) -> None:
    one, other = (Trial("simple", "a", (0,), movable=movable) for movable in (True, False))
    assert trial_key(one, 1, {}) == trial_key(other, 1, {})
    assert "graphics card" not in environment()


def test_a_device_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    require_device("cpu", [paper(False)], "smoke")
    require_device("cuda", [paper(False, True)], "smoke", here=False)
    with pytest.raises(InputError, match="--device cuda: PyTorch finds no such device here"):
        require_device("cuda", [paper(False, True)], "smoke")
    with pytest.raises(InputError, match="no trial of simple can leave the CPU; leave --device out"):
        require_device("cuda", [paper(False)], "smoke")


@pytest.mark.parametrize("key", ["choice", "competition", "variational"])
def test_which_trials_can(key: str) -> None:
    trials = load_paper(key).trials("paper", [])
    kinds = {trial.treatment.split()[0] for trial in trials if trial.movable}
    assert (
        kinds
        == {
            "choice": {"cifar10", "full", "scenes"},
            "competition": {"conv", "forgetting", "lwta", "relu", "sigmoid", "dropout"},
            "variational": {"mnist", "cifar10", "table"},
        }[key]
    )
    assert not any(trial.exclusive for trial in trials if trial.movable)  # what is timed is timed on the CPU
