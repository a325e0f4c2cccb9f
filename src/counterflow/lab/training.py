"""Training loops that papers share: several restarts of one model as one batched computation.

The model that a method was attached to serves as a template: its parameters are stacked, one row a restart,
and its backward pass, taps and adjoints included, is mapped over the rows by `torch.func.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from counterflow.exceptions import InputError

__all__ = ["Restarts", "stack_restarts", "train_restarts"]

Groups = list[dict[str, Any]]


def stack_restarts(models: Sequence[nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters of equal models as leaves with a first dimension of restarts.

    Args:
        models: One a restart, equal in all but their numbers.

    Returns:
        Name to parameter of shape (restarts, ...).
    """
    rows = [dict(model.named_parameters()) for model in models]
    return {name: nn.Parameter(torch.stack([row[name].detach() for row in rows])) for name in rows[0]}


@dataclass(frozen=True)
class Restarts:
    """What `train_restarts` found.

    Args:
        epochs: One entry a restart: after how many updates the goal was reached; None where it never was.
        losses: The mean loss over the restarts that were still learning, epoch by epoch.
    """

    epochs: list[int | None]
    losses: list[float]


def train_restarts(
    template: nn.Module,
    params: Mapping[str, nn.Parameter],
    groups: Groups,
    batch: Sequence[Tensor],
    loss: Callable[[Any, Tensor], Tensor],
    optimizer: Callable[[Groups], torch.optim.Optimizer],
    goal: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    max_epochs: int,
    progress: Callable[[int, int], None] = lambda epoch, left: None,
) -> Restarts:
    """Batch learning of all restarts at once, each until it reaches its goal.

    A restart that reaches the goal, or whose loss is no longer finite, is done; its row leaves the batch together with
    others, when half of the rows are done.

    Args:
        template: The model with whatever is attached to it; its own numbers are not used or changed.
        params: As `stack_restarts` returns them; trained in place.
        groups: The template's parameters in groups for the optimizer, as a handle's ``param_groups`` gives them.
        batch: Inputs, then targets: tensors whose first dimension counts restarts.
        loss: Maps (outputs, targets) of one restart to its scalar loss, whose gradient is followed.
        optimizer: Makes the optimizer from groups of stacked parameters.
        goal: Maps (losses, params) to a boolean a restart; asked before each update.
        max_epochs: How many updates at the most.
        progress: Called with the epoch and how many restarts are left.

    Returns:
        A `Restarts`.

    Raises:
        InputError: If the groups do not hold the template's parameters.
    """
    names = {id(p): name for name, p in template.named_parameters()}
    try:
        stacked = [{**g, "params": [params[names[id(p)]] for p in g["params"]]} for g in groups]
    except KeyError as error:
        raise InputError("groups must hold the template's own parameters and nothing else") from error
    update = optimizer(stacked)
    *inputs, targets = batch
    count = len(targets)
    epochs: list[int | None] = [None] * count
    losses: list[float] = []
    rows = torch.arange(count)  # which restart each row of the batch is
    left = torch.ones(count, dtype=torch.bool)  # which rows still learn

    def objective(values: Mapping[str, Tensor], targets: Tensor, *inputs: Tensor) -> Tensor:
        return loss(functional_call(template, dict(values), tuple(inputs)), targets)

    def look(
        values: Mapping[str, Tensor], targets: Tensor, *inputs: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        gradient, value = vmap(grad_and_value(objective))(values, targets, *inputs)
        return gradient, value, goal(value, values)

    traced = None
    for epoch in range(max_epochs + 1):
        if traced is None:
            values = {name: p.detach() for name, p in params.items()}
            # Traced once a shape: the graph runs the same operations without vmap's cost in Python, which
            # on a small net is most of the time.
            traced = make_fx(look)(values, targets, *inputs)
        gradient, value, reached = traced(values, targets, *inputs)
        leaving = left & (reached | ~value.isfinite())
        losses.append(float(value[left].nanmean()))
        if bool(leaving.any()):
            for row in torch.nonzero(left & reached).flatten().tolist():
                epochs[int(rows[row])] = epoch
            left = left & ~leaving
            if not bool(left.any()):
                break
            if 2 * int(left.sum()) <= len(rows):  # tracing costs as much as hundreds of epochs of a few rows
                rows, targets, inputs = rows[left], targets[left], [x[left] for x in inputs]
                gradient = {name: g[left] for name, g in gradient.items()}
                _keep_rows(params, update, left)
                left = left[left]
                traced = None
        for name, p in params.items():
            p.grad = gradient[name]
        update.step()
        progress(epoch, int(left.sum()))
    return Restarts(epochs, losses)


def _keep_rows(params: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, keep: Tensor) -> None:
    """Drop finished restarts from the parameters and from whatever the optimizer remembers of them."""
    for p in params.values():
        for key, value in optimizer.state[p].items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                optimizer.state[p][key] = value[keep]
        p.data = p.data[keep]
