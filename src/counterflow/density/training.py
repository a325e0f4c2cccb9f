"""Training of density nets: conjugate gradients on all sequences at once, as the paper's, or any torch optimizer.

Source: A. D. Brown, G. E. Hinton, "Relative Density Nets", NIPS 2001, section 6: 90 iterations of conjugate gradients.
The line search is SciPy's, not Rasmussen's, so that an iteration may take another number of evaluations: they are
reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from counterflow.density.nets import DensityNet, check_targets
from counterflow.exceptions import DivergenceError, InputError

__all__ = ["Training", "conjugate_gradients", "train"]


@dataclass(frozen=True)
class Training:
    """How a training went.

    Args:
        losses: Mean cross-entropy before the first iteration and after each, in nats.
        iterations: Iterations, each a line search or a step of the optimizer.
        evaluations: How often the loss and its gradient were computed.
        message: Why it ended.
    """

    losses: tuple[float, ...]
    iterations: int
    evaluations: int
    message: str


def conjugate_gradients(
    net: DensityNet,
    x: Tensor,
    lengths: Tensor | None,
    targets: Tensor,
    *,
    iterations: int = 90,
    callback: Callable[[int, float], None] | None = None,
) -> Training:
    r"""Minimize the mean cross-entropy (equation 10, over the sequences) by nonlinear conjugate gradients.

    Parameters that need no gradient are left as they are. SciPy's method (Polak and Ribiere) ends early where its line
    search finds nothing below; it is then started again from there, along the gradient, once for every such end.

    Args:
        net: The net, changed in place.
        x: Sequences, shape (batch, time, features).
        lengths: Frames of each, shape (batch,); None means all.
        targets: Classes, shape (batch,).
        iterations: Line searches.
        callback: Called after each with its number and the loss.

    Returns:
        Losses, evaluations, and why it ended.

    Raises:
        InputError, ShapeError: If an argument cannot be used.

    Example:
        >>> from counterflow.density import RelativeDensityNet
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(20, 15, 3, dtype=torch.float64)
        >>> y = torch.arange(20) % 2
        >>> x[y == 1] += 1.0
        >>> net = RelativeDensityNet(3, 2, 3, 2, dtype=torch.float64)
        >>> done = conjugate_gradients(net, x, None, y, iterations=10)
        >>> done.losses[-1] < 0.1 * done.losses[0]
        True
    """
    from scipy.optimize import minimize

    if iterations < 1:
        raise InputError(f"iterations must be 1 or more, got {iterations}")
    check_targets(targets, len(x), net.n_classes)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("no parameter of the net requires a gradient; there is nothing to train")
    evaluations = 0

    def place(flat: NDArray[np.float64]) -> None:
        at = 0
        with torch.no_grad():
            for parameter in parameters:
                part = torch.from_numpy(flat[at : at + parameter.numel()].copy())
                parameter.copy_(part.view_as(parameter))
                at += parameter.numel()

    def evaluate(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal evaluations
        evaluations += 1
        place(flat)
        # Far out along a line, variances may overflow: such a place is only to be left again.
        loss = F.cross_entropy(net(x, lengths), targets.to(x.device))
        gradients = torch.autograd.grad(loss, parameters)
        flat_gradient = torch.cat([each.detach().double().flatten().cpu() for each in gradients]).numpy()
        value = float(loss.detach())
        if not np.isfinite(value) or not np.isfinite(flat_gradient).all():
            return float("inf"), np.zeros_like(flat_gradient)
        return value, flat_gradient

    point = torch.cat([parameter.detach().double().flatten().cpu() for parameter in parameters]).numpy()
    losses = [evaluate(point)[0]]
    if not np.isfinite(losses[0]):
        raise InputError("the loss or its gradient is not finite where the training starts; initialize the net first")
    evaluations = 0
    message = "the iterations asked for were made"

    def after(intermediate_result: Any) -> None:
        losses.append(float(intermediate_result.fun))
        if callback is not None:
            callback(len(losses) - 1, losses[-1])

    while len(losses) - 1 < iterations:
        begun = len(losses)
        left = iterations - begun + 1
        with np.errstate(all="ignore"):
            found = minimize(
                evaluate, point, jac=True, method="CG", callback=after, options={"maxiter": left, "gtol": 1e-7}
            )
        point = found.x
        if found.status == 0:
            message = "the gradient is zero"
            break
        if found.status != 1 and len(losses) == begun:
            message = "no line search finds anything lower"
            break
    place(point)
    return Training(tuple(losses), len(losses) - 1, evaluations, message)


def train(
    net: DensityNet,
    x: Tensor,
    lengths: Tensor | None,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    iterations: int = 90,
    callback: Callable[[int, float], None] | None = None,
) -> Training:
    """Minimize the mean cross-entropy over all sequences by steps of an optimizer.

    Args:
        net: The net, changed in place.
        x: Sequences, shape (batch, time, features).
        lengths: Frames of each; None means all.
        targets: Classes, shape (batch,).
        optimizer: Any of torch's that holds the net's parameters; also L-BFGS, whose steps evaluate more than once.
        iterations: Steps.
        callback: Called after each with its number and the loss before it.

    Returns:
        Losses, evaluations, and why it ended.

    Raises:
        DivergenceError: If the loss of a step, or the last, is not finite.
        InputError, ShapeError: If an argument cannot be used.

    Example:
        >>> from counterflow.density import Alphanet
        >>> x, y = torch.randn(8, 10, 2), torch.arange(8) % 2
        >>> net = Alphanet(n_states=2, n_features=2, n_classes=2)
        >>> train(net, x, None, y, torch.optim.Adam(net.parameters()), iterations=5).evaluations
        5
    """
    if iterations < 1:
        raise InputError(f"iterations must be 1 or more, got {iterations}")
    check_targets(targets, len(x), net.n_classes)
    evaluations = 0

    def closure() -> float:
        nonlocal evaluations
        evaluations += 1
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x, lengths), targets.to(x.device))
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    losses: list[float] = []

    def note(loss: float) -> None:
        if not math.isfinite(loss):
            rate = max(group["lr"] for group in optimizer.param_groups)
            raise DivergenceError(
                f"training diverged: the loss is {loss} after {len(losses)} steps at a rate of {rate:g}; lower it"
            )
        losses.append(loss)

    for number in range(iterations):
        note(float(optimizer.step(closure)))
        if callback is not None:
            callback(number + 1, losses[-1])
    with torch.no_grad():
        note(float(F.cross_entropy(net(x, lengths), targets.to(x.device))))
    return Training(tuple(losses), iterations, evaluations, "the iterations asked for were made")
