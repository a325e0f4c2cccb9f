"""The budget as an entry of the registry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterflow.bptt.limiting import limit
from counterflow.exceptions import UnsupportedError
from counterflow.registry import Contract, Example, Method, Waiver, register

__all__: list[str] = []


class _Outputs(nn.Module):
    """Takes the outputs of a recurrent layer, and leaves its final state."""

    def forward(self, result: tuple[Tensor, object]) -> Tensor:
        return result[0]


def _example(kind: type[nn.LSTM] | type[nn.GRU]) -> Example:
    return Example(
        name=kind.__name__.lower(),
        model=lambda: nn.Sequential(
            nn.Unflatten(1, (20, 3)), kind(3, 6, num_layers=2, batch_first=True), _Outputs(), nn.Linear(6, 2)
        ),
        inputs=lambda n: torch.randn(n, 60),
        targets=lambda n: torch.randn(n, 20, 2),
        loss=lambda y, t: (y - t).square().sum(),
    )


_FUNCTIONAL = Waiver(
    reason="A step that is run again has a graph of its own, and torch.func's transforms keep graphs of theirs.",
    error=UnsupportedError,
    match=r"cannot run under torch\.func",
)
_COMPILED = Waiver(
    reason="torch.compile takes none of PyTorch's recurrent layers into one graph, with a budget or without.",
    error=RuntimeError,
    match="RNN, GRU, or LSTM",
)
_WAIVERS: dict[Contract, Waiver] = {"compile": _COMPILED, "grad": _FUNCTIONAL, "vmap": _FUNCTIONAL}

register(
    Method(
        key="bptt",
        summary="Hold backpropagation through time to a budget of memory, and run again what it has no room for.",
        paper="Gruslys, Munos, Danihelka, Lanctot, Graves, Memory-Efficient Backpropagation Through Time, NIPS 2016",
        site="plan",
        attach=lambda model, inputs: limit(model, "64KiB", chunk=2),
        examples=(_example(nn.LSTM), _example(nn.GRU)),
        # Equal up to rounding: products over a chunk are summed in another order than over the whole sequence.
        keeps_forward=False,
        waivers=_WAIVERS,
    )
)
