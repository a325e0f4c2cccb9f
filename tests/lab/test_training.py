"""Restarts trained together equal restarts trained one by one, taps and adjoints included."""

import pytest
import torch
from torch import nn

import counterflow as cf
from counterflow import backward
from counterflow.exceptions import InputError
from counterflow.lab.training import stack_restarts, train_restarts


def _net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def _batch(count):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 20, 3, generator=generator)
    return x, torch.stack([x[..., 0] * x[..., 1], x[..., 2].sign()], dim=-1)


def _loss(outputs, targets):
    return (outputs - targets).square().sum()


def _together(seeds, goal, max_epochs, lr=3e-3):
    template = _net(99)
    cf.attach(template, {"0": backward.scale(0.5), "2": backward.shunt()})
    params = stack_restarts([_net(seed) for seed in seeds])
    groups = [{"params": list(template.parameters()), "lr": lr}]

    def optimizer(groups):
        return torch.optim.SGD(groups, momentum=0.9)

    return train_restarts(template, params, groups, _batch(len(seeds)), _loss, optimizer, goal, max_epochs)


def _alone(seed, row, count, below, max_epochs):
    """A plain loop in plain PyTorch."""
    net = _net(seed)
    cf.attach(net, {"0": backward.scale(0.5), "2": backward.shunt()})
    optimizer = torch.optim.SGD(net.parameters(), lr=3e-3, momentum=0.9)
    x, t = (tensor[row] for tensor in _batch(count))
    for epoch in range(max_epochs + 1):
        optimizer.zero_grad()
        loss = _loss(net(x), t)
        if loss < below:
            return epoch
        loss.backward()
        optimizer.step()
    return None


def test_together_as_one_by_one():
    seeds, below, limit = (0, 1, 2, 3, 4), 12.0, 120
    result = _together(seeds, lambda loss, values: loss < below, limit)
    alone = [_alone(seed, row, len(seeds), below, limit) for row, seed in enumerate(seeds)]
    assert result.epochs == alone
    assert len(set(alone)) > 2  # they part at different epochs, so rows were dropped on the way


def test_a_restart_that_diverges_leaves_the_others_alone():
    seeds = (0, 1, 2)
    calm = _together(seeds, lambda loss, values: loss < 12.0, 60)
    template = _net(99)
    cf.attach(template, {"0": backward.scale(0.5), "2": backward.shunt()})
    params = stack_restarts([_net(seed) for seed in seeds])
    with torch.no_grad():
        params["2.bias"][1] = float("inf")
    groups = [{"params": list(template.parameters()), "lr": 3e-3}]
    result = train_restarts(
        template,
        params,
        groups,
        _batch(3),
        _loss,
        lambda g: torch.optim.SGD(g, momentum=0.9),
        lambda loss, values: loss < 12.0,
        60,
    )
    assert result.epochs[1] is None
    assert [result.epochs[0], result.epochs[2]] == [calm.epochs[0], calm.epochs[2]]
    assert all(loss == loss for loss in result.losses)


def test_reports_who_still_learns():
    seen = []
    template = _net(0)
    train_restarts(
        template,
        stack_restarts([_net(0), _net(1)]),
        [{"params": list(template.parameters()), "lr": 1e-3}],
        _batch(2),
        _loss,
        torch.optim.SGD,
        lambda loss, values: torch.zeros_like(loss, dtype=torch.bool),
        4,
        lambda epoch, left: seen.append((epoch, left)),
    )
    assert seen == [(epoch, 2) for epoch in range(5)]


def test_refuses_parameters_of_another_model():
    template = _net(0)
    with pytest.raises(InputError, match="template's own"):
        train_restarts(
            template,
            stack_restarts([_net(0)]),
            [{"params": list(_net(1).parameters()), "lr": 1e-3}],
            _batch(1),
            _loss,
            torch.optim.SGD,
            lambda loss, values: loss < 0,
            1,
        )
