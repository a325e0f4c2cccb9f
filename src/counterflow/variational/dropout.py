"""Gaussian dropout by itself, at a fixed rate."""

from __future__ import annotations

import math

from torch import Tensor, nn

from counterflow.exceptions import InputError
from counterflow.handle import why_kept
from counterflow.variational.layers import variational_layer
from counterflow.variational.loops import standard_normal
from counterflow.variational.posterior import Noise

__all__ = ["GaussianDropout"]


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
        InputError: If an argument is out of range, a layer is missing or in excess, or hooks on it would be lost.

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
        reason = why_kept(layer) if layer is not None and p else ""
        if reason:
            raise InputError(f"layer ({layer.__class__.__name__}) cannot be wrapped: {reason}")
        self.p, self.noise = p, type
        self.layer = layer
        if layer is not None:
            options = {"noise": "B", "rates": "layer", "p": p or 0.5, "learn": False, "max_alpha": None}
            noisy = variational_layer(layer, options)
            self.layer = noisy if p else layer  # without noise there is no posterior, which others would find and draw

    @property
    def noisy(self) -> bool:
        """Whether a forward pass draws noise here; a layer of its own says so itself."""
        return self.layer is None and self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        """Inputs with noise (type A), or the layer's outputs with it (type B); without noise in eval mode."""
        if self.layer is not None:
            found: Tensor = self.layer(x)
            return found
        if not self.noisy:
            return x
        return x * (1 + math.sqrt(self.p / (1 - self.p)) * standard_normal(x.shape, x))

    def extra_repr(self) -> str:
        """Rate and type."""
        return f"p={self.p}, type={self.noise!r}"
