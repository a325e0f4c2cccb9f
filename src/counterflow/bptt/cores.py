"""What a core is: PyTorch's cells and fused layers, and what a user writes, each called in the same way.

Whatever the core, it is run as ``(inputs of one step, state) -> (outputs of that step, next state)``, where inputs,
outputs and state are pytrees of tensors. A cell's output is its hidden state. A fused layer (`nn.LSTM`, `nn.GRU`,
`nn.RNN`) takes a *chunk* of time steps at once, which is one step to a plan.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from counterflow.exceptions import InputError, UnsupportedError

__all__ = ["Core", "adapt"]

# The function that one step runs; a core calls it with its inputs and the state.
Call = Callable[[Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Core:
    """A core and what the executor has to know of it.

    Args:
        name: What messages call it.
        call: Maps (inputs, state) of one step to (outputs, next state).
        source: What the user gave.
        fused: The layer, where one call runs a chunk of time steps; then its inputs have a dimension for time.
    """

    name: str
    call: Call
    source: Any
    fused: nn.RNNBase | None = None

    def start(self, example: Tensor, batch: int | None) -> Any:
        """The state of zeros that PyTorch's own layers begin with.

        Args:
            example: A tensor whose dtype and device it takes.
            batch: The number of rows; None where there is no dimension for the batch.

        Raises:
            InputError: If the core is not one of PyTorch's, so that only the user knows its state.
        """
        source = self.source
        rows = () if batch is None else (batch,)
        if isinstance(source, nn.RNNCellBase):
            hidden = example.new_zeros(*rows, source.hidden_size)
            return (hidden, hidden.clone()) if isinstance(source, nn.LSTMCell) else hidden
        if self.fused is not None:
            width = self.fused.proj_size or self.fused.hidden_size
            hidden = example.new_zeros(self.fused.num_layers, *rows, width)
            if isinstance(self.fused, nn.LSTM):
                return hidden, example.new_zeros(self.fused.num_layers, *rows, self.fused.hidden_size)
            return hidden
        raise InputError(f"state=None: only PyTorch's own cells and layers start from zeros; give {self.name} a state")


def adapt(core: Any) -> Core:
    """Bring a core into the form in which it is run.

    Raises:
        InputError: If it cannot be called.
        UnsupportedError: If it is bidirectional.
    """
    if isinstance(core, Core):
        return core
    name = type(core).__name__ if isinstance(core, nn.Module) else getattr(core, "__name__", type(core).__name__)
    if isinstance(core, nn.LSTMCell):
        return Core(name, functools.partial(_lstm_cell, core), core)
    if isinstance(core, nn.RNNCellBase):
        return Core(name, functools.partial(_cell, core), core)
    if isinstance(core, nn.RNNBase):
        reason = why_not(core)
        if reason:
            raise UnsupportedError(f"core={name}: {reason}")
        return Core(name, core, core, fused=core)
    if not callable(core):
        raise InputError(f"core must be a module or a function (x_t, state) -> (y_t, state), got {name}")
    return Core(name, core, core)


def why_not(layer: nn.RNNBase) -> str:
    """Why a fused layer cannot be run chunk by chunk; empty if it can."""
    if layer.bidirectional:
        return "it is bidirectional, and its second half needs the end of the sequence first"
    if layer.dropout > 0 and layer.training and layer.num_layers > 1 and torch.backends.cudnn.enabled:
        parameter = next(layer.parameters())
        if parameter.is_cuda:
            return (
                "cuDNN keeps the random state of dropout between layers to itself, so masks cannot be drawn again; "
                "set torch.backends.cudnn.enabled = False or dropout=0"
            )
    return ""


def _lstm_cell(cell: nn.LSTMCell, x: Any, state: Any) -> tuple[Any, Any]:
    state = cell(x, state)
    return state[0], state


def _cell(cell: nn.RNNCellBase, x: Any, state: Any) -> tuple[Any, Any]:
    state = cell(x, state)
    return state, state


def run_packed(core: Core, x: Tensor, lengths: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Run a chunk whose rows end at different times; a row without a time step left keeps its state.

    Args:
        core: The core of a fused layer.
        x: The chunk, ``(batch, time, features)`` or ``(time, batch, features)`` as the layer wants it.
        lengths: How many time steps of the chunk each row has, ``(batch,)`` on the CPU.
        state: The layer's state, ``(layers, batch, features)``.

    Returns:
        The outputs, zero behind each row's end, and the next state.
    """
    layer = core.fused
    assert layer is not None
    dim, several = (0 if layer.batch_first else 1), isinstance(state, tuple)
    live = torch.nonzero(lengths > 0).flatten()
    rows = live.to(x.device)
    width = layer.proj_size or layer.hidden_size
    y = x.new_zeros(*x.shape[:2], width)
    if not len(live):
        return y, state
    parts = state if several else (state,)
    packed = pack_padded_sequence(
        x.index_select(dim, rows), lengths[live], batch_first=layer.batch_first, enforce_sorted=False
    )
    heads = tuple(part.index_select(1, rows) for part in parts)
    lively, ended = core.call(packed, heads if several else heads[0])
    lively, _ = pad_packed_sequence(lively, batch_first=layer.batch_first, total_length=x.shape[1 - dim])
    ends = ended if several else (ended,)
    y = y.to(lively.dtype).index_copy(dim, rows, lively)
    ends = tuple(part.to(end.dtype).index_copy(1, rows, end) for part, end in zip(parts, ends, strict=True))
    return y, ends if several else ends[0]


def modules_of(*functions: Any) -> list[nn.Module]:
    """The modules that these are or reach through a closure, the globals they name, a method or a `partial`."""
    found = dict.fromkeys(each for function in functions for each in _reached(function) if isinstance(each, nn.Module))
    return list(found)


def tensors_of(*functions: Any) -> list[Tensor]:
    """The tensors that these reach, those of modules included; they are the caller's whatever a step keeps of them."""
    found = []
    for function in functions:
        for each in _reached(function):
            if isinstance(each, nn.Module):
                found += [*each.parameters(), *each.buffers()]
            elif isinstance(each, Tensor):
                found.append(each)
    return found


def name_of(node: Any, *functions: Any) -> str:
    """By what name one of these reaches the tensor that a node of the graph has made; empty if none can be seen."""
    for function in functions:
        for name, value in _named(function):
            if isinstance(value, Tensor) and value.grad_fn is node:
                return name
    return ""


def _reached(function: Any) -> Iterator[Any]:
    for _, value in _named(function):
        yield from tree_leaves(value)


def _named(function: Any) -> Iterator[tuple[str, Any]]:
    """What a function holds, by name; one step deep, which is where people put things."""
    if function is None:
        return
    if isinstance(function, Core):
        function = function.source
    if isinstance(function, functools.partial):
        yield from _named(function.func)
        yield from ((f"argument {index}", value) for index, value in enumerate(function.args))
        yield from function.keywords.items()
        return
    if isinstance(function, nn.Module):
        yield type(function).__name__, function
        for each in function.modules():
            yield from ((name, value) for name, value in vars(each).items() if not name.startswith("_"))
        return
    owner = getattr(function, "__self__", None)
    if owner is not None:
        yield from _named(owner)
    code = inspect.unwrap(getattr(function, "__func__", function))
    if inspect.isfunction(code):
        seen = inspect.getclosurevars(code)
        yield from seen.nonlocals.items()
        yield from seen.globals.items()
    elif not inspect.isclass(function) and hasattr(function, "__dict__"):
        yield from vars(function).items()
