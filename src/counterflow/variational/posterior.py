"""What makes a layer's weights a posterior: means, rates or variances, noise of both types, and the divergence."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from counterflow.exceptions import InputError
from counterflow.variational.correlated import correlated, scaled_inputs
from counterflow.variational.divergence import Approximation, bounded_kl, gaussian_kl
from counterflow.variational.loops import of_one_type
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

__all__ = ["Noise", "Rate", "Rates", "Stochastic"]

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
        if max_alpha is not None and not (isinstance(max_alpha, int | float) and 0 < max_alpha < math.inf):
            raise InputError(f"max_alpha must be positive and finite, or None for no bound, got {max_alpha!r}")
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
            if not learn:
                raise InputError(
                    "learn=False needs prior='log-uniform': the variances of a Gaussian posterior are learned"
                )
            self.settle()
            return
        if noise == "A" and rates == "weight":
            raise InputError("rates='weight' needs noise='B': in type A all weights of an input unit share its noise")
        if approximation == "polynomial" and (max_alpha is None or max_alpha > 1):
            raise InputError(
                f"approximation='polynomial' holds for alpha <= 1, but max_alpha={max_alpha!r}; take 'exact', or "
                "bound the rates"
            )
        shape: tuple[int, ...] = tuple(self.weight.shape)
        groups = self.groups_of()
        if rates == "layer":
            shape = ()
        elif rates == "unit":
            shape = (shape[1] * groups,) if noise == "A" else (groups, shape[1], *[1] * len(shape[2:]))
        self.rate = Rate(shape, alpha, max_alpha, learn)
        self.settle()

    def share(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Take a plain layer's parameters for the means, and put the rates beside them."""
        self.weight, self.bias = weight, bias
        self.settle()

    def settle(self) -> None:
        """Put the rates, or the variances, where the weight is, at their start."""
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

    def scales(self) -> int:
        """How many scales type A draws for an example: one an input unit."""
        units: int = self.weight.shape[1] * self.groups_of()
        return units

    def _over_groups(self, rates: Tensor) -> Tensor:
        """Rates of type B to go with the weight: those of a group's input channels for all of its outputs."""
        groups = self.groups_of()
        if groups == 1 or self.rates != "unit":
            return rates
        return rates.unsqueeze(1).expand(-1, len(self.weight) // groups, *rates.shape[1:]).flatten(0, 1)

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
        return found if self.noise == "A" else self._over_groups(found)

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
            rho = of_rows(self._over_groups(self.rate.rho))
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
        terms: int = self.scales() if self.noise == "A" else self.weight.numel()
        return bounded_kl(rho, self.rate.max_alpha, self.approximation) * (terms / rho.numel())

    def extra_repr(self) -> str:
        """The plain layer's, and the noise."""
        prior = "log-uniform" if self.prior is None else repr(self.prior)
        rates = "" if self.prior is not None else f", rates={self.rates}"
        return f"{super().extra_repr()}, noise={self.noise}{rates}, prior={prior}"
