"""What the layers draw, against the equations: statistical tests with fixed seeds, a false alarm in 10,000 each."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2, norm
from torch import Tensor, nn

from counterflow import variational
from counterflow.exceptions import InputError
from counterflow.variational import GaussianDropout, VariationalConv1d, VariationalConv2d, VariationalConv3d
from counterflow.variational import VariationalLinear as Linear
from counterflow.variational.noise import _LocalByWeight

ALARM = 1e-4
DRAWS = 4000


def draw(layer: Any, x: Tensor, count: int) -> Tensor:
    """Draws of the outputs of one example: rows of a batch, where each has noise of its own."""
    if layer.estimator == "per_minibatch":
        return torch.cat([layer(x) for _ in range(count)])
    found: Tensor = layer(x.expand(count, *x.shape[1:]))
    return found


def moments_agree(draws: Tensor, mean: Tensor, variance: Tensor) -> None:
    """A z test of every mean and a chi-square test of every variance, their error rates shared out."""
    count, each = len(draws), ALARM / (2 * mean.numel())
    z = (draws.mean(0) - mean) / (variance / count).sqrt()
    assert float(z.abs().max()) < norm.isf(each / 2)
    scaled = (draws - mean).square().sum(0) / variance
    assert float(scaled.max()) < chi2.isf(each / 2, count)
    assert float(scaled.min()) > chi2.ppf(each / 2, count)


@pytest.mark.parametrize("rates", ["layer", "unit", "weight"])
def test_independent_noise_has_the_moments_of_equation_10(rates: Any) -> None:
    torch.manual_seed(0)
    layer, x = Linear(5, 3, rates=rates, p=0.3).double(), torch.randn(1, 5).double()
    with torch.no_grad():
        layer.rate.rho.copy_(torch.rand_like(layer.rate.rho))
        alpha = layer.log_alpha().exp()
        mean = F.linear(x, layer.weight, layer.bias)
        variance = F.linear(x.square(), alpha * layer.weight.square())
        for estimator in ("local", "per_datum", "per_minibatch"):
            with variational.estimating(layer, estimator):
                moments_agree(draw(layer, x, DRAWS), mean[0], variance[0])


def test_gaussian_posteriors_have_the_moments_of_equation_6() -> None:
    torch.manual_seed(0)
    layer, x = Linear(5, 3, prior="gaussian").double(), torch.randn(1, 5).double()
    with torch.no_grad():
        layer.log_variance.copy_(torch.randn(3, 5) - 2)
        mean = F.linear(x, layer.weight, layer.bias)
        variance = F.linear(x.square(), layer.log_variance.exp())
        for estimator in ("local", "per_datum", "per_minibatch"):
            with variational.estimating(layer, estimator):
                moments_agree(draw(layer, x, DRAWS), mean[0], variance[0])


@pytest.mark.parametrize("rates", ["layer", "unit"])
def test_correlated_noise_has_the_covariance_of_equation_11(rates: Any) -> None:
    torch.manual_seed(0)
    layer, x = Linear(4, 3, noise="A", rates=rates, p=0.3).double(), torch.randn(1, 4).double()
    with torch.no_grad():
        layer.rate.rho.copy_(torch.rand_like(layer.rate.rho))
        alpha = layer.log_alpha().exp().expand(4)
        by_scale = x[0] * layer.weight  # (3, 4)
        covariance = by_scale * alpha @ by_scale.T
        draws = draw(layer, x, 4 * DRAWS)
        moments_agree(draws, F.linear(x, layer.weight, layer.bias)[0], covariance.diagonal())
        found = torch.cov(draws.T)
    # Fisher's z of each correlation.
    size = covariance.diagonal().sqrt()
    truth, seen = covariance / size / size[:, None], found / found.diagonal().sqrt() / found.diagonal().sqrt()[:, None]
    upper = torch.triu_indices(3, 3, 1)
    z = (torch.atanh(seen[*upper]) - torch.atanh(truth[*upper])) * math.sqrt(len(draws) - 3)
    assert float(z.abs().max()) < norm.isf(ALARM / 6)


@pytest.mark.parametrize(
    ("kind", "shape"), [(VariationalConv1d, (6,)), (VariationalConv2d, (5, 4)), (VariationalConv3d, (3, 3, 3))]
)
def test_convolutions_have_the_right_marginals(kind: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = kind(4, 6, 2, stride=1, padding=1, groups=2, padding_mode="circular", rates="weight").double()
    plain = variational.deterministic(layer)
    x = torch.randn(1, 4, *shape).double()
    with torch.no_grad():
        layer.rate.rho.copy_(torch.rand_like(layer.rate.rho))
        twin = copy.deepcopy(plain)
        twin.weight.copy_(layer.log_alpha().exp() * layer.weight.square())
        twin.bias.zero_()
        moments_agree(draw(layer, x, 1500), plain(x)[0], twin(x.square())[0])
        assert torch.equal(layer.eval()(x), plain(x))
        assert layer.train()(x[0]).shape == plain(x)[0].shape


def test_every_input_channel_of_a_grouped_convolution_has_a_rate_of_its_own() -> None:
    torch.manual_seed(0)
    layer = VariationalConv2d(4, 6, 3, groups=2, rates="unit", max_alpha=None).double()
    assert layer.rate.rho.numel() == 4
    with torch.no_grad():
        layer.rate.rho.copy_(torch.randn_like(layer.rate.rho))
        rates = layer.rate.rho.reshape(2, 1, 2, 1, 1).expand(2, 3, 2, 3, 3).reshape(6, 2, 3, 3)  # of every weight
        twin = variational.deterministic(layer)
        twin.weight.copy_(rates.exp() * layer.weight.square())
        twin.bias.zero_()
        x = torch.randn(1, 4, 5, 4).double()
        moments_agree(draw(layer, x, 1500), layer.eval()(x)[0], twin(x.square())[0])
        torch.testing.assert_close(variational.kl(layer), variational.dropout_kl(rates))
        layer.rate.rho.view(-1)[3] = 5.0
    lost = (variational.prune(layer).weight == 0).nonzero()[:, :2].unique(dim=0)
    assert lost.tolist() == [[3, 1], [4, 1], [5, 1]]  # the second channel of the second group


@pytest.mark.parametrize("options", [{"rates": "weight"}, {"prior": "gaussian"}])
def test_a_convolution_in_double_precision_draws_in_it(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = VariationalConv1d(3, 2, 2, **options).double(), torch.randn(4, 3, 5).double()
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    noise = torch.randn(y.shape, dtype=torch.float64)
    variance = F.conv1d(x.square(), layer.log_alpha().exp() * layer.weight.square()) + 1e-12
    wanted = F.conv1d(x, layer.weight, layer.bias) + variance.sqrt() * noise
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-14)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("options", [{"rates": "layer"}, {"rates": "weight"}, {"prior": "gaussian"}])
def test_a_variance_that_a_fast_convolution_rounds_below_zero_is_none(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.zeros(32, 16, 24, 24)
    x[:, :, 8:12, 8:12] = 10 * torch.randn(32, 16, 4, 4)
    layer = VariationalConv2d(16, 32, 3, padding=1, **options)
    with torch.backends.mkldnn.flags(enabled=False):  # PyTorch's own convolution is then Winograd's
        y = layer(x)
        y.square().mean().backward()
    assert y.isfinite().all()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_a_channel_has_one_scale_at_all_positions() -> None:
    torch.manual_seed(0)
    layer = VariationalConv2d(1, 1, 1, bias=False, noise="A")
    y = layer(torch.ones(2, 1, 3, 3))
    assert all(torch.equal(row, row[:, :1, :1].expand_as(row)) for row in y)
    assert not torch.equal(y[0], y[1])


def test_the_written_out_backward_pass_is_autograds() -> None:
    torch.manual_seed(0)
    for rates in ("layer", "unit", "weight"):
        layer, x = Linear(5, 3, rates=rates, p=0.4).double(), torch.randn(2, 4, 5).double().requires_grad_()
        error = torch.randn(2, 4, 3).double()

        def gradients(y: Tensor, layer: Linear = layer, x: Tensor = x, error: Tensor = error) -> tuple[Tensor, ...]:
            return torch.autograd.grad(y, [x, *layer.parameters()], error)

        torch.manual_seed(1)
        ours = gradients(layer(x))
        torch.manual_seed(1)
        noise = torch.randn(2, 4, 3, dtype=torch.float64)
        variance = F.linear(x.square(), layer.log_alpha().exp() * layer.weight.square()) + 1e-12
        theirs = gradients(F.linear(x, layer.weight, layer.bias) + variance.sqrt() * noise)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("bound", [1.0, None])
def test_compiled_loops_over_weights_are_autograds(bound: float | None) -> None:
    """In float32 the passes over weights are compiled; in float64, and when derived twice, they are not."""
    torch.manual_seed(0)
    layer, x = Linear(40, 30, rates="weight", p=0.4, max_alpha=bound), torch.randn(7, 40)
    with torch.no_grad():
        layer.rate.rho.add_(torch.randn(30, 40))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        twin = copy.deepcopy(layer).to(dtype)
        noise = torch.randn(7, 30, generator=torch.Generator().manual_seed(1)).to(dtype)
        y = _LocalByWeight.apply(x.to(dtype), twin.weight, twin.rate.rho, bound, noise)[0]  # type: ignore[no-untyped-call]
        gradients.append([g.double() for g in torch.autograd.grad(y.square().sum(), [twin.weight, twin.rate.rho])])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rates", ["layer", "unit", "weight"])
def test_outputs_can_be_derived_twice(rates: Any) -> None:
    torch.manual_seed(0)
    layer, x = Linear(5, 3, rates=rates, p=0.3).double(), torch.randn(2, 5).double().requires_grad_()
    wanted = [x, layer.weight, layer.rate.rho]

    def twice(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.pow(3).sum(), wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    torch.manual_seed(1)
    ours = twice(layer(x))
    torch.manual_seed(1)
    noise = torch.randn(2, 3, dtype=torch.float64)
    variance = F.linear(x.square(), layer.log_alpha().exp() * layer.weight.square()) + 1e-12
    theirs = twice(F.linear(x, layer.weight, layer.bias) + variance.sqrt() * noise)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("noise", ["A", "B"])
def test_the_gradients_of_all_estimators_agree_in_expectation(noise: Any) -> None:
    torch.manual_seed(0)
    layer = Linear(3, 2, noise=noise, rates="unit", p=0.2).double()
    x, t = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    parameters = list(layer.parameters())
    groups, together = 200, 15  # gradients are means of so many draws, to have fewer backward passes
    means, errors = [], []
    for estimator in ("local", "per_datum", "per_minibatch"):
        draws = []
        with variational.estimating(layer, estimator):
            for _ in range(groups):
                y = draw(layer, x[None], together)
                found = torch.autograd.grad((y - t).pow(2).mean(), parameters)
                draws.append(torch.cat([g.flatten() for g in found]))
        stacked = torch.stack(draws)
        means.append(stacked.mean(0))
        errors.append(stacked.var(0) / groups)
    for other in (1, 2):
        z = (means[0] - means[other]) / (errors[0] + errors[other] + 1e-18).sqrt()
        assert float(z.abs().max()) < norm.isf(ALARM / (4 * len(z)))
    if noise == "B":
        assert float(errors[0].sum()) < float(errors[2].sum())  # what it is all for


OPTIONS: list[dict[str, Any]] = [
    *({"rates": rates} for rates in ("layer", "unit", "weight")),
    *({"noise": "A", "rates": rates} for rates in ("layer", "unit")),
    {"prior": "gaussian"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("estimator", ["local", "per_datum", "per_minibatch"])
def test_a_single_example_and_an_empty_batch_go_through_as_through_a_plain_layer(
    options: dict[str, Any], estimator: Any
) -> None:
    layer = Linear(4, 3, **options)
    for shape in ((4,), (0, 4), (2, 0, 4)):
        x = torch.randn(shape, requires_grad=True)
        with variational.estimating(layer, estimator):
            y = layer(x)
        assert y.shape == (*shape[:-1], 3)
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == shape
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_are_taken_example_by_example_under_vmap(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = Linear(4, 3, **options), torch.randn(6, 4)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(layer, parameters, (x,))
        return found.sum()

    gradient = torch.func.vmap(torch.func.grad(loss), (None, 0), randomness="different")
    found = gradient(dict(layer.named_parameters()), x)
    assert {name: each.shape for name, each in found.items()} == {
        name: (6, *p.shape) for name, p in layer.named_parameters()
    }
    assert not torch.equal(found["weight"][0], found["weight"][1])


def test_eval_mode_is_the_plain_layer_to_the_bit() -> None:
    plain = nn.Linear(5, 3)
    layer, x = Linear(5, 3, rates="weight"), torch.randn(2, 5)
    layer.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(layer.eval()(x), plain(x))
    assert not torch.equal(layer.train()(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("options", [{"rates": "weight"}, {"rates": "unit"}, {"prior": "gaussian"}])
def test_inputs_of_zeros_have_gradients(options: dict[str, Any], dtype: torch.dtype) -> None:
    layer = Linear(5, 3, **options).to(dtype)
    layer(torch.zeros(2, 5, dtype=dtype)).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())


def test_the_divergence_is_a_sum_over_weights_or_scales() -> None:
    one = float(variational.dropout_kl(torch.zeros(())))
    for options, terms in (
        ({"rates": "weight"}, 15),
        ({"rates": "unit"}, 15),
        ({"rates": "layer"}, 15),
        ({"noise": "A", "rates": "unit"}, 5),
        ({"noise": "A", "rates": "layer"}, 5),
    ):
        assert variational.kl(Linear(5, 3, **options)).item() == pytest.approx(terms * one, rel=1e-5), options
    conv = VariationalConv2d(4, 6, 3, groups=2, noise="A", rates="unit")
    assert variational.kl(conv).item() == pytest.approx(4 * one, rel=1e-5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_rate_that_begins_on_the_bound_comes_down_and_none_leaves_it(optimizer: Any) -> None:
    layer = Linear(5, 3, rates="weight")
    assert float(layer.log_alpha().detach().abs().max()) == 0.0  # p = .5 is the bound
    steps = optimizer([layer.rate.rho], lr=0.01)
    for _ in range(100):
        steps.zero_grad()
        layer.log_alpha().sum().backward()  # down
        steps.step()
    assert float(layer.log_alpha().detach().max()) < -0.5
    for _ in range(300):
        steps.zero_grad()
        (-layer.log_alpha().sum()).backward()  # up, and against the bound
        steps.step()
        assert float(layer.log_alpha().detach().max()) <= 0.0
    assert float(layer.log_alpha().detach().min()) > -0.2


def test_without_a_bound_rates_grow() -> None:
    layer = Linear(5, 3, rates="weight", max_alpha=None)
    steps = torch.optim.Adam([layer.rate.rho], lr=0.1)
    for _ in range(50):
        steps.zero_grad()
        variational.kl(layer).backward()
        steps.step()
    assert float(layer.log_alpha().detach().min()) > 2


def test_gaussian_dropout_has_its_variance() -> None:
    torch.manual_seed(0)
    x = torch.full((200, 500), 2.0)
    y = GaussianDropout(0.5)(x)
    assert float(y.mean()) == pytest.approx(2.0, abs=0.05)
    assert float(y.var()) == pytest.approx(4.0, rel=0.05)
    assert GaussianDropout(0.5).eval()(x) is x
    assert GaussianDropout(0.0)(x) is x
    wrapped = GaussianDropout(0.5, "B", nn.Linear(4, 3))
    assert isinstance(wrapped.layer, Linear)
    assert next(iter(wrapped.parameters())) is wrapped.layer.weight
    assert not torch.equal(wrapped(torch.ones(1, 4)), wrapped(torch.ones(1, 4)))
    none = nn.Sequential(GaussianDropout(0.0, "B", nn.Linear(4, 3)), Linear(3, 2))
    with variational.estimating(none, "local"):  # which has none to draw
        assert torch.equal(none[0](torch.ones(2, 4)).diff(dim=0), torch.zeros(1, 3))
    assert type(variational.deterministic(none)[0]) is nn.Linear


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(2, 2, noise="C"), "noise must be 'A' or 'B', got 'C'"),
        (lambda: Linear(2, 2, rates="all"), "rates must be"),
        (lambda: Linear(2, 2, noise="A", rates="weight"), "needs noise='B'"),
        (lambda: Linear(2, 2, p=1.0), "p must lie between 0 and 1"),
        (lambda: Linear(2, 2, p=0.6), "above max_alpha=1"),
        (lambda: Linear(2, 2, max_alpha=-1.0), "max_alpha must be positive"),
        (lambda: Linear(2, 2, max_alpha=math.inf), "or None for no bound"),
        (lambda: Linear(2, 2, prior="gaussian", learn=False), "learn=False needs prior='log-uniform'"),
        (lambda: Linear(2, 2, prior="laplace"), "prior must be"),
        (lambda: Linear(2, 2, prior="gaussian", noise="A"), "needs noise='B'"),
        (lambda: Linear(2, 2, approximation="taylor"), "approximation must be"),
        (lambda: Linear(2, 2, approximation="polynomial", max_alpha=None), "alpha <= 1"),
        (lambda: Linear(2, 2, approximation="polynomial", max_alpha=None, learn=False), "alpha <= 1"),
        (lambda: GaussianDropout(1.0), "p must lie between"),
        (lambda: GaussianDropout(0.5, "B"), "needs the layer that follows"),
        (lambda: GaussianDropout(0.5, "A", nn.Linear(2, 2)), "stands before a layer"),
        (lambda: GaussianDropout(0.5, "B", nn.ReLU()), "linear or a convolution"),
        (lambda: variational.GaussianPrior(0.0), "std must be positive"),
        (lambda: variational.gaussian_kl(torch.zeros(1), torch.zeros(1), 0.0), "std must be positive"),
        (lambda: variational.ScaleMixturePrior(2.0), "share must lie"),
        (lambda: variational.ScaleMixturePrior(std2=math.inf), "std2 must be positive and finite"),
    ],
)
def test_bad_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
