"""Layers whose weights have a posterior: linear, convolutions, and Gaussian dropout by itself."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.exceptions import InputError
from counterflow.variational.correlated import correlated, scaled_inputs
from counterflow.variational.divergence import Approximation, bounded_kl, gaussian_kl
from counterflow.variational.loops import of_one_type, standard_normal
from counterflow.variational.noise import (
    Estimator,
    Product,
    below,
    gaussian,
    independent,
    weights_of_batch,
    weights_of_examples,
)
from counterflow.variational.priors import GaussianPrior, Prior, ScaleMixturePrior, resolve

__all__ = [
    "GaussianDropout",
    "Noise",
    "Rates",
    "Stochastic",
    "VariationalConv1d",
    "VariationalConv2d",
    "VariationalConv3d",
    "VariationalLinear",
]

Noise = Literal["A", "B"]
Rates = Literal["layer", "unit", "weight"]

_INITIAL_STD = 0.01  # of free posteriors, a tenth or so of usual weights


class Rate(nn.Module):
    r"""The rates :math:`\alpha` of a layer, learned or fixed.

    With a bound, :math:`\log\alpha = \log\alpha_\max - |\rho|`: a rate on the bound is at :math:`\rho = 0`, where the
    slope in :math:`\rho` is as steep as anywhere, so it comes down as fast as one below it; pushed up, it is reflected.

    Args:
        shape: Of the rates.
        alpha: Where all begin.
        max_alpha: The bound, or None.
        learn: Whether they are learned.
    """

    def __init__(self, shape: tuple[int, ...], alpha: float, max_alpha: float | None, learn: bool) -> None:
        super().__init__()
        self.max_alpha, self.learned = max_alpha, learn
        self._start = math.log(alpha) if max_alpha is None else max(math.log(max_alpha) - math.log(alpha), 0.0)
        start = torch.full(shape, self._start)
        if learn:
            self.rho = nn.Parameter(start)
        else:
            self.register_buffer("rho", start)

    def reset(self) -> None:
        """Back to where all begin."""
        with torch.no_grad():
            self.rho.fill_(self._start)

    def forward(self) -> Tensor:
        """Log alpha."""
        return below(self.rho, self.max_alpha)

    def extra_repr(self) -> str:
        """Size, bound, and whether it is learned."""
        bound = "" if self.max_alpha is None else f", alpha <= {self.max_alpha:g}"
        return f"{tuple(self.rho.shape)}{bound}{'' if self.learned else ', fixed'}"


class Stochastic(nn.Module):
    """What all layers with a posterior share: the noise, the rates, the divergence.

    Attributes:
        estimator: How noise is drawn: `counterflow.variational.estimating` changes it.
        sampling: Whether noise is drawn in eval mode too: `counterflow.variational.sample` sets it.
    """

    weight: Any
    bias: Any

    def set_up(
        self,
        noise: Noise,
        rates: Rates,
        p: float,
        learn: bool,
        max_alpha: float | None,
        prior: Prior,
        approximation: Approximation,
    ) -> None:
        """Check the arguments, and make the rates."""
        if noise not in ("A", "B"):
            raise InputError(f"noise must be 'A' or 'B', got {noise!r}")
        if rates not in ("layer", "unit", "weight"):
            raise InputError(f"rates must be 'layer', 'unit' or 'weight', got {rates!r}")
        if not isinstance(p, int | float) or isinstance(p, bool) or not 0 < p < 1:
            raise InputError(f"p must lie between 0 and 1, got {p!r}; alpha is p / (1 - p)")
        alpha = p / (1 - p)
        if max_alpha is not None and not (isinstance(max_alpha, int | float) and max_alpha > 0):
            raise InputError(f"max_alpha must be positive, or None for no bound, got {max_alpha!r}")
        if max_alpha is not None and alpha > max_alpha * (1 + 1e-6):
            raise InputError(f"p={p!r} is alpha={alpha:g}, above max_alpha={max_alpha:g}; lower p, or raise max_alpha")
        self.noise: Noise = noise
        self.rates: Rates = rates
        self.approximation: Approximation = approximation
        self.prior = resolve(prior)
        self.estimator: Estimator = "local"
        self.sampling = False
        if approximation not in ("exact", "polynomial", "sigmoid"):
            raise InputError(f"approximation must be exact, polynomial or sigmoid, got {approximation!r}")
        if self.prior is not None:
            if noise == "A":
                raise InputError("a prior other than 'log-uniform' needs noise='B': type A has scales, not weights")
            start = torch.full_like(self.weight, 2 * math.log(_INITIAL_STD))
            self.log_variance = nn.Parameter(start)
            return
        if noise == "A" and rates == "weight":
            raise InputError("rates='weight' needs noise='B': in type A all weights of an input unit share its noise")
        if approximation == "polynomial" and learn and (max_alpha is None or max_alpha > 1):
            raise InputError(
                f"approximation='polynomial' holds for alpha <= 1, but max_alpha={max_alpha!r}; take 'exact', or "
                "bound the rates"
            )
        shape: tuple[int, ...] = tuple(self.weight.shape)
        if rates == "layer":
            shape = ()
        elif rates == "unit":
            shape = (self.weight.shape[1] * self.groups_of(),) if noise == "A" else self._unit_shape()
        self.rate = Rate(shape, alpha, max_alpha, learn)
        self.rate.to(self.weight.device, self.weight.dtype)

    def share(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Take a plain layer's parameters for the means, and put the rates beside them."""
        self.weight, self.bias = weight, bias
        self.settle()

    def settle(self) -> None:
        """Make the rates on the weight's device, at their start."""
        weight = self.weight
        if self.prior is not None:
            start = torch.full_like(weight, 2 * math.log(_INITIAL_STD), requires_grad=False)
            self.log_variance = nn.Parameter(start)
        else:
            self.rate.to_empty(device=weight.device)
            self.rate.to(weight.dtype)
            self.rate.reset()

    def groups_of(self) -> int:
        """Groups of a convolution."""
        return 1

    def _unit_shape(self) -> tuple[int, ...]:
        return (1, self.weight.shape[1], *[1] * (self.weight.ndim - 2))

    @property
    def noisy(self) -> bool:
        """Whether a forward pass draws noise."""
        return (self.training or self.sampling) and self.estimator != "none"

    def log_alpha(self) -> Tensor:
        """The logarithm of the rates, shaped to go with the weight (type B) or the input units (type A)."""
        if self.prior is not None:
            ratio: Tensor = self.log_variance - self.weight.square().log()
            return ratio
        found: Tensor = self.rate()
        return found

    def product_with_noise(self, x: Tensor, product: Product, channels: int, rows: slice | None = None) -> Tensor:
        """What the layer makes of its inputs, without the bias; of some rows of its weight alone, where given."""
        own: Tensor = self.weight
        weight = own if rows is None else own[rows]

        def of_rows(each: Tensor) -> Tensor:
            return each if rows is None or each.ndim == 0 or len(each) != len(own) else each[rows]

        if not self.noisy:
            return product(x, weight)
        if self.noise == "A":
            shared = self.estimator == "per_minibatch"
            if not shared and product is F.linear and of_one_type(x, weight):
                return correlated(x, weight, self.rate.rho, self.rate.max_alpha)
            return product(scaled_inputs(x, self.rate(), channels, shared), weight)
        if self.prior is not None:
            variance = of_rows(self.log_variance).exp()
            if self.estimator == "local":
                return gaussian(x, weight, variance, product)
            deviation = variance.sqrt()
        else:
            rho = of_rows(self.rate.rho)
            if self.estimator == "local":
                return independent(x, weight, rho, self.rate.max_alpha, product)
            deviation = (0.5 * below(rho, self.rate.max_alpha)).exp() * weight
        draw = weights_of_batch if self.estimator == "per_minibatch" else weights_of_examples
        return draw(x, weight, deviation, product)

    def kl(self) -> Tensor:
        """The divergence of this layer's posterior from its prior, a sum: over weights (type B) or scales (type A)."""
        if isinstance(self.prior, GaussianPrior):
            return gaussian_kl(self.weight, self.log_variance, self.prior.std)
        if isinstance(self.prior, ScaleMixturePrior):
            return self.prior.kl(self.weight, self.log_variance)
        rho: Tensor = self.rate.rho
        units: int = self.weight.shape[1] * self.groups_of() if self.noise == "A" else self.weight.numel()
        return bounded_kl(rho, self.rate.max_alpha, self.approximation) * (units / rho.numel())

    def extra_repr(self) -> str:
        """The plain layer's, and the noise."""
        prior = "log-uniform" if self.prior is None else repr(self.prior)
        rates = "" if self.prior is not None else f", rates={self.rates}"
        return f"{super().extra_repr()}, noise={self.noise}{rates}, prior={prior}"


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

_KINDS: dict[type[nn.Module], type[Any]] = {
    nn.Linear: VariationalLinear,
    nn.modules.linear.NonDynamicallyQuantizableLinear: VariationalLinear,
    nn.Conv1d: VariationalConv1d,
    nn.Conv2d: VariationalConv2d,
    nn.Conv3d: VariationalConv3d,
}


def variational_layer(plain: nn.Module, options: dict[str, Any]) -> Any:
    """A layer with a posterior around a plain one's weights, which are not copied.

    Args:
        plain: Of a type in `_KINDS`.
        options: The keyword arguments of the new layer.

    Raises:
        InputError: If there is no such layer for its type.
    """
    kind = _KINDS.get(type(plain))
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


class GaussianDropout(nn.Module):
    r"""Multiplicative Gaussian noise at a fixed rate: dropout's smooth kin.

    .. math::
        \text{A:}\; y = x \circ \xi, \; \xi \sim N(1, \alpha), \qquad \alpha = \frac{p}{1 - p}

    Type A (Srivastava et al., 2014) is a layer by itself, put before a linear one. Type B (Wang and Manning, 2013)
    needs the weights that follow: ``GaussianDropout(p, type="B")`` wraps the layer, as in ``GaussianDropout(.5, "B",
    nn.Linear(8, 4))``.

    Args:
        p: The dropout rate, between 0 and 1; 0 is none.
        type: ``"A"`` (default) or ``"B"``.
        layer: Type B: the linear or convolutional layer whose inputs are dropped.

    Raises:
        InputError: If an argument is out of range, or a layer is missing or in excess.

    Example:
        >>> import torch
        >>> from counterflow.variational import GaussianDropout
        >>> drop = GaussianDropout(0.2)
        >>> drop(torch.ones(1000, 100)).std().round(decimals=1)
        tensor(0.5000)
    """

    def __init__(self, p: float = 0.5, type: Noise = "A", layer: nn.Module | None = None) -> None:
        super().__init__()
        if not isinstance(p, int | float) or isinstance(p, bool) or not 0 <= p < 1:
            raise InputError(f"p must lie between 0 (none) and 1, got {p!r}")
        if type not in ("A", "B"):
            raise InputError(f"type must be 'A' or 'B', got {type!r}")
        if (layer is not None) != (type == "B"):
            wanted = "needs the layer that follows, layer=nn.Linear(...)" if type == "B" else "stands before a layer"
            raise InputError(f"type={type!r} {wanted}")
        self.p, self.noise = p, type
        self.layer = layer
        if layer is not None:
            options = {"noise": "B", "rates": "layer", "p": p or 0.5, "learn": False, "max_alpha": None}
            self.layer = variational_layer(layer, options)
            self.layer.estimator = "none" if p == 0 else "local"

    def forward(self, x: Tensor) -> Tensor:
        """Inputs with noise (type A), or the layer's outputs with it (type B); without noise in eval mode."""
        if self.layer is not None:
            found: Tensor = self.layer(x)
            return found
        if not self.training or self.p == 0:
            return x
        return x * (1 + math.sqrt(self.p / (1 - self.p)) * standard_normal(x.shape, x))

    def extra_repr(self) -> str:
        """Rate and type."""
        return f"p={self.p}, type={self.noise!r}"
