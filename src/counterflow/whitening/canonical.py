r"""The canonical form: parameters stay W and b, and their gradients make the step that V and d would.

At fixed (U, c) a step of rate :math:`\eta` on V and d moves the canonical parameters by

.. math::
    \Delta W = -\eta\, G', \quad G' = \sum_t g_t (h_t - c)^T P, \qquad
    \Delta b = -\eta \Bigl(\sum_t g_t - G' c\Bigr), \qquad P = U^T U,

with :math:`g_t` the error of the layer's output for sample :math:`t`. An optimizer that is linear in its gradients
(momentum and weight decay are) commutes with that map, so momentum of W and b *is* momentum of V and d, carried into
each new basis. The forward pass is the bare layer's to the bit. A loss that has gradients of the inputs in it, as a
gradient penalty has, is no exception: what it makes of the weight that hands the error down, G, takes part in the step
as :math:`G' = GP`, and moves b by :math:`\eta\, G'c`.

With fewer samples than outputs the metric multiplies the inputs, :math:`g^T((h - c)P)`, otherwise the gradient,
:math:`(g^T h - s c^T)P` with :math:`s = \sum_t g_t`. A convolution whitens across channels, for every position
:math:`k` of its kernel: :math:`G'_k = (G_k - s c^T)P`. Its padding counts as inputs before centering.

Where weight or bias is frozen later, the step of both is not to be had, and nothing is centered: the weight then
gets :math:`\sum_t g_t h_t^T P`, the bias :math:`s`.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from counterflow.backward.adjoint import Adjoint
from counterflow.backward.convolution import Geometry, convolution_backward, convolution_geometry
from counterflow.backward.reduce import batch_sum
from counterflow.whitening.layers import Layer, tensor_of

__all__ = ["Precondition"]


class _Settings(NamedTuple):
    centered: bool
    diagonal: bool
    errors: bool
    groups: int


class _Linear(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, settings: _Settings, *state: Tensor
    ) -> Tensor:
        return output.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        # State is kept on the context, not saved: a projection between two backward passes is no fault.
        x, weight, bias, _, ctx.settings, *ctx.state = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        settings, state = ctx.settings, ctx.state
        mean, metric = state[0][0], state[1][0]
        inputs, errors = x.to(mean.dtype), error.to(mean.dtype)
        rows = errors.reshape(-1, errors.shape[-1])
        centered = _centered(ctx)
        seen = inputs - mean if centered else inputs
        if settings.diagonal:
            power = _power((inputs - mean) @ metric.T, settings, state)[0]
            metric = (metric.T / power) @ metric
            white = seen @ metric
        elif len(rows) < weight.shape[0]:
            white = seen @ metric
        else:
            white = None
        if white is None:
            total = rows.sum(0)
            gradient = rows.T @ inputs.reshape(-1, inputs.shape[-1])
            if centered:
                gradient = torch.addr(gradient, total, mean, alpha=-1)
            gradient = gradient @ metric
            if centered:
                total = total - gradient @ mean
        else:
            white = white.reshape(-1, white.shape[-1])
            gradient = rows.T @ white
            # The same again, over the samples, of which there are fewer.
            total = rows.T @ (1.0 - white @ mean) if centered else rows.sum(0)
        if settings.errors:
            gradient, total = state[-1][0] @ gradient, state[-1][0] @ total
        down = None
        if ctx.needs_input_grad[0]:
            down = (error @ _handing(weight, bias, metric[None], ctx).to(error.dtype)).to(x.dtype)
        return down, gradient.to(weight.dtype), _bias(total, ctx), None, None, *(None for _ in state)


class _Convolution(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor,
        settings: _Settings,
        geometry: Geometry,
        original: Tensor,
        *state: Tensor,
    ) -> Tensor:
        return output.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, _, ctx.settings, ctx.geometry, original, *ctx.state = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight, bias, *([original] if ctx.settings.diagonal else []))

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, *original = ctx.saved_tensors
        settings, state = ctx.settings, ctx.state
        groups, centered = settings.groups, _centered(ctx)
        mean, metric = state[:2]
        inputs, errors = x.to(mean.dtype), error.to(mean.dtype)
        total = errors.sum((0, *range(2, errors.ndim))).reshape(groups, -1)
        raw = convolution_backward(errors, inputs, weight.to(mean.dtype), ctx.geometry, [False, True, False])[1]
        gradient = raw.reshape(groups, total.shape[1], mean.shape[1], -1)
        if centered:
            gradient = gradient - total[:, :, None, None] * mean[:, None, :, None]
        if settings.diagonal:
            pixels = original[0].to(mean.dtype).movedim(1, -1).flatten(1, -2).unflatten(-1, mean.shape)
            white = torch.einsum("bpgn,gmn->bpgm", pixels - mean, metric).flatten(2)
            power = _power(white, settings, state)
            metric = (metric.transpose(1, 2) / power[:, None, :]) @ metric
        gradient = torch.einsum("gmnk,gnp->gmpk", gradient, metric)
        if settings.errors:
            gradient = torch.einsum("gab,gbnk->gank", state[-1], gradient)
            total = torch.einsum("gab,gb->ga", state[-1], total)
        if centered:
            total = total - torch.einsum("gmnk,gn->gm", gradient, mean)
        down = None
        if ctx.needs_input_grad[0]:
            kernel, low = _handing(weight, bias, metric, ctx).to(error.dtype), x.to(error.dtype)
            down = convolution_backward(error, low, kernel, ctx.geometry, [True, False, False])[0].to(x.dtype)
        weight_gradient = gradient.reshape(weight.shape).to(weight.dtype)
        return down, weight_gradient, _bias(total.reshape(-1), ctx), None, None, None, None, *(None for _ in state)


class _Handing(Function):
    """The weight that hands the error down; backward, its gradient is that of the canonical step, and moves the bias.

    What is handed down depends on V but not on d: of the step, :math:`s` is 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor, bias: Tensor | None, settings: _Settings, mean: Tensor, metric: Tensor, *errors: Tensor
    ) -> Tensor:
        return weight.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, bias, ctx.settings, ctx.mean, ctx.metric, *ctx.errors = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, of_weight: Tensor) -> tuple[Tensor | None, ...]:
        groups, n = ctx.mean.shape
        gradient = of_weight.to(ctx.mean.dtype).reshape(groups, len(of_weight) // groups, n, -1)
        gradient = torch.einsum("gmnk,gnp->gmpk", gradient, ctx.metric)
        for errors in ctx.errors:
            gradient = torch.einsum("gab,gbnk->gank", errors, gradient)
        of_bias = None
        if ctx.settings.centered and ctx.needs_input_grad[0] and ctx.needs_input_grad[1]:
            of_bias = -torch.einsum("gmnk,gn->gm", gradient, ctx.mean).reshape(-1).to(ctx.bias_dtype)
        gradient = gradient.reshape(of_weight.shape).to(of_weight.dtype)
        return gradient, of_bias, None, None, None, *(None for _ in ctx.errors)


for _forward in (_Linear.forward, _Convolution.forward):
    # PyTorch binds the arguments of `apply` by this signature; stating it halves the cost of a call.
    vars(_forward)["__signature__"] = inspect.signature(_forward)


def _power(white: Tensor, settings: _Settings, state: list[Tensor]) -> Tensor:
    r"""D squared: the variance of the whitened inputs in this batch, and the ridge's share, by group.

    That share is what the variance lacked of 1 when U was made, so that D is 1 where inputs have not changed. Before
    the first projection D is 1.

    Args:
        white: (examples, samples of an example ..., inputs of all groups).
        settings: The layer's.
        state: The layer's.
    """
    slack, projected = state[2], state[3]
    n = white.shape[-1]
    both = torch.cat([white, white * white], -1)
    sums, count = batch_sum(both, tuple(range(white.ndim - 1)), "whiten(diagonal=True)", (0,))
    means = sums.reshape(2 * n) / count
    variance = means[n:] - means[:n] ** 2
    power = variance.reshape(slack.shape).clamp(min=0.0) + slack
    return torch.where(projected >= 0, power, torch.ones_like(power))


def _handing(weight: Tensor, bias: Tensor | None, metric: Tensor, ctx: Any) -> Tensor:
    """The weight to hand the error down by: where the backward pass has one of its own, a step on V must come of it."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # compiled code has no second backward pass
        return weight
    errors = ctx.state[-1:] if ctx.settings.errors else []
    handing = _Handing.apply(weight, bias, ctx.settings, ctx.state[0], metric.detach(), *errors)  # type: ignore[no-untyped-call]
    assert isinstance(handing, Tensor)
    return handing


def _centered(ctx: Any) -> bool:
    """Whether weight and bias both learn: where one is frozen, the other's share of a centered step is no descent."""
    return bool(ctx.settings.centered and ctx.needs_input_grad[1] and ctx.needs_input_grad[2])


def _bias(gradient: Tensor, ctx: Any) -> Tensor | None:
    return gradient.to(ctx.bias_dtype) if ctx.bias_dtype is not None and ctx.needs_input_grad[2] else None


class Precondition(Adjoint):
    """The adjoint of a layer in canonical form.

    Args:
        layer: The layer, which has its buffers.
        diagonal: Whether D is taken from each batch; the buffer ``basis`` then holds U in place of the metric.
        errors: Whether errors are whitened too.
    """

    def __init__(self, layer: Layer, diagonal: bool, errors: bool) -> None:
        self.batch_coupled = diagonal
        self.settings = _Settings(layer.centered, diagonal, errors, layer.groups)
        self.names = ["whiten_mean", *(["whiten_basis", "whiten_slack", "whiten_projected"] if diagonal else [])]
        if not diagonal:
            self.names.append("whiten_metric")
        if errors:
            self.names.append("whiten_error_metric")

    def supports(self, module: nn.Module) -> str:
        return ""

    def replace(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        weight, bias = tensor_of(module, "weight"), module._parameters["bias"]
        state = [tensor_of(module, name) for name in self.names]
        if isinstance(module, nn.Linear):
            return _Linear.apply(inputs, weight, bias, output, self.settings, *state)  # type: ignore[no-any-return, no-untyped-call]
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        unbatched = output.ndim == weight.ndim - 1
        if unbatched:
            inputs, output = inputs[None], output[None]
        padded, geometry = convolution_geometry(module, inputs, output)
        result = _Convolution.apply(  # type: ignore[no-untyped-call]
            padded, weight, bias, output, self.settings, geometry, inputs.detach(), *state
        )
        assert isinstance(result, Tensor)
        return result[0] if unbatched else result

    def __repr__(self) -> str:
        return "whiten()"
