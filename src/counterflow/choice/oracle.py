"""The oracle's choice as pure functions of per-example losses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from counterflow.backward.softmax import softmax_at
from counterflow.exceptions import InputError, ShapeError
from counterflow.handle import Handle, Row, Table, exporting, reset_compiler, select

__all__ = ["annealed", "check_k", "choose", "oracle_loss", "relaxed", "weighted_loss", "winners", "winners_only"]


def check_k(k: object, members: int | None = None) -> None:
    """Refuse a number of winners that is none.

    Raises:
        InputError: If it is no whole number from 1 to the number of members, as far as that is known.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1 or (members is not None and k > members):
        most = "the number of members" if members is None else f"{members}, the number of members"
        raise InputError(f"k must be a whole number from 1 to {most}, got {k!r}")


def winners(losses: Tensor, k: int = 1) -> Tensor:
    r"""Which k members have the least loss on each example.

    Ties go to the member of the lower index, and NaN comes last.

    Args:
        losses: Per-example losses, ``(members, batch)``; further dimensions are examples, too.
        k: How many win, from 1 to the number of members.

    Returns:
        A boolean mask of the same shape, :math:`p_{i,m}` of equation 1; it sums to k over the members.

    Raises:
        ShapeError: If the losses have no dimension of examples.
        InputError: If k is not between 1 and the number of members, or if fewer than k losses of an example are
            numbers. Under ``torch.compile`` and torch.func's transforms, which know no values, the latter shows as a
            loss of NaN.

    References:
        Lee and others (2016), equation 1 and section 4.1.

    Example:
        >>> winners(torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.5, float("nan")]])).int()
        tensor([[1, 0, 1],
                [0, 1, 0]], dtype=torch.int32)
    """
    if losses.dim() < 2:
        raise ShapeError(f"losses has shape {tuple(losses.shape)}; give (members, batch), a loss for each example")
    check_k(k, len(losses))
    values = losses.detach()
    if not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is None:
        numbers = (~values.isnan()).sum(0)
        if bool((numbers < k).any()):
            example = (numbers < k).nonzero()[0].tolist()
            where = example[0] if len(example) == 1 else tuple(example)
            raise InputError(
                f"losses: only {int(numbers[tuple(example)])} of example {where} are numbers, but k is {k}; the others "
                "are NaN: lower the learning rate, or look at the example"
            )
    # Ranks rather than the first indices: a scatter would need them anyway, and vmap takes sorts as they are.
    ranks = values.argsort(dim=0, stable=True).argsort(dim=0)
    return ranks < k


def oracle_loss(
    losses: Tensor, k: int = 1, reduction: Literal["mean", "sum", "none"] = "mean"
) -> tuple[Tensor, Tensor]:
    r"""The loss of the oracle, who picks the k best members of an ensemble for each example.

    .. math::  L_O = \frac{1}{n} \sum_{i=1}^n \sum_{m=1}^M p_{i,m}\, \ell(y_i, f_m(x_i))

    The assignments :math:`p` are constants in its derivative, which is zero for all that did not win (equation 2).
    That is the derivative by the losses. Where a loser's own slope is infinite or NaN on an example, as it may be where
    its loss is NaN, zero times it is NaN in all gradients of that member; rows that `counterflow.MultipleChoice` cuts
    cannot do that.

    The paper sums over the examples; here the default is their mean, so that learning rates keep their meaning. With
    k = M it is the sum of the members' mean losses, a plain ensemble.

    Args:
        losses: Per-example losses, ``(members, batch)``, of any kind.
        k: How many members win each example.
        reduction: ``"mean"`` or ``"sum"`` over the examples; ``"none"`` gives one number each.

    Returns:
        The loss, and the assignments as a boolean mask, ``(members, batch)``.

    Raises:
        ShapeError: As in `winners`.
        InputError: As in `winners`, and if the reduction is not known.

    References:
        Lee and others (2016), equations 1 and 2.

    Example:
        >>> loss, chosen = oracle_loss(torch.tensor([[1.0, 2.0], [3.0, 0.5]]))
        >>> loss, chosen.int().tolist()
        (tensor(0.7500), [[1, 0], [0, 1]])
    """
    if reduction not in ("mean", "sum", "none"):
        raise InputError(f"reduction is {reduction!r}; it must be 'mean', 'sum' or 'none'")
    chosen = winners(losses, k)
    # Not a product, which would let the NaN of a loser through.
    each = torch.where(chosen, losses, torch.zeros_like(losses)).sum(0)
    return (each.mean() if reduction == "mean" else each.sum() if reduction == "sum" else each), chosen


def relaxed(losses: Tensor, epsilon: float = 0.05, k: int = 1) -> Tensor:
    r"""Weights that leave the losers a little of the error, so that none of them dies.

    .. math::  w_{i,m} = 1 - \epsilon \text{ for the k winners}, \qquad \epsilon\, k / (M - k) \text{ for the others}

    Args:
        losses: Per-example losses, ``(members, batch)``.
        epsilon: What the winners give away, from 0 to 1.
        k: How many members win each example.

    Returns:
        Weights of the same shape, without a graph; they sum to k over the members. A loss of NaN has weight 0, which
        is then missing from the sum.

    Raises:
        ShapeError: As in `winners`.
        InputError: As in `winners`, and if epsilon is not between 0 and 1.

    References:
        Rupprecht and others (2017), Learning in an uncertain world, section 3.2, for k = 1.

    Example:
        >>> relaxed(torch.tensor([[1.0, 2.0], [3.0, 0.5], [2.0, 2.0]]), epsilon=0.5)
        tensor([[0.5000, 0.2500],
                [0.2500, 0.5000],
                [0.2500, 0.2500]])
    """
    if not 0 <= epsilon <= 1:
        raise InputError(f"epsilon is {epsilon}; it must be from 0 (winners only) to 1")
    chosen = winners(losses, k)
    if k == len(losses):
        return chosen.to(losses.dtype)
    weights = torch.full_like(losses, epsilon * k / (len(losses) - k)).masked_fill(chosen, 1 - epsilon)
    return weights.masked_fill(losses.detach().isnan(), 0)


def annealed(losses: Tensor, temperature: float) -> Tensor:
    r"""Weights that fall with the loss, and go to the winner as the temperature goes to zero.

    .. math::  w_{i,m} = \frac{e^{-\ell_{i,m} / T}}{\sum_{m'} e^{-\ell_{i,m'} / T}}

    Args:
        losses: Per-example losses, ``(members, batch)``.
        temperature: T, in units of the loss; lower it from step to step.

    Returns:
        Weights of the same shape, without a graph; they sum to 1 over the members. A loss of NaN has weight 0, and
        where all others are infinite, they share alike.

    Raises:
        ShapeError: As in `winners`.
        InputError: As in `winners`, and if the temperature is not positive.

    References:
        Perera and others (2024), Annealed multiple choice learning, equation 4.

    Example:
        >>> annealed(torch.tensor([[0.0], [1.0]]), temperature=1.0)
        tensor([[0.7311],
                [0.2689]])
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; it must be positive: for the winner alone use no weights")
    winners(losses)  # refuses examples without a number
    values = losses.detach()
    lost = values.isnan()
    weights = softmax_at(-values.masked_fill(lost, torch.inf), temperature, 0).masked_fill(lost, 0)
    # Where all others are infinite, NaN had a share too.
    return (weights / weights.sum(0)).to(losses.dtype)


def weighted_loss(losses: Tensor, weights: Tensor) -> Tensor:
    r"""The mean over the examples of the members' weighted losses; `oracle_loss` with weights in place of winners.

    .. math::  \frac{1}{n} \sum_{i=1}^n \sum_{m=1}^M w_{i,m}\, \ell_{i,m}

    Args:
        losses: Per-example losses, ``(members, batch)``.
        weights: Of the same shape; a loss of weight zero may be NaN.

    Returns:
        A scalar.

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> weighted_loss(torch.tensor([[2.0], [float("nan")]]), torch.tensor([[0.5], [0.0]]))
        tensor(1.)
    """
    if losses.shape != weights.shape:
        raise ShapeError(f"losses has shape {tuple(losses.shape)} and weights {tuple(weights.shape)}; give equal ones")
    # NaN of a loser must go into neither the sum nor its derivative.
    counted = weights != 0
    kept = torch.where(counted, losses, torch.zeros_like(losses))
    return (kept * weights).sum(0).mean()


def winners_only(losses: Tensor, k: int = 1) -> Tensor:
    """The same losses, whose error goes back to the winners alone.

    Args:
        losses: Per-example losses, ``(members, batch)``.
        k: How many members win each example.

    Returns:
        Equal losses; the losers' are constants.

    Raises:
        ShapeError: As in `winners`.
        InputError: As in `winners`.

    Example:
        >>> losses = torch.tensor([[1.0, 2.0], [3.0, 0.5]], requires_grad=True)
        >>> winners_only(losses).sum().backward()
        >>> losses.grad
        tensor([[1., 0.],
                [0., 1.]])
    """
    return torch.where(winners(losses, k), losses, losses.detach())


def choose(model: nn.Module, layers: str, k: int = 1) -> Handle:
    """Let the error back only to the winners, in a model that computes its members' losses itself.

    Args:
        model: Any model, changed in place.
        layers: Pattern of the modules whose output is a tensor of per-example losses, ``(members, batch)``.
        k: How many members win each example.

    Returns:
        The handle; undoing it sends the error to all again.

    Raises:
        PatternError: If the pattern matches no module.
        InputError: If k is no whole number from 1 on; in a forward pass with gradients, as in `winners`.

    Example:
        >>> model = nn.Identity()
        >>> with choose(model, ""):
        ...     losses = torch.tensor([[1.0], [3.0]], requires_grad=True)
        ...     model(losses).sum().backward()
        >>> losses.grad.tolist()
        [[1.0], [0.0]]
    """
    check_k(k)

    def hook(module: nn.Module, arguments: object, losses: Tensor) -> Tensor:
        if exporting() or not torch.is_grad_enabled():
            return losses
        return winners_only(losses, k)

    found = select(model, layers)
    removers = [module.register_forward_hook(hook).remove for _, module in found]
    reset_compiler()
    rows = [Row(name, type(module).__name__, f"{k} winner{'s' if k > 1 else ''}") for name, module in found]
    return Handle(model, Table("Multiple choice", rows), removers)
