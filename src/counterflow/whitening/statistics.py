r"""Mean and covariance of a layer's inputs, taken in backward passes, or in forward passes over a loader.

Each batch of :math:`N_b` samples with mean :math:`\mu_b` and scatter :math:`M_b = \sum_i (h_i - \mu_b)(h_i - \mu_b)^T`
joins those seen before by

.. math::
    \mu \leftarrow \mu + \tfrac{N_b}{N + N_b}(\mu_b - \mu), \qquad
    M \leftarrow M + M_b + \tfrac{N N_b}{N + N_b}(\mu_b - \mu)(\mu_b - \mu)^T,

so that inputs with a mean far from zero lose no digits. In a distributed run a batch is that of all ranks, so that
every rank holds the whole state, and a checkpoint of any of them is complete. In the explicit form the inputs are the
whitened ones, which are of order one in every direction.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils.rnn import PackedSequence

from counterflow.backward.reduce import prepare_ranks, sum_over_ranks, widen, world_size
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import exporting
from counterflow.whitening.layers import Layer, Layers, tensor_of

__all__ = ["Gather", "Moments", "add_statistics", "moments", "over_loader", "reset", "rows_of"]

_NAMES = ("count", "sum_mean", "scatter", "refused")


class _Gather(Function):
    """Identity forward; backward, the layer's inputs join the statistics."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, x: Tensor, layer: tuple[int, bool], *state: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, ctx.layer, *ctx.state = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            _gather(x, error, *ctx.layer, *ctx.state[:4])
            if len(ctx.state) > 4:
                errors = error[None] if error.ndim < x.ndim else error  # of a call without a batch dimension
                _gather(errors, errors, *ctx.layer, *ctx.state[4:])
        return (error, None, None, *(None for _ in ctx.state))


vars(_Gather.forward)["__signature__"] = inspect.signature(_Gather.forward)


def rows_of(x: Tensor, groups: int, convolution: bool) -> Tensor:
    """A layer's inputs (or errors) as (groups, samples, channels of a group); pixels and time steps are samples."""
    if convolution:
        x = x.movedim(1, -1)
    return x.reshape(-1, groups, x.shape[-1] // groups).transpose(0, 1)


def _accumulate(x: Tensor, layer: tuple[int, bool], state: list[Tensor], ranks: bool) -> None:
    """Let one batch join: that of all ranks, in a backward pass, or this rank's own."""
    groups, convolution = layer
    count, mean, scatter, refused = state
    rows = widen(rows_of(x, groups, convolution))
    size = torch.tensor([rows.shape[1], x.shape[0]], dtype=mean.dtype, device=mean.device)
    total = rows.sum(1)
    # A sum of squares is finite only where every input is, and none is so large that the scatter would overflow.
    packed = torch.cat([size, rows.square().sum().reshape(1), total.reshape(-1)])
    if ranks:
        packed = sum_over_ranks(packed, 0)[0]
    size, samples, total = packed[:2], packed[0], packed[3:].reshape(total.shape)
    told = packed[2].isfinite() & (samples > 0)
    before, zero = count[0].to(mean.dtype), torch.zeros_like(mean[:1, :1])
    here = torch.where(told, total / samples, mean)
    off = here - mean
    between = torch.where(told, before * samples / (before + samples), zero).sqrt() * off
    centered = torch.where(told, rows - here[:, None], zero)
    if ranks and world_size() > 1:
        scatter.add_(sum_over_ranks(centered.transpose(1, 2) @ centered, 0)[0])
        scatter.baddbmm_(between[:, :, None], between[:, None])
    else:
        centered = torch.cat([centered, between[:, None]], 1)
        scatter.baddbmm_(centered.transpose(1, 2), centered)
    mean.add_(torch.where(told, samples / (before + samples), zero) * off)
    count.add_(torch.where(told, size, zero[0]).to(count.dtype))
    refused.add_((~packed[2].isfinite()).to(refused.dtype))  # an empty batch is no bad one


# Behind an operator of its own that takes the error, though it does not look at it: the compiler would otherwise see
# that nothing here depends on the error, and do part of it in the forward pass.
@torch.library.custom_op("counterflow::gather_inputs", mutates_args=("count", "mean", "scatter", "refused"))
def _gather(
    x: Tensor,
    error: Tensor,
    groups: int,
    convolution: bool,
    count: Tensor,
    mean: Tensor,
    scatter: Tensor,
    refused: Tensor,
) -> None:
    _accumulate(x, (groups, convolution), [count, mean, scatter, refused], ranks=True)


class Gather:
    """The forward hook that lets a layer's inputs join its statistics while its module says so; it costs nothing else.

    Args:
        layer: Whose.
        errors: Whether its errors are gathered too.
    """

    # An attribute of the module, not of the hook: compiled code is guarded by those of modules only.
    SWITCH = "whiten_gathering"

    def __init__(self, layer: Layer, errors: bool) -> None:
        self.layer = layer
        self.shape = (layer.groups, layer.weight.ndim > 2)
        self.names = [f"{layer.prefix}{each}{name}" for each in ("", "error_")[: 1 + errors] for name in _NAMES]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not getattr(module, self.SWITCH) or not torch.is_grad_enabled() or exporting():
            return output
        if not torch.compiler.is_compiling():
            prepare_ranks()
            if torch._C._functorch.maybe_current_level() is not None:
                raise UnsupportedError(
                    "whiten() keeps statistics from step to step, which torch.func cannot carry; give it a loader, or "
                    "use torch.func between the steps that gather"
                )
        x = self.layer.seen(args, kwargs, output).detach()
        state = [tensor_of(module, name) for name in self.names]
        if isinstance(output, Tensor):
            return _Gather.apply(output, x, self.shape, *state)  # type: ignore[no-untyped-call]
        # Attention and recurrent layers return their output first, which may be packed.
        first = output[0]
        if isinstance(first, PackedSequence):
            data = _Gather.apply(first.data, x, self.shape, *state)  # type: ignore[no-untyped-call]
            return first._replace(data=data), *output[1:]
        return _Gather.apply(first, x, self.shape, *state), *output[1:]  # type: ignore[no-untyped-call]


def add_statistics(layer: Layer, errors: bool) -> None:
    """Give a layer the buffers that its statistics live in."""
    for prefix, size in (("", layer.inputs), ("error_", layer.outputs))[: 1 + errors]:
        device = layer.weight.device
        new = (
            torch.zeros(2, dtype=torch.int64, device=device),  # samples and examples
            layer.vectors(size),
            layer.matrices(size),
            torch.zeros((), dtype=torch.int64, device=device),
        )
        layer.add_buffers({prefix + name: value for name, value in zip(_NAMES, new, strict=True)})


def reset(layer: Layer, errors: bool) -> None:
    """Begin the statistics anew; what was refused stays counted."""
    for prefix in ("", "error_")[: 1 + errors]:
        for name in _NAMES[:3]:
            layer[prefix + name].zero_()


@dataclass(frozen=True)
class Moments:
    """In float64: how many samples, their mean (groups, n) and covariance (groups, n, n)."""

    samples: int
    mean: Tensor
    covariance: Tensor


def moments(layer: Layer, prefix: str = "") -> Moments | None:
    """What the layer's statistics say; None where no sample was taken in."""
    count, mean, scatter = (layer[prefix + name] for name in _NAMES[:3])
    samples = int(count[0])
    return Moments(samples, mean.double(), scatter.double() / samples) if samples else None


def _pool(layer: Layer) -> None:
    """Join the statistics that each rank took from a loader of its own; a collective call."""
    count, mean, scatter = (layer[name] for name in _NAMES[:3])
    here = count[0].double()
    packed, _ = sum_over_ranks(torch.cat([count.double(), (here * mean).reshape(-1)]), 0)
    pooled = (packed[2:] / packed[0].clamp(min=1.0)).reshape(mean.shape)
    off = mean - pooled
    spread = scatter + here * off[:, :, None] * off[:, None, :]
    scatter.copy_(sum_over_ranks(spread, 0)[0])
    mean.copy_(pooled)
    count.copy_(packed[:2])


def over_loader(model: nn.Module, layers: Layers, loader: Iterable[Any], samples: int) -> None:
    """Take the statistics in forward passes over a loader, in eval mode and without gradients, until they suffice.

    Args:
        model: Called on the inputs of each batch.
        layers: Whose statistics.
        loader: Batches: tensors, sequences whose first item is the input, or dictionaries of named arguments.
        samples: How many examples are enough, over all ranks, each of which has a loader of its own.

    Raises:
        InputError: If the loader gives no batch, or one of another kind.
    """
    # First of all hooks, while a module still has the weights that its call had.
    hooks = [layer.module.register_forward_hook(_look(layer), prepend=True, with_kwargs=True) for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    device = layers[0].weight.device
    seen = 0
    try:
        model.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            for batch in loader:
                seen += _run(model, batch, device)
                if seen * world_size() >= samples:
                    break
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if world_size() > 1:
        prepare_ranks()
        for layer in layers:
            _pool(layer)
    if not seen:
        raise InputError("loader gives no batch; pass one that can be iterated over again and again")


def _look(layer: Layer) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = layer.seen(args, kwargs, output)
        state = [layer[name] for name in _NAMES]
        _accumulate(x, (layer.groups, layer.weight.ndim > 2), state, ranks=False)

    return hook


def _run(model: nn.Module, batch: Any, device: torch.device) -> int:
    """Call the model on one batch; how many examples it has."""
    if isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    if isinstance(batch, Tensor):
        model(batch.to(device))
        return len(batch)
    if isinstance(batch, Mapping) and any(isinstance(value, Tensor) and value.ndim for value in batch.values()):
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        model(**moved)
        return max(len(value) for value in moved.values() if isinstance(value, Tensor) and value.ndim)
    raise InputError(
        "loader must give tensors, (inputs, ...) or dictionaries of named arguments, tensors among them, got "
        f"{type(batch).__name__}"
    )
