"""Whitening together with other methods on one model."""

from __future__ import annotations

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


def test_batch_normalization_takes_part():
    """PRONG+: the mean and variance of what enters a whitened layer are those that normalization leaves."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    h = cf.whiten(model, optimizer, every=3, samples=40)
    losses = []
    for _ in range(10):
        losses.append(float(F.cross_entropy(model(X), T).detach()))
        step(model, optimizer)
    assert losses[-1] < losses[0]
    assert h.table()["1"].done == "left alone"
    assert h.table()["3"].values["projected"] == 10
