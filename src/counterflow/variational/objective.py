"""The variational objective: the divergence of a whole model, and the bound as a loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError, ShapeError, UnsupportedError
from counterflow.variational.posterior import Stochastic

__all__ = ["Bound", "elbo", "kl", "warm_up"]


def stochastic_layers(model: nn.Module) -> Iterator[tuple[str, Stochastic]]:
    """The layers with a posterior, each once: of those that share a weight, the first."""
    seen = set()
    for name, module in model.named_modules():
        if isinstance(module, Stochastic) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield name, module


def kl(model: nn.Module) -> Tensor:
    """The divergence of a model's posterior from its prior: a sum over all layers with a posterior.

    Over weights in type B, over the scales of input units in type A (section 3.3). Weights that layers share count
    once. Fixed rates add a constant.

    Args:
        model: With layers that have a posterior.

    Returns:
        A number.

    Raises:
        UnsupportedError: If it has none.

    Example:
        >>> import torch
        >>> from counterflow import variational
        >>> layer = variational.VariationalLinear(20, 5, rates="weight")
        >>> bool(torch.isclose(variational.kl(layer), 100 * variational.dropout_kl(torch.zeros(()))))
        True
    """
    found = [layer.kl() for _, layer in stochastic_layers(model)]
    if not found:
        raise UnsupportedError(
            f"no layer of this {type(model).__name__} has a posterior; make them with cf.make_variational(model)"
        )
    return torch.stack(found).sum()


@dataclass(frozen=True)
class Bound:
    """A loss and its parts, all an example.

    Args:
        loss: What is minimized: the negative variational bound over the number of examples.
        nll: The mean negative log-likelihood of the batch.
        kl: The divergence over the number of examples, before its weight.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor


def elbo(nll: Tensor, model: nn.Module, *, data_size: int, kl_weight: float | Tensor = 1.0) -> Bound:
    r"""The variational bound (equations 1 to 3 and 12) as a loss an example.

    .. math::
        \mathrm{loss} = \frac{1}{M}\sum_{i=1}^M -\log p(y_i | x_i, w) \; + \; \frac{\lambda}{N}\,
        D_{KL}\bigl(q(w) \,\|\, p(w)\bigr)

    Args:
        nll: Negative log-likelihoods of a batch, one an example, ``(batch,)``: a loss with ``reduction="none"``.
        model: The model that they come from.
        data_size: :math:`N`, the examples of the whole training set, not of the batch.
        kl_weight: :math:`\lambda`: 1 is the bound, 1/3 the paper's A2; `warm_up` raises it step by step.

    Returns:
        A `Bound`: ``.loss``, ``.nll``, ``.kl``.

    Raises:
        InputError: If ``data_size`` is smaller than the batch, or ``kl_weight`` negative.
        ShapeError: If ``nll`` is not one number an example: a mean would hide how many.
        UnsupportedError: If no layer has a posterior.

    References:
        Kingma et al., NIPS 2015, sections 2 and 3.3.

    Example:
        >>> import torch, counterflow as cf
        >>> model = cf.make_variational(torch.nn.Linear(4, 3)).model
        >>> x, y = torch.randn(8, 4), torch.randint(3, (8,))
        >>> nll = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> bound = cf.variational.elbo(nll, model, data_size=1000)
        >>> bool(torch.isclose(bound.loss, bound.nll + bound.kl))
        True
    """
    if not isinstance(nll, Tensor) or nll.ndim != 1:
        got = tuple(nll.shape) if isinstance(nll, Tensor) else type(nll).__name__
        raise ShapeError(
            f"nll must hold one number an example, (batch,), got {got}; use reduction='none', and sum "
            "over what an example has"
        )
    if isinstance(data_size, bool) or not isinstance(data_size, int) or data_size < 1:
        raise InputError(f"data_size must be the number of training examples, got {data_size!r}")
    if data_size < len(nll):
        raise InputError(
            f"data_size={data_size} is less than the batch of {len(nll)}: it is the whole training set's size"
        )
    if not isinstance(kl_weight, Tensor) and not kl_weight >= 0:
        raise InputError(f"kl_weight must not be negative, got {kl_weight!r}")
    likelihood, divergence = nll.mean(), kl(model) / data_size
    return Bound(likelihood + kl_weight * divergence, likelihood, divergence)


def warm_up(step: int, over: int) -> float:
    """A weight for the divergence that rises from 0 to 1.

    Args:
        step: The update that comes, from 0.
        over: After how many updates it is 1.

    Raises:
        InputError: If ``over`` is not positive.

    Example:
        >>> from counterflow.variational import warm_up
        >>> [warm_up(step, over=4) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    if not over > 0:
        raise InputError(f"over must be positive, got {over!r}")
    return min(1.0, step / over)
