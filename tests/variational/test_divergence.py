"""The divergence from the log-uniform prior, against numerical integration of its definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import dawsn

from counterflow.exceptions import InputError
from counterflow.variational import ScaleMixturePrior, dropout_kl, gaussian_kl
from counterflow.variational.divergence import _kl_anywhere, _kl_on_cpu


def true_kl(log_alpha: float) -> float:
    """E_q[log q(w) - log p(w)] for q = N(1, alpha), p(w) = 1 / |w|, up to a constant."""
    deviation = math.exp(0.5 * log_alpha)

    def log_size(z: float) -> float:
        return math.log(abs(1 + deviation * z)) * math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    zero = -1 / deviation
    points = sorted({-12.0, 12.0, *(p for p in (zero,) if abs(p) < 12)})
    mean_log = sum(quad(log_size, a, b, limit=400)[0] for a, b in itertools.pairwise(points))
    return -0.5 * (math.log(2 * math.pi) + 1 + log_alpha) + mean_log


@pytest.mark.parametrize("log_alpha", np.linspace(-8, 8, 17))
def test_the_exact_gradient_is_that_of_the_true_divergence(log_alpha: float) -> None:
    rate = torch.tensor([log_alpha], dtype=torch.float64, requires_grad=True)
    dropout_kl(rate).backward()
    step = 1e-3
    numeric = (true_kl(log_alpha + step) - true_kl(log_alpha - step)) / (2 * step)
    assert rate.grad is not None
    assert float(rate.grad) == pytest.approx(numeric, abs=1e-5)


def test_the_exact_value_is_the_true_divergence_and_falls_to_zero() -> None:
    ours = [float(dropout_kl(torch.tensor([x], dtype=torch.float64))) for x in (-6.0, -2.0, 0.0, 3.0, 30.0, 90.0)]
    truth = [true_kl(x) for x in (-6.0, -2.0, 0.0, 3.0)]
    assert np.diff(ours[:4]) == pytest.approx(np.diff(truth), abs=1e-7)
    assert ours[4] == pytest.approx(0.0, abs=1e-8)
    assert ours[5] == pytest.approx(0.0, abs=1e-8)
    below = [float(dropout_kl(torch.tensor([x], dtype=torch.float64))) for x in (-25.0, -24.0)]
    assert below[0] - below[1] == pytest.approx(0.5, abs=1e-8)


def test_the_compiled_loop_and_torch_agree() -> None:
    x = torch.cat([torch.linspace(-30, 30, 9999), torch.tensor([-20.0, 20.0, 0.0, -50.0, -100.0, 100.0])])
    for bound in (None, 0.7):
        loop, plain = _kl_on_cpu(x, bound), _kl_anywhere(x.double(), bound)
        assert float(loop[0]) == pytest.approx(float(plain[0]), rel=1e-6)
        torch.testing.assert_close(loop[1].double(), plain[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-7)])
def test_the_slope_is_dawsons_function_everywhere(dtype: torch.dtype, bound: float) -> None:
    log_alpha = torch.linspace(-12, 12, 4801, dtype=dtype, requires_grad=True)
    dropout_kl(log_alpha).backward()
    root = np.sqrt(0.5 * np.exp(-log_alpha.detach().double().numpy()))
    assert log_alpha.grad is not None
    assert np.abs(log_alpha.grad.numpy() + root * dawsn(root)).max() < bound


def test_the_divergence_can_be_derived_twice() -> None:
    rho = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(dropout_kl(rho), rho, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), rho)
    root = (0.5 * (-rho.detach()).exp()).sqrt().numpy()
    # d/dx of x D(x) is D(x) + x (1 - 2 x D(x)), and dx / d log alpha is -x / 2.
    truth = 0.5 * root * (dawsn(root) + root * (1 - 2 * root * dawsn(root)))
    np.testing.assert_allclose(second.numpy(), truth, atol=1e-5)


def test_nan_is_not_hidden() -> None:
    x = torch.tensor([0.0, math.nan], requires_grad=True)
    total = dropout_kl(x)
    total.backward()
    assert x.grad is not None
    assert bool(total.isnan())
    assert x.grad.isnan().tolist() == [False, True]  # and with it the step


def test_the_polynomial_is_close_below_one_and_refused_above() -> None:
    x = torch.linspace(-8, 0, 200, dtype=torch.float64)
    each = [float(dropout_kl(v, "polynomial", 1.0) - dropout_kl(v)) for v in x]
    assert max(map(abs, each)) < 0.05  # of constants, at tiny rates
    assert max(map(abs, np.diff(each))) < 0.05 * 8 / 200  # of slopes
    for bound in (None, 1.5):
        with pytest.raises(InputError, match="alpha <= 1"):
            dropout_kl(x, "polynomial", bound)


def test_the_sigmoid_is_close_everywhere() -> None:
    x = torch.linspace(-8, 8, 200, dtype=torch.float64)
    each = [float(dropout_kl(v, "sigmoid") - dropout_kl(v)) for v in x]
    assert max(map(abs, each)) < 0.02
    assert float(dropout_kl(torch.tensor(40.0), "sigmoid")) == pytest.approx(0.0, abs=1e-12)


def test_the_gaussian_divergence_is_torchs() -> None:
    mean, log_variance = torch.randn(7), torch.randn(7)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    truth = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.3)).sum()
    torch.testing.assert_close(gaussian_kl(mean, log_variance, 0.3), truth)


@pytest.mark.parametrize(("share", "std"), [(0.0, 0.0025), (1.0, 1.0)])
def test_a_mixture_of_one_has_the_density_of_a_gaussian_far_out_too(share: float, std: float) -> None:
    weight = torch.tensor([0.5, -50.0], dtype=torch.float64)
    truth = torch.distributions.Normal(0.0, std).log_prob(weight).sum()
    torch.testing.assert_close(ScaleMixturePrior(share).log_density(weight), truth)


def test_a_mixture_of_one_is_a_gaussian_in_expectation() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2000) * 0.1, torch.full((2000,), -2.0)
    found = torch.stack([ScaleMixturePrior(1.0, 0.5).kl(mean, log_variance) for _ in range(50)])
    truth = gaussian_kl(mean, log_variance, 0.5)
    # A z test with a false alarm in 10,000.
    assert abs(float(found.mean() - truth)) < 3.9 * float(found.std()) / math.sqrt(50)
