"""Whitening together with other methods on one model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import counterflow as cf
from counterflow import backward

X = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1.0
T = torch.randint(3, (40,), generator=torch.Generator().manual_seed(2))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)).double()


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """One step; how far it moves each parameter."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.zero_grad()
    F.cross_entropy(model(X), T, reduction="sum").backward()
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_tempering_gives_the_rates_and_whitening_the_direction():
    """A whitened step of a tempered net is its tempered gradient times the metric, at the layer's tempered rate."""
    plain = net()
    h = cf.temper(plain, X, loss="cross_entropy_sum", shunt=False)
    tempered = step(plain, torch.optim.SGD(h.param_groups(lr=0.01)))
    model = net()
    h = cf.temper(model, X, loss="cross_entropy_sum", shunt=False)
    optimizer = torch.optim.SGD(h.param_groups(lr=0.01))
    whitened = cf.whiten(model, optimizer, loader=[X], epsilon=0.1)
    assert [row.values.get("form") for row in whitened.table()] == ["canonical", "canonical"]
    moved = step(model, optimizer)
    for name, layer in (("0", model[0]), ("2", model[2])):
        c, metric = layer.whiten_mean[0], layer.whiten_metric[0]
        wanted = (tempered[f"{name}.weight"] - tempered[f"{name}.bias"][:, None] * c) @ metric
        torch.testing.assert_close(moved[f"{name}.weight"], wanted, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(moved[f"{name}.bias"], tempered[f"{name}.bias"] - wanted @ c, rtol=1e-9, atol=1e-12)


def test_a_layer_that_is_shunted_is_left_alone():
    """Shunting is an adjoint, and a layer has one backward pass."""
    model = net()
    h = cf.attach(model, {"0": backward.shunt()})
    whitened = cf.whiten(model, torch.optim.SGD(model.parameters(), lr=0.1), loader=[X])
    assert "it has shunt() already" in whitened.table()["0"].why
    whitened.undo()
    h.undo()
    cf.whiten(model, torch.optim.SGD(model.parameters(), lr=0.1), loader=[X])
    with pytest.raises(cf.exceptions.UnsupportedError, match=r"it has whiten\(\) already"):
        cf.attach(model, {"0": backward.shunt()})


def test_what_a_tap_hands_on_is_what_weights_learn_from():
    """A tap bends the error before the layer's own backward pass, whitened or not."""
    nets = []
    for factor in (1.0, 0.25):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        cf.whiten(model, optimizer, loader=[X])
        cf.attach(model, {"0": backward.scale(factor)})
        nets.append(step(model, optimizer))
    torch.testing.assert_close(nets[1]["0.weight"], 0.25 * nets[0]["0.weight"])
    torch.testing.assert_close(nets[1]["2.weight"], nets[0]["2.weight"])


@pytest.mark.parametrize("form", ["canonical", "explicit"])
def test_batch_normalization_takes_part(form):
    """PRONG+: what enters a whitened layer is what normalization leaves, whose own parameters step plainly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)).double()
    with torch.no_grad():
        model[1].bias.normal_()
    bare = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    h = cf.whiten(model, optimizer, every=50, samples=40, epsilon=0.1, form=form)
    F.cross_entropy(model(X), T).backward()
    h.project()
    assert h.table()["1"].done == "left alone"
    c, inputs = bare[1].bias.detach().clone(), bare[:2](X).detach()
    torch.testing.assert_close(model[2].whiten_mean[0], c)  # normalization decides what the mean is
    metric = torch.linalg.inv(torch.cov(inputs.T, correction=0) + 0.1 * torch.eye(9, dtype=torch.float64))
    plain = step(bare, torch.optim.SGD(bare.parameters(), lr=0.01))
    before = h.fold()
    step(model, optimizer)
    moved = {
        name: p.detach() - q.detach()
        for (name, p), q in zip(h.fold().named_parameters(), before.parameters(), strict=True)
    }
    for name in ("1.weight", "1.bias"):
        torch.testing.assert_close(moved[name], plain[name], rtol=1e-9, atol=1e-12)
    wanted = (plain["2.weight"] - plain["2.bias"][:, None] * c) @ metric
    torch.testing.assert_close(moved["2.weight"], wanted, rtol=1e-9, atol=1e-12)


class Cell(nn.Module):
    """A recurrent cell made of linear layers, each of them called at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.state, self.out = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = torch.tanh(self.inside(x) + self.state(state))
        return self.out(state), state


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_memory_budget_leaves_whitened_training_as_it_is(kind):
    """Steps that are run again count once in the statistics, which are of all time steps."""
    nets = []
    for slots in (None, 3):
        torch.manual_seed(0)
        cell = Cell().double()
        optimizer = getattr(torch.optim, kind)(cell.parameters(), lr=0.01)
        h = cf.whiten(cell, optimizer, every=4, samples=60, epsilon=0.1, basis="zca")
        for index in range(9):
            optimizer.zero_grad()
            x = torch.randn(6, 11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(index))
            state = torch.zeros(6, 6, dtype=torch.float64)
            if slots is None:
                y = []
                for now in x.unbind(1):
                    out, state = cell(now, state)
                    y.append(out)
                outputs = torch.stack(y, 1)
            else:
                outputs, _ = cf.bptt.unroll(cell, x, state, slots=slots)
            outputs.square().mean().backward()
            optimizer.step()
        assert {row.values["projected"] for row in h.table()} == {9}
        nets.append(cell.state_dict())
    for name, value in nets[0].items():
        torch.testing.assert_close(nets[1][name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_a_recurrent_layer_that_is_limited_already_is_left_alone():
    """Its projections would stand in for parameters that the budget hands on by themselves."""
    model = nn.Sequential(nn.Linear(5, 4), nn.LSTM(4, 3))
    cf.bptt.limit(model, "64KiB")
    h = cf.whiten(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert h.table()["1"].why == "its forward has been exchanged on the module itself"


def test_statistics_are_of_what_the_layer_saw():
    """Of augmented inputs, where training augments them, also from a loader."""

    def augment(x: torch.Tensor) -> torch.Tensor:
        return 3.0 * x.flip(1) - 1.0

    for loader in (None, [augment(X)]):
        model = net()
        h = cf.whiten(model, torch.optim.SGD(model.parameters(), lr=0.1), loader=loader, samples=40)
        F.cross_entropy(model(augment(X)), T).backward()
        if loader is None:
            h.project()
        torch.testing.assert_close(model[0].whiten_mean[0], augment(X).mean(0))


def test_a_convolution_in_the_explicit_form_is_not_shunted():
    """Its weight learns in a hook too, which an adjoint would cut off; a linear layer's does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 2))
    x = torch.randn(8, 3, 4, 4)
    whitened = cf.whiten(model, torch.optim.Adam(model.parameters()), loader=[x])
    with pytest.raises(cf.exceptions.UnsupportedError, match=r"'0' \(Conv2d\): it has whiten\(\) already"):
        cf.attach(model, {"0": backward.shunt()})
    h = cf.attach(model, {"*": backward.shunt()})
    assert [row.done for row in h.table()] == ["left alone", "left alone", "shunt()"]
    h.undo()
    whitened.undo()
    cf.attach(model, {"0": backward.shunt()})
    whitened = cf.whiten(model, torch.optim.Adam(model.parameters()), loader=[x])
    assert "it has shunt() already" in whitened.table()["0"].why
