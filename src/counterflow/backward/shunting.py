r"""Error shunting: weights learn from centered errors, biases from the mean.

Schraudolph, Sejnowski, "Tempering Backpropagation Networks: Not All Weights are Created Equal", NIPS 1995,
section 5. With :math:`\delta_j(t)` the error of unit :math:`j` for sample :math:`t` and
:math:`\langle\cdot\rangle` the mean over samples:

.. math::
    \Delta w_{ij} \propto \sum_t (\delta_j(t) - \langle\delta_j\rangle)\, x_i(t) \qquad (20, 21) \\
    \Delta b_j \propto \langle\delta_j\rangle \qquad (19)

Equation 19 is damaged in the scan at hand; the text around it says that a d.c. component needs a rate smaller
by the batch's size and is the proper job of the bias, which gives the mean, not the sum.

In a batch that holds all samples, centering the errors is the same as centering the inputs, or both. In small batches
the means of the batch are poor ones, and section 5 ends: "we expect online implementations to perform best when both
input and error signals are centered". With running means :math:`d_j` of the errors and :math:`m_i` of the inputs:

.. math::
    \Delta w_{ij} \propto \sum_t (\delta_j(t) - d_j)\,(x_i(t) - m_i)
    = \sum_t (\delta_j(t) - \langle\delta_j\rangle)\, x_i(t)
    + |T|\, (\langle\delta_j\rangle - d_j)(\langle x_i\rangle - m_i)

where :math:`\langle\cdot\rangle` is the mean over the batch. The errors' mean must run too: behind errors that are
centered in each batch, whatever is subtracted from the inputs cancels. The last form is what is computed, and shows
that one mean that is exact is enough: with all samples in the batch, and inputs that stay, this *is* (21).

Samples are all dimensions of the output but its features: a convolution's pixels count, as they do in the
gradient of its bias.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils.parametrize import is_parametrized

from counterflow.backward.adjoint import Adjoint, own_forward
from counterflow.backward.convolution import Geometry, convolution_backward, convolution_geometry
from counterflow.backward.reduce import batch_sum, count_samples, sum_over_ranks, widen, world_size
from counterflow.exceptions import InputError, UnsupportedError

__all__ = ["shunt"]

# Whether biases take the mean, the running means' momentum, and whether errors are larger by the number of ranks.
Settings = tuple[bool, float | None, bool]


class _ShuntedLinear(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, settings: Settings, *means: Tensor
    ) -> Tensor:
        return output.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, _, ctx.settings, *ctx.means = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        down = weight_gradient = None
        if ctx.needs_input_grad[0]:
            down = (error @ weight.to(error.dtype)).to(x.dtype)
        samples = tuple(range(error.ndim - 1))
        centered, bias_gradient, mean, count = _split(error, samples, ctx.settings)
        if ctx.needs_input_grad[1]:
            inputs = x.reshape(-1, x.shape[-1]).to(error.dtype)
            gradient = centered.reshape(-1, centered.shape[-1]).T @ inputs
            if ctx.means:
                total = widen(inputs).sum(0)
                gradient = gradient + _running(total, mean.reshape(-1, 1), count, len(inputs), ctx)
            weight_gradient = gradient.to(weight.dtype)
        return down, weight_gradient, _bias(bias_gradient, ctx), None, None, *(None for _ in ctx.means)


class _ShuntedConvolution(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        output: Tensor,
        settings: Settings,
        geometry: Geometry,
        *means: Tensor,
    ) -> Tensor:
        return output.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, _, ctx.settings, ctx.geometry, *ctx.means = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        kernel = weight.to(error.dtype)
        inputs = x.to(error.dtype)
        down = weight_gradient = None
        if ctx.needs_input_grad[0]:
            down = convolution_backward(error, inputs, kernel, ctx.geometry, [True, False, False])[0].to(x.dtype)
        samples = (0, *range(2, error.ndim))
        centered, bias_gradient, mean, count = _split(error, samples, ctx.settings)
        if ctx.needs_input_grad[1]:
            wanted = [False, True, False]
            gradient = convolution_backward(centered, inputs, kernel, ctx.geometry, wanted)[1]
            if ctx.means:
                # Errors of one add up what every weight sees, the zeros of the padding too.
                total = widen(convolution_backward(torch.ones_like(error), inputs, kernel, ctx.geometry, wanted)[1])
                by_unit = mean.reshape(_by_unit(ctx.geometry, weight))
                gradient = gradient + _running(total, by_unit, count, error.numel() // error.shape[1], ctx)
            weight_gradient = gradient.to(weight.dtype)
        return down, weight_gradient, _bias(bias_gradient, ctx), None, None, None, *(None for _ in ctx.means)


def _split(error: Tensor, samples: tuple[int, ...], settings: Settings) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
    """The centered error, the gradient of the bias, the mean error of all ranks and the number of its samples."""
    mean_bias, momentum, _ = settings
    if momentum is None:
        total, count = batch_sum(error, samples, "shunt()", examples=(0,))
    else:  # running means know more than a batch of one
        total, count = sum_over_ranks(widen(error).sum(samples, keepdim=True), count_samples(error, samples))
    # Every rank gives its share of the sum or the mean, as it does for the weights; adding them up is
    # DistributedDataParallel's work.
    share = total if world_size() == 1 else error.sum(samples, keepdim=True, dtype=total.dtype)
    # An empty batch has no mean, and tells the bias nothing.
    seen = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
    bias = share / seen if mean_bias else share
    return (error - total / count).to(error.dtype), bias.reshape(-1), total / count, count


def _running(total: Tensor, mean: Tensor, count: int | Tensor, here: int, ctx: Any) -> Tensor:
    """Bring the running means up to date; this rank's share of what they add to the gradient of the weight.

    Args:
        total: The sum of the inputs over this rank's samples.
        mean: The errors' mean over all ranks, broadcastable against the weight.
        count: The samples of all ranks.
        here: The samples of this rank.
        ctx: Of the Function.
    """
    inputs = sum_over_ranks(total, here)[0] / count
    error_mean, input_mean, passes = ctx.means
    ranks = world_size() if ctx.settings[2] else 1
    with torch.no_grad():
        told = mean.isfinite().all() & inputs.isfinite().all()
        passes.add_(told.to(passes.dtype))
        # A plain mean over the first passes, so that the start does not count for more than it is worth.
        new = torch.clamp(1.0 / passes.clamp(min=1.0), min=1.0 - ctx.settings[1])
        for running, now in ((error_mean, mean.reshape(-1) / ranks), (input_mean, inputs)):
            moved = running + new * (now.to(running.dtype) - running)
            running.copy_(torch.where(told, moved, running))
        error_off = mean - ranks * error_mean.to(mean.dtype).reshape(mean.shape)
    share: Tensor = here * error_off * (inputs - input_mean.to(inputs.dtype))
    return torch.zeros_like(share) if here == 0 else share  # where no rank has a sample, the means are no numbers


def _by_unit(geometry: Geometry, weight: Tensor) -> tuple[int, ...]:
    """The shape in which a vector with an element a unit of the output stands beside the weight."""
    kernel = [1] * (weight.ndim - 2)
    return (1, -1, *kernel) if geometry.transposed else (-1, 1, *kernel)


def _bias(gradient: Tensor, ctx: Any) -> Tensor | None:
    return gradient.to(ctx.bias_dtype) if ctx.bias_dtype is not None and ctx.needs_input_grad[2] else None


for _forward in (_ShuntedLinear.forward, _ShuntedConvolution.forward):
    # PyTorch binds the arguments of `apply` by this signature; stating it halves the cost of a call.
    vars(_forward)["__signature__"] = inspect.signature(_forward)


class shunt(Adjoint):  # noqa: N801 - reads as a verb where it is used
    """Weights learn from centered errors, biases from the mean (see the module's docstring).

    Works on `Linear` and on all convolutions, transposed ones too; the error that is handed down stays whole.

    Args:
        bias: ``"mean"`` (default) gives the bias the mean error over the samples, the paper's equation 19;
            ``"sum"`` leaves its gradient as it was.
        momentum: In [0, 1), for small batches: errors and inputs are centered by running means, which keep this much of
            themselves in each backward pass (at the start less, so that they are plain means over the passes so far).
            They live in buffers of the module, the state_dict has them, and each backward pass counts once, also of an
            accumulated gradient. None (default): errors are centered by the batch's own mean. Batches of one are then
            refused, while they are in order with running means. A transposed convolution with groups cannot have it.

    Raises:
        InputError: If ``bias`` is neither, or the momentum is out of range.
        ShapeError: In the backward pass, if the batch holds one example and there is no momentum.
        UnsupportedError: Under `torch.func`, with momentum.

    Under DistributedDataParallel the mean is taken over all ranks, and each rank's bias gets its own
    examples' share of it: averaging the ranks divides it by their number, as it does all gradients.

    Example:
        >>> import torch, counterflow as cf
        >>> from counterflow import backward
        >>> layer = torch.nn.Linear(1, 1)
        >>> h = cf.attach(layer, {"": backward.shunt()})
        >>> x = torch.tensor([[1.0], [2.0], [6.0]])
        >>> layer(x).sum().backward()       # a constant error is all d.c.
        >>> layer.weight.grad.item(), layer.bias.grad.item()
        (0.0, 1.0)
    """

    batch_coupled = True
    summed_ranks = False  # whether something above has multiplied errors by the number of ranks

    def __init__(self, bias: Literal["mean", "sum"] = "mean", momentum: float | None = None) -> None:
        if bias not in ("mean", "sum"):
            raise InputError(f"bias must be 'mean' or 'sum', got {bias!r}")
        if momentum is not None and not (isinstance(momentum, int | float) and 0 <= momentum < 1):
            raise InputError(f"momentum must lie in [0, 1), got {momentum!r}")
        self.bias, self.momentum = bias, momentum

    def supports(self, module: nn.Module) -> str:
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            if is_parametrized(module):
                # Reading the weight again would run its parametrization again, which may change its state.
                return "its weight is parametrized"
            if self.momentum is not None and getattr(module, "transposed", False) and module.groups != 1:
                return "running means of a transposed convolution with groups are not provided"
            if self.momentum is not None and isinstance(module.weight, nn.parameter.UninitializedParameter):
                return "its weight has no shape yet; run a batch through the model first"
            return own_forward(module)
        return "shunting splits the gradient of a linear or convolutional layer"

    def buffers(self, module: nn.Module) -> Mapping[str, Tensor]:
        if self.momentum is None:
            return {}
        assert isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        weight = module.weight.detach()  # which may be made of other parameters, as by pruning
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        transposed = getattr(module, "transposed", False)
        inputs = weight.shape[1:] if isinstance(module, nn.Linear) else weight.shape
        units = weight.shape[1 if transposed else 0]
        return {
            "shunt_error_mean": weight.new_zeros(units, dtype=dtype),
            "shunt_input_mean": weight.new_zeros(inputs, dtype=dtype),
            "shunt_passes": weight.new_zeros((), dtype=dtype),
        }

    def replace(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        settings: Settings = (self.bias == "mean", self.momentum, self.summed_ranks)
        means: list[Tensor] = []
        if self.momentum is not None:
            if not torch.compiler.is_compiling():
                self._refuse_functional()
            means = [getattr(module, f"shunt_{name}") for name in ("error_mean", "input_mean", "passes")]
        assert isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        tied = (module.weight, module.bias)
        unbatched = output.ndim == module.weight.ndim - 1
        if isinstance(module, nn.Linear):
            if unbatched:
                inputs, output = inputs[None], output[None]
            result = _ShuntedLinear.apply(inputs, *tied, output, settings, *means)  # type: ignore[no-untyped-call]
        else:
            inputs, geometry = convolution_geometry(module, inputs, output)
            if unbatched:
                inputs, output = inputs[None], output[None]
            result = _ShuntedConvolution.apply(  # type: ignore[no-untyped-call]
                inputs, *tied, output, settings, geometry, *means
            )
        return result[0] if unbatched else result  # type: ignore[no-any-return]

    def _refuse_functional(self) -> None:
        if torch._C._functorch.maybe_current_level() is not None:
            raise UnsupportedError(
                f"{self!r} keeps state from step to step, which torch.func cannot carry; undo it there, or use shunt() "
                "without momentum"
            )

    def __repr__(self) -> str:
        bias = ["bias='sum'"] if self.bias == "sum" else []
        return f"shunt({', '.join(bias + ([] if self.momentum is None else [f'momentum={self.momentum}']))})"
