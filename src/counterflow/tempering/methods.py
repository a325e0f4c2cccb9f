"""Tempering as an entry of the registry."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.exceptions import UnsupportedError
from counterflow.registry import Contract, Example, Method, Waiver, cnn_example, mlp_example, register
from counterflow.tempering.tempered import temper

__all__: list[str] = []


class _Attention(nn.Module):
    """A transformer block, its attention written out, over four time steps of four features."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(4), nn.LayerNorm(4)
        self.query, self.key, self.value, self.out = (nn.Linear(4, 4) for _ in range(4))
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norm1(x)
        attention = (self.query(seen) @ self.key(seen).transpose(-1, -2) / 2.0).softmax(-1)
        x = x + self.out(attention @ self.value(seen))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


def _summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


_MLP = replace(mlp_example(), targets=lambda n: torch.randint(3, (n,)), loss=_summed)
_FUNCTIONAL: dict[Contract, Waiver] = dict.fromkeys(
    ("grad", "vmap"),
    Waiver(
        reason="torch.func runs a model as a pure function, which cannot carry state from step to step.",
        error=UnsupportedError,
        match="torch.func cannot carry",
    ),
)
_PAPER = "Schraudolph, Sejnowski, Tempering Backpropagation Networks, NIPS 1995"

register(
    Method(
        key="tempering",
        summary="Give every layer the learning rate and the error scale that follow from the architecture.",
        paper=_PAPER,
        site="update",
        attach=lambda model, inputs: temper(model, inputs, loss="cross_entropy_sum"),
        examples=(
            _MLP,
            cnn_example(),
            Example(
                name="transformer",
                model=lambda: nn.Sequential(nn.Unflatten(1, (4, 4)), _Attention(), nn.Flatten(), nn.Linear(16, 3)),
                inputs=lambda n: torch.randn(n, 16),
                targets=lambda n: torch.randint(3, (n,)),
                loss=_summed,
            ),
        ),
        batch_coupled=True,
        sums_ranks=True,
    )
)
register(
    Method(
        key="tempering-weights",
        summary="Tempering, every unit's error attenuated by the size of its vector of outgoing weights.",
        paper=_PAPER,
        site="update",
        attach=lambda model, inputs: temper(model, inputs, loss="cross_entropy_sum", attenuation="weights"),
        examples=(_MLP, cnn_example()),
        batch_coupled=True,
        sums_ranks=True,
    )
)
register(
    Method(
        key="tempering-measured",
        summary="Tempering, every layer's error held to the scale of the layers above by its measured variance.",
        paper=_PAPER,
        site="update",
        attach=lambda model, inputs: temper(model, inputs, loss="cross_entropy_sum", variance="measured"),
        examples=(_MLP, cnn_example()),
        batch_coupled=True,
        stateful=True,
        sums_ranks=True,
        waivers=_FUNCTIONAL,
    )
)
register(
    Method(
        key="tempering-centered",
        summary="Tempering for small batches: inputs and errors both centered by running means.",
        paper=_PAPER,
        site="update",
        attach=lambda model, inputs: temper(model, inputs, loss="cross_entropy_sum", center_inputs=True),
        examples=(_MLP, cnn_example()),
        batch_coupled=True,
        stateful=True,
        sums_ranks=True,
        waivers=_FUNCTIONAL,
    )
)
