"""The oracle's choice as an entry of the registry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterflow.choice.oracle import choose
from counterflow.registry import Example, Method, register

__all__: list[str] = []


class _Autoencoders(nn.Module):
    """An ensemble of autoencoders that returns its members' losses, ``(batch, members)``."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 6)) for _ in range(3))
        self.losses = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        losses: Tensor = self.losses(torch.stack([(member(x) - x).square().sum(-1) for member in self.members]))
        return losses.movedim(0, -1)


_EXAMPLE = Example(
    name="autoencoders",
    model=_Autoencoders,
    inputs=lambda n: torch.randn(n, 6),
    targets=lambda n: torch.rand(n, 1),  # weights of the examples
    loss=lambda y, t: (y * t).sum(),
)


for _key, _k, _summary in (
    ("choice", 1, "Hand the error to the member of an ensemble that does best on the example."),
    ("choice-two-of-three", 2, "Hand the error to the best two of three members."),
):
    register(
        Method(
            key=_key,
            summary=_summary,
            paper="Lee, Purushwalkam, Cogswell, Ranjan, Crandall, Batra, Stochastic Multiple Choice Learning for "
            "Training Diverse Deep Ensembles, NIPS 2016",
            site="source",
            attach=lambda model, inputs, k=_k: choose(model, "losses", k),  # type: ignore[misc]
            examples=(_EXAMPLE,),
            discontinuous=True,
        )
    )
