"""Variational dropout as entries of the registry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from counterflow.registry import Contract, Example, Method, Waiver, cnn_example, mlp_example, register
from counterflow.variational.conversion import make_variational

__all__: list[str] = []

_PAPER = "Kingma, Salimans, Welling, Variational Dropout and the Local Reparameterization Trick, NIPS 2015"
_EXAMPLES = (mlp_example(), cnn_example())
_WAIVERS: dict[Contract, Waiver] = {
    "parameters": Waiver(
        reason="It exchanges layers for layers with noise, which are of another type and add rates; parameters stay.",
        error=AssertionError,
        match="names of parameters change",
    )
}


class _Attention(nn.Module):
    """Self-attention over four time steps of four features, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.unflatten(x, 1, (4, 4))
        seen, _ = self.attention(x, x, x, need_weights=False)
        y: Tensor = (x + seen).flatten(1)
        return y


_ATTENTION = Example(
    name="attention",
    model=lambda: nn.Sequential(_Attention(), nn.Linear(16, 3)),
    inputs=lambda n: torch.randn(n, 16),
    targets=lambda n: torch.randint(3, (n,)),
    loss=lambda y, t: nn.functional.cross_entropy(y, t, reduction="sum"),
)


def _entry(key: str, summary: str, **options: Any) -> None:
    register(
        Method(
            key=key,
            summary=summary,
            paper=_PAPER,
            site="source",
            attach=lambda model, inputs: make_variational(model, **options),
            examples=(*_EXAMPLES, _ATTENTION),
            keeps_forward=False,
            random=True,
            adds_buffers=True,
            waivers=_WAIVERS,
        )
    )


_entry("variational", "Learn a dropout rate for every weight, with noise on the pre-activations.", rates="weight")
_entry("variational-inputs", "Learn a dropout rate for every input unit, with noise on it.", noise="A", rates="unit")
_entry("variational-gaussian", "Give every weight a Gaussian posterior, and draw pre-activations.", prior="gaussian")
