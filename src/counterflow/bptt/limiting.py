"""Holding the recurrent layers of a model to a budget, without a change to the model's code."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from counterflow.bptt.budget import format_bytes, parse_bytes
from counterflow.bptt.choices import TooSmallError
from counterflow.bptt.cores import Core, why_not
from counterflow.bptt.plans import Strategy, check_strategy
from counterflow.bptt.unrolling import Chunk, Request, run
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table, exporting, reset_compiler

__all__ = ["limit"]


def limit(model: nn.Module, budget: str | int, *, chunk: Chunk = "auto", strategy: Strategy | None = None) -> Handle:
    r"""Let every `nn.LSTM`, `nn.GRU` and `nn.RNN` of a model go back through time within a budget.

    In training, such a layer runs its sequence in chunks of time steps and keeps of them what the budget allows, as
    `counterflow.bptt.unroll` does; what is missing is run again in the backward pass. Outputs, states and gradients are
    those of the layer up to rounding; where there is dropout between layers, other masks are drawn than the layer would
    draw. Without gradients the layer runs as it is.

    Args:
        model: Changed in place: its recurrent layers run another ``forward``. Keys, parameters and types stay.
        budget: Bytes, or a string such as ``"64MiB"``, for all layers together; each gets a share in proportion to the
            size of its hidden state. It is what one call of each keeps; a layer that is called several times before the
            backward pass keeps its share each time.
        chunk: Time steps to a call, or ``"auto"`` (default) for the fastest within the share; see
            `counterflow.bptt.chunks`.
        strategy: As in `counterflow.bptt.unroll`.

    Returns:
        A handle; ``table()`` names what was limited, and once a layer has run, its plan.

    Raises:
        UnsupportedError: If no layer can be limited. In the forward pass: under `torch.func`, and where
            ``torch.compile(fullgraph=True)`` asks for one graph, PyTorch's own error.
        InputError: If an argument cannot be used; in the forward pass, if a layer's share is too small.

    References:
        Gruslys et al., "Memory-Efficient Backpropagation Through Time", NIPS 2016.

    Example:
        >>> import torch, counterflow as cf
        >>> model = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(4, 8), "both": torch.nn.GRU(8, 8, bidirectional=True)})
        >>> with cf.bptt.limit(model, "1MiB") as h:
        ...     model["lstm"](torch.randn(100, 2, 4))[0].sum().backward()
        ...     print([(row.layer, row.done) for row in h.table()])
        [('lstm', 'limited'), ('both', 'left alone')]
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    total = parse_bytes(budget)
    if chunk is None or (chunk != "auto" and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1)):
        raise InputError(f"chunk must be 'auto' or a whole number from 1 on, got {chunk!r}")
    check_strategy(strategy)
    rows: list[Row] = []
    layers: list[tuple[int, nn.RNNBase]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.RNNBase | nn.RNNCellBase):
            continue
        reason = _reason(module)
        if not reason and isinstance(module, nn.RNNBase):
            layers.append((len(rows), module))
        rows.append(Row(name, type(module).__name__, "left alone" if reason else "limited", reason))
    if not layers:
        found = "; ".join(f"{row.layer!r} ({row.kind}): {row.why}" for row in rows) or "it has no recurrent layer"
        raise UnsupportedError(f"nothing in this {type(model).__name__} can be limited: {found}")
    whole = sum(_weight(layer) for _, layer in layers)
    limited = []
    for index, layer in layers:
        share = Fraction(_weight(layer), whole)
        replaced = _Limited(layer, rows[index].layer, budget, share, chunk, strategy)
        layer.forward = replaced.forward  # a bound method is copied with what it is bound to
        limited.append((index, replaced))

    def table() -> Table:
        known = {index: each.values() for index, each in limited}
        return Table(
            f"Limited to {format_bytes(total)}",
            [Row(row.layer, row.kind, row.done, row.why, known.get(index, {})) for index, row in enumerate(rows)],
        )

    reset_compiler()
    return Handle(model, table, [functools.partial(delattr, layer, "forward") for _, layer in layers])


def _reason(module: nn.Module) -> str:
    """Why a recurrent module is left alone; empty if it is not."""
    if isinstance(module, nn.RNNCellBase):
        return "a loop of the model's own calls it, step by step; use bptt.unroll in its place"
    assert isinstance(module, nn.RNNBase)
    if "forward" in vars(module):
        if isinstance(getattr(module.forward, "__self__", None), _Limited):
            return "it is limited already; undo() that first"
        return "its forward has been exchanged on the module itself"
    if type(module).forward not in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward):
        return f"{type(module).__name__} has a forward of its own"
    return why_not(module)


def _weight(layer: nn.RNNBase) -> int:
    return layer.hidden_size * layer.num_layers * (2 if isinstance(layer, nn.LSTM) else 1)


class _Limited:
    """What stands in for a layer's ``forward``; a copy of the layer gets a copy of it."""

    def __init__(
        self,
        layer: nn.RNNBase,
        name: str,
        whole: str | int,
        share: Fraction,
        chunk: Chunk,
        strategy: Strategy | None,
    ) -> None:
        self._layer, self._name, self._whole, self._share = layer, name, whole, share
        self._budget = max(1, int(parse_bytes(whole) * share))
        self._chunk, self._strategy = chunk, strategy
        self._last: dict[str, float | int | str | None] = {"chunk": None, "strategy": None, "forwards a step": None}

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> Any:
        """The layer's ``forward``, within its share."""
        layer = self._layer
        bare = functools.partial(type(layer).forward, layer)
        if exporting() or not torch.is_grad_enabled():
            return bare(input, hx)
        reason = why_not(layer)
        if reason:
            raise UnsupportedError(f"this {type(layer).__name__} cannot be limited: {reason}; undo() the limit")
        # Its hooks see the whole sequence, as they would without a budget: the chunks go past them.
        core = Core(type(layer).__name__, bare, layer, fused=layer)
        try:
            outcome = run(Request(core, input, hx, budget=self._budget, chunk=self._chunk, strategy=self._strategy))
        except TooSmallError as error:
            raise InputError(self._too_small(error.needed)) from None
        if outcome.choice is not None:
            plan = outcome.choice.plan
            self._last = {
                "chunk": outcome.chunk,
                "strategy": plan.strategy,
                "forwards a step": plan.forwards_per_step,
            }
        return outcome.outputs, outcome.state

    def _too_small(self, needed: int) -> str:
        """What to say where the layer needs more bytes than its share: in terms of the budget for all layers."""
        return (
            f"budget={self._whole!r} is too small: layer {self._name!r} ({type(self._layer).__name__}) needs "
            f"{format_bytes(needed)}, and its share is {format_bytes(self._budget)}; give at least "
            f"{math.ceil(needed / self._share)} bytes for all layers together"
        )

    def values(self) -> dict[str, float | int | str | None]:
        """Its share, and its last plan, for the table."""
        return {"budget": format_bytes(self._budget), **self._last}
