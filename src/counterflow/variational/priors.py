"""Priors of the weights, and what each asks of the posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from counterflow.exceptions import InputError

__all__ = ["GaussianPrior", "Prior", "ScaleMixturePrior"]


@dataclass(frozen=True)
class GaussianPrior:
    r""":math:`N(0, \sigma^2)` for every weight; the posterior is a Gaussian with its own mean and variance.

    Args:
        std: :math:`\sigma`, > 0.

    Raises:
        InputError: If it is not positive.

    Example:
        >>> from counterflow.variational import GaussianPrior
        >>> GaussianPrior(0.1).std
        0.1
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0 or not math.isfinite(self.std):
            raise InputError(f"std must be positive and finite, got {self.std!r}")


@dataclass(frozen=True)
class ScaleMixturePrior:
    r""":math:`\pi N(0, \sigma_1^2) + (1 - \pi) N(0, \sigma_2^2)`, the prior of "Bayes by backprop".

    Its divergence has no closed form; it is estimated with one sample of the weights a call.

    Args:
        share: :math:`\pi`, between 0 and 1.
        std1: :math:`\sigma_1`, > 0; 1 by default.
        std2: :math:`\sigma_2`, > 0; 0.0025 by default.

    Raises:
        InputError: If one is out of range.

    References:
        Blundell et al., "Weight Uncertainty in Neural Networks", ICML 2015, equation 7.

    Example:
        >>> from counterflow.variational import ScaleMixturePrior
        >>> ScaleMixturePrior().share
        0.5
    """

    share: float = 0.5
    std1: float = 1.0
    std2: float = 0.0025

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"share must lie between 0 and 1, got {self.share!r}")
        for name in ("std1", "std2"):
            if not getattr(self, name) > 0 or not math.isfinite(getattr(self, name)):
                raise InputError(f"{name} must be positive and finite, got {getattr(self, name)!r}")

    def log_density(self, weight: Tensor) -> Tensor:
        """The sum of log p(w), elementwise mixtures."""
        parts = [
            (math.log(share) if share else -math.inf)
            - 0.5 * (weight / std).square()
            - math.log(std * math.sqrt(2 * math.pi))
            for share, std in ((self.share, self.std1), (1 - self.share, self.std2))
        ]
        return torch.logaddexp(*parts).sum()

    def kl(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """One sample of the divergence from N(mean, variance)."""
        noise = torch.randn_like(mean)
        weight = mean + (0.5 * log_variance).exp() * noise
        log_q = -0.5 * (noise.square() + log_variance + math.log(2 * math.pi)).sum()
        return log_q - self.log_density(weight)


Prior = Literal["log-uniform", "gaussian", "scale-mixture"] | GaussianPrior | ScaleMixturePrior


def resolve(prior: Prior) -> GaussianPrior | ScaleMixturePrior | None:
    """The prior that is meant; None is the log-uniform one."""
    if prior == "log-uniform":
        return None
    if prior == "gaussian":
        return GaussianPrior()
    if prior == "scale-mixture":
        return ScaleMixturePrior()
    if isinstance(prior, GaussianPrior | ScaleMixturePrior):
        return prior
    raise InputError(
        f"prior must be 'log-uniform', 'gaussian', 'scale-mixture', a GaussianPrior or a ScaleMixturePrior, "
        f"got {prior!r}"
    )
