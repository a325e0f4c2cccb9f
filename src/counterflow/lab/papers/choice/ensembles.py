"""Training an ensemble by each of the paper's methods, on any task: what the three problem domains share.

All methods get the same batches, the same initial weights for equal seeds and member numbers, and the same number of
updates; the plain ensemble is ``k`` equal to the number of members, whose first m members are the ensemble of size m.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import counterflow as cf
from counterflow.choice import Round, train_alternating, train_in_turn
from counterflow.lab.loop import Batches, Curves, points, train
from counterflow.lab.trials import Context

__all__ = ["Part", "Problem", "alternate", "fit", "in_turn"]

LOOKS = 16  # points of a curve


class Part(Context):
    """A part of a trial, with a folder of its own; its progress is a share of the whole's.

    Args:
        whole: The trial's context.
        name: Of the folder.
        start: Where in the whole it begins, from 0 to 1.
        share: How much of it it is.
    """

    def __init__(self, whole: Context, name: str, start: float, share: float) -> None:
        folder = Path(whole.folder) / name
        folder.mkdir(exist_ok=True)
        super().__init__(folder, whole.device)
        self._whole, self._name, self._start, self._share = whole, name, start, share

    def progress(self, fraction: float, note: str = "") -> None:
        """Tell the whole."""
        self._whole.progress(self._start + self._share * fraction, f"{self._name}: {note}")


def _constant(share: float) -> float:
    """A rate that stays."""
    return 1.0


@dataclass(frozen=True)
class Problem:
    """A task that ensembles are trained on.

    Args:
        batches: Numbers of examples, update by update.
        batch: From such numbers to inputs and targets.
        loss: Per-example losses of a member's output.
        optimizer: Makes one for some parameters of a module.
        updates: Of a full schedule.
        rate: What the learning rates are multiplied by, from the share of the schedule that is done.
        losses: Members' losses on a few training examples, ``(members, examples)``, for the curves.
        examples: How many training examples there are.
    """

    batches: Batches
    batch: Callable[[Tensor], tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor]
    optimizer: Callable[[nn.Module], Optimizer]
    updates: int
    losses: Callable[[cf.MultipleChoice], Tensor]
    examples: int
    rate: Callable[[float], float] = _constant


class _Counting(nn.Module):
    """An ensemble and how many examples have been through a backward pass, to be kept together."""

    def __init__(self, ensemble: cf.MultipleChoice) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.rows: Tensor
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))


def fit(
    ensemble: cf.MultipleChoice,
    problem: Problem,
    context: Context,
    weights: Tensor | Callable[[Tensor, float], Tensor] | None = None,
    first: int = 0,
    updates: int | None = None,
    factor: float = 1.0,
) -> Curves:
    """Train an ensemble by its own k, or by weights.

    Args:
        ensemble: Trained in place.
        problem: The task.
        context: Where checkpoints go.
        weights: What each training example counts for each member, ``(members, examples)``, or a function from a
            batch's losses and the share of the schedule that is done to what its examples count.
        first: The number of the first update, for the batches of a later stage to be others.
        updates: How many; the problem's by default.
        factor: Of the learning rates.

    Returns:
        Curves over updates: ``error``, the oracle loss of the problem's few examples, and over the updates since the
        last point each member's ``usage``, ``weight`` and ``gradient``, and the ``entropy`` and number of ``dead``
        members; ``rows``, how many examples have been through a backward pass.
    """
    total = problem.updates if updates is None else updates
    module, optimizer = _Counting(ensemble), problem.optimizer(ensemble)
    bases = [group["lr"] for group in optimizer.param_groups]
    steps: list[cf.choice.Step] = []

    def learn(update: int) -> None:
        rows = torch.from_numpy(problem.batches[first + update])
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            group["lr"] = base * factor * problem.rate(update / total)
        x, y = problem.batch(rows)
        given: Tensor | Callable[[Tensor], Tensor] | None = None
        if isinstance(weights, Tensor):
            given = weights[:, rows]
        elif weights is not None:
            given = _at(weights, update / total)
        step = ensemble.step(x, y, problem.loss, weights=given)
        module.rows += int(step.winners.sum())
        steps.append(step)

    def look() -> dict[str, float]:
        with torch.no_grad():
            losses = problem.losses(ensemble)
        found = {"error": float(losses.min(0).values.mean()), "rows": float(module.rows)}
        found |= _state(steps, len(ensemble.members))
        steps.clear()
        return found

    return train(module, optimizer, learn, look, points(total, min(LOOKS, total)), context)


def _at(weights: Callable[[Tensor, float], Tensor], share: float) -> Callable[[Tensor], Tensor]:
    """The weights of one update."""
    return lambda losses: weights(losses, share)


def _state(steps: list[cf.choice.Step], members: int) -> dict[str, float]:
    """What has been observed of the members; not a number before the first step."""
    if not steps:
        names = [f"{word} {m}" for m in range(members) for word in ("usage", "weight", "gradient")]
        return dict.fromkeys(["entropy", "dead", *names], float("nan"))
    wins = torch.stack([step.winners.sum(1) for step in steps]).sum(0).double()
    usage = wins / wins.sum().clamp(min=1)
    weight = torch.stack([step.mean_weight for step in steps]).mean(0)
    norms = torch.stack([step.gradient_norms for step in steps]).mean(0)
    found = {"entropy": float(torch.special.entr(usage).sum()), "dead": float((wins == 0).sum())}
    for m in range(members):
        found |= {f"usage {m}": float(usage[m]), f"weight {m}": float(weight[m]), f"gradient {m}": float(norms[m])}
    return found


def alternate(
    ensemble: cf.MultipleChoice,
    problem: Problem,
    context: Context,
    measure: Callable[[cf.MultipleChoice], Tensor],
    rounds: int,
    restart: Callable[[int], None] | None = None,
) -> tuple[list[Round], list[Curves]]:
    """Multiple choice learning: each round trains by a full schedule on the assignment that it found at its start.

    Args:
        ensemble: Trained in place.
        problem: The task.
        context: The trial's.
        measure: All members' losses on all training examples.
        rounds: Meta-iterations.
        restart: Gives the members fresh weights for a round; by default they go on from the last.
    """
    curves: list[Curves] = []

    def learn(weights: Tensor) -> None:
        number = len(curves)
        if restart is not None and number:
            restart(number)
        part = Part(context, f"round {number + 1}", number / rounds, 1 / rounds)
        curves.append(fit(ensemble, problem, part, weights, first=number * problem.updates))

    return train_alternating(lambda: measure(ensemble), learn, rounds), curves


def in_turn(
    members: list[nn.Module],
    problem: Problem,
    context: Context,
    measure: Callable[[nn.Module], Tensor],
    trunk: nn.Module | None = None,
) -> tuple[Round, list[Curves]]:
    """The method of Dey and others: each member has an optimizer of its own, so that none moves when its turn is over.

    Args:
        members: Trained in place, in this order.
        problem: The task; its batches are the same for all members.
        context: The trial's.
        measure: A member's metric on all training examples, between 0 and 1.
        trunk: Of the members; it does not learn.
    """
    curves: list[Curves] = []

    def learn(weights: Tensor) -> None:
        number = len(curves)
        part = Part(context, f"member {number + 1}", number / len(members), 1 / len(members))
        alone = cf.MultipleChoice([members[number]], trunk)
        curves.append(fit(alone, problem, part, weights[number : number + 1]))

    found = train_in_turn(len(members), problem.examples, lambda member: measure(members[member]), learn)
    return found, curves
