"""Layers whose weights have a posterior: linear and convolutions."""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.exceptions import InputError
from counterflow.variational.divergence import Approximation
from counterflow.variational.posterior import Noise, Rates, Stochastic
from counterflow.variational.priors import Prior

__all__ = [
    "GEOMETRY",
    "KINDS",
    "VariationalConv1d",
    "VariationalConv2d",
    "VariationalConv3d",
    "VariationalLinear",
    "variational_layer",
]


class VariationalLinear(Stochastic, nn.Linear):
    r"""A linear layer with a dropout posterior on its weights; the bias has no noise.

    .. math::
        \text{A:}\; y = (x \circ s)\,\theta^T, \; s_i \sim N(1, \alpha_i) \qquad
        \text{B:}\; y \sim N\bigl(x\theta^T,\; x^2 (\alpha\theta^2)^T\bigr)

    In eval mode it is the linear layer of the posterior means.

    Args:
        in_features: Input units.
        out_features: Output units.
        bias: Whether there is one.
        noise: ``"A"``, correlated, on the inputs (section 3.2), or ``"B"`` (default), independent, on the
            pre-activations by local reparameterization (section 3.1).
        rates: One rate for the ``"layer"`` (default), an input ``"unit"`` or, type B only, a ``"weight"``.
        p: The dropout rate that all begin with, alpha = p / (1 - p); .5 by default, which is the bound.
        learn: Whether rates are learned; False is Gaussian dropout at a fixed rate.
        max_alpha: The bound of section 3.4, 1 by default; None lifts it.
        prior: ``"log-uniform"`` (default). A `GaussianPrior`, a `ScaleMixturePrior` or their names give every weight a
            Gaussian posterior with a variance of its own (section 2.3), without rates.
        approximation: Of the divergence; see `dropout_kl`.
        device: As for `torch.nn.Linear`.
        dtype: As for `torch.nn.Linear`.

    Raises:
        InputError: If an argument is out of range, or two do not go together.

    References:
        Kingma et al., "Variational Dropout and the Local Reparameterization Trick", NIPS 2015, equations 6, 10, 11.

    Example:
        >>> import torch
        >>> from counterflow.variational import VariationalLinear
        >>> layer, x = VariationalLinear(4, 3, rates="weight"), torch.randn(2, 4)
        >>> torch.equal(layer(x), layer(x)), torch.equal(layer.eval()(x), layer(x))
        (False, True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        noise: Noise = "B",
        rates: Rates = "layer",
        p: float = 0.5,
        learn: bool = True,
        max_alpha: float | None = 1.0,
        prior: Prior = "log-uniform",
        approximation: Approximation = "exact",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device, dtype)
        self.set_up(noise, rates, p, learn, max_alpha, prior, approximation)

    def forward(self, input: Tensor) -> Tensor:
        """Outputs with noise in training, of the posterior means in eval mode."""
        if not self.noisy:
            return F.linear(input, self.weight, self.bias)
        y = self.product_with_noise(input, F.linear, -1)
        return y if self.bias is None else y + self.bias


class _Convolution(Stochastic):
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]
    _function: Any

    def __init__(
        self,
        *plain: Any,
        noise: Noise = "B",
        rates: Rates = "layer",
        p: float = 0.5,
        learn: bool = True,
        max_alpha: float | None = 1.0,
        prior: Prior = "log-uniform",
        approximation: Approximation = "exact",
        **more: Any,
    ) -> None:
        super().__init__(*plain, **more)  # the plain convolution is next in line
        self.set_up(noise, rates, p, learn, max_alpha, prior, approximation)

    def groups_of(self) -> int:
        """Groups of the convolution."""
        return self.groups

    def forward(self, input: Tensor) -> Tensor:
        """Outputs with noise in training, of the posterior means in eval mode."""
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        convolve = functools.partial(
            type(self)._function, stride=self.stride, padding=padding, dilation=self.dilation, groups=self.groups
        )
        if not self.noisy:
            found: Tensor = convolve(input, self.weight, self.bias)
            return found
        single = input.ndim == self.weight.ndim - 1
        y = self.product_with_noise(input.unsqueeze(0) if single else input, convolve, 1)
        if self.bias is not None:
            y = y + self.bias.reshape(-1, *[1] * (self.weight.ndim - 2))
        return y.squeeze(0) if single else y


class VariationalConv1d(_Convolution, nn.Conv1d):  # type: ignore[misc]
    """A convolution over one dimension with a dropout posterior on its weights; the bias has no noise.

    Type A multiplies each input channel of an example by one scale, the same at all positions, as the posterior has it.
    Type B draws every output by itself: with the right distribution each, and without the covariance of positions that
    share a weight, which local reparameterization cannot have. In eval mode it is the convolution of posterior means.

    Args:
        plain: The arguments of `torch.nn.Conv1d`, by place or by name; input channels are the units.
        noise: ``"A"`` or ``"B"`` (default); this and what follows are those of `VariationalLinear`.
        rates: One rate for the ``"layer"`` (default), an input ``"unit"`` or, type B only, a ``"weight"``.
        p: The dropout rate that all begin with; .5 by default.
        learn: Whether rates are learned.
        max_alpha: The bound, 1 by default; None lifts it.
        prior: ``"log-uniform"`` (default), or one with a Gaussian posterior.
        approximation: Of the divergence; see `dropout_kl`.
        more: Arguments of `torch.nn.Conv1d` by name.

    Raises:
        InputError: If an argument is out of range, or two do not go together.

    References:
        Kingma et al., "Variational Dropout and the Local Reparameterization Trick", NIPS 2015, sections 2.3 and 3.

    Example:
        >>> import torch
        >>> from counterflow.variational import VariationalConv1d
        >>> VariationalConv1d(2, 4, 3, padding=1, noise="A")(torch.randn(5, 2, 6)).shape
        torch.Size([5, 4, 6])
    """

    _function = staticmethod(F.conv1d)


class VariationalConv2d(_Convolution, nn.Conv2d):  # type: ignore[misc]
    """A convolution over two dimensions with a dropout posterior on its weights; the bias has no noise.

    Type A multiplies each input channel of an example by one scale, the same at all positions, as the posterior has it.
    Type B draws every output by itself: with the right distribution each, and without the covariance of positions that
    share a weight, which local reparameterization cannot have. In eval mode it is the convolution of posterior means.

    Args:
        plain: The arguments of `torch.nn.Conv2d`, by place or by name; input channels are the units.
        noise: ``"A"`` or ``"B"`` (default); this and what follows are those of `VariationalLinear`.
        rates: One rate for the ``"layer"`` (default), an input ``"unit"`` or, type B only, a ``"weight"``.
        p: The dropout rate that all begin with; .5 by default.
        learn: Whether rates are learned.
        max_alpha: The bound, 1 by default; None lifts it.
        prior: ``"log-uniform"`` (default), or one with a Gaussian posterior.
        approximation: Of the divergence; see `dropout_kl`.
        more: Arguments of `torch.nn.Conv2d` by name.

    Raises:
        InputError: If an argument is out of range, or two do not go together.

    References:
        Kingma et al., "Variational Dropout and the Local Reparameterization Trick", NIPS 2015, sections 2.3 and 3.

    Example:
        >>> import torch
        >>> from counterflow.variational import VariationalConv2d
        >>> VariationalConv2d(2, 4, 3, padding=1, noise="A")(torch.randn(5, 2, 6, 6)).shape
        torch.Size([5, 4, 6, 6])
    """

    _function = staticmethod(F.conv2d)


class VariationalConv3d(_Convolution, nn.Conv3d):  # type: ignore[misc]
    """A convolution over three dimensions with a dropout posterior on its weights; the bias has no noise.

    Type A multiplies each input channel of an example by one scale, the same at all positions, as the posterior has it.
    Type B draws every output by itself: with the right distribution each, and without the covariance of positions that
    share a weight, which local reparameterization cannot have. In eval mode it is the convolution of posterior means.

    Args:
        plain: The arguments of `torch.nn.Conv3d`, by place or by name; input channels are the units.
        noise: ``"A"`` or ``"B"`` (default); this and what follows are those of `VariationalLinear`.
        rates: One rate for the ``"layer"`` (default), an input ``"unit"`` or, type B only, a ``"weight"``.
        p: The dropout rate that all begin with; .5 by default.
        learn: Whether rates are learned.
        max_alpha: The bound, 1 by default; None lifts it.
        prior: ``"log-uniform"`` (default), or one with a Gaussian posterior.
        approximation: Of the divergence; see `dropout_kl`.
        more: Arguments of `torch.nn.Conv3d` by name.

    Raises:
        InputError: If an argument is out of range, or two do not go together.

    References:
        Kingma et al., "Variational Dropout and the Local Reparameterization Trick", NIPS 2015, sections 2.3 and 3.

    Example:
        >>> import torch
        >>> from counterflow.variational import VariationalConv3d
        >>> VariationalConv3d(2, 4, 3, padding=1, noise="A")(torch.randn(5, 2, 6, 6, 6)).shape
        torch.Size([5, 4, 6, 6, 6])
    """

    _function = staticmethod(F.conv3d)


GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")

KINDS: dict[type[nn.Module], type[Any]] = {
    nn.Linear: VariationalLinear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: VariationalLinear,
    nn.Conv1d: VariationalConv1d,
    nn.Conv2d: VariationalConv2d,
    nn.Conv3d: VariationalConv3d,
}


def variational_layer(plain: nn.Module, options: dict[str, Any]) -> Any:
    """A layer with a posterior around a plain one's weights, which are not copied.

    Args:
        plain: Of a type in `KINDS`.
        options: The keyword arguments of the new layer.

    Raises:
        InputError: If there is no such layer for its type.
    """
    kind = KINDS.get(type(plain))
    if kind is None:
        raise InputError(f"layer must be linear or a convolution, got {type(plain).__name__}")
    assert isinstance(plain, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    common = {"bias": plain.bias is not None, "device": "meta", **options}
    if isinstance(plain, nn.Linear):
        layer = kind(plain.in_features, plain.out_features, **common)
    else:
        layer = kind(**{name: getattr(plain, name) for name in GEOMETRY}, **common)
    layer.share(plain.weight, plain.bias)
    layer.train(plain.training)
    return layer
