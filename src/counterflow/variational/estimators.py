"""The estimators of section 2, and the variance of their gradients on any model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError, UnsupportedError
from counterflow.variational.noise import Estimator
from counterflow.variational.posterior import Stochastic

__all__ = ["estimating", "gradient_variance"]


@contextlib.contextmanager
def estimating(model: nn.Module, estimator: Estimator) -> Iterator[nn.Module]:
    """Draw a model's noise in one of section 2's ways while this is entered.

    Args:
        model: With layers that have a posterior.
        estimator: ``"local"``, the default of all layers: pre-activations are drawn. ``"per_datum"``: weights, one set
            an example, which for a linear layer is a row of its inputs; slow. ``"per_minibatch"``: weights, one set a
            batch. ``"none"``: the posterior means. Type A has scales for weights: its ``"local"`` is ``"per_datum"``.

    Raises:
        InputError: If there is no such estimator.
        UnsupportedError: If no layer has a posterior.

    Example:
        >>> import torch
        >>> from counterflow import variational
        >>> layer, x = variational.VariationalLinear(3, 2), torch.ones(4, 3)
        >>> with variational.estimating(layer, "per_minibatch"):
        ...     bool((layer(x) == layer(x)[0]).all()), bool(layer(x).std(0).max() == 0)
        (False, True)
    """
    if estimator not in get_args(Estimator):
        raise InputError(f"estimator must be one of {', '.join(get_args(Estimator))}, got {estimator!r}")
    layers = [module for module in model.modules() if isinstance(module, Stochastic)]
    if not layers:
        raise UnsupportedError(f"no layer of this {type(model).__name__} has a posterior")
    before = [layer.estimator for layer in layers]
    for layer in layers:
        layer.estimator = estimator
    try:
        yield model
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.estimator = was


def gradient_variance(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: Iterable[tuple[Any, Any]],
    estimator: Estimator = "local",
    *,
    data_size: int = 1,
    estimates: int | None = None,
    passes: int = 3,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Tensor]:
    r"""How far gradients of minibatches lie from the gradient of all data, parameter by parameter.

    .. math::
        v_b = \frac{1}{|\theta|}\,\bigl\| N \nabla_\theta \ell_b - N \nabla_\theta \ell \bigr\|^2

    with :math:`\ell_b` the mean loss of minibatch b and :math:`\ell` that of all data under the estimator's own noise:
    the mean of local estimates over all batches and several passes, or, with ``"none"``, exact. The mean of v over
    minibatches is what table 1 shows.

    Args:
        model: With layers that have a posterior; in training mode, noise and all. It is left as it was.
        loss_fn: ``loss_fn(model(x), y)``, the mean over the examples of a batch.
        data: Batches ``(x, y)`` of one size, a sequence that can be gone through several times.
        estimator: As in `estimating`.
        data_size: :math:`N`, for gradients of the sum over all data; 1 leaves the mean.
        estimates: How many batches are estimated from, from the first on; all by default.
        passes: Over the data for the full gradient, where there is noise.
        progress: Called with the number of estimates that are done.

    Returns:
        :math:`v_b` by the parameter's name, one number a minibatch.

    Raises:
        InputError: If there is no such estimator, or no data, or ``estimates`` or ``passes`` is not positive, or the
            model is in eval mode and the estimator one with noise.
        UnsupportedError: If no layer has a posterior, or no parameter requires a gradient.

    References:
        Kingma et al., NIPS 2015, section 5 and table 1.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from counterflow import variational
        >>> model = variational.VariationalLinear(5, 3)
        >>> data = [(torch.randn(50, 5), torch.randint(3, (50,))) for _ in range(20)]
        >>> found = {e: variational.gradient_variance(model, nn.functional.cross_entropy, data, e)["weight"].mean()
        ...          for e in ("none", "local")}
        >>> bool(found["none"] < found["local"])
        True
    """
    batches = list(data)
    if not batches:
        raise InputError("data is empty; gradient_variance needs batches (x, y)")
    for name, value in (("estimates", len(batches) if estimates is None else estimates), ("passes", passes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number >= 1, got {value!r}")
    layers = [module for module in model.modules() if isinstance(module, Stochastic)]
    if estimator != "none" and layers and not any(layer.training or layer.sampling for layer in layers):
        raise InputError(
            f"no layer of this {type(model).__name__} draws noise in eval mode; call model.train() first, or measure "
            "estimator='none'"
        )
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UnsupportedError(f"no parameter of this {type(model).__name__} requires a gradient")
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]  # running statistics, which training moves

    def gradient(kind: Estimator, batch: tuple[Any, Any]) -> list[Tensor]:
        with estimating(model, kind):
            loss = loss_fn(model(batch[0]), batch[1])
            # Inside, since activation checkpointing runs the layers once more.
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g * data_size for p, g in zip(parameters, found, strict=True)]

    steady: Estimator = "none" if estimator == "none" else "local"
    rounds = 1 if estimator == "none" else passes
    full = [torch.zeros_like(p) for p in parameters]
    variances: list[list[Tensor]] = []
    try:
        for _ in range(rounds):
            for batch in batches:
                for total, part in zip(full, gradient(steady, batch), strict=True):
                    total.add_(part, alpha=1 / (rounds * len(batches)))
        for number, batch in enumerate(batches[:estimates]):
            found = gradient(estimator, batch)
            variances.append([(part - mean).square().mean() for part, mean in zip(found, full, strict=True)])
            progress(number + 1)
    finally:
        with torch.no_grad():
            for buffer, was in before:
                buffer.copy_(was)
    return {name: torch.stack(of) for name, of in zip(names, zip(*variances, strict=True), strict=True)}
