"""Following a plan: the forward pass that stores what the plan says, and the backward pass that runs steps again.

One `autograd.Function` stands for the whole sequence. Its inputs are the start state, the inputs and every parameter
that the steps use; its forward pass follows the plan's actions up to the first `Backward`, so that every step has been
run once and the graph of the last one waits; its backward pass follows the rest. Inside, each step's graph is a graph
of its own, from leaves that are cut off from the steps before, and is gone through by `torch.autograd.grad`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from counterflow.bptt.actions import Action, Advance, Backward, Forward, Release, Restore, StoreHidden, StoreInternal
from counterflow.bptt.ambient import (
    Buffers,
    autocasting,
    devices_of,
    generator_states,
    moved,
    set_generator_states,
    silenced,
    uncached,
)
from counterflow.bptt.gradients import Gradients, Optional
from counterflow.bptt.graphs import Internal, compact, differentiable, record
from counterflow.bptt.resident import Ceiling
from counterflow.bptt.steps import Steps
from counterflow.exceptions import UnsupportedError

__all__ = ["First", "Run", "follow"]


@dataclass(slots=True)
class First:
    """The first step, which has been run already when a plan is chosen.

    Args:
        internal: What going back through it needs; it is dropped where the plan does not keep it.
        outputs: Leaves of its outputs.
        loss: Its loss.
        generators: The states of the random generators before it.
    """

    internal: Internal | None
    outputs: list[Tensor]
    loss: Tensor | None
    generators: list[Tensor]


@dataclass(slots=True)
class _Stored:
    """One entry of the stack, or the start state: a hidden state, and where it is an internal one, that too."""

    position: int
    state: list[Tensor]
    generators: list[Tensor] | None
    internal: Internal | None = None


class Run:
    """One sequence on its way through a plan.

    Args:
        steps: The sequence.
        plan: The actions; asked for anew by every pass.
        leaves: Parameters and other leaves whose gradients are wanted.
        wanted: Which leaves of the inputs need gradients.
        first: The first step.
        modules: Where buffers are that the steps change; empty where they change none.
        ceiling: What keeps the process within the budget.
    """

    def __init__(
        self,
        steps: Steps,
        plan: Iterable[Action],
        leaves: Sequence[Tensor],
        wanted: Sequence[bool],
        first: First,
        modules: Sequence[nn.Module],
        ceiling: Ceiling,
    ) -> None:
        self.steps, self.plan, self.leaves, self.wanted, self.modules = steps, plan, leaves, wanted, modules
        self._ceiling = ceiling
        self._devices = devices_of([*steps.inputs, *steps.state])
        self.autocast = autocasting(self._devices)
        # A pass gets inputs and start state from PyTorch, which frees them when the graph is freed.
        self._inputs: list[Tensor] = []
        self._begin = _Stored(0, [], first.generators)
        self._first: First | None = first
        # The same numbers must come out when the first step is run again.
        self._mark = [] if first.internal is None else _fingerprint(first.internal.next_state)
        self._random = True  # until the forward pass has shown that it drew no numbers
        self._loss: Tensor | None = None
        self._reset()

    def _reset(self) -> None:
        """Forget what is stored; the next backward pass begins from the start state."""
        self._let_go()
        self._actions: Iterator[Action] | None = None
        self._next: Action | None = None
        self._stack: list[_Stored] = []
        self._state: list[Tensor] = []
        self._position = 0
        self._working: Internal | None = None
        self._generators: list[Tensor] | None = None

    def _take(self, tensors: Sequence[Tensor]) -> None:
        held = [tensor.detach() for tensor in tensors[: len(tensors) - len(self.leaves)]]
        self._inputs, self._begin.state = held[: len(self.wanted)], held[len(self.wanted) :]

    def _let_go(self) -> None:
        self._inputs, self._begin.state = [], []

    # ------------------------------------------------------------------ forward

    def forward(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Run every step once.

        Args:
            tensors: Leaves of the inputs and of the start state, then `leaves`.

        Returns:
            Leaves of the outputs over time, leaves of the final state, the summed loss.
        """
        self._take(tensors)
        outputs: list[Tensor] = []
        self._until_backward(outputs)
        self._let_go()
        # Not the tensors that are stored: these would become the Function's own outputs, which keep it alive.
        final, loss = [s.detach() for s in self._state], self._loss
        self._state, self._loss = [], None
        before = self._begin.generators
        assert before is not None
        now = generator_states(self._devices)
        self._random = moved(before, now)
        if not self._random:
            for stored in (self._begin, *self._stack):
                stored.generators = None
        self._generators = None
        return outputs, final, loss

    def _until_backward(self, outputs: list[Tensor] | None) -> None:
        """Follow the plan to its first `Backward`."""
        self._actions = iter(self.plan)
        self._state, self._position = self._begin.state, 0
        for action in self._actions:
            if type(action) is Backward:
                self._next = action
                return
            self._follow(action, outputs)

    def _follow(self, action: Action, outputs: list[Tensor] | None) -> None:
        kind = type(action)
        if kind is Advance:
            assert isinstance(action, Advance)
            self._advance(action.start, action.stop, outputs)
        elif kind is Forward:
            assert isinstance(action, Forward)
            self._working = self._with_graph(action.step, outputs)
        elif kind is Restore:
            assert isinstance(action, Restore)
            self._restore(action.position)
        elif kind is StoreHidden:
            # The steps that follow start from what is stored: it would be kept twice.
            self._state = [compact(s) for s in self._state]
            self._stack.append(_Stored(self._position, self._state, self._snapshot()))
            self._ceiling.step()
        elif kind is StoreInternal:
            assert isinstance(action, StoreInternal)
            internal = self._with_graph(action.step, outputs)
            self._stack.append(_Stored(self._position, internal.next_state, self._snapshot(), internal))
            self._ceiling.step()
        elif kind is Release:
            self._stack.pop()

    def _advance(self, first: int, stop: int, outputs: list[Tensor] | None) -> None:
        """Run steps without a graph."""
        steps, inputs, state = self.steps, self._inputs, self._state
        with_loss = outputs is not None or self._random
        with torch.no_grad(), uncached(self.autocast):
            for index in range(first, stop):
                if self._first is not None:
                    known, self._first = self._first, None
                    assert known.internal is not None
                    ys, state, loss = known.outputs, known.internal.next_state, known.loss
                    known.internal = None
                else:
                    ys, state, loss = steps.run(index, steps.slices(inputs, index), state, with_loss)
                if outputs is not None:
                    self._emit(index, ys, loss, outputs)
        self._state, self._position = state, stop

    def _with_graph(self, index: int, outputs: list[Tensor] | None) -> Internal:
        """Run one step with a graph."""
        if self._first is not None:
            known, self._first = self._first, None
            assert known.internal is not None
            internal, ys, loss = known.internal, known.outputs, known.loss
            known.internal = None
        else:
            steps = self.steps
            internal, ys, loss = record(
                lambda xs, state: steps.run(index, xs, state),
                steps.slices(self._inputs, index),
                self._state,
                self.wanted,
            )
            if index == 0 and outputs is None:
                self._check_mark(internal.next_state)
        if outputs is not None:
            self._emit(index, ys, loss, outputs)
        self._state, self._position = internal.next_state, index + 1
        return internal

    def _emit(self, index: int, ys: list[Tensor], loss: Tensor | None, outputs: list[Tensor]) -> None:
        """Hand out what one step puts out."""
        if loss is not None:
            self._loss = loss if self._loss is None else self._loss + loss
            return
        if not outputs:
            outputs += [self.steps.blank(y) for y in ys]
        for place, y in zip(self.steps.slices(outputs, index), ys, strict=True):
            place.copy_(y)

    def _restore(self, position: int) -> None:
        stored = self._begin if position == 0 else self._stack[-1]
        self._state, self._position = stored.state, position
        if stored.generators is not None:
            set_generator_states(self._devices, stored.generators)

    def _snapshot(self) -> list[Tensor] | None:
        """The generators' states; the same object as long as no number is drawn, so that it weighs nothing."""
        if not self._random:
            return None
        now = generator_states(self._devices)
        known = self._generators or self._begin.generators
        assert known is not None
        if moved(known, now):
            known = now
        self._generators = known
        return known

    def _check_mark(self, state: Sequence[Tensor]) -> None:
        again = _fingerprint(state)
        if all(math.isclose(a, b, rel_tol=1e-4) or (a != a and b != b) for a, b in zip(self._mark, again, strict=True)):
            return
        raise UnsupportedError(
            f"core {self.steps.core.name} is not a function of its inputs and its state: its first step gave another "
            "state when it was run again; keep what it remembers in the state, and draw from torch's default generators"
        )

    # ----------------------------------------------------------------- backward

    def backward(
        self,
        tensors: Sequence[Tensor],
        outputs: Sequence[Tensor | None],
        state: Sequence[Tensor | None],
        loss: Tensor | None,
    ) -> tuple[Optional, Optional, Optional]:
        """Go back through all steps.

        Args:
            tensors: As in the forward pass.
            outputs: The errors of the outputs over time, by leaf.
            state: The errors of the final state, by leaf.
            loss: The error of the summed loss.

        Returns:
            Gradients of the inputs, of the start state and of `leaves`.
        """
        self._take(tensors)
        sums = Gradients(self, tensors, outputs, list(state), loss)
        before = generator_states(self._devices) if self._random else None
        buffers = Buffers(self.modules) if self.modules else None
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(silenced(self.leaves))
                for kind, dtype in self.autocast:
                    stack.enter_context(torch.autocast(kind, dtype))
                if self._actions is None:  # a second time, or after an exception
                    if before is not None:
                        assert self._begin.generators is not None
                        set_generator_states(self._devices, self._begin.generators)
                    self._until_backward(None)
                action = self._next
                self._next = None
                while action is not None:
                    if type(action) is Backward:
                        internal, self._working = self._working, None
                        if internal is None:
                            internal, self._stack[-1].internal = self._stack[-1].internal, None
                        assert internal is not None
                        sums.go_back(internal, action.step)
                        del internal
                        self._ceiling.step()
                    else:
                        self._follow(action, None)
                    action = next(self._actions, None) if self._actions is not None else None
        finally:
            self._reset()
            if before is not None:
                set_generator_states(self._devices, before)
            if buffers is not None:
                buffers.restore()
        return sums.inputs, sums.state, sums.leaves


class _Unroll(Function):
    """The whole sequence as one node: (run, leaves of inputs, of the start state, parameters) to what comes out."""

    @staticmethod
    def forward(run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs, final, loss = run.forward(tensors)
        return (*outputs, *final) if loss is None else (loss, *final)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.run = inputs[0]
        # PyTorch then refuses a backward pass for which a parameter, an input or the start state has been changed.
        ctx.save_for_backward(*inputs[1:])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(tensor for tensor in output if not differentiable(tensor)))

    @staticmethod
    def backward(ctx: Any, *errors: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise UnsupportedError(
                "unroll has first derivatives only, but create_graph=True asks for the second; run the core in a loop "
                "of your own there"
            )
        run: Run = ctx.run
        tensors: tuple[Tensor, ...] = ctx.saved_tensors
        ends = run.steps.state_size
        before, state = errors[: len(errors) - ends], errors[len(errors) - ends :]
        streamed = run.steps.loss_fn is not None
        outputs, loss = ((), before[0]) if streamed else (before, None)
        inputs, start, leaves = run.backward(tensors, outputs, state, loss)
        return (None, *inputs, *start, *leaves)


def follow(run: Run) -> tuple[Tensor, ...]:
    """The leaves of the outputs over time, or the summed loss, then those of the final state, tied to the Function."""
    tensors = (*run.steps.inputs, *run.steps.state, *run.leaves)
    run.steps.let_go()
    result: tuple[Tensor, ...] = _Unroll.apply(run, *tensors)  # type: ignore[no-untyped-call]
    return result


def _fingerprint(state: Sequence[Tensor]) -> list[float]:
    return [float(torch.linalg.vector_norm(s.detach().double())) for s in state if s.is_floating_point()]
