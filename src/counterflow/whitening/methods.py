"""Whitening as entries of the registry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from counterflow.exceptions import UnsupportedError
from counterflow.handle import Handle
from counterflow.registry import Contract, Method, Waiver, attention_example, cnn_example, mlp_example, register
from counterflow.whitening.whitened import whiten

__all__: list[str] = []

_EXAMPLES = (mlp_example(), cnn_example())
_PAPER = "Desjardins, Simonyan, Pascanu, Kavukcuoglu, Natural Neural Networks, NIPS 2015"
_FUNCTIONAL: dict[Contract, Waiver] = dict.fromkeys(
    ("grad", "vmap"),
    Waiver(
        reason="torch.func runs a model as a pure function, which cannot carry statistics from step to step.",
        error=UnsupportedError,
        match="torch.func cannot carry",
    ),
)


def _from_loader(model: nn.Module, inputs: Tensor, **options: Any) -> Handle:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return whiten(model, optimizer, epsilon=0.1, loader=[inputs], **options)


def _from_backward(model: nn.Module, inputs: Tensor) -> Handle:
    handle = whiten(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, samples=1, epsilon=0.1)
    model(inputs).sum().backward()
    handle.project()
    model.zero_grad()
    return handle


register(
    Method(
        key="whitening",
        summary="Step in the basis in which a layer's inputs are white; parameters stay canonical.",
        paper=_PAPER,
        site="update",
        attach=_from_loader,
        examples=(*_EXAMPLES, attention_example()),
        adds_buffers=True,
    )
)
register(
    Method(
        key="whitening-explicit",
        summary="The same with the whitened layer's own parameters, V and d, before its first projection.",
        paper=_PAPER,
        site="update",
        # Once projected, canonical weights come back by undo() within rounding only, not to the bit. Attention is in
        # the own tests: PyTorch multiplies by a weight in another order where that is computed from another one.
        attach=lambda model, inputs: _from_loader(model, inputs, form="explicit", initial=False),
        examples=_EXAMPLES,
        identity=True,
        adds_buffers=True,
    )
)
register(
    Method(
        key="whitening-diagonal",
        summary="Whitening, with a diagonal brought up to date in every batch.",
        paper=_PAPER,
        site="update",
        attach=lambda model, inputs: _from_loader(model, inputs, diagonal=True),
        examples=_EXAMPLES,
        batch_coupled=True,
        adds_buffers=True,
    )
)
register(
    Method(
        key="whitening-gathering",
        summary="Whitening while backward passes gather statistics for the next projection.",
        paper=_PAPER,
        site="update",
        attach=_from_backward,
        examples=(*_EXAMPLES, attention_example()),
        stateful=True,
        waivers=_FUNCTIONAL,
    )
)
