"""What bends the error of a recurrent model does so under a budget as it does without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow import backward
from counterflow.handle import Handle

from .examples import Gradients, assert_close, gradients

BATCH, TIME, WIDTH = 4, 19, 3


class Tagger(nn.Module):
    """A tagger of sequences with a fused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(WIDTH, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(x)[0])
        return y


class Stepper(nn.Module):
    """A core with layers of its own before and behind the cell, all of them within each step."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.cell, self.head = nn.Linear(WIDTH, 5), nn.GRUCell(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.cell(self.inside(x).tanh(), state)
        return self.head(state), state


ATTACHED: list[tuple[str, dict[str, Any]]] = [
    ("scale", {"*": backward.scale(0.5)}),
    ("center", {"lstm": backward.center(), "head": backward.clip(1.0)}),
    ("shunt", {"head": backward.shunt()}),
    ("chain", {"lstm": backward.Chain(backward.clip(1.5), backward.scale(0.7))}),
]


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(BATCH, TIME, WIDTH, dtype=torch.float64), torch.randint(2, (BATCH, TIME))


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum")


def taught(change: Callable[[nn.Module], Any]) -> Gradients:
    torch.manual_seed(1)
    model = Tagger().double()
    change(model)
    x, targets = data()
    return gradients(loss(model(x), targets), list(model.parameters()))


@pytest.mark.parametrize("limit_first", [True, False])
@pytest.mark.parametrize("attached", [each for _, each in ATTACHED], ids=[name for name, _ in ATTACHED])
def test_taps_and_adjoints_on_a_limited_model(attached: dict[str, Any], limit_first: bool) -> None:
    """A tap on the layer bends the error of the whole sequence once, not that of every chunk."""

    def change(model: nn.Module) -> None:
        if limit_first:
            cf.bptt.limit(model, "24KiB", chunk=3)
        cf.attach(model, attached)
        if not limit_first:
            cf.bptt.limit(model, "24KiB", chunk=3)

    assert_close(taught(change), taught(lambda model: cf.attach(model, attached)))


@pytest.mark.parametrize("limit_first", [True, False])
def test_a_probe_sees_the_same_error(limit_first: bool) -> None:
    found = []
    for budgeted in (False, True):
        torch.manual_seed(1)
        model = Tagger().double()
        if budgeted and limit_first:
            cf.bptt.limit(model, "24KiB", chunk=3)
        x, targets = data()
        with cf.probe(model) as seen:
            if budgeted and not limit_first:
                cf.bptt.limit(model, "24KiB", chunk=3)
            loss(model(x), targets).backward()
        found.append(seen.table().to_dict()["rows"])
    for mine, theirs in zip(found[1], found[0], strict=True):
        assert mine["layer"] == theirs["layer"]
        assert mine["rms"] == pytest.approx(theirs["rms"], rel=1e-9)


@pytest.mark.parametrize(
    "transforms",
    [
        {"inside": backward.scale(0.5)},
        {"inside": backward.center(), "cell": backward.clip(1.0)},
        {"head": backward.shunt(), "inside": backward.shunt()},
    ],
    ids=["scale", "center", "shunt"],
)
def test_taps_inside_the_core_bend_the_error_of_every_step(transforms: dict[str, Any]) -> None:
    found = []
    for slots in (None, 2):
        torch.manual_seed(1)
        core = Stepper().double()
        cf.attach(core, transforms)
        x, targets = data()
        state = x.new_zeros(BATCH, 6)
        if slots is None:
            outputs = []
            for t in range(TIME):
                y, state = core(x[:, t], state)
                outputs.append(y)
            result = torch.stack(outputs, 1)
        else:
            result, _ = cf.bptt.unroll(core, x, state, slots=slots, strategy="hidden")
        found.append(gradients(loss(result, targets), list(core.parameters())))
    assert_close(found[1], found[0])


@pytest.mark.parametrize("limit_first", [True, False])
def test_tempering_a_limited_model(limit_first: bool) -> None:
    """Rates and attenuations follow from the architecture, which a budget does not change."""
    groups: list[list[float]] = []

    def change(model: nn.Module, budgeted: bool) -> Handle:
        x, _ = data()
        if budgeted and limit_first:
            cf.bptt.limit(model, "24KiB", chunk=3)
        handle = cf.temper(model, x, loss="cross_entropy_sum")
        if budgeted and not limit_first:
            cf.bptt.limit(model, "24KiB", chunk=3)
        groups.append([group["lr"] for group in handle.param_groups(lr=0.1)])
        return handle

    mine, plain = taught(lambda model: change(model, True)), taught(lambda model: change(model, False))
    assert groups[0] == groups[1]
    assert_close(mine, plain)
