"""Predictions as samples: what a posterior says of its own uncertainty."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError, ShapeError, UnsupportedError
from counterflow.variational.posterior import Stochastic

__all__ = ["Draws", "sample"]

Link = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Draws:
    """Samples of a prediction.

    Args:
        values: ``(n, batch, ...)``: probabilities with a link, outputs without.
        link: What made probabilities of outputs.
    """

    values: Tensor
    link: Link | None

    @property
    def mean(self) -> Tensor:
        """The predictive mean, ``(batch, ...)``."""
        return self.values.mean(0)

    @property
    def variance(self) -> Tensor:
        """The variance over samples, ``(batch, ...)``; 0 for one sample."""
        return self.values.var(0, correction=min(1, len(self.values) - 1))

    @property
    def entropy(self) -> Tensor:
        """The entropy of the predictive mean in nats, which is all uncertainty, ``(batch, ...)`` without the classes.

        Raises:
            UnsupportedError: Without a link, outputs are no probabilities.
        """
        return self._entropy(self.mean)

    @property
    def mutual_information(self) -> Tensor:
        """That of prediction and weights, in nats, the uncertainty that more data would remove; never below 0.

        Raises:
            UnsupportedError: Without a link, outputs are no probabilities.
        """
        return (self.entropy - self._entropy(self.values).mean(0)).clamp_min(0.0)

    def _entropy(self, p: Tensor) -> Tensor:
        if self.link is None:
            raise UnsupportedError("without a link there are no probabilities; call sample(..., link='softmax')")
        if self.link == "softmax":
            return -torch.xlogy(p, p).sum(-1)
        return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))


@contextlib.contextmanager
def _sampling(model: nn.Module) -> Iterator[None]:
    """Noise in the layers with a posterior, and eval mode in all others; no fast path that would go past them."""
    layers = [module for module in model.modules() if isinstance(module, Stochastic)]
    if not layers:
        raise UnsupportedError(f"no layer of this {type(model).__name__} has a posterior to draw from")
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    for layer in layers:
        layer.sampling = True
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for layer in layers:
            layer.sampling = False
        for module, mode in modes.items():
            module.training = mode


def sample(
    model: nn.Module, x: Any, n: int = 64, *, link: Link | None = "softmax", at_once: int | None = None
) -> Draws:
    r"""Draw from the predictive distribution :math:`p(y|x) = \int p(y|x, w) q(w) dw`.

    The batch is repeated and goes through the model once, noise and all: local reparameterization makes every row a
    sample by itself. Everything else is in eval mode: dropout is off, batch normalization uses its running statistics.

    Args:
        model: With layers that have a posterior; it is left in the mode that it was in.
        x: A batch, ``(batch, ...)``.
        n: Samples.
        link: ``"softmax"`` over the last dimension (default) or ``"sigmoid"`` makes probabilities of outputs; None
            leaves them as they are, for regression.
        at_once: Samples in one pass; all by default. Fewer need less memory. With the estimator ``"per_minibatch"``,
            whose rows share their weights, it is one.

    Returns:
        `Draws`: ``.values``, ``.mean``, ``.variance``, ``.entropy``, ``.mutual_information``.

    Raises:
        InputError: If ``n`` or ``at_once`` is not positive, or the link is not known.
        ShapeError: If the model does not give one tensor with a row for each example.
        UnsupportedError: If no layer has a posterior.

    Example:
        >>> import torch, counterflow as cf
        >>> model = cf.make_variational(torch.nn.Linear(4, 3)).model
        >>> draws = cf.variational.sample(model, torch.randn(5, 4), n=100)
        >>> draws.mean.shape, bool((draws.mutual_information <= draws.entropy).all())
        (torch.Size([5, 3]), True)
    """
    for name, value in (("n", n), ("at_once", n if at_once is None else at_once)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number >= 1, got {value!r}")
    if link not in ("softmax", "sigmoid", None):
        raise InputError(f"link must be 'softmax', 'sigmoid' or None, got {link!r}")
    if not isinstance(x, Tensor) or x.ndim < 1:
        raise InputError(f"x must be a tensor with a batch dimension, got {type(x).__name__}")
    size = n if at_once is None else at_once
    if any(isinstance(layer, Stochastic) and layer.estimator == "per_minibatch" for layer in model.modules()):
        size = 1  # all rows of a pass share their weights
    pieces = []
    with _sampling(model), torch.no_grad():
        for first in range(0, n, size):
            count = min(size, n - first)
            y = model(x.repeat(count, *[1] * (x.ndim - 1)))
            if not isinstance(y, Tensor) or len(y) != count * len(x):
                got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
                raise ShapeError(f"the model must give a tensor with a row for each of {count * len(x)}, got {got}")
            pieces.append(torch.unflatten(y, 0, (count, len(x))))
    values = torch.cat(pieces)
    if link is not None:
        values = values.softmax(-1) if link == "softmax" else values.sigmoid()
    return Draws(values, link)
