"""Tempering as an entry of the registry."""

from __future__ import annotations

from collections.abc import Callable
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


class _Loop(nn.Module):
    """A recurrent cell that a loop takes through three steps of four features."""

    def __init__(self, cell: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell = cell(4, 5)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        # Zeros of the input's own kind: the cells' kernels work in place, and vmap asks for a state of its own.
        first = x.new_zeros(len(x), 5)
        state = (first, first) if isinstance(self.cell, nn.LSTMCell) else first
        for step in x.unbind(1):
            state = self.cell(step, state)
        y: Tensor = state[0] if isinstance(state, tuple) else state
        return y


class _Last(nn.Module):
    """What a recurrent layer puts out last."""

    def forward(self, outputs: tuple[Tensor, object]) -> Tensor:
        return outputs[0][:, -1]


def _sequences(name: str, recurrent: Callable[[], nn.Module]) -> Example:
    return Example(
        name=name,
        model=lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), recurrent(), nn.Linear(5, 3)),
        inputs=lambda n: torch.randn(n, 3, 6),
        targets=lambda n: torch.randint(3, (n,)),
        loss=_summed,
    )


def _summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


_CELLS = (
    _sequences("rnncell", lambda: _Loop(nn.RNNCell)),
    _sequences("grucell", lambda: _Loop(nn.GRUCell)),
    _sequences("lstmcell", lambda: _Loop(nn.LSTMCell)),
)
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
            *_CELLS,
        ),
        batch_coupled=True,
        sums_ranks=True,
    )
)
register(
    Method(
        key="tempering-fused",
        summary="Tempering of recurrent layers that run in one kernel: attenuated at their outputs alone.",
        paper=_PAPER,
        site="update",
        attach=lambda model, inputs: temper(model, inputs, loss="cross_entropy_sum", local_output=False),
        examples=(_sequences("lstm", lambda: nn.Sequential(nn.LSTM(4, 5, batch_first=True), _Last())),),
        batch_coupled=True,
        sums_ranks=True,
        waivers={
            "compile": Waiver(
                reason="torch.compile breaks the graph at nn.RNN, nn.LSTM and nn.GRU, so fullgraph=True refuses them.",
                error=torch._dynamo.exc.Unsupported,
                match="Dynamo does not support RNN, GRU, or LSTM",
            )
        },
    )
)
register(
    Method(
        key="tempering-weights",
        summary="Tempering, every unit's error attenuated by the size of its vector of outgoing weights.",
        paper=_PAPER,
        site="update",
        attach=lambda model, inputs: temper(model, inputs, loss="cross_entropy_sum", attenuation="weights"),
        examples=(_MLP, cnn_example(), *_CELLS),
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
