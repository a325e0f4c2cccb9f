"""Running a core over a sequence within a budget."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_unflatten

from counterflow.backward.again import running_again
from counterflow.bptt.ambient import Buffers, autocasting, devices_of, generator_states, set_generator_states
from counterflow.bptt.budget import Observed, Sizes, observe, parse_bytes, weigh
from counterflow.bptt.choices import Choice, choose
from counterflow.bptt.chunks import check_chunk, choose_chunk, remembered
from counterflow.bptt.cores import Core, adapt, name_of
from counterflow.bptt.executor import First, Run, follow
from counterflow.bptt.plans import Plan, Strategy, check_strategy
from counterflow.bptt.resident import Ceiling
from counterflow.bptt.steps import LossFn, Steps, check_lengths, record_first, zeros_for
from counterflow.exceptions import InputError, ShapeError, UnsupportedError

__all__ = ["unroll"]

Chunk = int | Literal["auto"] | None


def unroll(
    core: Any,
    inputs: Any,
    state: Any = None,
    *,
    budget: str | int | None = None,
    slots: float | None = None,
    plan: Plan | None = None,
    strategy: Strategy | None = None,
    chunk: Chunk = None,
    steps: int | None = None,
    lengths: Any = None,
    loss_fn: LossFn | None = None,
    batch_first: bool | None = None,
) -> tuple[Any, Any]:
    r"""Run a core over a sequence, with the gradients of backpropagation through time and a limit on its memory.

    .. math::
        (y_t, s_{t+1}) = f(x_t, s_t), \qquad t = 0, \dots, T - 1

    Going back needs what every step saved. Here, no more of that is kept than the budget allows, by the plan that runs
    the fewest steps again (`counterflow.bptt.plan`); outputs, final state and gradients are those of a plain loop.

    The budget covers all that is kept for going back: the start state, stored states, with the random generator's state
    where random numbers are drawn, the step that is worked on, and the errors of the hidden state on their way. Inputs,
    outputs, parameters and their gradients are the caller's. Sizes are measured on the first step, as part of the first
    pass; no step is run for that alone, but for ``chunk="auto"`` and for cores that change their own buffers.

    Args:
        core: `nn.LSTMCell`, `nn.GRUCell` or `nn.RNNCell`; `nn.LSTM`, `nn.GRU` or `nn.RNN` in one direction, which run
            chunks of time steps; or any module or function :math:`f`: ``(x_t, state) -> (y_t, state)``. It must be a
            function of its arguments and of parameters. Random numbers of torch's default generators are drawn again
            when a step is run again. Buffers that change once a step (batch normalization in training) are allowed as
            long as outputs do not depend on them. Of tensors that it only closes over, those that its first step uses
            get their gradients; all of a module's parameters do.
        inputs: ``(batch, time, ...)``, or a pytree of such tensors, integers too; a `PackedSequence`; or a function
            from ``t`` to :math:`x_t`, which must return the same whenever it is asked; what it makes counts as kept.
        state: The start state :math:`s_0`, a pytree of tensors; None starts PyTorch's own cells and layers from zeros.
        budget: Bytes, or a string such as ``"64MiB"``.
        slots: Or the number of slots of the plan, in the units of its strategy.
        plan: Or the plan itself, which has a strategy.
        strategy: ``"hidden"``, ``"internal"``, ``"mixed"`` or another of `counterflow.bptt.plan`. None takes the
            cheapest within the budget, and ``"mixed"`` for ``slots``.
        chunk: For a fused layer, the number of time steps in one call, which is one step of the plan. ``"auto"``, the
            default within a budget, is described in `counterflow.bptt.chunks`; without a budget the default is 1.
        steps: The number of time steps, where ``inputs`` is a function.
        lengths: The number of time steps of each row of the batch, ``(batch,)``. A row that has come to its end keeps
            its state, and puts out zeros. Cells run on the padding too, which must be finite.
        loss_fn: ``loss_fn(t, y_t)``, a tensor without dimensions. Then outputs are not kept, and their loss, summed
            over time, is returned in their place. Modules that it uses get their gradients.
        batch_first: Whether time comes second in inputs and outputs, ``(batch, time, ...)``, or first. None is what a
            fused layer was made with, and else true.

    Returns:
        Outputs over time (or the summed loss), and the final state.

    Raises:
        InputError: If an argument cannot be used, or the budget is too small; then the message names the smallest.
        ShapeError: If a shape does not fit, or a state changes its size.
        UnsupportedError: If the core is bidirectional, needs a tensor from outside that has a history of its own, or is
            not a function of its arguments; under `torch.func`; and in the backward pass where a second derivative is
            asked for.

    References:
        Gruslys et al., "Memory-Efficient Backpropagation Through Time", NIPS 2016, section 3.

    Example:
        >>> import torch, counterflow as cf
        >>> cell, x = torch.nn.LSTMCell(8, 16), torch.randn(4, 100, 8)
        >>> y, (h, c) = cf.bptt.unroll(cell, x, budget="16KiB")
        >>> y.sum().backward()
        >>> y.shape, cell.weight_hh.grad.shape
        (torch.Size([4, 100, 16]), torch.Size([64, 16]))
    """
    request = Request(core, inputs, state, budget, slots, plan, strategy, chunk, steps, lengths, loss_fn, batch_first)
    outcome = run(request)
    return outcome.outputs, outcome.state


@dataclass
class Request:
    """The arguments of `unroll`."""

    core: Any
    inputs: Any
    state: Any
    budget: str | int | None = None
    slots: float | None = None
    plan: Plan | None = None
    strategy: Strategy | None = None
    chunk: Chunk = None
    steps: int | None = None
    lengths: Any = None
    loss_fn: LossFn | None = None
    batch_first: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """What came out, and how: without gradients to be had, there is no choice."""

    outputs: Any
    state: Any
    chunk: int
    choice: Choice | None


def _run(request: Request) -> Outcome:
    if torch._C._functorch.maybe_current_level() is not None:
        raise UnsupportedError(
            "bptt.unroll cannot run under torch.func, whose transforms keep graphs of their own; use backward() or "
            "torch.autograd.grad"
        )
    if sum(each is not None for each in (request.budget, request.slots, request.plan)) != 1:
        raise InputError("unroll needs one of budget, slots and plan, such as budget='64MiB'")
    if request.plan is not None and not isinstance(request.plan, Plan):
        raise InputError(f"plan must come from bptt.plan, got {request.plan!r}; or give slots")
    if request.loss_fn is not None and not callable(request.loss_fn):
        raise InputError(f"loss_fn must be a function (t, y_t) -> loss, got {request.loss_fn!r}")
    if request.plan is not None and request.strategy is not None:
        raise InputError(f"strategy={request.strategy!r}: the plan that was given has one, {request.plan.strategy!r}")
    if request.budget is not None:
        parse_bytes(request.budget)  # without gradients nobody else would look at these
    check_strategy(request.strategy)
    if request.slots is not None and (isinstance(request.slots, bool) or not isinstance(request.slots, int | float)):
        raise InputError(f"slots must be a number, got {request.slots!r}")
    core = adapt(request.core)
    packed = request.inputs if isinstance(request.inputs, PackedSequence) else None
    if packed is not None:
        if request.lengths is not None:
            raise InputError("lengths= is known from a PackedSequence; leave it out")
        padded, lengths = pad_packed_sequence(packed, batch_first=True)
        outcome = _within(request, core, padded, lengths, True)
        if request.loss_fn is None:
            outputs = _pack_as(packed, outcome.outputs, lengths)
            return Outcome(outputs, outcome.state, outcome.chunk, outcome.choice)
        return outcome
    batch_first = request.batch_first
    if batch_first is None:
        batch_first = core.fused is None or core.fused.batch_first
    return _within(request, core, request.inputs, request.lengths, batch_first)


_REASON = "counterflow.bptt runs steps by a plan, and again, which no compiled graph can hold"
# What was asked for, outside of compilation.
run: Callable[[Request], Outcome] = torch.compiler.disable(_run, reason=_REASON)  # type: ignore[no-untyped-call]


def _pack_as(packed: PackedSequence, outputs: Any, lengths: Tensor) -> PackedSequence:
    if not isinstance(outputs, Tensor):
        raise UnsupportedError("a PackedSequence goes in, so a tensor must come out of each step, not a pytree of them")
    order = packed.sorted_indices
    if order is not None:
        outputs, lengths = outputs.index_select(0, order), lengths[order.cpu()]
    again = pack_padded_sequence(outputs, lengths, batch_first=True)
    return PackedSequence(again.data, again.batch_sizes, order, packed.unsorted_indices)


def _within(request: Request, core: Core, inputs: Any, lengths: Any, batch_first: bool) -> Outcome:
    state, loss_fn = request.state, request.loss_fn
    if state is None:
        state = zeros_for(core, inputs, batch_first)
    probe = Steps(core, inputs, state, request.steps, batch_first)
    if lengths is not None:
        lengths = check_lengths(lengths, _batch(probe), probe.time_steps)
    chunk = check_chunk(core, request.chunk, request.budget)

    def chunked(size: int, ends: Tensor | None) -> Steps:
        return Steps(core, inputs, state, request.steps, batch_first, size, ends, loss_fn)

    if chunk is None:
        # Rows are weighed as if none of them ended before the sequence: the next batch's may be longer than these.
        full = None if lengths is None else torch.full_like(lengths, probe.time_steps)
        weighed = functools.partial(chunked, ends=full)
        chunk = _choose_chunk(request, probe, weighed) if torch.is_grad_enabled() else probe.time_steps
    steps = chunked(min(chunk, probe.time_steps), lengths)
    if request.plan is not None and request.plan.steps != steps.count:
        raise InputError(f"plan is for {request.plan.steps} steps, but the sequence has {steps.count}; make one for it")
    if not torch.is_grad_enabled():
        return _without_graph(steps, None)
    first, sizes, leaves, changing = _first_step(steps)
    tensors = (*steps.inputs, *steps.state, *leaves)
    if not any(tensor.requires_grad for tensor in tensors):
        return _without_graph(steps, first)
    choice = choose(steps.count, sizes, request.budget, request.slots, request.plan, request.strategy)
    wanted = [x.requires_grad for x in steps.inputs]
    ceiling = Ceiling(choice.budget, sizes.internal)
    result = follow(Run(steps, choice.plan, leaves, wanted, first, changing, ceiling))
    assert steps.outputs_form is not None
    ends = len(result) - steps.state_size
    outputs = result[0] if loss_fn is not None else tree_unflatten(list(result[:ends]), steps.outputs_form)
    return Outcome(outputs, steps.state_of(list(result[ends:])), chunk, choice)


def _choose_chunk(request: Request, probe: Steps, chunked: Callable[[int], Steps]) -> int:
    layer, budget, strategy = probe.core.fused, request.budget, request.strategy
    assert layer is not None
    assert budget is not None

    def choice() -> int:
        return choose_chunk(probe.time_steps, budget, lambda size: weigh(chunked(size)), strategy)

    if request.loss_fn is not None or probe.stream is not None:
        return choice()  # what these keep may change at any time
    tensors = [(t.shape, t.dtype, t.device, t.requires_grad) for t in (*probe.inputs, *probe.state)]
    casts = autocasting(devices_of([*probe.inputs, *probe.state]))
    trained = (*(p.requires_grad for p in layer.parameters()), layer.training, *casts)
    ragged = request.lengths is not None or isinstance(request.inputs, PackedSequence)
    return remembered(layer, (budget, strategy, ragged, probe.dim, *tensors, *trained), choice)


def _batch(steps: Steps) -> int:
    """The number of rows, for lengths."""
    fused = steps.core.fused is not None
    if steps.stream is not None:
        leaf, place, least = next(iter(steps.state), None), int(fused), 1 + fused
    else:
        leaf, place, least = steps.inputs[0], 1 - steps.dim, 2 + fused
    if leaf is None or leaf.dim() < least:
        raise ShapeError("lengths needs inputs with a dimension for the batch")
    return int(leaf.shape[place])


def _without_graph(steps: Steps, first: First | None) -> Outcome:
    """Just run forward."""
    state, total = list(steps.state), None
    filled: list[Tensor] = []
    with torch.no_grad():
        for index in range(steps.count):
            if index == 0 and first is not None and first.internal is not None:
                ys, state, loss = first.outputs, first.internal.next_state, first.loss
            else:
                ys, state, loss = steps.run(index, steps.slices(steps.inputs, index), state)
            if loss is not None:
                total = loss if total is None else total + loss
                continue
            filled = filled or [steps.blank(y) for y in ys]
            for place, y in zip(steps.slices(filled, index), ys, strict=True):
                place.copy_(y)
    assert steps.outputs_form is not None
    outputs = total if total is not None else tree_unflatten(filled, steps.outputs_form)
    return Outcome(outputs, steps.state_of(state), steps.chunk, None)


def _first_step(steps: Steps) -> tuple[First, Sizes, list[Tensor], list[nn.Module]]:
    """Run the first step with a graph, to learn from it what there is to know.

    Returns:
        The step, what it weighs, the leaves whose gradients are wanted, and the modules if steps change their buffers.
    """
    name = steps.core.name
    given = (*steps.inputs, *steps.state)
    versions = [tensor._version for tensor in given]
    seen = observe(steps)
    if versions != [tensor._version for tensor in given]:
        raise UnsupportedError(f"core {name} changes its inputs or its state in place; let it make new tensors")
    if seen.foreign:
        node = seen.foreign[0]
        named = name_of(node, steps.core, steps.loss_fn, steps.stream) or node.name()
        raise UnsupportedError(
            f"core {name} uses {named!r}, a tensor from outside that was computed from others, so that its gradient "
            "would be lost; hand it over in the inputs or in the state"
        )
    changed = seen.buffers.changed()
    if changed:
        _check_buffers(steps, seen, changed)
    trained = dict.fromkeys(p for module in seen.modules for p in module.parameters() if p.requires_grad)
    wanted = list(dict.fromkeys([*trained, *seen.leaves]))
    first = First(seen.internal, seen.outputs, seen.loss, seen.generators)
    return first, seen.sizes, wanted, seen.modules if changed else []


def _check_buffers(steps: Steps, seen: Observed, changed: list[str]) -> None:
    """A core that changes buffers must not depend on them: run its first step once more and compare."""
    now, behind = generator_states(seen.devices), Buffers(seen.modules)
    set_generator_states(seen.devices, seen.generators)
    with running_again():
        again, ys_again, _ = record_first(steps)
    set_generator_states(seen.devices, now)
    behind.restore()
    pairs = zip((*seen.outputs, *seen.internal.next_state), (*ys_again, *again.next_state), strict=True)
    if not all(torch.allclose(a, b, equal_nan=True) for a, b in pairs):
        raise UnsupportedError(
            f"core {steps.core.name} changes its buffer {changed[0]!r} in every step and depends on it, so that a step "
            "run again would give something else; keep it in the state, or put that part into eval()"
        )
