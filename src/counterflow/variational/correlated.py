"""Type A: inputs times scales, correlated noise on the weights (section 3.2)."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from counterflow.variational.loops import flat, standard_normal, takes_loop
from counterflow.variational.noise import downhill, rows_of

__all__ = ["correlated", "scaled_inputs"]


def scaled_inputs(x: Tensor, log_alpha: Tensor, channels: int, shared: bool) -> Tensor:
    r"""Inputs times scales :math:`s \sim N(1, \alpha)`, one for an example and an input unit (equation 11).

    Args:
        x: Inputs.
        log_alpha: One rate, or one an input unit.
        channels: Which dimension has the units.
        shared: One scale for the whole batch: the estimator with one sample a minibatch.
    """
    shape = list(x.shape)
    place = channels % x.ndim
    if place != x.ndim - 1:  # a unit of a convolution is a channel: one scale for all its positions
        shape[place + 1 :] = [1] * (x.ndim - place - 1)
    if shared:
        shape[:place] = [1] * place
    rates = log_alpha if log_alpha.numel() == 1 else log_alpha.reshape(-1, *[1] * (x.ndim - place - 1))
    noise = standard_normal(shape, x)
    return x * ((0.5 * rates).exp().to(x.dtype) * noise).add_(1)


class _Scaled(Function):
    """Linear layers with scaled inputs, the backward pass written out: log alpha is rho, or log bound - |rho|.

    It needs one product more than the plain layer only where the error of the inputs has no other use: rates of a first
    layer. What else there is are passes over inputs, one there and one back.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, rho: Tensor, bound: float | None, noise: Tensor) -> tuple[Tensor, Tensor]:
        if takes_loop(x, noise, rho):
            from counterflow.variational import kernels

            scaled = torch.empty_like(x)
            kernels.scale(flat(x), flat(noise), flat(rho), *_rule(bound), x.shape[-1], flat(scaled))
        else:
            scaled = x * (_deviations(rho, bound) * noise + 1)
        return F.linear(scaled, weight), scaled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, rho, ctx.bound, noise = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, rho, noise, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        x, weight, rho, noise, scaled = ctx.saved_tensors
        if torch.is_grad_enabled():  # the derivative is derived: what follows has to hang together
            scaled = x * (_deviations(rho, ctx.bound) * noise + 1)
        needs_x, needs_weight, needs_rate = ctx.needs_input_grad[:3]
        for_x = for_weight = for_rho = None
        if needs_weight:
            for_weight = rows_of(grad).mT @ rows_of(scaled)
        if needs_x or needs_rate:
            for_x = grad @ weight
            if takes_loop(for_x, x, noise, rho):
                from counterflow.variational import kernels

                for_rho = torch.zeros_like(rho)
                rule = _rule(ctx.bound)
                kernels.scale_back(flat(for_x), flat(x), flat(noise), flat(rho), *rule, x.shape[-1], flat(for_rho))
            else:
                deviations = _deviations(rho, ctx.bound)
                by_unit = rows_of(for_x * x * noise).sum(0) * (0.5 * deviations)
                for_rho = (by_unit.sum() if rho.numel() == 1 else by_unit).reshape(rho.shape)
                if ctx.bound is not None:
                    for_rho = for_rho * downhill(rho)
                for_x = for_x * (deviations * noise + 1)
        return for_x if needs_x else None, for_weight, for_rho if needs_rate else None, None, None


_Scaled.forward.__signature__ = inspect.signature(_Scaled.forward)  # type: ignore[attr-defined]  # not at every call


def _rule(bound: float | None) -> tuple[bool, np.float32]:
    """How rates follow from rho, for the loops."""
    return bound is not None, np.float32(0.0 if bound is None else math.log(bound))


def _deviations(rho: Tensor, bound: float | None) -> Tensor:
    """The scales' standard deviations: one, or one an input unit."""
    return (0.5 * (rho if bound is None else math.log(bound) - rho.abs())).exp()


def correlated(x: Tensor, weight: Tensor, rho: Tensor, bound: float | None) -> Tensor:
    r"""A linear layer of scaled inputs, a scale for every example and input unit: :math:`y = (x \circ s)\,\theta^T`.

    Args:
        x: Inputs, of the weight's type.
        weight: Means.
        rho: The rates' parameters, one or one an input unit.
        bound: The largest alpha; None where rho is log alpha itself.
    """
    noise = standard_normal(x.shape, x)
    found: Tensor = _Scaled.apply(x, weight, rho, bound, noise)[0]  # type: ignore[no-untyped-call]
    return found
