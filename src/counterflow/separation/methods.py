"""The inverse map as an entry of the registry."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from counterflow.backward import attach
from counterflow.registry import Example, Method, register
from counterflow.separation.classifier import BipolarSigmoid, MelFrames
from counterflow.separation.inversion import InverseMap

__all__: list[str] = []


class _Heard(nn.Module):
    """Magnitudes that a layer makes, their features, and a perceptron on them."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Linear(6, 33 * 12)
        self.features = MelFrames(8000, 64, 8, 10)
        self.net = nn.Sequential(nn.Linear(80, 5), BipolarSigmoid(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        spectra = torch.unflatten(nn.functional.softplus(self.source(x)), -1, (33, 12))
        outputs: Tensor = self.net(self.features(spectra).flatten(1))
        return outputs


register(
    Method(
        key="separation",
        summary="Send the error of mel features back to the spectrum by the inverse of what was done to it.",
        paper="Bae, Lee, Combining ICA and Top-Down Attention for Robust Speech Recognition, NIPS 2000",
        site="adjoint",
        attach=lambda model, inputs: attach(model, {"features": InverseMap()}),
        examples=(
            Example(
                name="mel",
                model=_Heard,
                inputs=lambda n: torch.randn(n, 6),
                targets=lambda n: torch.randn(n, 3),
                loss=lambda y, t: (y - t).square().sum(),
            ),
        ),
    )
)
