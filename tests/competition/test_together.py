"""Competing units under other methods of the house: each keeps the meaning that its docstring states."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow.competition import winners_of

X = torch.randn(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (60,), generator=torch.Generator().manual_seed(2))


def competing() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)]
    net = nn.Sequential(*layers).double()
    cf.compete(net, 2)
    return net


def gradients(net: nn.Module) -> list[Tensor]:
    net.zero_grad()
    nn.functional.cross_entropy(net(X), Y, reduction="sum").backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def test_tempering_attenuates_the_error_of_the_winners_and_hands_none_to_the_others() -> None:
    """Without shunting a layer's gradient is the plain one, times the attenuations from the output down to it."""
    net = competing()
    plain, won = gradients(net), winners_of(net, X)
    h = cf.temper(net, X, loss="cross_entropy_sum", local_output=False, shunt=False)
    tempered = gradients(net)
    attenuation = {row.layer: float(row.values["attenuation"] or 0) for row in h.table()}
    assert attenuation["2"] == pytest.approx(1 / math.sqrt(3))
    assert attenuation["0"] == pytest.approx(1 / math.sqrt(8))
    factors = [attenuation["0"] * attenuation["2"]] * 2 + [attenuation["2"]] * 2 + [1.0] * 2
    for got, wanted, factor in zip(tempered, plain, factors, strict=True):
        torch.testing.assert_close(got, factor * wanted)
    assert all(torch.equal(won[layer], again) for layer, again in winners_of(net, X).items())


def test_whitening_keeps_who_wins_and_folds_into_a_plain_winner_take_all_net() -> None:
    """A projection leaves the function as it is; `fold()` gives the net without buffers, with the same winners."""
    net = competing()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.5)
    before, won = net(X).detach(), winners_of(net, X)
    h = cf.whiten(net, optimizer, every=5, samples=60, epsilon=0.1, loader=[X])
    h.project()
    torch.testing.assert_close(net(X), before)
    assert all(torch.equal(won[layer], again) for layer, again in winners_of(net, X).items())
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(X), Y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    learned, won = net(X).detach(), winners_of(net, X)
    plain = h.fold()
    assert not any(name.rpartition(".")[2].startswith("whiten_") for name, _ in plain.named_buffers())
    torch.testing.assert_close(plain(X), learned)
    assert all(torch.equal(won[layer], again) for layer, again in winners_of(plain, X).items())


def test_undoing_competition_leaves_a_tempered_net_tempered() -> None:
    """Handles come off in any order; what is left is the other method alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    bare = gradients(net)
    competition = cf.compete(net, 2)
    tempering = cf.temper(net, X, loss="cross_entropy_sum", local_output=False, shunt=False)
    competition.undo()
    attenuation = {row.layer: float(row.values["attenuation"] or 0) for row in tempering.table()}
    left = gradients(net)
    torch.testing.assert_close(left[2], attenuation["2"] * bare[2])
    tempering.undo()
    for got, wanted in zip(gradients(net), bare, strict=True):
        assert torch.equal(got, wanted)
