"""A sequence as a plan sees it: so many steps, each of which maps (inputs, state) to (outputs, next state)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from counterflow.bptt.cores import Core, run_packed
from counterflow.bptt.graphs import Internal, record
from counterflow.exceptions import InputError, ShapeError, UnsupportedError

__all__ = ["Steps", "check_lengths", "record_first", "zeros_for"]

LossFn = Callable[[int, Any], Tensor]


class Steps:
    """The steps of one sequence. A step of a fused layer is a chunk of ``chunk`` time steps, the last may be shorter.

    Args:
        core: What is run.
        inputs: A pytree of tensors with a dimension for time, or a function from the time step to the inputs there.
        state: A pytree of tensors, the start state.
        time_steps: The number of time steps; None takes it from the inputs.
        batch_first: Whether the dimension for time comes second in inputs and outputs, and not first.
        chunk: Time steps to a step.
        lengths: The number of time steps of each row, or None where all rows are equally long.
        loss_fn: A loss of each time step's outputs, ``loss_fn(t, y_t)``.
    """

    def __init__(
        self,
        core: Core,
        inputs: Any,
        state: Any,
        time_steps: int | None = None,
        batch_first: bool = True,
        chunk: int = 1,
        lengths: Tensor | None = None,
        loss_fn: LossFn | None = None,
    ) -> None:
        self.core, self.loss_fn, self.lengths, self.chunk = core, loss_fn, lengths, chunk
        self.dim = 1 if batch_first else 0
        self.stream: Callable[[int], Any] | None = inputs if callable(inputs) else None
        self.inputs: list[Tensor] = []
        if self.stream is None:
            self.inputs, form = tree_flatten(inputs)
            self._packed_inputs = _packer(inputs, form)
            _check_tensors("inputs", self.inputs)
            if not self.inputs:
                raise InputError("inputs holds no tensor; give one with a dimension for time, or a function of t")
            if core.fused is not None and len(self.inputs) > 1:
                raise InputError(f"inputs: {core.name} takes one tensor, got {len(self.inputs)} in a pytree")
            if core.fused is not None and self.inputs[0].dim() == 2:
                self.dim = 0  # without a dimension for the batch
        self.state, self._shape = tree_flatten(state)
        self._packed_state = _packer(state, self._shape)
        _check_tensors("state", self.state)
        self.state_size = len(self.state)
        near = next((leaf.device for leaf in (*self.state, *self.inputs)), torch.device("cpu"))
        self._ends = None if lengths is None else lengths.to(near)
        self.time_steps = self._count(time_steps)
        self.count = -(-self.time_steps // chunk)
        self.outputs_form: TreeSpec | None = None

    def _count(self, time_steps: int | None) -> int:
        if self.stream is not None:
            if time_steps is None:
                raise InputError("inputs is a function of t: say by steps= how many time steps there are")
            return _positive("steps", time_steps)
        found = {x.shape[self.dim] if x.dim() > self.dim else None for x in self.inputs}
        if len(found) != 1 or None in found:
            shapes = ", ".join(str(tuple(x.shape)) for x in self.inputs)
            raise ShapeError(
                f"inputs must all have the same number of time steps in dimension {self.dim}, got {shapes}"
            )
        (count,) = found
        assert count is not None
        if time_steps is not None and time_steps != count:
            raise InputError(f"steps={time_steps}, but the inputs have {count} time steps; leave it out")
        return _positive("the number of time steps", count)

    def span(self, index: int) -> tuple[int, int]:
        """The time steps of a step, first and behind the last."""
        return index * self.chunk, min(self.time_steps, (index + 1) * self.chunk)

    def state_of(self, leaves: list[Tensor]) -> Any:
        """The state, built as the start state was, from its leaves."""
        return self._packed_state(leaves)

    def let_go(self) -> None:
        """Keep inputs and start state alive no longer; whoever runs steps hands them in."""
        self.inputs, self.state = [], []

    def slices(self, tensors: Sequence[Tensor], index: int) -> list[Tensor]:
        """The parts of tensors with a dimension for time that belong to one step."""
        if self.core.fused is None:
            return [x.select(self.time_dim(x), index) for x in tensors]
        first, stop = self.span(index)
        return [x.narrow(self.time_dim(x), first, stop - first) for x in tensors]

    def time_dim(self, tensor: Tensor) -> int:
        """Which dimension counts the time; what has no batch has it first."""
        return min(self.dim, tensor.dim() - 1)

    def blank(self, y: Tensor) -> Tensor:
        """An empty tensor for one leaf of the outputs at all time steps, given that leaf at the first step."""
        if self.core.fused is None:
            dim = min(self.dim, y.dim())
            return y.new_empty((*y.shape[:dim], self.time_steps, *y.shape[dim:]))
        dim = self.time_dim(y)
        return y.new_empty((*y.shape[:dim], self.time_steps, *y.shape[dim + 1 :]))

    def run(
        self, index: int, inputs: list[Tensor], state: list[Tensor], with_loss: bool = True
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """One step.

        Args:
            index: Its number.
            inputs: Leaves of its inputs; none where they come from a function.
            state: Leaves of the hidden state before it.
            with_loss: Whether to take its loss, if there is one.

        Returns:
            Leaves of its outputs, leaves of the next state, its loss.
        """
        given = self._packed_state(state)
        if self.core.fused is None:
            x = self._packed_inputs(inputs) if self.stream is None else self.stream(index)
            result = self.core.call(x, given)
        else:
            result = self._run_chunk(index, inputs, given)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise InputError(f"core {self.core.name} must return (y_t, state), got a {type(result).__name__}")
        if self.outputs_form is None:
            self._check_first(*result)
            self.outputs_form = tree_flatten(result[0])[1]
        outputs, ends = _leaves(result[0]), _leaves(result[1])
        if self.lengths is not None and self.core.fused is None:
            outputs, ends = self._mask(index, outputs, ends, state)
        if self.loss_fn is None or not with_loss:
            return outputs, ends, None
        return outputs, ends, self._loss(index, tree_unflatten(outputs, self.outputs_form))

    def _run_chunk(self, index: int, inputs: list[Tensor], state: Any) -> tuple[Any, Any]:
        layer = self.core.fused
        assert layer is not None
        first, stop = self.span(index)
        if self.stream is None:
            (x,) = inputs
        else:
            parts = [self.stream(t) for t in range(first, stop)]
            if not all(isinstance(part, Tensor) for part in parts):
                raise InputError(f"inputs: {self.core.name} takes a tensor, but inputs({first}) gives something else")
            self.dim = min(self.dim, parts[0].dim() - 1)  # first where there is no dimension for the batch
            x = torch.stack(parts, self.dim)
        turned = x.dim() == 3 and self.dim != (1 if layer.batch_first else 0)
        x = x.transpose(0, 1) if turned else x
        if self.lengths is None:
            y, state = self.core.call(x, state)
        else:
            y, state = run_packed(self.core, x, (self.lengths - first).clamp(0, stop - first), state)
        return y.transpose(0, 1) if turned else y, state

    def _mask(
        self, index: int, outputs: list[Tensor], ends: list[Tensor], state: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        assert self._ends is not None
        goes_on = index < self._ends

        def where(new: Tensor, old: Tensor | int) -> Tensor:
            return torch.where(goes_on.view(-1, *(1,) * (new.dim() - 1)), new, old)

        return [where(y, 0) for y in outputs], [where(new, old) for new, old in zip(ends, state, strict=True)]

    def _loss(self, index: int, y: Any) -> Tensor:
        assert self.loss_fn is not None
        if self.core.fused is None:
            return _scalar(self.loss_fn(index, y))
        first, stop = self.span(index)
        losses = [_scalar(self.loss_fn(t, y.select(self.time_dim(y), t - first))) for t in range(first, stop)]
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def _check_first(self, y: Any, state: Any) -> None:
        name = self.core.name
        outputs, (ends, shape) = tree_leaves(y), tree_flatten(state)
        _check_tensors(f"the output of core {name}", outputs)
        if shape != self._shape:
            raise InputError(
                f"core {name} must return a state that is built as the one it was given, got {shape} for {self._shape}"
            )
        _check_tensors(f"the state that core {name} returns", ends)
        for before, after in zip(self.state, ends, strict=True):
            if before.shape != after.shape:
                raise ShapeError(
                    f"core {name} turns a state of shape {tuple(before.shape)} into one of {tuple(after.shape)}; a "
                    "state that changes its size cannot be held to a budget"
                )
        if self.lengths is not None and self.core.fused is None:
            for leaf in (*outputs, *ends):
                if leaf.dim() == 0 or leaf.shape[0] != len(self.lengths):
                    raise ShapeError(
                        f"lengths has {len(self.lengths)} rows, so outputs and state of core {name} need that many in "
                        f"their first dimension, got shape {tuple(leaf.shape)}"
                    )


def _packer(tree: Any, form: TreeSpec) -> Callable[[list[Tensor]], Any]:
    """What builds such a tree from its leaves; the trees that most cores use are built without a walk."""
    if isinstance(tree, Tensor):
        return operator.itemgetter(0)
    if type(tree) is tuple and all(isinstance(leaf, Tensor) for leaf in tree):
        return tuple
    return lambda leaves: tree_unflatten(leaves, form)


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) is tuple and all(isinstance(leaf, Tensor) for leaf in tree):
        return list(tree)
    return tree_leaves(tree)


def record_first(steps: Steps) -> tuple[Internal, list[Tensor], Tensor | None]:
    """Run the first step with a graph, while the sequence holds its inputs and start state."""
    inputs = steps.slices(steps.inputs, 0)
    wanted = [x.requires_grad for x in steps.inputs]
    return record(lambda xs, state: steps.run(0, xs, state), inputs, steps.state, wanted)


def zeros_for(core: Core, inputs: Any, batch_first: bool) -> Any:
    """The state of zeros that fits the inputs.

    Raises:
        InputError: If only the user knows it.
    """
    streamed = callable(inputs)
    example = inputs(0) if streamed else inputs
    if not isinstance(example, Tensor):
        raise InputError(f"state=None: the inputs of {core.name} are no single tensor; give it a start state")
    # A function hands out a time step at a time, so the dimension for time is missing.
    batched = example.dim() == (2 if streamed else 3)
    place = 0 if streamed or batch_first else 1
    return core.start(example, example.shape[place] if batched else None)


def check_lengths(lengths: Any, batch: int, time_steps: int) -> Tensor:
    """The lengths of a ragged batch, as integers on the CPU.

    Raises:
        InputError: If they are not integers from 0 to the number of time steps.
        ShapeError: If there is not one for every row.
    """
    try:
        tensor = torch.as_tensor(lengths).detach().cpu()
    except (RuntimeError, TypeError, ValueError):
        raise InputError(f"lengths must be integers, one for each row, got {lengths!r}") from None
    if not tensor.numel():
        tensor = tensor.long()  # an empty list is one of floats to PyTorch
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise InputError(f"lengths must be integers, got {tensor.dtype}")
    if tensor.shape != (batch,):
        raise ShapeError(f"lengths must have one entry for each of {batch} rows, got shape {tuple(tensor.shape)}")
    low, high = (int(tensor.min()), int(tensor.max())) if batch else (0, 0)
    if low < 0 or high > time_steps:
        raise InputError(f"lengths must lie from 0 to {time_steps}, got {low} to {high}")
    return tensor.long()


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number from 1 on, got {value!r}")
    return value


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ShapeError(f"loss_fn(t, y) must return a tensor without dimensions, got {got}; take its sum or mean")
    return loss


def _check_tensors(name: str, leaves: list[Any]) -> None:
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise InputError(f"{name} must be a pytree of tensors, got {type(leaf).__name__} in it")
        if leaf.is_nested or leaf.layout != torch.strided:
            raise UnsupportedError(f"{name} must be made of dense tensors, got layout {leaf.layout}")
