"""Type B: independent noise on the weights (sections 2.3 and 3.1), and the estimators that section 2 compares."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from counterflow.backward.reduce import widen
from counterflow.variational.loops import flat, has_loops, of_one_type, standard_normal, takes_loop

__all__ = [
    "Estimator",
    "Product",
    "below",
    "downhill",
    "gaussian",
    "independent",
    "rows_of",
    "weights_of_batch",
    "weights_of_examples",
]

Estimator = Literal["local", "per_datum", "per_minibatch", "none"]

Product = Callable[[Tensor, Tensor], Tensor]
"""From inputs and weights to what a layer makes of them, without a bias: linear in both."""

_CELLS = 2**24  # weights that are drawn at once, one set an example
_TINY = 1e-12  # added to variances: where a row is all zeros, the root has no derivative
_TINY_HALF = 2.0**-24  # the least that float16 holds


def _tiny(like: Tensor) -> float:
    return _TINY_HALF if like.dtype == torch.float16 else _TINY


def _spread(center: Tensor, variance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-activations and their deviations; it may overwrite what it gets."""
    if takes_loop(center, variance, noise):
        from counterflow.variational import kernels

        kernels.spread(flat(center), flat(variance), flat(noise), _TINY)
        return center, variance
    deviation = variance.add_(_tiny(variance)).sqrt_()
    return torch.addcmul(center, deviation, noise), deviation


def _of_variance(grad: Tensor, noise: Tensor, deviation: Tensor) -> Tensor:
    """The error of the variances: of the root, times what came down."""
    if takes_loop(grad, noise, deviation):
        from counterflow.variational import kernels

        found = torch.empty_like(grad)
        kernels.of_variance(flat(grad), flat(noise), flat(deviation), flat(found))
        return found
    return (grad * noise).div(deviation).mul_(0.5)


class _Local(Function):
    """Linear layers with a rate for the layer or for each input unit, both products' backward passes written out.

    At batches of a hundred, a pass over the weights costs a tenth of a product: there are as few as there can be. The
    rates go with the squared inputs, which are smaller than the weights.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, log_alpha: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rated = x * x * _by_input(log_alpha).exp()
        squares = weight * weight
        y, deviation = _spread(F.linear(x, weight), F.linear(rated, squares), noise)
        return y, rated, squares, deviation

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, log_alpha, noise = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # zeros in the size of the weights
        ctx.save_for_backward(x, weight, log_alpha, noise, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        x, weight, log_alpha, noise, rated, squares, deviation = ctx.saved_tensors
        if torch.is_grad_enabled():  # the derivative is derived: what follows has to hang together
            rated, squares = x * x * _by_input(log_alpha).exp(), weight * weight
            deviation = (F.linear(rated, squares) + _tiny(squares)).sqrt()
        of_variance = _of_variance(grad, noise, deviation)
        needs_x, needs_weight, needs_rate, _ = ctx.needs_input_grad
        for_x = for_weight = for_rate = None
        if needs_rate and log_alpha.numel() == 1:  # the variance is the derivative of itself
            for_rate = (of_variance * (deviation.square() - _tiny(deviation))).sum().reshape(log_alpha.shape)
        by_unit = needs_rate and for_rate is None
        if needs_x:
            into = of_variance @ squares
            for_x = torch.addcmul(grad @ weight, into, x * _by_input(log_alpha).exp(), value=2)
            if by_unit:
                for_rate = rows_of(into * rated).sum(0).reshape(log_alpha.shape)
        if needs_weight or (by_unit and not needs_x):
            each = rows_of(of_variance).mT @ rows_of(rated)  # d / d squares
            if by_unit and not needs_x:
                for_rate = (each * squares).sum(0).reshape(log_alpha.shape)
            if needs_weight:
                for_weight = (rows_of(grad).mT @ rows_of(x)).addcmul_(each, weight, value=2)
        return for_x, for_weight, for_rate, None


def rows_of(x: Tensor) -> Tensor:
    """The inputs or outputs of a linear layer as a matrix; a single example, as there is one under vmap, is a row."""
    return x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)


def _by_input(log_alpha: Tensor) -> Tensor:
    """One rate, or one an input unit in the last dimension."""
    return log_alpha.reshape(()) if log_alpha.numel() == 1 else log_alpha.reshape(-1)


def _rated_on_cpu(rho: Tensor, weight: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """Rates times weights, and times their squares."""
    from counterflow.variational import kernels

    scaled, variance = torch.empty_like(weight), torch.empty_like(weight)
    top = np.float32(0.0 if bound is None else math.log(bound))
    rates, means, by_rate, by_square = (flat(each) for each in (rho, weight, scaled, variance))
    kernels.rate(rates, means, bound is not None, top, by_rate, by_square)
    return scaled, variance


# Operators are for PyTorch's compiler; without it, the way through one would take longer than a small layer does.
_rated_compiled = torch.library.custom_op("counterflow::rated_weights", _rated_on_cpu, mutates_args=())


@_rated_compiled.register_fake
def _(rho: Tensor, weight: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), torch.empty_like(weight)


def _back_on_cpu(
    of_weight: Tensor, of_variance: Tensor, scaled: Tensor, weight: Tensor, rho: Tensor, bounded: bool
) -> None:
    """Put what comes by the variances into the gradient by the weights, and that by rho into their own place."""
    from counterflow.variational import kernels

    first, second, third, means, rates = (flat(each) for each in (of_weight, of_variance, scaled, weight, rho))
    kernels.rate_back(first, second, third, means, rates, bounded)


_back_compiled = torch.library.custom_op(
    "counterflow::rated_weights_backward", _back_on_cpu, mutates_args=("of_weight", "of_variance")
)


@_back_compiled.register_fake
def _(of_weight: Tensor, of_variance: Tensor, scaled: Tensor, weight: Tensor, rho: Tensor, bounded: bool) -> None:
    return None


def _rated(rho: Tensor, weight: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    if has_loops(rho, weight) and not torch.is_grad_enabled():
        way = _rated_compiled if torch.compiler.is_compiling() else _rated_on_cpu
        scaled, variance = way(rho, weight, bound)
    else:
        scaled = (rho if bound is None else math.log(bound) - rho.abs()).exp() * weight
        variance = scaled * weight
    return scaled, variance


class _LocalByWeight(Function):
    """The same with a rate for every weight: log alpha is rho, or, where there is a bound, log bound - |rho|."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, rho: Tensor, bound: float | None, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scaled, variance = _rated(rho, weight, bound)
        y, deviation = _spread(F.linear(x, weight), F.linear(x * x, variance), noise)
        return y, scaled, variance, deviation

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, rho, ctx.bound, noise = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, rho, noise, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        x, weight, rho, noise, scaled, variance, deviation = ctx.saved_tensors
        if torch.is_grad_enabled():  # the derivative is derived: what follows has to hang together
            scaled, variance = _rated(rho, weight, ctx.bound)
            deviation = (F.linear(x * x, variance) + _tiny(variance)).sqrt()
        of_variance = _of_variance(grad, noise, deviation)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = torch.addcmul(grad @ weight, of_variance @ variance, x, value=2)
        for_rho = rows_of(of_variance).mT @ rows_of(x * x)  # d / d variance, as yet
        for_weight = rows_of(grad).mT @ rows_of(x)
        if has_loops(for_rho, for_weight, scaled, weight, rho) and not torch.is_grad_enabled():
            way = _back_compiled if torch.compiler.is_compiling() else _back_on_cpu
            way(for_weight, for_rho, scaled, weight, rho, ctx.bound is not None)
        else:
            each = for_rho * scaled
            for_weight, for_rho = for_weight + 2 * each, each * weight
            if ctx.bound is not None:
                for_rho = for_rho * downhill(rho)
        return for_x, for_weight, for_rho, None, None


def downhill(rho: Tensor) -> Tensor:
    """The derivative of log bound - |rho|: -1 at 0 too, as if rho came from above."""
    return torch.copysign(torch.ones((), dtype=rho.dtype, device=rho.device), rho).neg()


def independent(x: Tensor, weight: Tensor, rho: Tensor, bound: float | None, product: Product) -> Tensor:
    r"""Type B by local reparameterization: pre-activations from their own distribution (equations 6 and 10).

    .. math::
        b = \gamma + \sqrt\delta\,\zeta, \quad \gamma = x \theta, \quad \delta = x^2 (\alpha \theta^2), \quad
        \zeta \sim N(0, 1)

    Args:
        x: Inputs.
        weight: Means.
        rho: The rates' parameters.
        bound: The largest alpha; None where rho is log alpha itself.
        product: What the layer does.
    """
    if product is not F.linear or not of_one_type(x, weight):
        return gaussian(x, weight, below(rho, bound).exp() * weight.square(), product)
    noise = standard_normal((*x.shape[:-1], len(weight)), x)
    if rho.shape == weight.shape and len(weight) > 1:
        found: Tensor = _LocalByWeight.apply(x, weight, rho, bound, noise)[0]  # type: ignore[no-untyped-call]
    else:
        found = _Local.apply(x, weight, below(rho, bound), noise)[0]  # type: ignore[no-untyped-call]
    return found


class _Below(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rho: Tensor, bound: float) -> Tensor:
        return math.log(bound) - rho.abs()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rho,) = ctx.saved_tensors
        return grad * downhill(rho), None


for _forward in (_Local.forward, _LocalByWeight.forward, _Below.forward):  # looked up once, and not at every call
    _forward.__signature__ = inspect.signature(_forward)  # type: ignore[union-attr]


def below(rho: Tensor, bound: float | None) -> Tensor:
    """The logarithm of the rates: rho itself, or log bound - |rho|."""
    if bound is None:
        return rho
    found: Tensor = _Below.apply(rho, bound)  # type: ignore[no-untyped-call]
    return found


def gaussian(x: Tensor, mean: Tensor, variance: Tensor, product: Product) -> Tensor:
    """Pre-activations of weights with these means and variances."""
    center = product(x, mean)
    variance = product(x.square(), variance)
    # Convolutions by Winograd's or Fourier's transform subtract, and what should be zero comes out below it. (Matrix
    # products, as of linear layers above, only add.)
    spread = (widen(variance).clamp_min(0) + _tiny(variance)).sqrt().to(center.dtype)
    return center + spread * standard_normal(center.shape, center)


def weights_of_batch(x: Tensor, mean: Tensor, deviation: Tensor, product: Product) -> Tensor:
    """One sample of the weights for the whole batch."""
    return product(x, mean + deviation * torch.randn_like(mean))


def weights_of_examples(x: Tensor, mean: Tensor, deviation: Tensor, product: Product) -> Tensor:
    """A sample of the weights for every example: slow, and for comparison.

    Weights are drawn for as many examples at a time as memory can be had for, and drawn again on the way back.
    """
    rows = x if product is not F.linear else rows_of(x)
    some = max(1, _CELLS // mean.numel())

    def apart(part: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        drawn = mean + deviation * torch.randn(len(part), *mean.shape, dtype=mean.dtype, device=mean.device)
        if product is F.linear:
            return torch.bmm(drawn, part.unsqueeze(-1)).squeeze(-1)
        return torch.cat([product(row.unsqueeze(0), w) for row, w in zip(part, drawn, strict=True)])

    pieces: list[Tensor] = [
        checkpoint(apart, part, mean, deviation, use_reentrant=False, preserve_rng_state=True)
        for part in torch.split(rows, some)
    ]
    found = torch.cat(pieces)
    return found if product is not F.linear else found.reshape(*x.shape[:-1], len(mean))
