"""Statistics of an error over the batch, and over the ranks of a distributed run.

Sums and counts are taken in float32 (float64 where the error is, and of squares). When `torch.distributed` runs with
more than one rank they are added up over all ranks, on a process group of their own: on the default group they could
meet DistributedDataParallel's reductions in another order on another rank. All ranks must run the same transforms in
the same order, equally often.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from counterflow.exceptions import ShapeError, UnsupportedError

__all__ = [
    "batch_mean",
    "batch_rms",
    "batch_sum",
    "count_samples",
    "error_rms",
    "prepare_ranks",
    "sum_over_ranks",
    "widen",
    "world_size",
]

_world: Any = None  # the world that `_group` was made in
_group: Any = None


def world_size() -> int:
    """How many ranks share the batch; 1 outside a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def prepare_ranks() -> None:
    """Make the process group for statistics, where a distributed run has begun and it is not made yet.

    A collective call: every rank must reach it. Attaching a transform that couples the batch calls it, and so
    does the first forward pass of a model that was changed before ``init_process_group``.
    """
    global _world, _group
    if world_size() > 1 and _world is not dist.group.WORLD:
        # Holding the world itself, not its id, which a later world may be given again.
        _world, _group = dist.group.WORLD, dist.new_group()


def batch_sum(
    error: Tensor, dim: tuple[int, ...], caller: str, examples: tuple[int, ...] | None = None
) -> tuple[Tensor, int | Tensor]:
    r"""Sum of an error over the samples of all ranks, and their number.

    Args:
        error: Any shape with two dimensions or more.
        dim: The dimensions that count samples; they stay, with size one.
        caller: Named in the error message.
        examples: Those of the dimensions that count examples of the batch (a convolution's pixels are
            samples, but not examples); all of ``dim`` by default. Empty where it is known that there is no
            batch dimension.

    Returns:
        The sum in float32 (float64 for a float64 error), broadcastable against ``error``, and the number of
        samples: a 0-d tensor where there are several ranks.

    Raises:
        ShapeError: If fewer than two examples are seen, as under per-sample ``vmap``.
        UnsupportedError: If the error is complex.
    """
    _check(error, dim if examples is None else examples, caller)
    return sum_over_ranks(widen(error).sum(dim, keepdim=True), count_samples(error, dim))


def batch_mean(error: Tensor, dim: tuple[int, ...], caller: str, examples: tuple[int, ...] | None = None) -> Tensor:
    r"""Mean of an error over the samples, :math:`\langle\delta\rangle`; otherwise as `batch_sum`."""
    total, count = batch_sum(error, dim, caller, examples)
    return total / count


def batch_rms(error: Tensor, dim: tuple[int, ...], caller: str) -> Tensor:
    r"""Root mean square of an error over the whole batch, :math:`\sqrt{\langle\delta^2\rangle}`, 0-d.

    Args:
        error: Any shape with two dimensions or more.
        dim: The dimensions that count examples.
        caller: Named in the error message.

    Raises:
        ShapeError: If fewer than two examples are seen, as under per-sample ``vmap``.
        UnsupportedError: If the error is complex.
    """
    _check(error, dim, caller)
    return error_rms(error, caller)


def error_rms(error: Tensor, caller: str) -> Tensor:
    r"""`batch_rms` of however many examples; NaN where there are none.

    Args:
        error: Of any shape.
        caller: Named in the error message.

    Raises:
        UnsupportedError: If the error is complex.
    """
    _refuse_complex(error, caller)
    # In float64, since the squares of an error that has vanished to 1e-25 are zero in float32, and those of one that
    # has exploded to 1e25 infinite: to clip by either would be to wipe the error out, or to let all of it pass.
    wide = torch.float32 if error.device.type == "mps" else torch.float64
    energy = torch.linalg.vector_norm(error, dtype=wide).square()
    total, count = sum_over_ranks(energy, error.numel())
    return (total / count).sqrt().to(widen(error).dtype)


def count_samples(error: Tensor, dim: tuple[int, ...]) -> int:
    """How many samples the dimensions ``dim`` of an error count, on this rank."""
    count = 1
    for axis in dim:  # a loop, since Dynamo cannot trace `math.prod` of a generator as a number
        count *= error.shape[axis]
    return count


def _refuse_complex(error: Tensor, caller: str) -> None:
    if error.is_complex():
        raise UnsupportedError(f"{caller} takes statistics of real errors only, got one of {error.dtype}")


def _check(error: Tensor, examples: tuple[int, ...], caller: str) -> None:
    _refuse_complex(error, caller)
    shape = tuple(error.shape)
    if error.ndim < 2 or not examples:
        raise ShapeError(
            f"{caller} mixes the examples of a batch, but an error of shape {shape} has no batch dimension: "
            "call the model on a batch of two or more, with outputs of shape (batch, features, ...)"
        )
    # Several ranks hold two examples or more between them, so one of them may have a single one.
    seen = count_samples(error, examples)
    if world_size() == 1 and seen < 2:
        number = "one example only" if seen == 1 else "no example"
        raise ShapeError(
            f"{caller} mixes the examples of a batch, but sees {number} (an error of shape {shape}): "
            "call the model on two or more; per-sample vmap cannot work here"
        )


def widen(error: Tensor) -> Tensor:
    """In the precision that statistics are taken in: float64 for float64, else float32."""
    return error if error.dtype == torch.float64 else error.float()


def sum_over_ranks(total: Tensor, count: int) -> tuple[Tensor, int | Tensor]:
    """A sum and its count over all ranks; as they are where there is one."""
    if world_size() == 1:
        return total, count
    # Ranks may hold unequal batches, so the counts are added up too.
    packed = _all_reduce(torch.cat([total.reshape(-1), total.new_full((1,), float(count))]))
    return packed[:-1].reshape(total.shape), packed[-1]


# Behind an operator of its own, so that compiled code, vmap and double backward see one opaque, linear step.
@torch.library.custom_op("counterflow::sum_over_ranks", mutates_args=())
def _all_reduce(values: Tensor) -> Tensor:
    result = values.clone()
    dist.all_reduce(result, group=_group)
    return result


@_all_reduce.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


def _all_reduce_vmap(info: Any, in_dims: tuple[int | None], values: Tensor) -> tuple[Tensor, int | None]:
    return _all_reduce(values), in_dims[0]


torch.library.register_vmap("counterflow::sum_over_ranks", _all_reduce_vmap)
torch.library.register_autograd(
    "counterflow::sum_over_ranks",
    lambda ctx, gradient: _all_reduce(gradient),
    setup_context=lambda ctx, inputs, output: None,
)
