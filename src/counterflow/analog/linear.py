"""Synapses and neurons as PyTorch operations: forward, backward and update through the device's circuits."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from counterflow.adaptive import positive
from counterflow.analog.circuits import Cell, Neuron, cells, neurons, saturate
from counterflow.analog.device import DeviceModel, known_device
from counterflow.exceptions import UnsupportedError

__all__ = ["AnalogLinear", "analog_linear", "analog_sigmoid", "equip", "write"]

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
Limits = tuple[float, float, float]  # of signals, of weights, and where an input stage saturates


def _signal(u: Tensor, limits: Limits) -> Tensor:
    clipped: Tensor = saturate(u.clip(-limits[0], limits[0]), limits[2])
    return clipped


def _stage(w: Tensor, limits: Limits) -> Tensor:
    clipped: Tensor = saturate(w.clip(-limits[1], limits[1]), limits[2])
    return clipped


class _Synapses(torch.autograd.Function):
    """(inputs, weights, what differs by cell) to sums of currents.

    The error that arrives is the gradient, which points away from the target; the chip's points toward it. Hence the
    signs of the offsets.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, parts: Tensor, limits: Limits, scale: float) -> Tensor:
        gain, signal, weight = parts[Cell.FORWARD_GAIN], parts[Cell.FORWARD_SIGNAL], parts[Cell.FORWARD_WEIGHT]
        effective = gain * (_stage(w, limits) + weight)
        return _signal(x, limits) @ effective.mT + (effective * signal).sum(1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, parts, ctx.limits, ctx.scale = inputs
        ctx.save_for_backward(x, w, parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """The chip's errors at the inputs, and what it would write, both as gradients."""
        x, w, parts = ctx.saved_tensors
        delta = _signal(ctx.scale * gradient, ctx.limits)
        to_x = to_w = None
        if ctx.needs_input_grad[0]:
            gain, error, weight = parts[Cell.BACKWARD_GAIN], parts[Cell.BACKWARD_ERROR], parts[Cell.BACKWARD_WEIGHT]
            effective = gain * (_stage(w, ctx.limits) + weight)
            to_x = (delta @ effective - (effective * error).sum(0)) / ctx.scale
        if ctx.needs_input_grad[1]:
            gain, signal, error = parts[Cell.UPDATE_GAIN], parts[Cell.UPDATE_SIGNAL], parts[Cell.UPDATE_ERROR]
            a = _signal(x, ctx.limits)
            # The sum over examples of (a + signal)(delta - error), each of which is written by itself.
            products = delta.mT @ a + signal * delta.sum(0)[:, None] - error * a.sum(0) - len(a) * signal * error
            to_w = (gain * products - len(a) * parts[Cell.UPDATE_CHARGE]) / ctx.scale
        return to_x, to_w, None, None, None


class _Neurons(torch.autograd.Function):
    """(sums of currents, what differs by neuron) to activations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        i: Tensor, parts: Tensor, slope: float, height: float, base: float, min_select: bool, scale: float
    ) -> Tensor:
        return base + height * torch.tanh(slope * i) + parts[Neuron.OUTPUT]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        i, parts, ctx.slope, ctx.height, _, ctx.min_select, ctx.scale = inputs
        ctx.save_for_backward(i, parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        """The error times the bell, with the amplifier's offset, as a gradient."""
        i, parts = ctx.saved_tensors
        tanh = torch.tanh(ctx.slope * i)
        bell = 1 - tanh.abs() if ctx.min_select else 1 - tanh * tanh
        back = gradient * (ctx.height * ctx.slope * bell * parts[Neuron.BELL]) - parts[Neuron.ERROR] / ctx.scale
        return back, None, None, None, None, None, None


def equip(module: Layer, device: DeviceModel, seed: int, purpose: str) -> None:
    """Give a layer what differs from cell to cell, as buffers of its own."""
    weight, bias = module.weight, module.bias
    shape = (len(weight), weight[0].numel() + (bias is not None))
    drawn = torch.from_numpy(cells(device, shape, seed, purpose))
    module.register_buffer("analog_cells", drawn.to(weight.device, weight.dtype))
    sums = neurons(device, len(weight), seed, purpose)[Neuron.INPUT]
    module.register_buffer("analog_sums", torch.from_numpy(sums).to(weight.device, weight.dtype))
    module.register_buffer("analog_writes", torch.zeros((), dtype=torch.int64, device=weight.device))


def analog_linear(module: nn.Linear, x: Tensor, device: DeviceModel, scale: float) -> Tensor:
    """What an equipped layer's array makes of inputs, ``(..., in_features)``."""
    refuse_loss_scaling(x)
    weight = module.weight
    with torch.autocast(x.device.type, enabled=False):
        rows = x.reshape(-1, module.in_features).to(weight.dtype)
        found = currents(rows, weight, module, slice(None), device, scale)
    return found.reshape(*x.shape[:-1], module.out_features)


def currents(rows: Tensor, weight: Tensor, module: Layer, place: slice, device: DeviceModel, scale: float) -> Tensor:
    """What the neurons of a place in an equipped layer get, ``(examples, neurons)``.

    Args:
        rows: Their inputs, ``(examples, inputs)``.
        weight: Their weights, ``(neurons, inputs)``.
        module: The layer.
        place: Which neurons they are.
        device: The imperfections.
        scale: As ``error_scale`` of `AnalogLinear`.
    """
    limits = (device.signal_range, device.weight_range, device.saturation)
    parts, sums = module.get_buffer("analog_cells")[:, place], module.get_buffer("analog_sums")[place]
    if module.bias is not None:
        rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        weight = torch.cat([weight, module.bias[place, None]], 1)
    result: Tensor = _Synapses.apply(rows, weight, parts, limits, scale)  # type: ignore[no-untyped-call]
    return result + sums


def analog_sigmoid(kind: type[nn.Module], i: Tensor, parts: Tensor, device: DeviceModel, scale: float) -> Tensor:
    """What neurons make of sums of currents, as `torch.nn.Tanh` or `torch.nn.Sigmoid`, ``(..., units)``."""
    refuse_loss_scaling(i)
    # A logistic sigmoid is a tanh of half the slope and half the height, on a base of a half.
    slope, height, base = (0.5, 0.5, 0.5) if kind is nn.Sigmoid else (1.0, 1.0, 0.0)
    options = device.slope(slope), height, base, device.min_select, scale
    result: Tensor = _Neurons.apply(i.to(parts.dtype), parts, *options)  # type: ignore[no-untyped-call]
    return result


def refuse_loss_scaling(x: Tensor) -> None:
    """Raise under float16 autocast: the chip sees the error's size, which loss scaling changes."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        raise UnsupportedError(
            "an analog device depends on the error's absolute size, which float16 loss scaling changes; use bfloat16"
        )


@torch.no_grad()
def write(
    module: Layer, device: DeviceModel, generator: torch.Generator | None = None, written: set[int] | None = None
) -> None:
    """What a chip does to weights that have just been changed: leakage, range, noise, the refresh of those in turn.

    Args:
        module: The layer.
        device: The imperfections.
        generator: For the noise; torch's own by default.
        written: The ids of parameters that have had their turn in this step, which layers may share; those of this
            layer are added.
    """
    written = set() if written is None else written
    count = module.get_buffer("analog_writes")
    writes = int(count)
    keep, limit = math.exp(-device.leakage / device.sample_rate), device.weight_range
    for parameter in module.parameters(recurse=False):
        if id(parameter) in written:
            continue
        written.add(id(parameter))
        parameter.mul_(keep).clamp_(-limit, limit)
        if device.write_noise:
            noise = torch.randn(parameter.shape, dtype=parameter.dtype, device=parameter.device, generator=generator)
            parameter.add_(device.write_noise * noise).clamp_(-limit, limit)
        if device.weight_resolution:
            share = parameter.numel() / (device.refresh_interval * device.sample_rate)
            start, end = math.floor(writes * share), math.floor((writes + 1) * share)
            turn = torch.arange(start, end, device=parameter.device) % parameter.numel()
            flat = parameter.reshape(-1)  # a view, or a copy of what is not contiguous
            flat[turn] = torch.floor(flat[turn] / device.weight_resolution + 0.5) * device.weight_resolution
            parameter.copy_(flat.reshape(parameter.shape))
    count.add_(1)


class AnalogLinear(nn.Linear):
    r"""A linear layer on an analog chip: forward pass, backward pass and weight gradient go through the multipliers.

    The gradient of a weight is what the chip would add to it for each example, summed over the batch, with the sign
    that an optimizer expects, so that ``SGD`` on single examples writes what the chip writes. Call `write` after each
    step for what the capacitors make of it: leakage, range, noise, refresh. With an ideal device it is
    `torch.nn.Linear`.

    A layer has no delay line and no converters: ``tap_offset`` and the converters' bits do nothing here.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether there is one, a synapse whose input is 1.
        device: The imperfections; by default none.
        seed: Of what differs from cell to cell. Layers of one size and seed have the same cells.
        error_scale: What gradients are multiplied by on their way into the chip, whose full scale is 1, and divided by
            on their way out; where the loss is a mean over the batch, the batch's size.
        dtype: Of the parameters and of what differs from cell to cell; torch's default if not given.

    Shape:
        Inputs ``(..., in_features)``, outputs ``(..., out_features)``.

    Raises:
        InputError: If ``device`` is no `DeviceModel`, or ``error_scale`` is not a positive number.
        UnsupportedError: Under float16 autocast, whose loss scaling changes the error that the chip sees.

    References:
        Cho and Lee (1998), section 2.

    Example:
        >>> layer = AnalogLinear(3, 2, device=DeviceModel.paper())
        >>> layer(torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """

    counts_every_row = True  # each example that is seen writes its charge

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: DeviceModel | None = None,
        *,
        seed: int = 0,
        error_scale: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype=dtype)
        self.device_model = DeviceModel.ideal() if device is None else known_device(device)
        self.error_scale = positive(error_scale, "error_scale")
        equip(self, self.device_model, seed, "layer")

    def forward(self, input: Tensor) -> Tensor:
        """The sums of currents."""
        return analog_linear(self, input, self.device_model, self.error_scale)

    def write(self, generator: torch.Generator | None = None) -> None:
        """After an optimizer's step: what the capacitors make of it.

        Args:
            generator: For the noise; torch's own by default.
        """
        write(self, self.device_model, generator)

    def extra_repr(self) -> str:
        """Sizes and imperfections."""
        return f"{super().extra_repr()}, device={self.device_model!r}"
