"""The BPTT experiment: its costs against the paper's recurrences, its ledger, its plan and its claims."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from counterflow import bptt
from counterflow.lab.papers.bptt import costs, experiment, figures, timing
from counterflow.lab.papers.bptt.ledger import Ledger
from counterflow.lab.trials import Context, claims_of, judge

from .finished import finished

FIGURES = [
    *(f"Figure {name}" for name in ("2a", "2b", "3a", "3b", "5a", "5b", "6a", "6b", "7, left", "7, right")),
    "Section 3.5",
    "Where it does not win",
]
PROFILES = ["smoke", "laptop", "paper"]


@cache
def recurrence(t, m):
    """Equations 1 to 3, as they stand."""
    if t <= 1 or m == 1:
        return t * (t + 1) // 2
    return min(y + recurrence(t - y, m - 1) + recurrence(y, m) for y in range(1, t))


def test_costs_of_many_lengths_are_the_recurrences():
    steps = np.arange(1, 61)
    for m in (1, 2, 3, 5, 9, 70):
        assert costs.hidden_costs(steps, m).tolist() == [recurrence(t, m) for t in steps.tolist()]


def test_thresholds_of_the_fourth_bound_are_powers_over_factorials():
    assert list(costs._thresholds(5, 10**9)) == pytest.approx([5**a / math.factorial(a) for a in range(1, 6)])
    assert list(costs._thresholds(100, 4000)) == [100, 5000]


def test_the_search_finds_what_is_known_to_be_best():
    # The constant-memory algorithm, every hidden state, everything.
    assert costs._search(5, 0, 1, math.inf, math.inf, True) == 15
    assert costs._search(5, 4, 1, math.inf, math.inf, True) == 9
    assert costs._search(5, 5, math.inf, 1, 1, False) == 5
    assert costs._search(4, 3, 1, math.inf, math.inf, True) == 7


def test_figure_3s_traces_run_every_operation_once():
    for steps, forwards in ((4, 7), (10, 24)):
        trace = costs._trace(bptt.plan(steps, 4, "hidden"))
        assert trace["kind"].count(0) == forwards
        assert [step for step, kind in zip(trace["step"], trace["kind"], strict=True) if kind] == [*range(steps, 0, -1)]
        assert all(since < until for since, until in zip(trace["from"], trace["to"], strict=True))


def test_the_ledger_counts_what_a_plain_loop_keeps():
    cell, x = nn.LSTMCell(6, 8), torch.randn(4, 30, 6)
    start = (torch.zeros(4, 8), torch.zeros(4, 8))
    sizes = bptt.measure(cell, x[:, 0], start)
    ledger = Ledger(cell, [x])
    timing.plain(ledger, x, start).sum().backward()
    assert ledger.calls == 30
    # Every step's internal state without its input, the start state, and the two errors on their way at the end.
    assert sizes.hidden + 30 * sizes.shared <= ledger.peak <= sizes.hidden + 30 * sizes.shared + 2 * sizes.gradient


def test_the_ledger_sees_a_promise_that_is_broken():
    """With twice the memory that a budget allows, what is kept is more than the budget."""
    cell, x, start = nn.GRUCell(6, 8), torch.randn(4, 60, 6), torch.zeros(4, 8)
    sizes = bptt.measure(cell, x[:, 0], start)
    budget = sizes.smallest + 10 * sizes.internal
    for size, held in ((budget, True), (2 * budget, False)):
        ledger = Ledger(cell, [x])
        bptt.unroll(ledger, x, start, budget=size)[0].sum().backward()
        assert (ledger.peak <= budget) is held


def test_planned_and_plain_iterations_have_the_same_gradients():
    task = timing._Task({"width": 5, "batch": 3, "steps": 12})
    task.seconds(task.plain)
    plain = [p.grad.clone() for p in task.cell.parameters()]
    task.seconds(lambda: task.planned(3, "internal"))
    for p, g in zip(task.cell.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, g)


SMALL = {
    "plans": {"steps": 60},
    "strategies": {"steps": 400},
    "chen": {"steps": 160},
    "bounds": {"steps": 400, "slots": 20},
    "search": {"steps": 4},
    "budgets": {"width": 4, "batch": 2, "steps": 12},
    "iteration": {"width": 4, "batch": 2, "steps": 12, "slots": 3},
    "figure 2b": {"width": 4, "batch": 2, "steps": 12},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Every kind of trial once, much smaller than any profile has it."""
    context = Context(tmp_path_factory.mktemp("trials"))
    found = {}
    for trial in experiment.trials("smoke", []):
        small = type(trial)(trial.paper, trial.treatment, trial.seeds, SMALL[trial.treatment])
        found.setdefault(trial.treatment, experiment.run(small, context))
    return found


def _records(profile, outcomes):
    for trial in experiment.trials(profile, []):
        outcome = outcomes[trial.treatment]
        count = len(trial.seeds)
        metrics = {name: tuple((list(values) * count)[:count]) for name, values in outcome.metrics.items()}
        yield finished(trial, profile, metrics, outcome.curves)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_claim_is_measured(profile, outcomes):
    records = list(_records(profile, outcomes))
    results = judge(claims_of("bptt"), experiment.measure(profile, records), missing="no trial measures it")
    assert [result.id for result in results if result.verdict == "not run"] == []
    assert {result.setting for result in results} == ({"same", "smaller"})
    assert (profile == "paper") == all(r.setting == "same" for r in results if r.id.startswith("fig2b"))


@pytest.mark.parametrize("profile", PROFILES)
def test_every_figure_is_drawn(profile, outcomes):
    titles = [exhibit.title for exhibit in figures.exhibits(profile, list(_records(profile, outcomes)), [])]
    for figure in FIGURES:
        assert any(title.startswith(figure) for title in titles), figure
    assert figures.exhibits(profile, [], []) == []


def test_a_wrong_cost_is_not_reproduced(outcomes):
    """The verdicts can fail: one forward operation more, and the claims of figure 3 and the abstract do."""
    outcome = outcomes["plans"]
    worse = type(outcome)({name: [value + 1 for value in values] for name, values in outcome.metrics.items()})
    records = list(_records("smoke", {**outcomes, "plans": worse}))
    verdicts = {r.id: r.verdict for r in judge(claims_of("bptt"), experiment.measure("smoke", records))}
    for claim in ("hsm.C44", "hsm.C10_4", "abs.forwards", "abs.third", "fig3a.cpts", "ism.many", "fig5b.below_5a"):
        assert verdicts[claim] == "not reproduced", claim


def test_costs_that_the_paper_does_not_print_are_said_to_follow_from_its_recurrences():
    curves = [c for c in claims_of("bptt") if c.id == "abs.forwards" or c.id.startswith(("fig2a.m", "fig5a.m"))]
    assert len(curves) == 11
    for claim in curves:
        assert claim.claim.startswith("By the paper's recurrence, ")
        assert "by the recurrence of Section 3." in claim.at


def test_published_costs_come_out(tmp_path):
    found = costs.plans({"steps": 100}, Context(tmp_path)).metrics
    assert [found[name][0] for name in ("hsm.C44", "hsm.C10_4", "abs.forwards", "abs.memory")] == [7, 24, 1950, 0.95]
    assert found["abs.time"][0] == pytest.approx(3950 / 3000)


def test_timed_trials_run_alone_and_no_profile_is_larger_than_the_next():
    sizes = []
    for profile in PROFILES:
        planned = experiment.trials(profile, [])
        assert all(t.exclusive == (t.treatment in ("iteration", "figure 2b")) for t in planned)
        sizes.append(sum(t.expected_seconds for t in planned))
    assert sizes == sorted(sizes)
    assert sizes[0] < 60
