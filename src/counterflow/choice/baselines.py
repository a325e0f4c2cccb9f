"""The ways to train an ensemble that multiple choice learning is compared with, on the same step.

The plain ensemble needs no function: ``k`` equal to the number of members. A warm start is that first, and ``k = 1``
from then on. Relaxed and annealed forms are weights: `counterflow.choice.relaxed`, `counterflow.choice.annealed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from counterflow.choice.oracle import winners
from counterflow.exceptions import InputError, ShapeError

__all__ = ["Round", "train_alternating", "train_in_turn"]


@dataclass(frozen=True)
class Round:
    """What the members were given to learn in a round.

    Args:
        weights: What each example counted for each member, ``(members, examples)``.
        measured: Losses, or metrics for `train_in_turn`, that the weights come from, of the same shape.
    """

    weights: Tensor
    measured: Tensor

    @property
    def mean_weight(self) -> Tensor:
        """What an example counts for each member on average, ``(members,)``."""
        return self.weights.mean(1)

    @property
    def usage(self) -> Tensor:
        """The share of all weight that each member has, ``(members,)``."""
        return self.weights.sum(1) / self.weights.sum()

    @property
    def entropy(self) -> Tensor:
        """The entropy of the usage in nats."""
        entropy: Tensor = torch.special.entr(self.usage).sum()
        return entropy

    @property
    def dead(self) -> list[int]:
        """The members that have nothing to learn."""
        return (~(self.weights > 0).any(1)).nonzero().flatten().tolist()


def train_alternating(
    measure: Callable[[], Tensor], train: Callable[[Tensor], None], rounds: int = 5, k: int = 1
) -> list[Round]:
    """Multiple choice learning as it was before the stochastic form: assign all examples, train, and assign again.

    Args:
        measure: Gives the members' losses on all training examples, ``(members, examples)``.
        train: Trains the members to convergence with the weights that it is given, ``(members, examples)``: in each
            step ``ensemble.step(x[rows], y[rows], loss_fn, weights=weights[:, rows])``.
        rounds: Meta-iterations.
        k: To how many members an example goes.

    Returns:
        One entry a round.

    Raises:
        InputError: If there is no round, and as in `winners`.

    References:
        Guzman-Rivera and others (2012), Multiple choice learning; Lee and others (2016), section 4 and algorithm 1.

    Example:
        >>> losses = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
        >>> [round] = train_alternating(lambda: losses, lambda weights: None, rounds=1)
        >>> round.weights.tolist(), round.dead
        ([[1.0, 0.0], [0.0, 1.0]], [])
    """
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; at least one is needed")
    done = []
    for _ in range(rounds):
        losses = measure()
        weights = winners(losses, k).to(losses.dtype)
        train(weights)
        done.append(Round(weights, losses.detach()))
    return done


def train_in_turn(
    members: int, examples: int, measure: Callable[[int], Tensor], train: Callable[[Tensor], None]
) -> Round:
    r"""Train one member after the other on what those before it do badly.

    .. math::  w_{i,m} = 1 - \max_{m' < m} a_{i,m'}

    with the metric :math:`a` between 0 and 1. As the best metric grows the weights shrink, and with them the error of
    later members: the returned round's ``mean_weight`` shows it.

    Args:
        members: How many.
        examples: How many.
        measure: Gives a member's metric on all training examples, ``(examples,)``, between 0 and 1: whether it is
            right, the intersection over union, or CIDEr-D over 10.
        train: Trains with the weights that it is given, ``(members, examples)``, zero but for the member whose turn it
            is. Give that member an optimizer of its own, and step it alone:
            ``MultipleChoice([member]).step(x[rows], y[rows], loss_fn, weights=weights[turn : turn + 1, rows])``. With
            one optimizer for all, weight decay and momentum would go on to move members whose turn is over.

    Returns:
        The weights and metrics of all members.

    Raises:
        ShapeError: If the metric has not one number an example.
        InputError: If a metric is not between 0 and 1, or there is no member or example.

    References:
        Dey and others (2015), Predicting multiple structured visual interpretations; Lee and others (2016), section 4.

    Example:
        >>> metrics = torch.tensor([[1.0, 0.25], [0.0, 0.5]])
        >>> train_in_turn(2, 2, lambda member: metrics[member], lambda weights: None).weights
        tensor([[1.0000, 1.0000],
                [0.0000, 0.7500]])
    """
    if members < 1 or examples < 1:
        raise InputError(f"there are {members} members and {examples} examples; give one at least of each")
    every, found = [], []
    best = torch.zeros(examples)
    for member in range(members):
        weights = best.new_zeros(members, examples)
        weights[member] = 1 - best
        train(weights)
        metric = measure(member).detach()
        if metric.shape != best.shape:
            raise ShapeError(
                f"measure gives shape {tuple(metric.shape)}; give a metric for each of {examples} examples"
            )
        if not bool(((metric >= 0) & (metric <= 1)).all()):
            raise InputError(f"measure({member}) is not between 0 and 1 everywhere; scale it, as CIDEr-D by its 10")
        best = torch.maximum(best.to(metric), metric)
        every.append(weights[member])
        found.append(metric)
    return Round(torch.stack([each.to(best) for each in every]), torch.stack(found))
