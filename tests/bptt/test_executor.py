"""Outputs, states and gradients are those of a plain loop, and no step is run more often than the plan says."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from counterflow.bptt import measure, plan, unroll
from counterflow.exceptions import InputError, ShapeError, UnsupportedError

from .examples import (
    BATCH,
    CASES,
    TIME,
    WIDTH,
    Case,
    Leaky,
    Normed,
    Stacked,
    assert_close,
    gradients,
    learned,
    loop,
    wanted,
    weighted,
)

PLANS = [("hidden", 1), ("hidden", 3), ("hidden", TIME), ("internal", 2), ("internal", TIME), ("mixed", 9.5)]


class Counter:
    """Counts the calls of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.calls = 0
        module.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, args: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize(("strategy", "slots"), PLANS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_a_plain_loop(case: Case, strategy: str, slots: float) -> None:
    core, x, state = case.make()
    leaves = wanted(core, x, state)
    torch.manual_seed(5)
    outputs, final = loop(core, x, state)
    drawn = torch.get_rng_state()
    expected = gradients(weighted(outputs, final), leaves)

    counter = Counter(core)
    chosen = plan(TIME, slots, strategy, internal_cost=4.5, shared_cost=3.5)
    torch.manual_seed(5)
    mine, end = unroll(core, x, state, plan=chosen)
    for got, known in zip(tree_leaves((mine, end)), tree_leaves((outputs, final)), strict=True):
        assert torch.equal(got, known)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert_close(gradients(weighted(mine, end), leaves), expected)
    assert torch.equal(torch.get_rng_state(), drawn), "the backward pass moves the caller's generator"
    assert counter.calls == chosen.forwards


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_fused_layers_run_in_chunks(kind: type[nn.RNNBase], batch_first: bool, layers: int) -> None:
    layer = kind(WIDTH, 5, num_layers=layers, batch_first=batch_first).double()
    x = learned(*((BATCH, TIME) if batch_first else (TIME, BATCH)), WIDTH)
    state = tuple(learned(layers, BATCH, 5) for _ in range(2)) if kind is nn.LSTM else learned(layers, BATCH, 5)
    leaves = wanted(layer, x, state)
    outputs, final = layer(x, state)
    expected = gradients(weighted(outputs, final), leaves)
    counter = Counter(layer)
    chosen = plan(4, 2, "hidden")  # three chunks of four steps, and one of one
    mine, end = unroll(layer, x, state, plan=chosen, chunk=4)
    assert_close([mine, *tree_leaves(end)], [outputs, *tree_leaves(final)])
    assert_close(gradients(weighted(mine, end), leaves), expected)
    assert counter.calls == chosen.forwards
    turned, _ = unroll(layer, x.transpose(0, 1), state, plan=chosen, chunk=4, batch_first=not batch_first)
    assert_close([turned.transpose(0, 1)], [outputs])


def test_dropout_between_layers_is_drawn_again() -> None:
    layer = nn.GRU(WIDTH, 5, num_layers=3, dropout=0.5, batch_first=True).double()
    x = learned(BATCH, TIME, WIDTH)
    torch.manual_seed(1)
    state, parts = None, []
    for part in x.split(3, 1):
        y, state = layer(part, state)
        parts.append(y)
    expected = gradients(weighted(torch.cat(parts, 1)), wanted(layer, x))
    torch.manual_seed(1)
    y, _ = unroll(layer, x, plan=plan(5, 2, "hidden"), chunk=3)
    assert torch.equal(y, torch.cat(parts, 1))
    assert_close(gradients(weighted(y), wanted(layer, x)), expected)


def test_gradcheck() -> None:
    cell, x, state = CASES[0].make()
    names = [name for name, _ in cell.named_parameters()]

    def run(x: Tensor, h: Tensor, c: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        for name, value in zip(names, parameters, strict=True):
            delattr(cell, name)
            setattr(cell, name, value)  # a tensor that the cell only holds is served too
        y, (h, c) = unroll(cell, x, (h, c), slots=2, strategy="hidden")
        return y, h, c

    short = x[:, :4].detach().requires_grad_()
    assert torch.autograd.gradcheck(run, (short, *state, *(p.detach().requires_grad_() for p in cell.parameters())))


def test_a_second_backward_pass_runs_all_again() -> None:
    core, x, state = CASES[5].make()
    leaves = wanted(core, x, state)
    y, final = unroll(core, x, state, slots=3, strategy="hidden")
    loss = weighted(y, final)
    first = gradients(loss, leaves, retain_graph=True)
    torch.manual_seed(99)
    assert_close(gradients(loss, leaves, retain_graph=True), first, 0.0)
    assert_close(gradients(loss, leaves), first, 0.0)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(loss, leaves)


class Fails(nn.Module):
    """A cell that fails at one call, and remembers by weak references what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.calls, self.fail = nn.GRUCell(WIDTH, 5), 0, -1
        self.seen: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.calls == self.fail:
            raise ValueError("out of order")
        state = self.cell(x, state)
        self.seen += [weakref.ref(x), weakref.ref(state)]
        return state, state


@pytest.mark.parametrize("fail", [6, 14, 20])
def test_an_exception_leaves_nothing_behind(fail: int) -> None:
    core = Fails()
    x, state = torch.randn(BATCH, TIME, WIDTH), torch.zeros(BATCH, 5)
    losses: list[Tensor] = []

    def train() -> None:
        losses.append(unroll(core, x, state, plan=plan(TIME, 3, "hidden"))[0].square().sum())
        losses[0].backward(retain_graph=True)

    core.fail = fail
    with pytest.raises(ValueError, match="out of order"):
        train()
    assert (not losses) == (fail <= TIME)
    gc.collect()
    assert [ref for ref in core.seen if ref() is not None] == []
    # Hooks, buffers and generators are as before, so it can be done again.
    core.fail = -1
    losses = losses or [unroll(core, x, state, plan=plan(TIME, 3, "hidden"))[0].square().sum()]
    got = gradients(losses[0], list(core.parameters()))
    assert_close(got, gradients(loop(core, x, state)[0].square().sum(), list(core.parameters())), 1e-4)


def test_a_loss_that_nobody_goes_back_from_leaves_nothing_behind() -> None:
    core = Fails()
    y, final = unroll(core, torch.randn(BATCH, TIME, WIDTH), torch.zeros(BATCH, 5), slots=20)
    del y, final
    gc.collect()
    assert [ref for ref in core.seen if ref() is not None] == []


def test_second_derivatives_are_refused() -> None:
    core, x, state = CASES[1].make()
    y, _ = unroll(core, x, state, slots=3)
    with pytest.raises(UnsupportedError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("part", ["outputs", "final", "one output", "one state"])
def test_losses_of_a_part_of_what_comes_out(part: str) -> None:
    core, x, state = CASES[4].make()
    leaves = wanted(core, x, state)

    def loss(y: Any, final: Any) -> Tensor:
        parts = {"outputs": y, "final": final, "one output": y["head"], "one state": final["low"][1]}
        return weighted(parts[part])

    expected = gradients(loss(*loop(core, x, state)), leaves)
    got = gradients(loss(*unroll(core, x, state, slots=5)), leaves)
    # Where a plain loop has no gradient at all, that of an input that takes part is zero.
    for index, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        if theirs is None and mine is not None:
            assert not mine.any()
            got[index] = None
    assert_close(got, expected)


def test_inputs_from_a_function() -> None:
    core, x, state = CASES[0].make()
    embedding = nn.Embedding(7, WIDTH).double()
    tokens = torch.randint(7, (BATCH, TIME))
    leaves = [*core.parameters(), *embedding.parameters()]
    expected = gradients(weighted(*loop(core, embedding(tokens), state)), leaves)
    got = gradients(weighted(*unroll(core, lambda t: embedding(tokens[:, t]), state, steps=TIME, slots=4)), leaves)
    assert_close(got, expected)
    with pytest.raises(InputError, match="steps="):
        unroll(core, lambda t: x[:, t], state, slots=4)


def test_integer_inputs_and_pytrees_of_inputs() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.cell = nn.Embedding(7, WIDTH), nn.GRUCell(WIDTH, 5)

        def forward(self, x: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
            state = self.cell(self.embedding(x["token"]) + x["offset"], state)
            return state.argmax(-1), state

    core, state = Reader().double(), learned(BATCH, 5)
    tokens, offset = torch.randint(7, (BATCH, TIME)), learned(BATCH, TIME, WIDTH)
    leaves = wanted(core, offset, state)
    final = state
    outputs = []
    for t in range(TIME):
        y, final = core({"token": tokens[:, t], "offset": offset[:, t]}, final)
        outputs.append(y)
    mine, end = unroll(core, {"token": tokens, "offset": offset}, state, slots=4)
    assert torch.equal(mine, torch.stack(outputs, 1))
    assert not mine.requires_grad
    assert_close(gradients(weighted(end), leaves), gradients(weighted(final), leaves))


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_in_every_step(fused: bool) -> None:
    head, target = nn.Linear(5, 2).double(), torch.randn(BATCH, TIME, 2, dtype=torch.float64)
    core = nn.GRU(WIDTH, 5, batch_first=True).double() if fused else nn.GRUCell(WIDTH, 5).double()
    x, state = learned(BATCH, TIME, WIDTH), learned(*((1,) if fused else ()), BATCH, 5)
    leaves = [*wanted(core, x, state), *head.parameters()]

    def loss_fn(t: int, y: Tensor) -> Tensor:
        return (t + 1) * (head(y) - target[:, t]).square().sum()

    y, final = core(x, state) if fused else loop(core, x, state)
    total = torch.stack([loss_fn(t, y[:, t]) for t in range(TIME)]).sum()
    expected = gradients(total + weighted(final), leaves)
    mine, end = unroll(core, x, state, slots=2, strategy="hidden", chunk=4 if fused else None, loss_fn=loss_fn)
    assert torch.allclose(mine, total)
    assert_close(gradients(mine + weighted(end), leaves), expected, 1e-9)


def test_without_gradients_it_just_runs() -> None:
    core, x, state = CASES[0].make()
    counter = Counter(core)
    with torch.no_grad():
        y, _ = unroll(core, x, state, slots=1)
    assert counter.calls == TIME
    assert torch.equal(y, loop(core, x, state)[0])
    for parameter in core.parameters():
        parameter.requires_grad_(False)
    counter.calls = 0
    y, _ = unroll(core, x.detach(), tuple(s.detach() for s in state), budget="1MiB")
    assert counter.calls == TIME
    assert not y.requires_grad


def test_frozen_parameters_and_inputs() -> None:
    core, x, state = CASES[0].make()
    core.get_parameter("weight_ih").requires_grad_(False)
    x = x.detach()
    leaves = [p for p in core.parameters() if p.requires_grad]
    expected = gradients(weighted(*loop(core, x, state)), leaves)
    assert_close(gradients(weighted(*unroll(core, x, state, slots=4)), leaves), expected)


def test_hooks_on_parameters_see_the_whole_gradient_once() -> None:
    core, x, state = CASES[1].make()
    seen: list[Tensor] = []
    after: list[Tensor] = []
    weight = core.get_parameter("weight_hh")
    weight.register_hook(lambda gradient: seen.append(gradient.clone()))
    weight.register_post_accumulate_grad_hook(lambda parameter: after.append(parameter))
    weighted(*unroll(core, x, state, slots=2)).backward()
    assert len(seen) == len(after) == 1
    assert weight.grad is not None
    assert torch.equal(seen[0], weight.grad)


def test_a_leaf_from_outside_is_served() -> None:
    cell, x, state = CASES[1].make()
    gain = learned(WIDTH)

    def core(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = cell(gain * x, state)
        return state, state

    leaves = [*wanted(cell, x, state), gain]
    expected = gradients(weighted(*loop(core, x, state)), leaves)  # type: ignore[arg-type]
    assert_close(gradients(weighted(*unroll(core, x, state, slots=3)), leaves), expected)


def test_a_tensor_from_outside_with_a_history_is_refused_by_name() -> None:
    cell, x, state = CASES[1].make()
    context = learned(WIDTH).exp()
    with pytest.raises(UnsupportedError, match="uses 'context'"):
        unroll(lambda x, state: 2 * (cell(context * x, state),), x, state, slots=3)


def test_batch_normalization_is_updated_once_a_step() -> None:
    torch.manual_seed(0)
    plain, core = Normed().double(), Normed().double()
    core.load_state_dict(plain.state_dict())
    x, state = learned(BATCH, TIME, WIDTH), learned(BATCH, WIDTH)
    expected = gradients(weighted(*loop(plain, x, state)), wanted(plain, x, state))
    loss = weighted(*unroll(core, x, state, slots=2, strategy="hidden"))
    for _ in range(2):
        assert_close(gradients(loss, wanted(core, x, state), retain_graph=True), expected)
        for name, value in plain.named_buffers():
            assert torch.equal(core.get_buffer(name), value), name


def test_a_core_that_depends_on_what_it_changes_is_refused() -> None:
    x = torch.randn(BATCH, TIME, WIDTH)

    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(WIDTH, WIDTH)
            self.register_buffer("mean", torch.ones(WIDTH))

        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            self.mean = 0.9 * self.mean + x.mean(0)
            state = self.cell(x - self.mean, state)
            return state, state

    with pytest.raises(UnsupportedError, match="changes its buffer 'mean'"):
        unroll(Remembers(), x, torch.zeros(BATCH, WIDTH), slots=2)

    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.calls = nn.GRUCell(WIDTH, WIDTH), 0

        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            self.calls += 1
            state = self.cell(self.calls * x, state)
            return state, state

    y, _ = unroll(Counts(), x, torch.zeros(BATCH, WIDTH), slots=2)
    with pytest.raises(UnsupportedError, match="is not a function of its inputs"):
        y.sum().backward()

    def overwrites(x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = x.mul_(2) + state
        return state, state

    with pytest.raises(UnsupportedError, match="in place"):
        unroll(overwrites, x, torch.zeros(BATCH, WIDTH, requires_grad=True), slots=2)


def test_a_parameter_that_changes_before_the_backward_pass_is_noticed() -> None:
    core, x, state = CASES[1].make()
    y, _ = unroll(core, x, state, slots=2)
    with torch.no_grad():
        core.get_parameter("weight_hh").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast_is_not_further_from_float32_than_a_plain_loop() -> None:
    torch.manual_seed(0)
    cell, x = nn.LSTMCell(8, 16), torch.randn(4, 60, 8)
    state = (torch.zeros(4, 16), torch.zeros(4, 16))
    leaves = list(cell.parameters())
    exact = gradients(loop(cell, x, state)[0].square().sum(), leaves)

    def error(run: Any) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, _ = run()
        got = gradients(y.float().square().sum(), leaves)
        pairs = zip(got, exact, strict=True)
        return max(float((a - b).norm() / b.norm()) for a, b in pairs if a is not None and b is not None)

    plain = error(lambda: loop(cell, x, state))
    for slots in (1, 4, 1000):
        assert 0 < error(lambda slots=slots: unroll(cell, x, state, slots=slots)) <= plain


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of Dynamo's own
def test_inside_compilation_it_runs_as_it_is() -> None:
    core, x, state = CASES[1].make()
    run = torch.compile(lambda x: 2 * unroll(core, x, state, slots=3)[0], backend="eager")
    expected = gradients(weighted(2 * loop(core, x, state)[0]), wanted(core, x, state))
    assert_close(gradients(weighted(run(x)), wanted(core, x, state)), expected)


def test_functional_transforms_are_refused() -> None:
    core, x, state = CASES[1].make()
    with pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.grad(lambda x: unroll(core, x, state, slots=3)[0].sum())(x)


def test_without_a_batch() -> None:
    cell, layer, x = nn.LSTMCell(WIDTH, 5), nn.LSTM(WIDTH, 5), torch.randn(TIME, WIDTH)
    y, (h, c) = unroll(cell, x, slots=3, batch_first=False)
    assert y.shape == (TIME, 5)
    assert h.shape == c.shape == (5,)
    got, _ = unroll(layer, x, slots=3, chunk=5)
    assert torch.allclose(got, layer(x)[0])
    for first in (False, True):  # a function hands out time steps without a batch
        layer = nn.LSTM(WIDTH, 5, batch_first=first)
        got, _ = unroll(layer, lambda t: x[t], steps=TIME, slots=3, chunk=5)
        assert torch.allclose(got, layer(x)[0])


@pytest.mark.parametrize("memory", [{"budget": "64KiB"}, {"slots": 3}])
def test_no_state_and_no_rows(memory: dict[str, Any]) -> None:
    linear, cell, x = nn.Linear(WIDTH, 5), nn.GRUCell(WIDTH, 5), torch.randn(BATCH, TIME, WIDTH)
    y, state = unroll(lambda x, state: (linear(x), state), x, (), **memory)
    y.sum().backward()
    assert state == ()
    assert torch.allclose(y, linear(x))
    assert linear.weight.grad is not None
    assert torch.allclose(linear.weight.grad, x.sum((0, 1)).expand(5, WIDTH), atol=1e-5)
    empty, _ = unroll(cell, x[:0], **memory)
    empty.sum().backward()
    assert empty.shape == (0, TIME, 5)
    assert not any(bool(p.grad.any()) for p in cell.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (InputError, "one of budget, slots and plan", {}),
        (InputError, "one of budget, slots and plan", {"slots": 2, "budget": "1MiB"}),
        (InputError, "plan is for 5 steps", {"plan": plan(5, 2, "hidden")}),
        (InputError, "has one, 'hidden'", {"plan": plan(TIME, 2, "hidden"), "strategy": "internal"}),
        (InputError, r"plan must come from bptt\.plan, got 5", {"plan": 5}),
        (InputError, r"loss_fn must be a function \(t, y_t\) -> loss, got 'mse'", {"slots": 2, "loss_fn": "mse"}),
        (InputError, "chunk=3: GRUCell", {"slots": 2, "chunk": 3}),
        (InputError, "chunk must be", {"slots": 2, "chunk": 0}),
        (InputError, "steps=9", {"slots": 2, "steps": 9}),
        (InputError, "pytree of tensors, got int in it", {"slots": 2, "state": 3}),
        (ShapeError, "tensor without dimensions", {"slots": 2, "loss_fn": lambda t, y: y}),
    ],
)
def test_arguments_that_cannot_be_used(error: type[Exception], match: str, options: dict[str, Any]) -> None:
    cell, x = nn.GRUCell(WIDTH, 5), torch.randn(BATCH, TIME, WIDTH)
    with pytest.raises(error, match=match):
        unroll(cell, x, **options)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("budget must be bytes", {"budget": "much"}),
        ("strategy must be one of hidden.*, or None, got 'best'", {"slots": 2, "strategy": "best"}),
        (r"slots must be a number, got \[2\]", {"slots": [2]}),
    ],
)
def test_what_is_wrong_is_wrong_without_gradients_too(match: str, options: dict[str, Any]) -> None:
    for learns in (False, True):
        with torch.set_grad_enabled(learns), pytest.raises(InputError, match=match):
            unroll(nn.GRUCell(WIDTH, 5), torch.randn(BATCH, TIME, WIDTH), **options)


def test_a_fused_layer_takes_one_tensor() -> None:
    layer, x = nn.GRU(WIDTH, 5), torch.randn(TIME, BATCH, WIDTH)
    with pytest.raises(InputError, match="GRU takes one tensor, got 2 in a pytree"):
        unroll(layer, (x, x), torch.zeros(1, BATCH, 5), slots=2)
    with pytest.raises(InputError, match="GRU takes one tensor, got 2 in a pytree"):
        measure(layer, (x, x))
    with pytest.raises(InputError, match="x must be a tensor for GRU"):
        measure(layer, [], torch.zeros(1, BATCH, 5))
    with pytest.raises(InputError, match="state=None: x must be a tensor for GRU, got NoneType"):
        measure(layer, None)
    with pytest.raises(InputError, match=r"GRU takes a tensor, but inputs\(0\) gives something else"):
        unroll(layer, lambda t: (x[t],), torch.zeros(1, BATCH, 5), steps=TIME, slots=2)


@pytest.mark.parametrize(
    ("error", "match", "core"),
    [
        (InputError, "core must be a module or a function", 3),
        (UnsupportedError, "bidirectional", nn.LSTM(WIDTH, 5, bidirectional=True)),
        (InputError, "give Leaky a state", Leaky()),
        (InputError, "give Stacked a state", Stacked()),
    ],
)
def test_cores_that_cannot_be_used(error: type[Exception], match: str, core: Any) -> None:
    with pytest.raises(error, match=match):
        unroll(core, torch.randn(BATCH, TIME, WIDTH), slots=2)


def test_states_that_cannot_be_used() -> None:
    x, state = torch.randn(BATCH, TIME, WIDTH), torch.zeros(BATCH, WIDTH, requires_grad=True)
    with pytest.raises(ShapeError, match="changes its size"):
        unroll(lambda x, s: (x, torch.cat([s, x], 1)), x, state, slots=2)
    with pytest.raises(InputError, match="built as the one it was given"):
        unroll(lambda x, s: (x, (s, s)), x, state, slots=2)
    with pytest.raises(InputError, match=r"must return \(y_t, state\)"):
        unroll(lambda x, s: x, x, state, slots=2)
