"""phi of every loss, as the greatest ratio of error to residual over a grid."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.tempering.losses import resolve

GRID = torch.linspace(-6, 6, 2401).double()


def phi_of(loss: str | nn.Module, last: nn.Module | None) -> float:
    """What `temper` divides the output error by."""
    model = nn.Sequential(nn.Linear(2, 2), *([last] if last else [])).double()
    y = torch.zeros(3, 2).double()
    cf.temper(model, y + 1, loss=loss, shunt=False)
    out = model(y)
    (error,) = torch.autograd.grad(out.sum(), model[0].bias)
    cf_free = nn.Sequential(*model)  # the same modules without the tap on the root
    (plain,) = torch.autograd.grad(cf_free(y).sum(), model[0].bias)
    index = int(plain.abs().argmax())
    return float(plain[index] / error[index])


def ratio(loss: Callable[[Tensor, Tensor], Tensor], f: Callable[[Tensor], Tensor], targets: list[float]) -> float:
    """The greatest |dE/dy| over |t - f(y)|."""
    greatest = 0.0
    for target in targets:
        y = GRID.clone().requires_grad_()
        t = torch.full_like(GRID, target)
        (error,) = torch.autograd.grad(loss(y, t).sum(), y)
        residual = (t - f(y.detach())).abs()
        far = residual > 1e-6
        greatest = max(greatest, float((error[far].abs() / residual[far]).max()))
    return greatest


def summed(function: Callable[..., Tensor], **more: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: function(x, t, reduction="sum", **more)


ELEMENTWISE = {
    "half_squared_error_sum": (lambda x, t: 0.5 * (x - t).square(), "half_squared_error_sum"),
    "mse_loss_sum": (summed(F.mse_loss), "mse_loss_sum"),
    "huber": (summed(F.huber_loss, delta=0.5), nn.HuberLoss(reduction="sum", delta=0.5)),
    "smooth_l1": (summed(F.smooth_l1_loss, beta=0.25), nn.SmoothL1Loss(reduction="sum", beta=0.25)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize(("f", "last"), [(lambda y: y, None), (torch.tanh, nn.Tanh()), (torch.sigmoid, nn.Sigmoid())])
def test_phi_of_losses_of_the_difference(name: str, f: Callable[[Tensor], Tensor], last: nn.Module | None) -> None:
    function, loss = ELEMENTWISE[name]
    # The bound is reached where the slope is greatest while the residual is small.
    targets = [float(f(torch.tensor(y).double())) for y in (0.0, 0.01, 1.0, -2.0)]
    assert phi_of(loss, last) == pytest.approx(ratio(lambda y, t: function(f(y), t), f, targets), rel=0.01)


@pytest.mark.parametrize(
    ("loss", "function", "last"),
    [
        ("binary_cross_entropy_with_logits_sum", summed(F.binary_cross_entropy_with_logits), None),
        (
            "binary_cross_entropy_sum",
            lambda y, t: F.binary_cross_entropy(y.sigmoid(), t, reduction="sum"),
            nn.Sigmoid(),
        ),
        (
            nn.BCEWithLogitsLoss(reduction="sum", pos_weight=torch.tensor(3.0)),
            summed(F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(3.0).double()),  # type: ignore[arg-type]
            None,
        ),
    ],
)
def test_phi_of_logistic_outputs(
    loss: str | nn.Module, function: Callable[[Tensor, Tensor], Tensor], last: nn.Module | None
) -> None:
    assert phi_of(loss, last) == pytest.approx(ratio(function, torch.sigmoid, [0.0, 1.0]), rel=0.01)


@pytest.mark.parametrize("loss", ["cross_entropy_sum", "nll_loss_sum", "kl_div_sum"])
def test_phi_of_softmax_outputs(loss: str) -> None:
    y = torch.randn(200, 5).double().requires_grad_()
    probabilities = y.softmax(-1).detach()
    if loss == "kl_div_sum":
        targets = torch.rand(200, 5).double().softmax(-1)
        value = F.kl_div(y.log_softmax(-1), targets, reduction="sum")
    else:
        classes = torch.randint(5, (200,))
        targets = F.one_hot(classes, 5).double()
        value = F.cross_entropy(y, classes, reduction="sum")
    (error,) = torch.autograd.grad(value, y)
    greatest = float((error / (targets - probabilities)).abs().max())
    last = None if loss == "cross_entropy_sum" else nn.LogSoftmax(-1)
    assert greatest == pytest.approx(1.0)
    assert resolve(loss).ratio == 1.0
    model = nn.Sequential(nn.Linear(3, 5), *([last] if last else []))
    table = cf.temper(model, torch.randn(4, 3), loss=loss).table()
    assert table["0"].values["slope"] == 0.25  # of the softmax
    assert "phi" not in table.note


def test_a_temperature_before_the_loss_counts() -> None:
    class Hot(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 10.0 * super().forward(x)

    table = cf.temper(Hot(3, 5), torch.randn(4, 3), loss="cross_entropy_sum", shunt=False).table()
    assert table[""].values["slope"] == pytest.approx(2.5)
    assert "phi = 10" in table.note


@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        ("l1_loss", UnsupportedError, "full size however small"),
        ("hinge_embedding_loss_sum", UnsupportedError, "hinge"),
        (nn.L1Loss(), UnsupportedError, "full size"),
        (nn.SmoothL1Loss(beta=0.0), UnsupportedError, "full size"),
        (nn.GaussianNLLLoss(), UnsupportedError, "variance"),
        (nn.CrossEntropyLoss(weight=torch.ones(3)), UnsupportedError, "reduction='sum'"),
        (nn.CrossEntropyLoss(ignore_index=0), UnsupportedError, "ignore_index=0.*reduction='sum'"),
        (nn.NLLLoss(ignore_index=-1), UnsupportedError, "ignore_index=-1.*reduction='sum'"),
        (nn.MSELoss(reduction="none"), UnsupportedError, "'none'"),
        ("binary_cross_entropy", UnsupportedError, "behind sigmoid.*'linear'"),
        ("nll_loss", UnsupportedError, "behind log_softmax"),
        ("crossentropy", InputError, "choose one of cross_entropy"),
        ("mse_loss_batchmean", InputError, "only kl_div"),
        (F.mse_loss, InputError, "does not tell its reduction"),
    ],
)
def test_losses_without_a_bound_are_refused(loss: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        cf.temper(nn.Linear(2, 3), torch.randn(4, 2), loss=loss)
    assert "\n" not in str(caught.value)


def test_one_loss_has_one_name() -> None:
    for loss in ("cross_entropy", "cross_entropy_mean", nn.CrossEntropyLoss()):
        assert resolve(loss).name == "cross_entropy_mean"
