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

import torch
from torch import Tensor, nn

from counterflow.exceptions import InputError, ShapeError
from counterflow.handle import Handle, Row, Table, exporting, reset_compiler, select
from counterflow.speech import kernels

__all__ = ["best_path", "follow", "path_error"]


def _find(costs: Tensor, frames: Tensor, states: Tensor, skip: bool) -> Tensor:
    paths = torch.empty(costs.shape[:2], dtype=torch.int64)
    run: Any = kernels.chains
    ends = [each.cpu().contiguous().numpy() for each in (frames, states)]
    run(kernels.as_table(costs), *ends, skip, paths.numpy())
    return paths.to(costs.device)


_chain_path = torch.library.custom_op("counterflow::chain_path", _find, mutates_args=())


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
    ends = []
    for name, given, size in (("frames", frames, costs.shape[1]), ("states", states, costs.shape[2])):
        if given is None:
            ends.append(torch.full(costs.shape[:1], size, dtype=torch.int64, device=costs.device))
            continue
        if given.shape != costs.shape[:1] or given.is_floating_point() or given.dtype == torch.bool:
            found = f"{given.dtype} of shape {tuple(given.shape)}"
            raise ShapeError(f"{name} must be whole numbers of shape ({costs.shape[0]},), got {found}")
        if looks and len(given) and not 1 <= int(given.min()) <= int(given.max()) <= size:
            raise InputError(f"{name} must lie between 1 and {size}, got {given.tolist()}")
        ends.append(given.to(costs.device, torch.int64))
    # The sizes of the table are numbers, which need no operation on tensors.
    if looks and (frames is not None or states is not None or costs.shape[1] < costs.shape[2]):
        least = ends[1] // 2 + 1 if skip else ends[1]
        short = (ends[0] < least).nonzero()
        if len(short):
            at = int(short[0])
            raise InputError(
                f"sequence {at} has {int(ends[0][at])} frames; its {int(ends[1][at])} states take {int(least[at])}: "
                "the transcript is too long for its audio"
            )
    # Where no tracer looks on, the operator would only double the time.
    find: Any = _find if looks else torch.ops.counterflow.chain_path
    path: Tensor = find(costs.detach(), ends[0], ends[1], skip)
    if looks:
        none = (path[:, 0] < 0).nonzero()
        if len(none):
            raise InputError(f"costs of sequence {int(none[0])} are not finite on every path; mend or leave it out")
    return path


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
