"""Type A against autograd, and normal numbers against their distribution: a false alarm in 10,000 a test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2, kstest, norm
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from counterflow import variational
from counterflow.variational import VariationalConv1d, VariationalConv2d, VariationalConv3d, VariationalLinear, kernels
from counterflow.variational.correlated import _Scaled
from counterflow.variational.loops import _FEW, standard_normal
from counterflow.variational.noise import _Local

ALARM = 1e-4


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([0] * 6, "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ([0xFFFFFFFF] * 6, "5207ddc2 45165e59 4d8ee751 8c52f662"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0],
            "4dfccaba 190a87f0 c47362ba b6b5242a",
        ),
    ],
)
def test_the_generator_gives_the_words_that_its_authors_give(words: list[int], found: str) -> None:
    with np.errstate(over="ignore"):
        made = kernels._philox.py_func(*(np.uint32(word) for word in words))
    assert " ".join(f"{int(word):08x}" for word in made) == found


def test_numbers_are_normal_and_independent() -> None:
    count = 4 * 2**16
    numbers = np.empty((3, count), np.float32)
    for key, row in zip((1, 2, 2**63 + 1), numbers, strict=True):
        kernels.normals(np.uint64(key), row)
    each = ALARM / 12
    for row in numbers.astype(np.float64):
        assert abs(row.mean()) * math.sqrt(count) < norm.isf(each / 2)
        assert chi2.ppf(each / 2, count) < np.square(row).sum() < chi2.isf(each / 2, count)
        assert kstest(row, "norm").pvalue > each
    # Numbers of one counter, of neighbors, and of other keys.
    parts = numbers[0].astype(np.float64).reshape(4, -1)
    series = [*parts, numbers[1, : count // 4], numbers[2, : count // 4], np.roll(parts[0], 1)]
    for power in (1, 2):  # and their sizes, which the polar form could tie together
        correlations = np.corrcoef(np.power(np.array(series), power))[np.triu_indices(len(series), 1)]
        assert np.abs(np.arctanh(correlations)).max() * math.sqrt(count // 4 - 3) < norm.isf(ALARM / 42 / 2)


def test_pytorchs_seed_rules_them() -> None:
    like = torch.empty(0)
    sizes = [(_FEW + rest,) for rest in range(5)]
    torch.manual_seed(3)
    first = [standard_normal(size, like) for size in sizes]
    assert all(bool(each.isfinite().all()) and each.unique().numel() > 0.99 * each.numel() for each in first)
    assert not torch.equal(first[0], standard_normal(sizes[0], like))
    torch.manual_seed(3)
    assert all(torch.equal(a, standard_normal(size, like)) for a, size in zip(first, sizes, strict=True))
    few, double = standard_normal((7,), like), standard_normal((_FEW,), like.double())
    assert (few.shape, double.dtype) == ((7,), torch.float64)


def test_a_default_device_elsewhere_changes_nothing_for_a_layer_on_the_processor() -> None:
    with torch.device("meta"):
        layer = VariationalLinear(80, 90, device="cpu")
        y = layer(torch.ones(64, 80, device="cpu"))
        divergence = variational.kl(layer)
    assert {y.device.type, divergence.device.type, layer.rate.rho.device.type} == {"cpu"}
    assert bool(y.isfinite().all())


def test_what_is_computed_again_draws_the_same() -> None:
    torch.manual_seed(0)
    layer, x = VariationalLinear(80, 90, rates="weight"), torch.randn(64, 80)
    found = []
    for way in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        torch.manual_seed(1)
        found.append(torch.autograd.grad(way(x).square().sum(), list(layer.parameters())))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rates", ["layer", "unit"])
@pytest.mark.parametrize(("function", "bound"), [(_Scaled, None), (_Scaled, 0.9), (_Local, None)])
def test_compiled_passes_over_units_are_autograds(rates: str, function: Any, bound: float | None) -> None:
    """In float32 they are compiled; in float64, and where a gradient is derived, they are not."""
    torch.manual_seed(0)
    x, weight = torch.randn(30, 7, 40), torch.randn(30, 40) / 6
    noise = torch.randn(30, 7, 40 if function is _Scaled else 30)
    log_alpha = torch.randn(() if rates == "layer" else (40,)) - 1
    gradients = []
    for dtype, needs in ((torch.float32, True), (torch.float64, True), (torch.float32, False)):
        inputs = [each.to(dtype).requires_grad_() for each in (x, weight, log_alpha)]
        inputs[0].requires_grad_(needs)
        rule = (bound,) if function is _Scaled else ()
        y = function.apply(*inputs, *rule, noise.to(dtype))[0]
        wanted = inputs if needs else inputs[1:]
        gradients.append([y.double(), *(g.double() for g in torch.autograd.grad(y.square().sum(), wanted))])
    single, double, first_layer = gradients
    for a, b in zip(single, double, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-4)
    for a, b in zip(first_layer, [single[0], *single[2:]], strict=True):  # whose inputs need no error
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("rates", ["layer", "unit"])
def test_the_written_out_backward_pass_of_type_a_is_autograds_and_so_is_its_derivative(rates: Any) -> None:
    torch.manual_seed(0)
    layer = VariationalLinear(5, 3, noise="A", rates=rates, p=0.3).double()
    x = torch.randn(2, 4, 5).double().requires_grad_()
    wanted = [x, layer.weight, layer.rate.rho]

    def once_and_twice(y: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.pow(3).sum(), wanted, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), wanted)

    torch.manual_seed(1)
    ours = once_and_twice(layer(x))
    torch.manual_seed(1)
    noise = torch.randn(2, 4, 5, dtype=torch.float64)
    scales = 1 + (0.5 * layer.log_alpha()).exp() * noise
    theirs = once_and_twice(F.linear(x * scales, layer.weight, layer.bias))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "shape"), [(VariationalConv1d, (6,)), (VariationalConv2d, (5, 4)), (VariationalConv3d, (3, 3, 3))]
)
@pytest.mark.parametrize("rates", ["layer", "unit"])
def test_convolutions_of_type_a_have_the_moments_of_scaled_channels(
    kind: Any, shape: tuple[int, ...], rates: Any
) -> None:
    torch.manual_seed(0)
    layer = kind(4, 6, 2, padding=1, groups=2, noise="A", rates=rates).double()
    plain = variational.deterministic(layer)
    x, count = torch.randn(1, 4, *shape).double(), 1500
    with torch.no_grad():
        layer.rate.rho.copy_(torch.rand_like(layer.rate.rho))
        alpha = layer.log_alpha().exp().expand(4)
        bias = plain(torch.zeros_like(x))
        # A channel's share of the output is what the plain layer makes of that channel alone.
        alone = torch.stack(
            [plain(x * F.one_hot(torch.tensor(c), 4).reshape(1, 4, *[1] * len(shape))) for c in range(4)]
        )
        variance = torch.einsum("c,c...->...", alpha, (alone - bias).square())
        draws = torch.cat([layer(x.expand(100, *x.shape[1:])) for _ in range(count // 100)])
        mean = plain(x)[0]
        assert layer(x[0]).shape == mean.shape
        assert torch.equal(layer.eval()(x)[0], mean)
    live = variance[0] > 1e-12  # where padding is all that a group sees, there is no noise
    each = ALARM / (2 * int(live.sum()))
    z = (draws.mean(0) - mean)[live] / (variance[0][live] / count).sqrt()
    assert float(z.abs().max()) < norm.isf(each / 2)
    scaled = (draws - mean).square().sum(0)[live] / variance[0][live]
    assert chi2.ppf(each / 2, count) < float(scaled.min())
    assert float(scaled.max()) < chi2.isf(each / 2, count)
