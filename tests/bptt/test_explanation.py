"""What `explain` predicts is what `unroll` then does."""

import importlib.util
import re
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import counterflow as cf
from counterflow.bptt.tradeoff import draw, letters
from counterflow.exceptions import InputError, MissingExtraError


class Counting(nn.Module):
    """A cell that counts its calls."""

    def __init__(self):
        super().__init__()
        self.cell, self.calls = nn.GRUCell(3, 5), 0

    def forward(self, x, state):
        self.calls += 1
        state = self.cell(x, state)
        return state, state


def _cell():
    torch.manual_seed(0)
    return nn.LSTMCell(6, 8)


def _stream(t):
    return torch.zeros(4, 6)


@pytest.mark.parametrize("budget", ["2KiB", "6KiB", "20KiB"])
def test_unroll_runs_as_many_steps_as_were_predicted(budget):
    core, x, start = Counting(), torch.randn(2, 60, 3), torch.zeros(2, 5)
    (option,) = cf.bptt.explain(core, x, start, budgets=[budget])
    core.calls = 0
    y, _ = cf.bptt.unroll(core, x, start, budget=budget)
    y.sum().backward()
    assert core.calls == option.forwards
    assert option.forwards_per_step == option.forwards / 60
    assert option.memory <= option.budget == cf.bptt.parse_bytes(budget)


def test_more_memory_is_never_slower_and_the_range_ends_without_recomputation():
    table = cf.bptt.explain(_cell(), _stream, steps=200)
    slowdowns = [option.slowdown for option in table]
    assert slowdowns == sorted(slowdowns, reverse=True)
    assert slowdowns[-1] == 1.0
    assert table.options[0].budget == table.smallest
    assert table.options[0].forwards == 200 * 201 // 2


@pytest.mark.parametrize("strategy", [None, "hidden", "internal", "mixed"])
@pytest.mark.parametrize("rows", [4, 4000])  # of which a hidden state takes more than 100 kB
def test_the_range_begins_at_the_smallest_budget_that_works(strategy, rows):
    table = cf.bptt.explain(_cell(), lambda t: torch.zeros(rows, 6), steps=5, strategy=strategy)
    assert table.options[0].budget == table.smallest
    with pytest.raises(InputError, match="budget="):
        cf.bptt.explain(
            _cell(), lambda t: torch.zeros(rows, 6), steps=5, strategy=strategy, budgets=[table.smallest - 1]
        )


def test_the_predicted_slowdown_counts_a_backward_step_as_two_forward_ones():
    (option,) = cf.bptt.explain(_cell(), _stream, steps=100, budgets=["8KiB"])
    assert option.slowdown == pytest.approx((option.forwards + 2 * 100) / (3 * 100))
    # A backward step of no cost: forward operations alone, those with a graph costing twice as much.
    times = cf.bptt.StepTimes(forward=1.0, recorded=2.0, backward=0.0)
    assert times.slowdown(3.0) == (2 * 1.0 + 2.0) / 2.0


def test_measured_times_take_the_place_of_the_assumed_ones_and_change_nothing_else():
    torch.manual_seed(3)
    core = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))

    def step(x, state):
        return core(x), state + core(x)

    x = torch.randn(4, 30, 6)
    before, state = torch.random.get_rng_state(), {k: v.clone() for k, v in core.state_dict().items()}
    table = cf.bptt.explain(step, x, torch.zeros(4, 6), budgets=["64KiB", "20KiB"], timed=True)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, core.state_dict()[key]) for key, value in state.items())
    times = table.times
    assert min(times.forward, times.recorded, times.backward) > 0
    for option in table:
        assert option.slowdown == pytest.approx(times.slowdown(option.forwards_per_step))
    assert table.to_dict()["times"]["forward"] == times.forward
    assert "measured" in table.note


def test_times_are_measured_where_nothing_learns_too():
    table = cf.bptt.explain(lambda x, state: (x, state), torch.zeros(4, 9, 6), (), budgets=["1MiB"], timed=True)
    assert table.times.forward > 0
    assert [option.slowdown for option in table] == [1.0]


def test_an_empty_batch_takes_no_memory():
    table = cf.bptt.explain(nn.GRUCell(3, 5), torch.zeros(0, 7, 3))
    assert (table.smallest, table.options[-1].memory, table.options[-1].slowdown) == (1, 0, 1.0)


def test_a_fused_layer_is_planned_in_chunks():
    layer, x = nn.LSTM(64, 64, batch_first=True), torch.zeros(16, 64, 64)
    table = cf.bptt.explain(layer, x, budgets=["1MiB", "2MiB"])
    assert max(option.chunk for option in table) > 1
    assert all(option.steps == -(-64 // option.chunk) for option in table)
    (fixed,) = cf.bptt.explain(layer, x, budgets=["1MiB"], chunk=4)
    assert (fixed.chunk, fixed.steps) == (4, 16)


def test_a_budget_too_small_names_the_smallest_that_works():
    core = _cell()
    smallest = cf.bptt.explain(core, _stream, steps=50).smallest
    with pytest.raises(InputError, match=f"{smallest} bytes"):
        cf.bptt.explain(core, _stream, steps=50, budgets=[smallest - 1])
    assert cf.bptt.explain(core, _stream, steps=50, budgets=[smallest]).options[0].memory <= smallest


@pytest.mark.parametrize(
    ("inputs", "options", "match"),
    [
        (_stream, {"steps": 50, "budgets": []}, "budgets is empty"),
        (_stream, {"steps": 50, "budgets": "64MiB"}, "budgets must be several, .*, got '64MiB'"),
        (_stream, {"steps": 50, "budgets": 4096}, "budgets must be several, .*, got 4096"),
        ((torch.zeros(4, 50, 6),), {}, "state=None"),
        (_stream, {"steps": 50, "chunk": 3}, "chunk"),
        (_stream, {}, "steps="),
        (_stream, {"steps": 50, "strategy": "full"}, "which a budget rules, got 'full'"),
    ],
)
def test_bad_input_is_one_line(inputs, options, match):
    with pytest.raises(InputError, match=match) as caught:
        cf.bptt.explain(_cell(), inputs, **options)
    assert "\n" not in str(caught.value)


def test_it_shows_itself_as_text_as_html_and_as_a_dictionary():
    table = cf.bptt.explain(_cell(), _stream, steps=50, budgets=["4KiB", "16KiB"])
    lines = str(table).splitlines()
    assert len(lines) == 2 + len(table) + 1
    assert lines[1].split()[:3] == ["budget", "strategy", "slots"]
    assert table._repr_html_().count("<tr>") == 1 + len(table)
    found = table.to_dict()
    assert [option["budget"] for option in found["options"]] == [4096, 16384]
    assert found["sizes"]["hidden"] == table.sizes.hidden


def test_two_tables_are_joined_in_the_order_of_budgets():
    one = cf.bptt.explain(_cell(), _stream, steps=50, budgets=["4KiB", "16KiB"])
    timed = replace(one, times=cf.bptt.StepTimes(1.0, 1.0, 0.0))
    other = cf.bptt.explain(_cell(), _stream, steps=50, budgets=["8KiB", "16KiB"])
    joined = timed.joined(other)
    assert [option.budget for option in joined] == [4096, 8192, 16384]
    assert joined.options[1].slowdown == pytest.approx(other.options[0].forwards_per_step)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs [plot]")
def test_the_curve_is_drawn(tmp_path):
    table = cf.bptt.explain(_cell(), _stream, steps=50)
    table.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    for path, complaint in (("none/curve.png", "no folder"), ("curve.xyz", "suffix"), ("", "folder")):
        with pytest.raises(InputError, match=complaint):
            table.plot(tmp_path / path)


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs [plot]")
@pytest.mark.parametrize(
    ("points", "chosen", "words"),
    [
        ([(1 << 10, 9.0), (1 << 12, 2.0), (1 << 14, 1.0)], 1, ["; 1 smaller budget is off the chart,", "budget: 2.00"]),
        (
            [(1 << 9, 9.0), (1 << 10, 8.0), (1 << 14, 1.0)],
            2,
            ["; 2 smaller budgets are off the", "budget: 1.00"],
        ),
        ([(1 << 9, 9.0), (1 << 10, 8.0), (1 << 14, 1.0)], 1, ["; 1 smaller budget is off the chart,", "budget: 8.00"]),
        ([(1 << 12, 2.0), (1 << 14, 1.0)], None, []),
    ],
)
def test_the_picture_marks_the_budget_and_says_what_it_leaves_out(points, chosen, words, tmp_path):
    draw(tmp_path / "curve.svg", points, "a cell", chosen)
    said = " ".join(re.findall(r"<!-- (.*?) -->", (tmp_path / "curve.svg").read_text()))
    assert all(word in said for word in words)
    assert words or not {"budget", "chart"} & {*said.split()}


def test_the_budget_to_mark_has_to_be_one_of_the_options(tmp_path):
    table = cf.bptt.explain(_cell(), _stream, steps=50, budgets=["4KiB", "16KiB"])
    with pytest.raises(InputError, match="no option has budget=5; there are 4096, 16384"):
        table.plot(tmp_path / "curve.png", 5)


def test_a_picture_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError, match=r"counterflow\[plot\]"):
        cf.bptt.explain(_cell(), _stream, steps=50).plot(tmp_path / "curve.png")


def test_the_curve_in_letters_leaves_out_what_would_flatten_it():
    lines = letters([(1, 500.0), (2, 2.0), (4, 1.0)], chosen=2, width=10, height=3)
    assert lines[0] == " 2.00 |*"
    assert lines[2].endswith("@")
    assert "".join(lines).count("*") == 1
    assert letters([(8, 900.0)], width=10, height=3)[0].strip().startswith("900.00 |")
