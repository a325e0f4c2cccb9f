"""The path-summed error as an entry of the registry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterflow.registry import Example, Method, register
from counterflow.speech.alignment import follow

__all__: list[str] = []


class _Distances(nn.Module):
    """Linear predictors of each frame from the one before; returns their distances (batch, time, states)."""

    def __init__(self) -> None:
        super().__init__()
        self.predictors = nn.Linear(2, 6)
        self.distances = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        predicted = self.predictors(x[:, :-1]).unflatten(-1, (3, 2))
        distances: Tensor = self.distances((x[:, 1:].unsqueeze(2) - predicted).square().sum(-1))
        return distances


_EXAMPLE = Example(
    name="predictors",
    model=_Distances,
    inputs=lambda n: torch.randn(n, 7, 2),
    targets=lambda n: torch.rand(n, 1, 1),  # weights of the utterances
    loss=lambda y, t: (y * t).sum(),
)

for _key, _skip, _summary in (
    ("speech", False, "Hand the error to the predictors on the best alignment."),
    ("speech-skip", True, "The same, where the alignment may pass over a state."),
):
    register(
        Method(
            key=_key,
            summary=_summary,
            paper="Tebelskis, Waibel, Petek, Schmidbauer, Continuous Speech Recognition by Linked Predictive Neural "
            "Networks, NIPS 1990",
            site="source",
            attach=lambda model, inputs, skip=_skip: follow(model, "distances", skip=skip),  # type: ignore[misc]
            examples=(_EXAMPLE,),
            discontinuous=True,
        )
    )
