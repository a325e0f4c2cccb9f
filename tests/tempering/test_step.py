"""The numbers of the paper, and whole updates against a transliteration of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.tempering import tempered

from .nets import FamilyNet, family_inputs
from .reference import tempered_step

LOSS = "binary_cross_entropy_with_logits_sum"


def test_effective_rates_of_figure_1() -> None:
    table = cf.temper(FamilyNet(), family_inputs(), loss=LOSS, local_output=True).table()
    rates = {row.layer: row.values for row in table}
    fan_in = {"person": 4, "relation": 4, "association": 13, "code": 13, "output": 7}
    assert {name: values["fan-in"] for name, values in rates.items()} == pytest.approx(fan_in)
    exact = {
        "output": 4 / math.sqrt(7),
        "code": 1 / math.sqrt(13),
        "association": 1 / math.sqrt(13 * 6),
        "person": 1 / math.sqrt(4 * 6 * 12),
        "relation": 1 / math.sqrt(4 * 6 * 12),
    }
    assert {name: values["effective"] for name, values in rates.items()} == pytest.approx(exact, rel=1e-12)
    assert [round(exact[name], 3) for name in ("output", "code", "association", "person")] == [
        1.512,
        0.277,
        0.113,
        0.059,
    ]
    assert [rates[name]["attenuation"] for name in ("code", "output")] == [1, 1]


def test_a_stated_input_power_stands_for_a_measured_one() -> None:
    noise = torch.randn(50, 24), torch.randn(50, 12)
    stated = {"person": 4.0, "relation": 4.0}
    h = cf.temper(FamilyNet(), noise, loss=LOSS, local_output=True, input_power=stated)
    assert [h.table()[name].values["rate"] for name in stated] == [0.5, 0.5]
    assert [h.table()[name].values["power"] for name in stated] == ["stated", "stated"]


@pytest.mark.parametrize("shunt", [False, True])
def test_a_step_equals_the_paper(shunt: bool) -> None:
    sizes = (10, 6, 5, 4)
    layers: list[nn.Module] = []
    for into, out in pairwise(sizes):
        layers += [nn.Linear(into, out), nn.Tanh()]
    model = nn.Sequential(*layers[:-1]).double()
    x, targets = torch.eye(10).repeat(2, 1).double(), torch.rand(20, 4).double()
    linear = [m for m in model if isinstance(m, nn.Linear)]
    weights, biases = tempered_step(
        [m.weight.detach().numpy().copy() for m in linear],
        [m.bias.detach().numpy().copy() for m in linear],
        x.numpy(),
        targets.numpy(),
        lr=0.03,
        shunt=shunt,
    )
    h = cf.temper(model, x, loss=LOSS, local_output=True, shunt=shunt)
    F.binary_cross_entropy_with_logits(model(x), targets, reduction="sum").backward()
    torch.optim.SGD(h.param_groups(lr=0.03)).step()
    for m, w, b in zip(linear, weights, biases, strict=True):
        np.testing.assert_allclose(m.weight.detach().numpy(), w, rtol=0, atol=1e-10)
        np.testing.assert_allclose(m.bias.detach().numpy(), b, rtol=0, atol=1e-10)


def test_centering_errors_equals_centering_inputs() -> None:
    """Equation 21, on a single layer."""
    layer, x = nn.Linear(7, 3).double(), torch.randn(20, 7).double() + 2.0
    cf.temper(layer, x, loss="half_squared_error_sum")
    (0.5 * (layer(x) - 1.0).square().sum()).backward()
    assert layer.weight.grad is not None
    error = layer(x).detach() - 1.0
    torch.testing.assert_close(layer.weight.grad, error.T @ (x - x.mean(0)), rtol=0, atol=1e-11)
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad, error.mean(0))


def _steps(loss: str, compute: Callable[[Tensor, Tensor], Tensor], targets: Tensor, outputs: int) -> list[Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs)).double()
    x = torch.randn(8, 6).double()
    h = cf.temper(model, x, loss=loss)
    optimizer = torch.optim.SGD(h.param_groups(lr=0.02), momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        compute(model(x), targets).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    ("name", "function", "targets"),
    [
        ("cross_entropy", F.cross_entropy, torch.arange(8) % 4),
        ("binary_cross_entropy_with_logits", F.binary_cross_entropy_with_logits, torch.ones(8, 4).double() / 3),
        ("mse_loss", F.mse_loss, torch.ones(8, 4).double()),
        ("huber_loss", F.huber_loss, torch.ones(8, 4).double()),
    ],
)
def test_the_mean_and_the_sum_of_a_loss_make_the_same_steps(
    name: str, function: Callable[..., Tensor], targets: Tensor
) -> None:
    mean = _steps(name, function, targets, 4)
    total = _steps(name + "_sum", lambda y, t: function(y, t, reduction="sum"), targets, 4)
    for one, other in zip(mean, total, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_cross_entropy_over_pixels_divides_by_pixels() -> None:
    grads = []
    for loss, reduction in (("cross_entropy", "mean"), ("cross_entropy_sum", "sum")):
        torch.manual_seed(0)
        model, x = nn.Conv2d(2, 3, 1).double(), torch.randn(4, 2, 5, 5).double()
        cf.temper(model, x, loss=loss)
        F.cross_entropy(model(x), torch.zeros(4, 5, 5, dtype=torch.long), reduction=reduction).backward()
        grads.append(model.weight.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", ["cross_entropy", "cross_entropy_sum"])
def test_averaging_over_ranks_is_counted(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradient(ranks: int) -> Tensor:
        model = nn.Linear(3, 2).double()
        for parameter in model.parameters():
            nn.init.ones_(parameter)
        cf.temper(model, torch.ones(4, 3).double(), loss=loss, shunt=False)
        monkeypatch.setattr(tempered, "world_size", lambda: ranks)
        reduction = "sum" if loss.endswith("sum") else "mean"
        x = torch.arange(12.0).reshape(4, 3).double()
        F.cross_entropy(model(x), torch.tensor([0, 1, 1, 1]), reduction=reduction).backward()
        assert model.weight.grad is not None
        return model.weight.grad

    # Four ranks of equal data, averaged by DistributedDataParallel: four times the sum of one.
    torch.testing.assert_close(gradient(4), 4 * gradient(1))


class Stepwise(nn.Module):
    """One step of a loop that its caller runs; ``first`` is what it returns first."""

    def __init__(self, first: str) -> None:
        super().__init__()
        self.first = first
        self.cell, self.out = nn.RNNCell(3, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        h = self.cell(x, h)
        y = self.out(h)
        first = {"chosen": y.argmax(1)} if self.first == "chosen" else {}
        return {**first, "logits": y, "state": h}


@pytest.mark.parametrize("first", ["logits", "chosen"])
def test_a_state_that_comes_back_is_not_multiplied_again(first: str) -> None:
    model, x = Stepwise(first).double(), torch.randn(4, 6, 3).double()
    zeros, targets = torch.zeros(6, 5).double(), torch.randint(4, (4, 6))

    def grads() -> list[Tensor]:
        h, loss = zeros, torch.zeros(())
        for step in range(4):
            result = model(x[step], h)
            h, loss = result["state"], loss + F.cross_entropy(result["logits"], targets[step])
        return list(torch.autograd.grad(loss, list(model.parameters())))

    wanted = [6 * gradient for gradient in grads()]
    cf.temper(model, (x[0], zeros), loss="cross_entropy", attenuation=None, shunt=False)
    torch.testing.assert_close(grads(), wanted)


class Answering(nn.Module):
    """A model that computes its loss where it is given targets, as those of Hugging Face do."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.net = form, nn.Linear(5, 4)

    def forward(self, x: Tensor, labels: Tensor | None = None, more: bool = False) -> Any:
        y = self.net(x)
        if labels is None:
            return y if self.form == "loss alone" else {"loss": None, "logits": y, **({"input": x} if more else {})}
        loss = F.cross_entropy(y, labels)
        if self.form == "loss alone":
            return loss
        return {"loss": loss, "logits": y} if self.form == "loss first" else {"logits": y, "loss": loss}


@pytest.mark.parametrize("form", ["loss alone", "loss first", "loss last"])
def test_a_loss_that_the_model_computes_is_refused(form: str) -> None:
    model, x, targets = Answering(form), torch.randn(8, 5), torch.randint(4, (8,))
    inside = "the loss is computed inside the model"
    if form != "loss alone":
        with pytest.raises(UnsupportedError, match=inside):
            cf.temper(model, (x, targets), loss="cross_entropy")
    h = cf.temper(model, x, loss="cross_entropy")
    with pytest.raises(UnsupportedError, match=inside):
        model(x, targets)
    with torch.no_grad():
        model(x, targets)  # for evaluation it is welcome
    model(x)
    if form != "loss alone":
        with pytest.raises(UnsupportedError, match="returns 2 floating-point tensors, but returned 1 on sample_input"):
            model(x, more=True)
    h.undo()
    model(x, targets)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of Dynamo's own
def test_an_output_without_dimensions_need_not_be_a_loss() -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(5, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x).squeeze(), self.net.weight.square().mean()  # and a penalty

    model = Single()
    cf.temper(model, torch.randn(8, 5), loss="mse_loss")
    y, _ = torch.compile(model, backend="aot_eager", fullgraph=True)(torch.randn(8, 5))
    y.sum().backward()
    assert model.net.bias.grad is not None
    assert y.shape == (8,)
    assert model(torch.randn(1, 5))[0].shape == ()


def test_a_local_bias_rate_leaves_the_global_one_out() -> None:
    x = torch.eye(8)
    model = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2))
    rates = {}
    for kind in ("local", "global"):
        with cf.temper(model, x, loss="cross_entropy_sum", bias_rate=kind) as h:  # type: ignore[arg-type]
            rates[kind] = {id(p): group["lr"] for group in h.param_groups(lr=0.1) for p in group["params"]}
    bias, weight = id(model[0].bias), id(model[0].weight)
    assert rates["local"][bias] == pytest.approx(0.5)
    assert rates["global"][bias] == rates["global"][weight] == rates["local"][weight] == pytest.approx(0.05)


def test_undo_gives_plain_gradients_back() -> None:
    model, x = FamilyNet(), family_inputs()
    before = [g.clone() for g in torch.autograd.grad(model(*x).square().mean(), list(model.parameters()))]
    h = cf.temper(model, x, loss=LOSS, local_output=True)
    h.undo()
    after = torch.autograd.grad(model(*x).square().mean(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    cf.temper(model, x, loss=LOSS, local_output=True)  # and again


def test_centered_inputs_in_full_batch_are_shunting() -> None:
    """Equation 21."""
    grads: list[list[Tensor]] = []
    for center in (False, True):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 3)).double(), torch.rand(20, 7).double()
        h = cf.temper(model, x, loss="half_squared_error_sum", center_inputs=center)
        assert h.table()["0"].done == "rate, attenuated, shunted"
        (0.5 * (model(x) - 1.0).square().sum()).backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)
    with pytest.raises(InputError, match="center_inputs=True is a way of shunting"):
        cf.temper(nn.Linear(2, 2), torch.randn(3, 2), loss="mse_loss", center_inputs=True, shunt=False)
