"""Posteriors beside other methods: what each says of layers with noise, and what it does to the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow import backward, variational
from counterflow.exceptions import InputError, UnsupportedError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(32, 6), torch.randint(3, (32,))


def test_whitening_leaves_posteriors_alone_and_whitens_the_plain_layers_behind_them() -> None:
    model, (x, y) = net(), batch()
    model[0] = cf.make_variational(model[0], rates="weight").model
    bare = copy.deepcopy(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, bare)]
    h = cf.whiten(model, optimizers[0], every=3, samples=32)
    assert (h.table()["0"].done, h.table()["2"].kind) == ("left alone", "Linear")
    assert "arithmetic is unknown" in h.table()["0"].why
    for _ in range(3):
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizers[0].step()
    assert h.table()["2"].done == "whitened"
    bare.load_state_dict(model.state_dict(), strict=False)
    # The projection changed no function, and the noise in front is what it would be without whitening.
    for mode in (True, False):
        outputs = []
        for each in (model.train(mode), bare.train(mode)):
            torch.manual_seed(2)
            outputs.append(each(x))
        torch.testing.assert_close(*outputs)
    torch.manual_seed(3)
    nn.functional.cross_entropy(bare.train()(x), y).backward()
    model.train().zero_grad()
    torch.manual_seed(3)
    nn.functional.cross_entropy(model(x), y).backward()
    assert not torch.allclose(model[2].weight.grad, bare[2].weight.grad)  # preconditioned
    torch.testing.assert_close(model[0].rate.rho.grad, bare[0].rate.rho.grad)  # and what comes down is as it was


def test_a_model_of_posteriors_alone_has_nothing_to_whiten() -> None:
    model = cf.make_variational(net()).model
    with pytest.raises(UnsupportedError, match="arithmetic is unknown"):
        cf.whiten(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_tempering_has_the_plain_nets_rates_for_type_a_and_refuses_type_b() -> None:
    x, _ = batch()
    rates = []
    for model in (net(), cf.make_variational(net(), noise="A", learn=False).model.eval()):
        groups = cf.temper(model, x, loss="cross_entropy_sum", shunt=False).param_groups(lr=0.1)
        by_parameter = {id(p): group["lr"] for group in groups for p in group["params"]}
        rates.append([by_parameter[id(p)] for p in model.parameters()])
    assert rates[0] == pytest.approx(rates[1])
    with pytest.raises(UnsupportedError, match="noise on weights"):
        cf.temper(cf.make_variational(net()).model, x, loss="cross_entropy_sum")


@pytest.mark.parametrize(
    "attach",
    [
        lambda model: cf.attach(model, {"0": backward.scale(0.5)}),
        lambda model: cf.whiten(model[:2], torch.optim.SGD(model[:2].parameters(), lr=0.1)),
        lambda model: cf.probe(model[:2]).__enter__(),
    ],
)
def test_what_has_a_hook_keeps_it(attach: Callable[[nn.Module], Any]) -> None:
    model = net()
    first = model[0]
    attach(model)
    table = cf.make_variational(model).table()
    assert model[0] is first
    assert "hook" in table["0"].why
    assert table["2"].done == "variational"


def test_a_layer_with_a_hook_is_not_wrapped_by_gaussian_dropout() -> None:
    layer = nn.Linear(4, 3)
    cf.attach(layer, {"": backward.scale(0.0)})
    with pytest.raises(InputError, match=r"layer \(Linear\) cannot be wrapped: a hook is on it"):
        variational.GaussianDropout(0.5, "B", layer)
    assert variational.GaussianDropout(0, "B", layer).layer is layer  # which stays as it is


def test_an_error_is_shaped_behind_the_noise_as_behind_a_plain_layer() -> None:
    x, y = batch()
    gradients = []
    for taps in ({}, {"2": backward.scale(0.5)}):
        model = cf.make_variational(net(), rates="weight").model
        if taps:
            cf.attach(model, taps)
        torch.manual_seed(2)
        nn.functional.cross_entropy(model(x), y).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for whole, half in zip(*gradients, strict=True):
        torch.testing.assert_close(0.5 * whole, half)


@pytest.mark.parametrize("prior", ["gaussian", "scale-mixture", variational.ScaleMixturePrior(0.25, 1.0, 0.1)])
def test_free_posteriors_learn_on_any_layer(prior: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    h = cf.make_variational(model, prior=prior)
    assert [rate.numel() for rate in h.rates()] == [12, 48]
    before = [rate.detach().clone() for rate in h.rates()]
    optimizer = torch.optim.Adam(h.model.parameters(), lr=0.02)
    x, y = torch.randn(64, 1, 6), torch.randint(3, (64,))
    losses = []
    for _ in range(30):
        nll = nn.functional.cross_entropy(h.model(x), y, reduction="none")
        bound = variational.elbo(nll, h.model, data_size=64)
        optimizer.zero_grad()
        bound.loss.backward()
        optimizer.step()
        losses.append(float(bound.loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(not torch.equal(a, b) for a, b in zip(before, h.rates(), strict=True))
    assert float(variational.sample(h.model, x, 8).variance.max()) > 0
    with torch.no_grad():
        model[3].log_variance[:, :4] = 20.0  # noise drowns all that the first channel says
    small = variational.prune(h.model, threshold=3.0)
    assert (small[0].out_channels, small[3].in_features) == (3, 12)
    kept, own = small[3].weight, model[3].weight[:, 4:]
    assert bool(((kept == own) | (kept == 0)).all())
    assert bool(kept.any())
