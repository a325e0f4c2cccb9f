"""Attenuation that follows the weights or the measured errors, against a few lines of NumPy in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.exceptions import InputError
from counterflow.tempering.attenuation import ByWeights, LinkedTap

from .nets import Branched, FamilyNet, family_inputs, resnet
from .reference import Array

LOSS = "binary_cross_entropy_with_logits_sum"


def three_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def batch() -> tuple[Tensor, Tensor]:
    return torch.eye(10).repeat(2, 1).double(), torch.rand(20, 4).double()


def errors_by_hand(model: nn.Sequential, x: Tensor, targets: Tensor, local: bool) -> list[Array]:
    """The error of every layer's net input, attenuated by the weights, first layer first."""
    weights = [m.weight.detach().numpy() for m in model if isinstance(m, nn.Linear)]
    biases = [m.bias.detach().numpy() for m in model if isinstance(m, nn.Linear)]
    first = np.tanh(x.numpy() @ weights[0].T + biases[0])
    second = np.tanh(first @ weights[1].T + biases[1])
    error = 1 / (1 + np.exp(-(second @ weights[2].T + biases[2]))) - targets.numpy()
    size = [np.sqrt((w**2).sum(0)) for w in weights]
    share = np.sqrt(4.0) if local else 1.0  # four outputs stand for one unit
    below = share / size[2] * (1 - second**2) * (error @ weights[2])
    return [1 / size[1] * (1 - first**2) * (below @ weights[1]), below, error]


def summed(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x), targets, reduction="sum")


@pytest.mark.parametrize("local", [False, True])
def test_every_unit_is_attenuated_by_the_size_of_its_weight_vector(local: bool) -> None:
    model, (x, targets) = three_layers(), batch()
    cf.temper(model, x, loss=LOSS, attenuation="weights", local_output=local, shunt=False)
    for _ in range(2):
        model.zero_grad()
        summed(model, x, targets).backward()
        for layer, error in zip([0, 2, 4], errors_by_hand(model, x, targets, local), strict=True):
            np.testing.assert_allclose(model[layer].bias.grad.numpy(), error.sum(0), rtol=0, atol=1e-12)
        with torch.no_grad():  # the next pass must follow the weights
            for parameter in model.parameters():
                parameter.mul_(torch.rand_like(parameter) * 3)


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_the_bound_holds_for_independent_errors(spread: float) -> None:
    """Of any variances. Behind layers without a function (13) is an equality, so the bound is reached too."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 40)).double()
    w = model[1].weight
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(6))  # so that the error handed on reaches the input as it is
        w.mul_(torch.exp(torch.randn(6)))  # unlike vectors
        w[:, 5] = 0.0
    cf.temper(model, torch.randn(8, 6).double(), loss="half_squared_error_sum", attenuation="weights", shunt=False)
    errors = torch.exp(spread * torch.randn(40)).double() * torch.randn(20_000, 40).double()
    x = torch.zeros(20_000, 6).double().requires_grad_()
    (handed_on,) = torch.autograd.grad(model(x), x, errors)
    variance, above = handed_on.square().mean(0), errors.square().mean(0)
    average = w.detach().square().T @ above / w.detach().square().sum(0)
    # Sums of forty terms over 20000 samples are within a tenth of what is expected.
    torch.testing.assert_close(variance[:5], average[:5], rtol=0.1, atol=0)
    assert bool((variance <= above.max() * 1.1).all())
    assert variance[5] == 0  # a unit that feeds nothing: no error, and not NaN
    if spread == 0.0:
        torch.testing.assert_close(variance[:5], above.mean().expand(5), rtol=0.1, atol=0)


def factor(model: nn.Module, name: str) -> Tensor:
    """What a layer's errors are multiplied by now."""
    module = model.get_submodule(name)
    (tap,) = (hook for hook in module._forward_hooks.values() if isinstance(hook, LinkedTap))
    assert isinstance(tap.transform, ByWeights)
    return tap.transform.factor(dict(zip(tap.names, tap.state(module), strict=True)))


def sizes(model: nn.Module, sample: Tensor, first: int) -> Tensor:
    """The sizes of the outgoing weight vectors of one layer of a linear chain, from the Jacobian of what follows."""
    with torch.no_grad():
        units = model[: first + 1](sample[:1])  # type: ignore[index]
    rest = model[first + 1 :]  # type: ignore[index]
    jacobian = torch.autograd.functional.jacobian(rest, units)
    return jacobian.flatten(0, -1 - units.ndim).square().sum(0)[0].sqrt()


CHAINS = {
    "convolution": [nn.Conv2d(2, 3, 3), nn.Conv2d(3, 4, 3, padding=1)],
    "grouped convolution": [nn.Conv2d(2, 4, 3), nn.Conv2d(4, 6, 3, padding=1, groups=2)],
    "transposed convolution": [nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 6, 3, groups=2)],
    "flattened": [nn.Conv2d(2, 3, 3), nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 5))],
}


@pytest.mark.parametrize("name", CHAINS)
def test_convolutions_sum_over_all_that_a_pixel_feeds(name: str) -> None:
    model, sample = nn.Sequential(*copy.deepcopy(CHAINS[name])).double(), torch.randn(4, 2, 8, 8).double()
    wanted = sizes(model, sample, 0)
    h = cf.temper(model, sample, loss="mse_loss_sum", attenuation="weights", shunt=False)
    assert h.table()["0"].done == "rate, attenuated by weights"
    got = factor(model, "0").expand_as(wanted)
    inner = (slice(None), 3, 3)  # away from the border, where pixels feed fewer
    torch.testing.assert_close(got[inner], 1 / wanted[inner])
    assert bool((got <= 1 / wanted * (1 + 1e-12)).all())


@pytest.mark.parametrize(
    "above",
    [nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(3, 4, 3, (2, 1), 1), nn.Conv2d(3, 4, 3, stride=3, dilation=2)],
    ids=["apart", "overlapping", "dilated"],
)
def test_below_a_stride_the_pixel_that_feeds_most_stands_for_all(above: nn.Module) -> None:
    model, sample = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), above).double(), torch.randn(4, 2, 20, 20).double()
    wanted = sizes(model, sample, 0).amax((1, 2), keepdim=True)
    cf.temper(model, sample, loss="mse_loss_sum", attenuation="weights", shunt=False)
    torch.testing.assert_close(factor(model, "0"), 1 / wanted)


def test_names_that_differ_in_a_dot_are_two() -> None:
    """`a.b` and `a_b` feed on one layer, each with weights of its own."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a_b, self.a = nn.Linear(4, 3), nn.Linear(3, 2), nn.ModuleDict({"b": nn.Linear(3, 2)})

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            z: Tensor = self.a_b(y) + self.a["b"](y)
            return z

    net = Net().double()
    cf.temper(net, torch.randn(8, 4).double(), loss="mse_loss_sum", attenuation="weights", shunt=False)
    total = sum(layer.weight.detach().square().sum(0) for layer in (net.a_b, net.a["b"]))
    torch.testing.assert_close(factor(net, "stem"), total.rsqrt())


def test_units_are_followed_through_joins_sums_and_functions() -> None:
    net = FamilyNet().double()
    cf.temper(net, tuple(x.double() for x in family_inputs()), loss=LOSS, attenuation="weights", local_output=False)
    size = net.association.weight.detach().square().sum(0).sqrt()
    torch.testing.assert_close(factor(net, "person"), 1 / size[:6])
    torch.testing.assert_close(factor(net, "relation"), 1 / size[6:])
    model = Branched().double()
    cf.temper(model, torch.randn(8, 5).double(), loss="mse_loss_sum", attenuation="weights")
    squares = [m.weight.detach().square().sum(0) for m in (model.left, model.right, model.join)]
    # Sigmoid has a slope of 1/4; the skip around `left` leads to the first six inputs of `join`.
    total = (squares[0] + squares[1] + squares[2][:6]) / 16
    torch.testing.assert_close(factor(model, "stem"), total.rsqrt())


def test_units_that_are_lost_are_bounded_by_the_largest_vector() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 5), nn.Flatten()).double()
    cf.temper(model, torch.randn(8, 4).double(), loss="mse_loss_sum", attenuation="weights")
    torch.testing.assert_close(factor(model, "0"), 1 / model[2].weight.detach().square().sum(0).max().sqrt())


def test_layers_below_no_plain_product_go_by_their_fan_out() -> None:
    x = torch.randn(4, 3, 8, 8)
    by_fan_out = cf.temper(resnet(), x, loss="cross_entropy").table()
    table = cf.temper(resnet(), x, loss="cross_entropy", attenuation="weights").table()
    assert "attenuated by its fan-out: what '2.bn1' makes of its input" in table["2.conv1"].why
    assert table["2.conv1"].values["attenuation"] == by_fan_out["2.conv1"].values["attenuation"]
    assert table["2.bn1"].done == "rate, attenuated by weights"
    assert "no effective rates: attenuations change in training" in table.note


def test_a_copy_follows_its_own_weights() -> None:
    model, (x, targets) = three_layers(), batch()
    cf.temper(model, x, loss=LOSS, attenuation="weights", shunt=False)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model[2].weight.mul_(5.0)
    summed(twin, x, targets).backward()
    error = errors_by_hand(twin, x, targets, local=False)[0]
    np.testing.assert_allclose(twin[0].bias.grad.numpy(), error.sum(0), rtol=0, atol=1e-12)


def test_attenuation_must_be_known() -> None:
    with pytest.raises(InputError, match="attenuation must be 'fan-out', 'weights' or None, got True"):
        cf.temper(nn.Linear(2, 2), torch.randn(3, 2), loss="mse_loss", attenuation=True)  # type: ignore[arg-type]


def measured_by_hand(model: nn.Sequential, x: Tensor, targets: Tensor, ratios: list[float]) -> list[Array]:
    """The errors of every layer's net input, attenuated by running ratios, which are brought up to date."""
    weights = [m.weight.detach().numpy() for m in model if isinstance(m, nn.Linear)]
    biases = [m.bias.detach().numpy() for m in model if isinstance(m, nn.Linear)]
    activations = [x.numpy()]
    for w, b in zip(weights[:-1], biases[:-1], strict=True):
        activations.append(np.tanh(activations[-1] @ w.T + b))
    errors = [1 / (1 + np.exp(-(activations[-1] @ weights[-1].T + biases[-1]))) - targets.numpy()]
    for i in (1, 0):
        error = (1 - activations[i + 1] ** 2) * (errors[0] @ weights[i + 1])
        ratio = np.mean(error**2) / np.mean(errors[0] ** 2)
        ratios[i] = ratio if ratios[i] < 0 else 0.9 * ratios[i] + 0.1 * ratio
        errors.insert(0, error / np.sqrt(ratios[i]))
    return errors


def test_errors_are_held_to_the_measured_scale_of_the_layer_above() -> None:
    model, (x, _) = three_layers(), batch()
    h = cf.temper(model, x, loss=LOSS, variance="measured", shunt=False)
    assert [row.done for row in h.table()] == ["rate, attenuated by measured variance"] * 2 + ["rate"]
    optimizer, ratios = torch.optim.SGD(h.param_groups(lr=0.2)), [-1.0, -1.0]
    for step in range(4):
        targets = torch.rand(20, 4).double()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        errors = measured_by_hand(model, x, targets, ratios)
        loss = summed(model, x, targets)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # not in forward
        optimizer.zero_grad()
        loss.backward()
        for layer, error in zip([0, 2, 4], errors, strict=True):
            np.testing.assert_allclose(model[layer].bias.grad.numpy(), error.sum(0), rtol=0, atol=1e-12)
        if step == 0:  # the running mean is that of this pass alone: one scale all the way down
            np.testing.assert_allclose([np.mean(e**2) for e in errors], np.mean(errors[2] ** 2), rtol=1e-12)
        assert [float(model[i].temper_power_ratio) for i in (0, 2)] == pytest.approx(ratios, rel=1e-12)
        optimizer.step()


def test_a_local_code_counts_as_one_unit_when_measured_too() -> None:
    model, (x, targets) = three_layers(), batch()
    cf.temper(model, x, loss=LOSS, variance="measured", local_output=True, shunt=False)
    summed(model, x, targets).backward()
    errors = measured_by_hand(model, x, targets, [-1.0, -1.0])
    for layer, error in ((0, errors[0]), (2, errors[1])):  # sqrt(4) of the output's, and handed down from there
        np.testing.assert_allclose(model[layer].bias.grad.numpy(), 2 * error.sum(0), rtol=0, atol=1e-12)


def test_measuring_works_on_line_and_passes_over_errors_that_tell_nothing() -> None:
    model, (x, targets) = three_layers(), batch()
    cf.temper(model, x, loss=LOSS, variance="measured", shunt=False)
    before = [float(model[0].temper_power_ratio)]
    (0.0 * model(x)).sum().backward()
    before.append(float(model[0].temper_power_ratio))
    assert before == [-1.0, -1.0]
    summed(model, x[:1], targets[:1]).backward()  # a single example
    first = float(model[0].temper_power_ratio)
    assert first > 0
    (float("inf") * model(x)).sum().backward()
    assert float(model[0].temper_power_ratio) == first


@pytest.mark.parametrize("size", [0, 1])
def test_measuring_one_output_of_a_small_last_batch(size: int) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    cf.temper(model, torch.randn(8, 3).double(), loss="mse_loss_sum", variance="measured", shunt=False)
    model(torch.randn(8, 3).double()).square().sum().backward()
    before = model.state_dict()["0.temper_power_ratio"].clone()
    model(torch.randn(size, 3).double()).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert (float(model[0].temper_power_ratio) == float(before)) == (size == 0)


def test_measuring_below_a_module_named_error() -> None:
    """The name of what a layer looks at above is not that of its own mean square."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.error = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.error(self.second(self.first(x)))
            return y

    net = Net().double()
    cf.temper(net, torch.randn(8, 4).double(), loss="mse_loss_sum", variance="measured", shunt=False)
    above = torch.randn(8, 2).double()
    net(torch.randn(8, 4).double()).backward(above)
    for layer, feeds in ((net.second, net.error), (net.first, net.second)):
        below = above @ feeds.weight.detach()
        torch.testing.assert_close(layer.temper_power_ratio, below.square().mean() / above.square().mean())
        above = below


def test_measuring_normalized_and_shared_layers() -> None:
    table = cf.temper(resnet(), torch.randn(4, 3, 8, 8), loss="cross_entropy", variance="measured").table()
    assert table["2.conv1"].done == "rate, attenuated by measured variance, shunted"
    assert table["2.conv1"].values["attenuation"] is None
    layer = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), layer, nn.Tanh(), layer)
    table = cf.temper(model, torch.randn(4, 6), loss="mse_loss", variance="measured").table()
    assert "attenuated by its fan-out: '2' is called 2 times" in table["0"].why


@pytest.mark.parametrize("attenuation", ["weights", None])
def test_a_measured_variance_takes_no_other_attenuation_beside_it(attenuation: Any) -> None:
    with pytest.raises(InputError, match="takes the place of the bound in attenuation="):
        cf.temper(nn.Linear(2, 2), torch.randn(3, 2), loss="mse_loss", attenuation=attenuation, variance="measured")
    with pytest.raises(InputError, match="variance must be 'bound' or 'measured', got 'online'"):
        cf.temper(nn.Linear(2, 2), torch.randn(3, 2), loss="mse_loss", variance="online")  # type: ignore[arg-type]
