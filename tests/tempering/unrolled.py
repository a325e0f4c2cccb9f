"""Small recurrent nets, whose states can be tapped by hand, and what compares their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


class Loop(nn.Module):
    """A cell of four units over a sequence; a head of two reads its last state, or all of them."""

    def __init__(self, cell: type[nn.RNNCellBase], every: bool = False, hidden: int = 4, **settings: Any) -> None:
        super().__init__()
        self.cell = cell(3, hidden, **settings)  # type: ignore[call-arg]
        self.head = nn.Linear(hidden, 2)
        self.every = every

    def forward(self, x: Tensor, tap: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        state, states = None, []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            if isinstance(self.cell, nn.LSTMCell):
                hidden, carried = state
                state = (tap(hidden), carried)
                states.append(state[0])
            else:
                state = tap(state)
                states.append(state)
        y: Tensor = self.head(torch.stack(states, 1)) if self.every else self.head(states[-1])
        return y


class Whole(nn.Module):
    """A fused layer, of which everything that it puts out is read."""

    def __init__(self, layer: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.layer = layer(3, 4, **settings)  # type: ignore[call-arg]
        size = settings.get("proj_size", 4)
        self.outputs = nn.Linear(size * (2 if settings.get("bidirectional") else 1), 2)
        self.hidden = nn.Linear(size, 2)
        self.carried = nn.Linear(4, 2)

    def forward(self, x: Tensor | PackedSequence, tap: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        outputs, state = self.layer(x)
        hidden, carried = state if isinstance(state, tuple) else (state, None)
        if isinstance(outputs, PackedSequence):
            outputs = outputs.data[None]
        y: Tensor = self.outputs(tap(outputs)).sum((0, 1)) + self.hidden(tap(hidden)).sum((0, 1))
        return y if carried is None else y + self.carried(carried).sum((0, 1))


class Silent(nn.Module):
    """Units of slope 1 with weights of size 1, whose errors meet the bound (13); inputs stand for their net inputs."""

    def __init__(self, fused: bool, hidden: int) -> None:
        super().__init__()
        self.layer = (nn.RNN if fused else nn.RNNCell)(hidden, hidden, bias=False)
        self.head = nn.Linear(hidden, 2)
        pattern = torch.ones(1, 1)
        while len(pattern) < hidden:  # Hadamard's matrix: rows of ones and minus ones that are orthogonal
            pattern = torch.cat([torch.cat([pattern, pattern], 1), torch.cat([pattern, -pattern], 1)])
        into, recurrent = list(self.layer.parameters())
        with torch.no_grad():
            into.copy_(torch.eye(hidden))
            recurrent.copy_(pattern)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        if isinstance(self.layer, nn.RNN):
            state = self.layer(x)[0][-1]
        else:
            for step in x:
                state = self.layer(step, state)
        y: Tensor = self.head(state)
        return y


def attenuate(a: float | Tensor) -> Callable[[Tensor], Tensor]:
    """Multiply the error by a number, and leave the value as it is to rounding."""
    return lambda h: a * h + (1 - a) * h.detach()


def gradients(model: nn.Module, output: Tensor) -> dict[str, Tensor]:
    output.square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
