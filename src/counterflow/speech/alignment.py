r"""The path-summed error: prediction errors go back along the best alignment and nowhere else.

Source: J. Tebelskis, A. Waibel, B. Petek, O. Schmidbauer, "Continuous Speech Recognition by Linked Predictive Neural
Networks", NIPS 1990, section 2.1, steps 2 and 3.

===============================  ==================================================================
the paper                        here
===============================  ==================================================================
distance matrix                  ``costs``, shape (batch, time, states): error of each predictor at each frame
Dynamic Time Warping             `best_path`: from the first state to the last, by loops, nexts and perhaps skips
backward pass along the path     the derivative of `path_error`; `follow` does the same to a model's own distances
===============================  ==================================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from counterflow.exceptions import InputError, ShapeError
from counterflow.handle import Handle, Row, Table, exporting, reset_compiler, select
from counterflow.speech import kernels

__all__ = ["best_path", "follow", "path_error"]

_ALL: NDArray[np.int64] = np.empty(0, np.int64)  # all frames, or all states, as the kernel has it


def _find(costs: Tensor, frames: NDArray[np.int64], states: NDArray[np.int64], skip: bool) -> tuple[Tensor, int]:
    """The paths, and the first of the batch that has none, or -1."""
    table = kernels.as_array(costs)
    paths = np.empty(table.shape[:2], np.int64)
    run: Any = kernels.chains
    lost: int = run(table, frames, states, skip, paths)
    return torch.from_numpy(paths).to(costs.device), lost


@torch.library.custom_op("counterflow::chain_path", mutates_args=())
def _chain_path(costs: Tensor, frames: Tensor, states: Tensor, skip: bool) -> Tensor:
    frames_, states_ = (each.cpu().contiguous().numpy() for each in (frames, states))
    return _find(costs, frames_, states_, skip)[0]


@_chain_path.register_fake
def _(costs: Tensor, frames: Tensor, states: Tensor, skip: bool) -> Tensor:
    return costs.new_empty(costs.shape[:2], dtype=torch.int64)


@_chain_path.register_vmap
def _(info: Any, dims: Any, costs: Tensor, frames: Tensor, states: Tensor, skip: bool) -> tuple[Tensor, int]:
    size = info.batch_size
    whole = [
        each.movedim(dim, 0) if dim is not None else each.expand(size, *each.shape)
        for each, dim in zip((costs, frames, states), dims, strict=False)
    ]
    found = torch.ops.counterflow.chain_path(*(each.flatten(0, 1) for each in whole), skip)
    return found.unflatten(0, (size, -1)), 0


def best_path(
    costs: Tensor, frames: Tensor | None = None, states: Tensor | None = None, *, skip: bool = False
) -> Tensor:
    r"""The cheapest monotone path from the first state to the last.

    .. math::  C_{t,s} = d_{t,s} + \min(C_{t-1,s},\ C_{t-1,s-1}\ [,\ C_{t-1,s-2}])

    Args:
        costs: Distances d, shape (batch, time, states).
        frames: How many frames of each are meant, shape (batch,); all if not given.
        states: How many states, shape (batch,); all if not given.
        skip: Whether one state may be passed over.

    Returns:
        The state at each frame, shape (batch, time), -1 after the end. Among equal paths, the one that moves on early.
        It has no derivative.

    Raises:
        ShapeError: If a shape does not fit.
        InputError: If a number is out of range, a sequence has fewer frames than its states take, or every path
            crosses a cost that is infinite or not a number. Under ``torch.compile`` and torch.func's transforms, which
            know no values, such a path is -1 throughout.

    References:
        H. Sakoe, S. Chiba, Dynamic programming algorithm optimization for spoken word recognition, 1978.

    Example:
        >>> best_path(torch.tensor([[[0.0, 9.0], [1.0, 9.0], [9.0, 0.0]]]))
        tensor([[0, 0, 1]])
    """
    if costs.ndim != 3 or not costs.shape[1] or not costs.shape[2] or not costs.is_floating_point():
        found = f"{costs.dtype} of shape {tuple(costs.shape)}"
        raise ShapeError(f"costs must be of floating point and (batch, time, states), none of it empty, got {found}")
    looks = not torch.compiler.is_compiling() and torch._C._functorch.maybe_current_level() is None
    for name, given in (("frames", frames), ("states", states)):
        if given is not None and (
            given.shape != costs.shape[:1] or given.is_floating_point() or given.dtype == torch.bool
        ):
            found = f"{given.dtype} of shape {tuple(given.shape)}"
            raise ShapeError(f"{name} must be whole numbers of shape ({costs.shape[0]},), got {found}")
    if looks:
        # Where no tracer looks on, the operator, and tensors for two numbers, would take most of the time.
        return _looked_at(costs, frames, states, skip)
    ends = [
        torch.full(costs.shape[:1], size, dtype=torch.int64, device=costs.device)
        if given is None
        else given.to(costs.device, torch.int64)
        for given, size in ((frames, costs.shape[1]), (states, costs.shape[2]))
    ]
    path: Tensor = torch.ops.counterflow.chain_path(costs.detach(), *ends, skip)
    return path


def _looked_at(costs: Tensor, frames: Tensor | None, states: Tensor | None, skip: bool) -> Tensor:
    """`best_path` of values that can be seen."""
    _, time, size = costs.shape
    if frames is None and states is None and time >= size:
        # Arrays of the same two numbers, and checks of them, would take as long as half of the recursion.
        path, lost = _find(costs, _ALL, _ALL, skip)
    else:
        path, lost = _find(costs, *_ends(costs, frames, states, skip), skip)
    if lost >= 0:
        raise InputError(f"costs of sequence {lost} are not finite on every path; mend or leave it out")
    return path


def _ends(
    costs: Tensor, frames: Tensor | None, states: Tensor | None, skip: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many frames and states each has, checked."""
    batch, *sizes = costs.shape
    ends: list[NDArray[np.int64]] = []
    for name, given, size in (("frames", frames, sizes[0]), ("states", states, sizes[1])):
        ends.append(np.full(batch, size) if given is None else given.cpu().numpy().astype(np.int64))
        if given is not None and batch and not 1 <= ends[-1].min() <= ends[-1].max() <= size:
            raise InputError(f"{name} must lie between 1 and {size}, got {given.tolist()}")
    least = ends[1] // 2 + 1 if skip else ends[1]
    short = np.flatnonzero(ends[0] < least)
    if len(short):
        at = short[0]
        raise InputError(
            f"sequence {at} has {ends[0][at]} frames; its {ends[1][at]} states take {least[at]}: "
            "the transcript is too long for its audio"
        )
    return ends[0], ends[1]


def path_error(
    costs: Tensor, frames: Tensor | None = None, states: Tensor | None = None, *, skip: bool = False
) -> tuple[Tensor, Tensor]:
    r"""The summed cost along the best path; its error goes back to the costs on that path and to no other.

    .. math::

       E = \sum_t d_{t, s(t)}, \qquad \frac{\partial E}{\partial d_{t,s}} = [s = s(t)]

    This is the derivative of the minimum itself, wherever the best path is the only one.

    Args:
        costs: Distances, shape (batch, time, states), such as those of predictors along a word's linkage pattern.
        frames: As `best_path`.
        states: As `best_path`.
        skip: As `best_path`.

    Returns:
        The errors, shape (batch,), and the paths, shape (batch, time).

    Raises:
        ShapeError, InputError: As `best_path`.

    References:
        Tebelskis and others (1990), section 2.1 and figure 2.

    Example:
        >>> costs = torch.tensor([[[0.0, 9.0], [1.0, 9.0], [9.0, 0.0]]], requires_grad=True)
        >>> error, path = path_error(costs)
        >>> error.sum().backward()
        >>> costs.grad
        tensor([[[1., 0.],
                 [1., 0.],
                 [0., 1.]]])
    """
    path = best_path(costs, frames, states, skip=skip)
    picked = costs.gather(-1, path.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    error = torch.where(path < 0, torch.zeros_like(picked), picked).sum(-1)
    lost = path[:, 0] < 0  # only where nobody could look
    return torch.where(lost, torch.full_like(error, torch.nan), error), path


def follow(model: nn.Module, pattern: str, *, skip: bool = False) -> Handle:
    """Let errors return to the distances on the best path alone.

    Args:
        model: The model; it is changed in place.
        pattern: The modules whose output is a distance matrix (batch, time, states).
        skip: Whether a state may be passed over.

    Returns:
        The handle; ``undo()`` takes it back.

    Raises:
        PatternError: If nothing matches.
        ShapeError, InputError: In the forward pass, as `best_path`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> with follow(model, "0"):
        ...     model(torch.randn(2, 5, 4)).sum().backward()
        >>> model[0].bias.grad.sum()  # each of 10 frames has one state
        tensor(10.)
    """

    def hook(module: nn.Module, arguments: object, costs: Tensor) -> Tensor:
        if exporting():
            return costs
        on = torch.arange(costs.shape[-1], device=costs.device) == best_path(costs, skip=skip).unsqueeze(-1)
        return torch.where(on, costs, costs.detach())

    found = select(model, pattern)
    removers = [module.register_forward_hook(hook).remove for _, module in found]
    reset_compiler()
    rows = [Row(name, type(module).__name__, "the error follows the best path") for name, module in found]
    return Handle(model, Table("Alignment", rows), removers)
