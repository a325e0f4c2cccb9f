"""The budget is a promise: what is kept for going back never exceeds it, counted storage by storage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from counterflow.bptt import Sizes, format_bytes, measure, parse_bytes, plan, unroll
from counterflow.bptt.choices import choose
from counterflow.exceptions import InputError

from .examples import Stacked, loop, wanted

BATCH, TIME, WIDTH, HIDDEN = 8, 60, 11, 64


class Ledger(TorchDispatchMode):
    """Every storage that an operation makes while it is entered, for as long as it lives.

    Args:
        ignored: Sizes in bytes that are the caller's: outputs, parameters, inputs, as gradients too.
    """

    def __init__(self, ignored: set[int]) -> None:
        super().__init__()
        self.ignored, self.alive, self.peak = ignored, {}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage.nbytes() not in self.ignored:
                    self.alive.setdefault(StorageWeakRef(storage), storage.nbytes())
        return result

    def look(self) -> None:
        """Count what is alive now."""
        self.alive = {ref: size for ref, size in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self.alive.values()))


@contextmanager
def kept(core: nn.Module, ignored: set[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """Looks whenever a step begins, whenever it has run, and whenever it has been gone back through."""
    ledger = Ledger(ignored)
    hooks = [
        core.register_forward_pre_hook(lambda *_: ledger.look()),
        core.register_forward_hook(lambda *_: ledger.look()),
    ]
    grad = torch.autograd.grad

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = grad(*args, **kwargs)
        ledger.look()
        return result

    with monkeypatch.context() as patch, ledger:
        patch.setattr(torch.autograd, "grad", watched)
        yield ledger
    for hook in hooks:
        hook.remove()


def peak_of(core: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, state: Any = None, **options: Any) -> int:
    """The most bytes that are kept at any time from the first step to the last gradient."""
    leaves = wanted(core, x)
    outputs = {BATCH * x.shape[1] * width * 4 for width in (2, 3, HIDDEN)}
    parts = {x[:, :span].nbytes for span in range(1, x.shape[1] + 1)}  # of the inputs' gradient
    caller = {leaf.nbytes for leaf in leaves} | parts | outputs
    with kept(core, caller | {0, 4}, monkeypatch) as ledger:
        y, final = unroll(core, x, state, **options)
        loss = torch.stack([leaf.square().sum() for leaf in tree_leaves((y, final))]).sum()
        del y, final
        torch.autograd.backward(loss, inputs=leaves)
    return ledger.peak


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("factor", [1.0, 1.7, 4.0, 12.0, 40.0])
def test_a_cell_stays_within(kind: type[nn.RNNCellBase], factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, x = kind(WIDTH, HIDDEN), torch.randn(BATCH, TIME, WIDTH, requires_grad=True)
    sizes = measure(cell, x[:, 0])
    budget = int(factor * sizes.smallest)
    peak = peak_of(cell, x, monkeypatch, budget=budget)
    # The start state is made before the ledger looks, by zeros that it sees: it is counted as well.
    assert peak <= budget
    # And the count means something: it sees the internal state at least, and most of what a plan stores.
    assert peak >= 0.6 * min(budget, choose(TIME, sizes, budget).held)


@pytest.mark.parametrize("strategy", ["hidden", "internal", "mixed", "chen-sqrt", "chen-recursive", "full"])
def test_every_strategy_stays_within(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, x = nn.LSTMCell(WIDTH, HIDDEN), torch.randn(BATCH, TIME, WIDTH, requires_grad=True)
    sizes = measure(cell, x[:, 0])
    budget = (70 if strategy == "full" else 15) * sizes.internal
    choice = choose(TIME, sizes, budget, strategy=strategy)  # type: ignore[arg-type]
    peak = peak_of(cell, x, monkeypatch, budget=budget, strategy=strategy)
    assert peak <= choice.held <= budget


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("factor", [1.0, 3.0, 9.0])
def test_a_core_of_ones_own_stays_within(dropout: float, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    core, x = Stacked(dropout), torch.randn(BATCH, TIME, 4, requires_grad=True)
    state = {"low": (torch.zeros(BATCH, 5), torch.zeros(BATCH, 5)), "high": [torch.zeros(BATCH, 3)]}
    sizes = measure(core, x[:, 0], state)
    assert (sizes.generator > 0) == (dropout > 0)
    budget = int(factor * sizes.smallest)
    assert peak_of(core, x, monkeypatch, state=state, budget=budget) <= budget


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(("chunk", "factor"), [("auto", 8.0), ("auto", 40.0), (1, 3.0), (7, 2.0)])
def test_a_fused_layer_stays_within(
    kind: type[nn.RNNBase], chunk: Any, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = kind(WIDTH, HIDDEN, batch_first=True), torch.randn(BATCH, TIME, WIDTH, requires_grad=True)
    budget = int(factor * measure(layer, x[:, : 1 if chunk == "auto" else chunk]).smallest)
    assert peak_of(layer, x, monkeypatch, budget=budget, chunk=chunk) <= budget


class Reader(nn.Module):
    """A cell that reads a memory, which its state hands on as it is; both may begin as they were learned."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, HIDDEN)
        self.first, self.memory = nn.Parameter(torch.randn(1, HIDDEN)), nn.Parameter(torch.randn(1, slots, HIDDEN))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hidden = self.cell(x, state[0] + state[1].sum(1) if state[1].shape[1] else state[0])
        return hidden[:, :2] + 0, (hidden, state[1])


@pytest.mark.parametrize("slots", [0, 4])
@pytest.mark.parametrize("start", ["expanded", "learned", "part"])
def test_a_start_state_may_lie_in_memory_as_it_likes(start: str, slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    time = TIME // 3
    core, x = Reader(slots), torch.randn(BATCH, time, WIDTH, requires_grad=True)
    rows = BATCH * time // max(slots, 1)  # as many numbers as there are outputs, which are the caller's too
    first, memory = {
        "expanded": (torch.zeros(1, HIDDEN), torch.zeros(1, slots, HIDDEN)),
        "learned": (core.first, core.memory),
        "part": (torch.zeros(BATCH * time, HIDDEN), torch.zeros(rows, slots, HIDDEN)),
    }[start]
    state = tuple(each[:BATCH].expand(BATCH, *each.shape[1:]) for each in (first, memory))
    sizes = measure(core, x[:, 0], state)
    assert sizes == measure(core, x[:, 0], (torch.zeros(BATCH, HIDDEN), torch.zeros(BATCH, slots, HIDDEN)))
    assert sizes.alpha >= 1
    for strategy in ("internal", "mixed", None):
        budget = sizes.smallest + time // 2 * sizes.internal
        assert peak_of(core, x, monkeypatch, state=state, budget=budget, strategy=strategy) <= budget
    assert peak_of(core, x, monkeypatch, state=state, budget=sizes.smallest) <= sizes.smallest
    with pytest.raises(InputError, match=rf"too small for one internal state.*\({sizes.smallest} bytes\)"):
        unroll(core, x, state, budget=sizes.smallest - 1)


def test_one_tensor_may_be_the_start_of_two() -> None:
    cell, x, zeros = nn.LSTMCell(WIDTH, HIDDEN), torch.randn(BATCH, WIDTH), torch.zeros(BATCH, HIDDEN)
    assert measure(cell, x, (zeros, zeros)) == measure(cell, x)


class Sliced(nn.Module):
    """A cell whose state is a part of what it has computed, and keeps all of that alive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 4 * HIDDEN), nn.Linear(HIDDEN, 4 * HIDDEN)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        whole = (self.inner(x) + self.outer(state)).tanh()
        return whole[:, -2:] + 0, whole[:, :HIDDEN]


@pytest.mark.parametrize("strategy", ["internal", "mixed", None])
def test_a_state_that_is_part_of_something_larger_counts_as_that(
    strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, x = Sliced(), torch.randn(BATCH, TIME // 3, WIDTH, requires_grad=True)
    state = torch.zeros(BATCH, HIDDEN)
    sizes = measure(core, x[:, 0], state)
    budget = sizes.smallest + 6 * sizes.internal
    peak = peak_of(core, x, monkeypatch, state=state, budget=budget, strategy=strategy)
    # The ledger sees what the final state is a part of, which is the caller's, and not the start state.
    assert peak - 4 * sizes.hidden + sizes.hidden <= budget


def test_ragged_batches_stay_within(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, x = nn.GRUCell(WIDTH, HIDDEN), torch.randn(BATCH, TIME, WIDTH, requires_grad=True)
    budget = 5 * measure(cell, x[:, 0]).smallest
    lengths = torch.arange(BATCH) * TIME // BATCH + 1
    assert peak_of(cell, x, monkeypatch, budget=budget, lengths=lengths) <= budget


def test_inputs_from_a_function_and_losses_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = nn.GRUCell(512, HIDDEN)
    small = measure(cell, torch.randn(BATCH, 512))
    sizes = measure(cell, torch.randn(BATCH, 512), loss_fn=lambda t, y: y.cosh().log().sum())
    assert sizes.internal > small.internal
    ledger_peaks = []
    for budget in (small.smallest + BATCH * 512 * 4, 300_000):
        with kept(cell, {p.nbytes for p in cell.parameters()} | {0, 4}, monkeypatch) as ledger:
            generator = torch.Generator()
            loss, _ = unroll(
                cell,
                lambda t, generator=generator: torch.randn(BATCH, 512, generator=generator.manual_seed(t)),
                steps=TIME,
                budget=budget,
                loss_fn=lambda t, y: y.square().sum(),
            )
            loss.backward()
        ledger_peaks.append(ledger.peak)
        assert ledger.peak <= budget
    assert ledger_peaks[1] > 2 * ledger_peaks[0]


def test_what_a_step_keeps_of_the_callers_counts_for_nothing() -> None:
    cell, x = nn.GRUCell(WIDTH, HIDDEN), torch.randn(BATCH, WIDTH)
    targets = torch.randint(HIDDEN, (10_000, BATCH))  # of which a step's loss keeps a part
    plain = measure(cell, x, loss_fn=lambda t, y: y.square().sum())
    classified = measure(cell, x, loss_fn=lambda t, y: nn.functional.cross_entropy(y, targets[t]))
    assert classified.internal < plain.internal + targets.nbytes / 2


def test_what_autocast_makes_of_weights_counts_for_nothing() -> None:
    linear, x, state = nn.Linear(512, 256), torch.randn(2, 256), torch.randn(2, 256)

    def core(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = linear(torch.cat([x, state], -1)).tanh().float()
        return state, state

    cell = nn.GRUCell(256, 256)
    plain = [measure(each, x, state).internal for each in (core, cell)]
    with torch.autocast("cpu", torch.bfloat16):
        for each, most in zip((core, cell), plain, strict=True):
            assert measure(each, x, state).internal <= most


class Rounded(nn.Module):
    """A cell whose state is float32 whatever autocast casts it to on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = (self.inner(x) + self.outer(state)).float().tanh()
        return state, state


@pytest.mark.parametrize("more", [0, 20_000])
def test_autocast_remembers_no_casts_beyond_the_budget(more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, x, state = Rounded(), torch.randn(BATCH, TIME, WIDTH, requires_grad=True), torch.zeros(BATCH, HIDDEN)
    leaves = wanted(cell, x)
    caller = (
        {leaf.nbytes for leaf in leaves} | {leaf.nbytes // 2 for leaf in leaves} | {BATCH * TIME * HIDDEN * 4, 0, 4}
    )
    caller |= {x[:, :span].nbytes for span in range(1, TIME + 1)}
    with torch.autocast("cpu", torch.bfloat16):
        budget = measure(cell, x[:, 0], state).smallest + more
        with kept(cell, caller, monkeypatch) as ledger:
            loss = unroll(cell, x, state, budget=budget)[0].square().sum()
            torch.autograd.backward(loss, inputs=leaves)
    assert 0 < ledger.peak <= budget


def test_sizes_of_pytorchs_cells() -> None:
    # What a step saves, in hidden states, with the one that it ends with: 3.5, 7 and 2 of them the cells' own.
    for kind, alpha in ((nn.LSTMCell, 4.5), (nn.GRUCell, 8.0), (nn.RNNCell, 2.0)):
        sizes = measure(kind(HIDDEN, HIDDEN), torch.zeros(BATCH, HIDDEN))
        assert sizes.alpha == alpha
        assert sizes.beta == alpha - 1


def test_the_smallest_budget_works_and_a_byte_less_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, x = nn.LSTMCell(WIDTH, HIDDEN), torch.randn(BATCH, TIME, WIDTH, requires_grad=True)
    smallest = measure(cell, x[:, 0]).smallest
    assert peak_of(cell, x, monkeypatch, budget=smallest) <= smallest
    with pytest.raises(InputError, match=rf"too small for one internal state.*\({smallest} bytes\)"):
        unroll(cell, x, budget=smallest - 1)


def test_more_budget_never_costs_more() -> None:
    sizes = Sizes(hidden=1000, internal=4500, shared=3500, gradient=1000)
    budgets = range(sizes.smallest, sizes.smallest + 400 * 4500, 97_000)
    forwards = [choose(300, sizes, budget).plan.forwards for budget in budgets]
    assert forwards == sorted(forwards, reverse=True)
    assert forwards[0] == 300 * 301 // 2
    assert forwards[-1] == 300


def test_long_sequences_are_planned_at_once() -> None:
    sizes = Sizes(hidden=1000, internal=4500, shared=3500, gradient=1000)
    for steps, budget in ((100_000, "128MiB"), (10_000_000, "1GiB")):
        choice = choose(steps, sizes, budget)
        assert choice.plan.strategy in ("hidden", "internal")
        assert choice.plan.forwards_per_step < 3


def test_a_strategy_that_needs_more_than_the_slots_that_were_given_says_so() -> None:
    cell, x = nn.GRUCell(WIDTH, HIDDEN), torch.randn(BATCH, TIME, WIDTH)
    with pytest.raises(InputError, match=f"strategy='full' needs {TIME} slots .*, got slots=5"):
        unroll(cell, x, slots=5, strategy="full")
    unroll(cell, x, slots=TIME + 5, strategy="full")


def test_a_strategy_that_does_not_fit_says_so() -> None:
    sizes = Sizes(hidden=1000, internal=4500, shared=3500, gradient=1000)
    with pytest.raises(InputError, match="strategy='full' needs"):
        choose(300, sizes, 100_000, strategy="full")
    with pytest.raises(InputError, match="strategy='internal' needs"):
        choose(300, sizes, sizes.smallest + 1000, strategy="internal")


@pytest.mark.parametrize("chunk", [None, "auto"])
def test_a_chunk_is_chosen_within_the_budget(chunk: Any) -> None:
    layer, x = nn.GRU(WIDTH, HIDDEN, batch_first=True), torch.randn(BATCH, TIME, WIDTH)
    calls: list[int] = []
    chosen = []
    for factor in (1, 6, 30, 1000):
        budget = factor * measure(layer, x[:, :1]).smallest
        hook = layer.register_forward_pre_hook(lambda module, args: calls.append(args[0].shape[1]))
        for _ in range(2):  # the second time, nothing is measured any more
            calls.clear()
            unroll(layer, x, budget=budget, chunk=chunk)
        hook.remove()
        assert sum(calls) == TIME
        chosen.append(calls[0])
    assert chosen == sorted(chosen)
    assert chosen[0] == 1
    assert chosen[-1] >= TIME // 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64MiB", 2**26),
        ("1 kB", 1000),
        ("1.5GiB", 3 * 2**29),
        ("12", 12),
        ("3b", 3),
        (17, 17),
        ("2tb", 2 * 10**12),
        ("1.1B", 1),
    ],
)
def test_budgets_are_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


def test_a_budget_that_no_number_of_the_machine_holds_is_as_good_as_enough() -> None:
    assert parse_bytes("9" * 400) == int("9" * 400)
    sizes = Sizes(hidden=1000, internal=4500, shared=3500, gradient=1000)
    for strategy in (None, "hidden", "mixed"):
        choice = choose(30, sizes, 10**400, strategy=strategy)  # type: ignore[arg-type]
        assert choice.plan.forwards == (59 if strategy == "hidden" else 30)


@pytest.mark.parametrize("text", ["", "MiB", "-1MiB", "1e3", "4 parsecs", "0.9B", "٣KiB", 0, -5, 1.5, None, True])
def test_what_is_no_budget_is_refused(text: Any) -> None:
    with pytest.raises(InputError, match="budget must be"):
        parse_bytes(text)


def test_sizes_are_written_so_that_they_fit() -> None:
    for size in (1, 1023, 1024, 1025, 10**6, 2**26, 2**26 + 1, 10**13):
        assert size <= parse_bytes(format_bytes(size)) <= 1.01 * size + 1


def test_gradients_do_not_depend_on_the_budget() -> None:
    core, x = nn.LSTMCell(WIDTH, HIDDEN).double(), torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64)
    state = (torch.zeros(BATCH, HIDDEN, dtype=torch.float64),) * 2
    expected = torch.autograd.grad(loop(core, x, state)[0].square().sum(), list(core.parameters()))
    for budget in ("68KiB", "200KiB", "1MiB", "1GiB"):
        y, _ = unroll(core, x, state, budget=budget)
        for got, known in zip(torch.autograd.grad(y.square().sum(), list(core.parameters())), expected, strict=True):
            assert float((got - known).abs().max()) <= 1e-10


def test_slots_are_those_of_the_strategy() -> None:
    cell, x = nn.GRUCell(WIDTH, HIDDEN), torch.randn(BATCH, TIME, WIDTH)
    calls: list[int] = []
    cell.register_forward_pre_hook(lambda *_: calls.append(1))
    for strategy, slots in (("hidden", 5), ("internal", 4), ("mixed", 20)):
        calls.clear()
        unroll(cell, x, slots=slots, strategy=strategy)[0].sum().backward()  # type: ignore[arg-type]
        sizes = measure(cell, x[:, 0])
        calls.pop()
        costs = {"internal_cost": sizes.alpha, "shared_cost": sizes.beta}
        assert len(calls) == plan(TIME, slots, strategy, **costs).forwards  # type: ignore[arg-type]
