"""The layer, the function, and what may stand in the places of f and g."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from counterflow.backward.softmax import softmax_at
from counterflow.competition.kernels import compete_hard, pass_on, winner_mask
from counterflow.exceptions import InputError, ShapeError

__all__ = ["Competition", "LocalWinnerTakeAll", "k_winners", "lwta", "name_of", "soft_winner", "winners"]

Competition = Callable[[Tensor], Tensor]
"""From blocks, ``(..., block)``, to their outputs in the same shape, or to a boolean mask of what passes."""


def lwta(
    x: Tensor,
    block: int = 2,
    dim: int = 1,
    *,
    activation: Callable[[Tensor], Tensor] | None = None,
    competition: Competition | None = None,
) -> Tensor:
    r"""Local winner-take-all: of each block of units, the largest passes.

    .. math::
        y_i^j = g(h_i^1, \dots, h_i^n), \qquad h_i^j = f(x_i^j), \qquad
        g: \; y_i^j = \begin{cases} h_i^j & \text{if } h_i^j \ge h_i^k \; \forall k \\ 0 & \text{otherwise} \end{cases}

    Neighbors along ``dim`` make a block. Ties go to the lower index; the first NaN of a block wins, so that it is not
    hidden. The error goes back through the winners alone, and only who won is kept for that, not the activations.

    Args:
        x: Net inputs, any floating-point tensor, as ``(batch, units)`` or ``(batch, channels, height, width)``.
        block: :math:`n`, the units of a block, >= 1; 2 in the paper. With 1, everything passes.
        dim: The dimension of the units, whose size is a multiple of ``block``.
        activation: :math:`f`, which keeps the shape; None is the identity, as in the paper.
        competition: :math:`g`, such as `k_winners` or `soft_winner` or a function of one's own. It is given the blocks
            in the last dimension, ``(..., block)``, and returns their outputs, or a boolean mask of what passes. None
            is the hard winner-take-all above.

    Returns:
        The outputs, in the shape of ``x``.

    Raises:
        InputError: If ``block`` is no integer from 1 to 32767, or ``x`` is not floating-point.
        ShapeError: If ``dim`` is not there or cannot be divided, or if a function changes the shape.

    References:
        Srivastava et al., "Compete to Compute", NIPS 2013, equations 1 and 2.

    Example:
        >>> import torch
        >>> from counterflow.competition import lwta
        >>> lwta(torch.tensor([[1.0, 3.0, -2.0, -5.0, 4.0, 4.0]]))
        tensor([[ 0.,  3., -2.,  0.,  4.,  0.]])
    """
    dim = _checked(x, block, dim)
    h = x if activation is None else _kept(activation(x), x.shape, "activation")
    if competition is None:
        return compete_hard(h, block, dim)
    blocks = torch.unflatten(h, dim, (-1, block)).movedim(dim + 1, -1)
    y = _kept(competition(blocks), blocks.shape, "competition")
    back = y.movedim(-1, dim + 1).flatten(dim, dim + 1)
    return pass_on(h, back) if y.dtype == torch.bool else back


fx.wrap("lwta")  # one node in a symbolic trace, since its checks ask for sizes


class LocalWinnerTakeAll(nn.Module):
    """A layer of competing units, in the place of an activation module; see `lwta` for the equation.

    It has no parameters. Put it behind a linear or a convolutional layer with ``block`` times as many units as there
    are to be blocks.

    Args:
        block: The units of a block; 2 by default.
        dim: The dimension of the units; 1 by default, the channels of a convolution. -1 for ``(batch, time, units)``.
        activation: The activation function f of equation 2; None is the identity.
        competition: The interaction function g of equation 1; None is the hard winner-take-all.

    Raises:
        InputError: If an argument cannot be used.

    Example:
        >>> import torch
        >>> from counterflow import LocalWinnerTakeAll
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), LocalWinnerTakeAll(), torch.nn.Linear(6, 2))
        >>> int((net[:2](torch.randn(1, 4)) != 0).sum())
        3
    """

    def __init__(
        self,
        block: int = 2,
        dim: int = 1,
        activation: Callable[[Tensor], Tensor] | None = None,
        competition: Competition | None = None,
    ) -> None:
        super().__init__()
        _check_block(block)
        if not isinstance(dim, int) or isinstance(dim, bool):
            raise InputError(f"dim must be an integer, the dimension of the units, got {dim!r}")
        for name, function in (("activation", activation), ("competition", competition)):
            if function is not None and not callable(function):
                raise InputError(f"{name} must be a function of a tensor or None, got {function!r}")
        self.block = block
        self.dim = dim
        self.activation = activation
        self.competition = competition

    def forward(self, x: Tensor) -> Tensor:
        """The winners' activations, zero elsewhere; in the shape of ``x``."""
        return lwta(x, self.block, self.dim, activation=self.activation, competition=self.competition)

    def winners(self, x: Tensor) -> Tensor:
        """Which units pass for these net inputs; boolean, in the shape of ``x``."""
        return winners(x, self.block, self.dim, activation=self.activation, competition=self.competition)

    def extra_repr(self) -> str:
        """Size and place of the blocks, and what is not the default."""
        more = {"activation": self.activation, "competition": self.competition}
        named = [f"{key}={name_of(each)}" for key, each in more.items() if each and not isinstance(each, nn.Module)]
        return ", ".join([f"block={self.block}", f"dim={self.dim}", *named])


def winners(
    x: Tensor,
    block: int = 2,
    dim: int = 1,
    *,
    activation: Callable[[Tensor], Tensor] | None = None,
    competition: Competition | None = None,
) -> Tensor:
    """Which units are active: who wins each block, or, for another competition, who puts out anything but zero.

    A winner counts even where its activation is exactly zero.

    Args:
        x: Net inputs, as for `lwta`.
        block: As for `lwta`.
        dim: As for `lwta`.
        activation: As for `lwta`.
        competition: As for `lwta`.

    Returns:
        A boolean tensor in the shape of ``x``.

    Raises:
        InputError: As `lwta` does.
        ShapeError: As `lwta` does.

    Example:
        >>> import torch
        >>> from counterflow.competition import winners
        >>> winners(torch.tensor([[0.0, -1.0, 2.0, 2.0]]))
        tensor([[ True, False,  True, False]])
    """
    dim = _checked(x, block, dim)
    with torch.no_grad():
        h = x if activation is None else _kept(activation(x), x.shape, "activation")
        if competition is None:
            return winner_mask(h, block, dim)
        blocks = torch.unflatten(h, dim, (-1, block)).movedim(dim + 1, -1)
        y = _kept(competition(blocks), blocks.shape, "competition")
        return (y != 0).movedim(-1, dim + 1).flatten(dim, dim + 1)


def k_winners(k: int) -> Competition:
    r"""The competition in which the ``k`` largest units of a block pass; with 1, the hard winner-take-all.

    .. math::
        y^j = h^j \text{ if fewer than } k \text{ units beat it, else } 0

    Ties go to the lower index; NaNs come first.

    Args:
        k: How many pass, >= 1; with ``k`` >= the size of a block, all do.

    Raises:
        InputError: If ``k`` is no positive integer.

    Example:
        >>> import torch
        >>> from counterflow.competition import k_winners, lwta
        >>> lwta(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), block=4, competition=k_winners(2))
        tensor([[0., 3., 2., 0.]])
    """
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InputError(f"k must be an integer >= 1, the number of units that pass, got {k!r}")

    return _KWinners(k)


@dataclass(frozen=True)
class _KWinners:
    """A callable object rather than a closure, so that a model that holds it can be pickled."""

    k: int

    def __call__(self, blocks: Tensor) -> Tensor:
        order = blocks.argsort(dim=-1, descending=True, stable=True)  # NaNs come first
        return order.argsort(dim=-1) < self.k

    def __repr__(self) -> str:
        return f"k_winners({self.k})"


def soft_winner(temperature: float = 1.0) -> Competition:
    r"""The soft competition, in which every unit passes as much as it wins.

    .. math::
        y^j = h^j \, \frac{\exp(h^j / \tau)}{\sum_k \exp(h^k / \tau)}

    With :math:`\tau \to 0` it becomes the hard winner-take-all (but for ties).

    Args:
        temperature: :math:`\tau`, > 0.

    Raises:
        InputError: If ``temperature`` is not positive.

    Example:
        >>> import torch
        >>> from counterflow.competition import lwta, soft_winner
        >>> lwta(torch.tensor([[1.0, 3.0]]), competition=soft_winner(0.1))
        tensor([[2.0612e-09, 3.0000e+00]])
    """
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise InputError(f"temperature must be a number > 0, got {temperature!r}")

    return _SoftWinner(temperature)


@dataclass(frozen=True)
class _SoftWinner:
    temperature: float

    def __call__(self, blocks: Tensor) -> Tensor:
        shares = softmax_at(blocks, self.temperature, -1)
        passing = blocks.masked_fill(shares == 0, 0.0)  # an infinite loser times its share would be NaN
        return (passing * shares).to(blocks.dtype)

    def __repr__(self) -> str:
        return f"soft_winner({self.temperature})"


def _checked(x: Tensor, block: int, dim: int) -> int:
    """The dimension, counted from the front."""
    _check_block(block)
    if not x.is_floating_point():
        raise InputError(f"x must be floating-point, since units compete by their activations, got {x.dtype}")
    if not -x.ndim <= dim < x.ndim:
        raise ShapeError(f"dim={dim} is not a dimension of x, which has shape {tuple(x.shape)}; name that of the units")
    dim %= x.ndim
    if x.shape[dim] % block:
        raise ShapeError(
            f"block={block} does not divide the {x.shape[dim]} units of dimension {dim} of x, shape {tuple(x.shape)}; "
            f"give the layer before it a multiple of {block} units, or name another dim"
        )
    return dim


def _check_block(block: int) -> None:
    if not isinstance(block, int) or isinstance(block, bool) or not 1 <= block <= 32_767:
        raise InputError(f"block must be an integer from 1 to 32767, the units of a block, got {block!r}")


def _kept(y: Tensor, shape: torch.Size, name: str) -> Tensor:
    if not isinstance(y, Tensor) or y.shape != shape:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ShapeError(f"{name} must return a tensor of the shape that it was given, {tuple(shape)}, got {got}")
    return y


def name_of(function: Callable[..., object]) -> str:
    """A function's name; of a competition of this file, how it was made; of another object, its type's name."""
    if isinstance(function, _KWinners | _SoftWinner):
        return repr(function)
    return getattr(function, "__qualname__", type(function).__name__)
