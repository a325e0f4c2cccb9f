"""Cores to try the executor on, each with a plain loop to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

BATCH, TIME, WIDTH = 3, 13, 4
Gradients = list[Tensor | None]


class Stacked(nn.Module):
    """Two cells, one upon the other, with dropout between them and a nested state."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.low, self.high = nn.LSTMCell(WIDTH, 5), nn.GRUCell(5, 3)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(3, 2)

    def forward(self, x: Tensor, state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        low = self.low(x, state["low"])
        high = self.high(self.dropout(low[0]), state["high"][0])
        return {"head": self.head(high), "high": high}, {"low": low, "high": [high]}


class Leaky(nn.Module):
    """A user's own core: a leaky sum with a learned rate, and a counter that carries no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH) / 2)
        self.rate = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        kept, count = state
        rate = self.rate.sigmoid()
        kept = rate * kept + (1 - rate) * (x @ self.weight + kept @ self.weight / (count.to(x.dtype) + 1)).tanh()
        return kept.square(), (kept, count + 1)


class Normed(nn.Module):
    """A core with batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.cell = nn.BatchNorm1d(WIDTH), nn.GRUCell(WIDTH, WIDTH)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell(self.norm(x), state)
        return state, state


def learned(*shape: int) -> Tensor:
    """Numbers whose gradient is wanted."""
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@dataclass(frozen=True)
class Case:
    """A core and a start state for it."""

    name: str
    core: Callable[[], nn.Module]
    state: Callable[[], Any]

    def make(self) -> tuple[nn.Module, Tensor, Any]:
        torch.manual_seed(3)
        core = self.core().double()
        return core, learned(BATCH, TIME, WIDTH), self.state()


def stacked_state() -> dict[str, Any]:
    return {"low": (learned(BATCH, 5), learned(BATCH, 5)), "high": [learned(BATCH, 3)]}


CASES = [
    Case("LSTMCell", lambda: nn.LSTMCell(WIDTH, 5), lambda: (learned(BATCH, 5), learned(BATCH, 5))),
    Case("GRUCell", lambda: nn.GRUCell(WIDTH, 5), lambda: learned(BATCH, 5)),
    Case("RNNCell", lambda: nn.RNNCell(WIDTH, 5), lambda: learned(BATCH, 5)),
    Case("own", Leaky, lambda: (learned(BATCH, WIDTH), torch.zeros((), dtype=torch.long))),
    Case("stacked", Stacked, stacked_state),
    Case("dropout", lambda: Stacked(0.4), stacked_state),
]


def call(core: nn.Module, x: Tensor, state: Any) -> tuple[Any, Any]:
    """One step, in plain PyTorch."""
    result = core(x, state)
    if isinstance(core, nn.LSTMCell):
        return result[0], result
    return (result, result) if isinstance(core, nn.RNNCellBase) else result


def loop(core: nn.Module, x: Tensor, state: Any) -> tuple[Any, Any]:
    """Backpropagation through time as everybody writes it, for inputs (batch, time, features)."""
    outputs = []
    for t in range(x.shape[1]):
        y, state = call(core, x[:, t], state)
        outputs.append(y)
    if isinstance(outputs[0], dict):
        return {key: torch.stack([y[key] for y in outputs], 1) for key in outputs[0]}, state
    return torch.stack(outputs, 1), state


def weighted(*trees: Any) -> Tensor:
    """A loss in which every element counts differently."""
    total = torch.zeros((), dtype=torch.float64)
    for leaf in tree_leaves(trees):
        if leaf.is_floating_point():
            weight = torch.linspace(-1, 2, leaf.numel(), dtype=torch.float64).view(leaf.shape)
            total = total + (weight * leaf).sum() + leaf.square().sum()
    return total


def wanted(core: nn.Module, *trees: Any) -> list[Tensor]:
    return [*core.parameters(), *(leaf for leaf in tree_leaves(trees) if leaf.requires_grad)]


def gradients(loss: Tensor, leaves: Sequence[Tensor], **options: Any) -> Gradients:
    return list(torch.autograd.grad(loss, leaves, allow_unused=True, **options))


def assert_close(got: Gradients, expected: Gradients, tolerance: float = 1e-10) -> None:
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert mine.dtype == theirs.dtype
            assert float((mine - theirs).detach().abs().max()) <= tolerance
