"""Weights of a step, and the ways to train an ensemble that are built on them."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import counterflow as cf
from counterflow.choice import annealed, relaxed, train_alternating, train_in_turn, weighted_loss, winners


def loss_fn(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none")


def _ensemble(members: int = 3, trunk: bool = False, **options: Any) -> cf.MultipleChoice:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double() for _ in range(members)]
    return cf.MultipleChoice(nets, trunk=nn.Linear(4, 4).double() if trunk else None, **options)


def _batch(n: int = 12) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 4, dtype=torch.float64), torch.randint(3, (n,))


WEIGHTS = {
    "relaxed": relaxed,
    "relaxed two": lambda losses: relaxed(losses, 0.2, 2),
    "annealed": lambda losses: annealed(losses, 0.3),
    "tensor": torch.rand(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).relu().sub(0.5).relu(),
}


@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_gradients_are_those_of_the_weighted_loss(name: str, trunk: bool) -> None:
    ensemble, (x, y), weights = _ensemble(trunk=trunk), _batch(), WEIGHTS[name]
    naive = copy.deepcopy(ensemble)
    losses = naive.losses(x, y, loss_fn)
    given = weights if isinstance(weights, Tensor) else weights(losses)
    assert not given.requires_grad
    loss = weighted_loss(losses, given)
    loss.backward()
    step = ensemble.step(x, y, loss_fn, weights=weights)
    assert step.loss == pytest.approx(float(loss.detach()), abs=1e-12)
    torch.testing.assert_close(step.weights, given, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.mean_weight, given.mean(1), rtol=0, atol=1e-12)
    for ours, theirs in zip(ensemble.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)
    for index, member in enumerate(naive.members):
        norm = torch.cat([p.grad.flatten() for p in member.parameters() if p.grad is not None]).norm()
        assert float(step.gradient_norms[index]) == pytest.approx(float(norm), rel=1e-9)


def test_rows_of_weight_zero_are_not_run() -> None:
    ensemble, (x, y) = _ensemble(), _batch()
    seen: list[int] = []
    for member in ensemble.members:
        member.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    weights = torch.zeros(3, 12, dtype=torch.float64)
    weights[0, :5] = 1
    weights[2, 7:] = 0.5
    step = ensemble.step(x, y, loss_fn, weights=weights)
    assert seen == [5, 5]
    assert step.losses[0, :5].isfinite().all()
    assert step.losses[0, 5:].isnan().all()
    assert step.losses[1].isnan().all()
    assert step.dead == [1]
    assert step.gradient_norms[1] == 0


def test_a_naive_member_of_weight_zero_is_not_run() -> None:
    members = [nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double() for _ in range(2)]
    ensemble, (x, y) = cf.MultipleChoice(members), _batch()
    weights = torch.zeros(2, 12, dtype=torch.float64)
    weights[0, :5] = 1
    step = ensemble.step(x, y, loss_fn, weights=weights)
    assert [int(member[1].num_batches_tracked) for member in members] == [1, 0]
    assert step.losses[1].isnan().all()
    assert all(p.grad is not None and not p.grad.any() for p in members[1].parameters())


def test_relaxed_weights_are_exact_in_the_losses_precision() -> None:
    losses = torch.rand(3, 4, dtype=torch.float64)
    weights = relaxed(losses, 0.1)
    assert torch.equal(weights[winners(losses)], torch.full((4,), 0.9, dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_relaxed_and_annealed_end_in_winners_only(k: int) -> None:
    torch.manual_seed(0)
    losses = torch.rand(3, 50, dtype=torch.float64)
    assert torch.equal(relaxed(losses, 0.0, k), winners(losses, k).double())
    torch.testing.assert_close(relaxed(losses, 0.3, k).sum(0), torch.full((50,), float(k), dtype=torch.float64))
    torch.testing.assert_close(annealed(losses, 1e-5), winners(losses).double())
    torch.testing.assert_close(annealed(losses, 1e9), torch.full_like(losses, 1 / 3))


def test_a_nan_has_no_weight() -> None:
    losses = torch.tensor([[torch.nan, 1.0], [2.0, 3.0], [4.0, 5.0]], requires_grad=True)
    for weights in (relaxed(losses), annealed(losses, 1.0)):
        assert weights[0, 0] == 0
        assert weights.isfinite().all()
        (gradient,) = torch.autograd.grad(weighted_loss(losses, weights), losses)
        assert gradient.isfinite().all()


def test_bad_weights_are_named() -> None:
    ensemble, (x, y) = _ensemble(), _batch()
    with pytest.raises(
        cf.exceptions.ShapeError, match=r"weights has shape \(2, 12\); give \(members, batch\), here \(3"
    ):
        ensemble.step(x, y, loss_fn, weights=torch.ones(2, 12))
    with pytest.raises(cf.exceptions.ShapeError, match=r"here \(3, 12\)"):
        ensemble.step(x, y, loss_fn, weights=lambda losses: losses[:, :4])
    for bad in (-1.0, float("nan")):
        with pytest.raises(cf.exceptions.InputError, match="negative number or NaN"):
            ensemble.step(x, y, loss_fn, weights=torch.full((3, 12), bad))
    with pytest.raises(cf.exceptions.InputError, match="epsilon is 2"):
        relaxed(torch.ones(2, 3), 2)
    with pytest.raises(cf.exceptions.InputError, match="temperature is 0"):
        annealed(torch.ones(2, 3), 0)
    with pytest.raises(cf.exceptions.ShapeError, match="give equal ones"):
        weighted_loss(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(cf.exceptions.InputError, match="rounds is 0"):
        train_alternating(lambda: torch.ones(2, 3), lambda weights: None, rounds=0)
    with pytest.raises(cf.exceptions.InputError, match="0 members"):
        train_in_turn(0, 3, lambda member: torch.ones(3), lambda weights: None)
    with pytest.raises(cf.exceptions.ShapeError, match="3 examples"):
        train_in_turn(2, 3, lambda member: torch.ones(2), lambda weights: None)
    with pytest.raises(cf.exceptions.InputError, match="not between 0 and 1"):
        train_in_turn(2, 3, lambda member: 2 * torch.ones(3), lambda weights: None)


def _two_answers() -> tuple[Tensor, Tensor]:
    """The same inputs with opposite targets: one regressor can only answer their mean."""
    torch.manual_seed(0)
    x = torch.randn(60, 4, dtype=torch.float64)
    return x, torch.where(torch.arange(60) % 2 == 0, 1.0, -1.0).double()


def squared(out: Tensor, y: Tensor) -> Tensor:
    return (out[:, 0] - y).square()


def _regressors() -> cf.MultipleChoice:
    torch.manual_seed(2)
    members = [nn.Linear(4, 1).double() for _ in range(2)]
    return cf.MultipleChoice(members)


def test_alternating_lowers_the_oracles_loss() -> None:
    (x, y), ensemble = _two_answers(), _regressors()
    optimizer = torch.optim.SGD(ensemble.parameters(), 0.2)

    def measure() -> Tensor:
        with torch.no_grad():
            return ensemble.losses(x, y, squared)

    def train(weights: Tensor) -> None:
        for _ in range(60):
            optimizer.zero_grad()
            ensemble.step(x, y, squared, weights=weights)
            optimizer.step()

    rounds = train_alternating(measure, train, rounds=5)
    oracle = [float(each.measured.min(0).values.mean()) for each in rounds]
    assert all(after <= before + 1e-9 for before, after in pairwise(oracle))
    alone = x @ torch.linalg.lstsq(x, y.unsqueeze(1)).solution
    assert oracle[-1] < 0.3 * float(squared(alone, y).mean())  # no single regressor does better than that
    assert all(torch.equal(each.weights.sum(0), torch.ones(60).double()) for each in rounds)
    assert rounds[0].usage.sum() == pytest.approx(1)
    assert 0 <= float(rounds[0].entropy) <= 0.6932


def test_later_members_get_less_of_the_error() -> None:
    x, y = _batch(40)
    ensemble = _ensemble(4)
    optimizer = torch.optim.Adam(ensemble.parameters(), 0.02)
    norms: list[float] = []

    def train(weights: Tensor) -> None:
        turn = int(weights.sum(1).argmax())
        for step in range(80):
            optimizer.zero_grad(set_to_none=True)
            found = ensemble.step(x, y, loss_fn, weights=weights.double())
            if step == 0:
                norms.append(float(found.gradient_norms[turn]))
            optimizer.step()

    def measure(member: int) -> Tensor:
        with torch.no_grad():
            return (ensemble(x)[member].argmax(-1) == y).float()

    found = train_in_turn(4, 40, measure, train)
    for member in range(4):
        best = torch.zeros(40) if member == 0 else found.measured[:member].max(0).values
        torch.testing.assert_close(found.weights[member], 1 - best)
    assert found.mean_weight[0] == 1
    assert bool((found.mean_weight[1:] < 0.7).all())
    assert max(norms[1:]) < norms[0]


def test_in_turn_a_member_rests_when_its_turn_is_over() -> None:
    x, y = _batch()
    members = list(_ensemble().members)
    taught: list[list[Tensor]] = []

    def train(weights: Tensor) -> None:
        turn = len(taught)
        alone = cf.MultipleChoice([members[turn]])
        optimizer = torch.optim.SGD(alone.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            alone.step(x, y, loss_fn, weights=weights[turn : turn + 1].double())
            optimizer.step()
        taught.append([p.detach().clone() for p in members[turn].parameters()])

    train_in_turn(3, 12, lambda member: (members[member](x).argmax(-1) == y).float(), train)
    for member, wanted in zip(members, taught, strict=True):
        assert all(map(torch.equal, member.parameters(), wanted))


def test_a_warm_start_goes_on_from_a_plain_ensemble() -> None:
    x, y = _batch()
    ensemble = _ensemble(k=3)
    assert ensemble.step(x, y, loss_fn).winners.all()
    ensemble.k = 1
    assert torch.equal(ensemble.step(x, y, loss_fn).winners.sum(0), torch.ones(12).long())
