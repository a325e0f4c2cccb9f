"""Banks of hidden Markov models as entries of the registry."""

from __future__ import annotations

import torch
from torch import nn

from counterflow.density.backends import use_backend
from counterflow.density.nets import Alphanet, RelativeDensityNet
from counterflow.registry import Example, Method, register

__all__: list[str] = []

_PAPER = "Brown, Hinton, Relative Density Nets: A New Way to Combine Backpropagation with HMMs, NIPS 2001"


def _example(name: str, net: type[RelativeDensityNet] | type[Alphanet]) -> Example:
    def model() -> nn.Module:
        # Bare, its error goes back through time, step by step.
        if net is RelativeDensityNet:
            top: nn.Module = RelativeDensityNet(4, 3, 2, 3, backend="autograd", weight_scale=1.0)
        else:
            top = Alphanet(4, 2, 3, topology="left-to-right", backend="autograd")
        return nn.Sequential(nn.Linear(12, 12), nn.Unflatten(1, (6, 2)), top)

    return Example(
        name=name,
        model=model,
        inputs=lambda n: torch.randn(n, 12),
        targets=lambda n: torch.randint(3, (n,)),
        loss=lambda y, t: nn.functional.cross_entropy(y, t, reduction="sum"),
    )


_EXAMPLES = (_example("rdn", RelativeDensityNet), _example("alphanet", Alphanet))

register(
    Method(
        key="density",
        summary="Send the error through hidden Markov models by one forward-backward pass.",
        paper=_PAPER,
        site="adjoint",
        attach=lambda model, inputs: use_backend(model, "auto"),
        examples=_EXAMPLES,
        # Equal up to rounding.
        keeps_forward=False,
    )
)
register(
    Method(
        key="density-torch",
        summary="The same in plain operations of torch, on any device.",
        paper=_PAPER,
        site="adjoint",
        attach=lambda model, inputs: use_backend(model, "torch"),
        examples=_EXAMPLES,
        keeps_forward=False,
    )
)
