r"""The explicit form: parameters hold V and d, and the forward pass computes :math:`V U(h - c) + d`.

For optimizers that are not linear in their gradients (Adam, RMSprop, ...). At a projection from (U, c) to (U', c'),

.. math::
    V' = V U U'^{-1}, \qquad d' = d + V U (c' - c),

and everything that the optimizer keeps as a *direction in parameter space* (momentum, Adam's first moment) goes the
same way, so that it points to the same change of the function as before. Second moments are kept as they are, as are
delta-bar-delta's gains: averaged squares have no image under a rotation, and on white inputs all directions have about
the same. A gradient that still waits for its step is no direction: it goes by the inverse, with :math:`g` that of d,

.. math::
    G' = \bigl(G - g\,(U(c' - c))^T\bigr) (U U'^{-1})^{-T}.

A convolution whitens channels, :math:`U h`, before its own padding and kernel, and takes
:math:`\sum_k V_k U c` from its output, so that zero padding stays zero before centering.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.whitening.layers import Layer, tensor_of

__all__ = ["Project", "Recenter", "carry", "carry_gradient", "carry_state"]

# What optimizers of torch (and those named after them), and `DeltaBarDelta`, keep by parameter: directions, and sizes.
_DIRECTIONS = ("momentum_buffer", "exp_avg", "grad_avg", "prev", "trace", "velocity")
_SIZES = ("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum", "step_size", "gain")


def _full_precision(kind: str) -> AbstractContextManager[None]:
    """Without autocast; a context where there is none would stand in the graph from which tempering reads slopes."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


class Project:
    """The forward pre-hook that whitens a layer's inputs: U(h - c), for a convolution U h.

    Args:
        groups: Sets of channels that are whitened each by itself; None for a linear layer.
    """

    def __init__(self, groups: int | None) -> None:
        self.groups = groups

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x, rest = (args[0], args[1:]) if args else (kwargs["input"], ())
        basis, mean, weight = (tensor_of(module, name) for name in ("whiten_basis", "whiten_mean", "weight"))
        # What differs little between inputs is made large here, and bfloat16 would have rounded it off.
        with _full_precision(x.device.type):
            if x.is_nested:  # PyTorch's transformer encoder makes such in eval mode, and they know few operations
                white = F.linear(x.to(basis.dtype), basis[0], -basis[0] @ mean[0])
            elif self.groups is None:
                white = (x.to(basis.dtype) - mean[0]) @ basis[0].T
            else:
                unbatched = x.ndim < weight.ndim
                batch = (x[None] if unbatched else x).to(basis.dtype)
                channels = batch.reshape(len(batch), self.groups, basis.shape[-1], *batch.shape[2:])
                white = torch.einsum("gmn,bgn...->bgm...", basis, channels).flatten(1, 2)
                white = white[0] if unbatched else white
        return (white.to(weight.dtype), *rest), {}


class Recenter:
    """The forward hook that takes the mean's share from a convolution's output."""

    learns = True  # the weight, by this share too: see `Adjoint`

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        basis, mean, weight = (tensor_of(module, name) for name in ("whiten_basis", "whiten_mean", "weight"))
        kernel = weight.flatten(2).sum(2).to(mean.dtype).reshape(len(mean), -1, mean.shape[1])
        with _full_precision(weight.device.type):
            share = torch.einsum("gmn,gnk,gk->gm", kernel, basis, mean).flatten()
        spatial = (1,) * (weight.ndim - 2)
        return output - share.reshape(-1, *spatial).to(output.dtype)

    def __repr__(self) -> str:
        return "whiten()"


def carry(layer: Layer, first: Tensor, second: Tensor | None, change: Tensor, shift: Tensor) -> None:
    r"""Take V and d, or a direction in their space, into another basis, in place.

    Args:
        layer: In the explicit form.
        first: V, or shaped as it.
        second: d, or shaped as it.
        change: :math:`U U'^{-1}`, shape (groups, n, n).
        shift: :math:`U(c' - c)`, shape (groups, n).
    """
    with torch.no_grad():
        old = layer.kernel(first)
        if second is not None:  # while `old`, which may be a view of `first`, still is
            second.add_(torch.einsum("gmnk,gn->gm", old, shift).reshape(second.shape).to(second.dtype))
        first.copy_(torch.einsum("gmnk,gnp->gmpk", old, change).reshape(first.shape))


def carry_gradient(layer: Layer, change: Tensor, shift: Tensor) -> None:
    """Take the gradient of V into another basis, so that a step taken now is one of that basis; that of d stays.

    Args:
        layer: In the explicit form.
        change: As in `carry`.
        shift: As in `carry`.
    """
    weight, bias = layer.parameters
    if weight.grad is None:
        return
    own = layer.own(weight.grad)
    gradient = layer.kernel(own)
    if bias is not None and bias.grad is not None:
        errors = layer.own_bias(bias.grad).double().reshape(layer.groups, layer.outputs, 1)
        gradient = gradient - (errors * shift[:, None])[..., None]
    columns = gradient.transpose(1, 2)
    carried = torch.linalg.solve(change, columns.flatten(2)).reshape(columns.shape).transpose(1, 2)
    with torch.no_grad():
        own.copy_(carried.reshape(own.shape))


def carry_state(layer: Layer, optimizer: torch.optim.Optimizer, change: Tensor, shift: Tensor) -> list[str]:
    r"""Take what the optimizer keeps as directions into another basis.

    Args:
        layer: In the explicit form.
        optimizer: What trains it.
        change: As in `carry`.
        shift: As in `carry`.

    Returns:
        The names of the states, shaped as the weight, that it does not know and has left in the old basis.
    """
    weight, bias = layer.parameters
    of_weight: dict[str, Any] = optimizer.state.get(weight, {})
    of_bias: dict[str, Any] = optimizer.state.get(bias, {}) if bias is not None else {}
    unknown = []
    for key, value in of_weight.items():
        if not isinstance(value, Tensor) or value.shape != weight.shape or key in _SIZES:
            continue
        if key in _DIRECTIONS:
            second = of_bias.get(key)
            second = layer.own_bias(second) if isinstance(second, Tensor) else None
            carry(layer, layer.own(value), second, change, shift)
        else:
            unknown.append(key)
    return unknown
