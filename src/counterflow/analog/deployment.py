"""`deploy`: the linear layers, convolutions and sigmoids of a model go through an analog device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils._pytree import tree_map

from counterflow.adaptive import positive
from counterflow.analog.circuits import neurons
from counterflow.analog.convolution import analog_convolution
from counterflow.analog.device import DeviceModel, known_device
from counterflow.analog.linear import Layer, analog_linear, analog_sigmoid, equip, write
from counterflow.backward.adjoint import Adjoint, own_forward, why_taken
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table, exporting, reset_compiler, select

__all__ = ["Deployment", "deploy"]

_BUFFERS = ("analog_cells", "analog_sums", "analog_writes")


class Deployment(Handle):
    """The `counterflow.handle.Handle` of `deploy`, which writes weights, too.

    Args:
        model: The model.
        table: What was done per layer.
        undo: What takes it back.
        arrays: The layers whose weights are on the device.
        device: The device.
    """

    def __init__(
        self,
        model: nn.Module,
        table: Table,
        undo: Sequence[Callable[[], None]],
        arrays: Sequence[Layer],
        device: DeviceModel,
    ) -> None:
        super().__init__(model, table, undo)
        self.device = device
        self._arrays = tuple(arrays)

    def write(self, generator: torch.Generator | None = None) -> None:
        """What the capacitors make of a step: leakage, range, noise, and the refresh of those weights in turn.

        It takes one sample's time. With ``optimizer=...`` it is called after each step.

        Args:
            generator: For the noise; torch's own by default.

        Raises:
            InputError: If it has been undone.
        """
        if not self.attached:
            raise InputError("write() after undo(): no weight is on the device any more; deploy the model again")
        written: set[int] = set()
        for module in self._arrays:
            write(module, self.device, generator, written)


def deploy(
    model: nn.Module,
    device: DeviceModel,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    inputs: Tensor | None = None,
    layers: str = "**",
    error_scale: float = 1.0,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> Deployment:
    r"""Put a model's linear layers and convolutions, and the sigmoids behind them, on an analog device.

    Forward, backward and the weights' gradients go through the device's multipliers, as for `AnalogLinear`; a
    convolution (`torch.nn.Conv1d`, `torch.nn.Conv2d`) is one array a group, to which patches are brought one after
    another, and every place of its output writes its weights. A `torch.nn.Tanh` or `torch.nn.Sigmoid` that is called on
    a deployed layer's output becomes a row of neurons. What the model is given and what it returns go through the
    converters, in tuples and dictionaries, too, and the gradient straight through them. With an optimizer, each step
    writes the weights: learning rates are rounded to those that the device has, charges leak, are clipped, get noise
    and are refreshed. Parameters, keys and types stay. Do it before ``torch.compile`` and
    DistributedDataParallel.

    ``tap_offset`` does nothing here, since a layer has no delay line.

    Args:
        model: Changed in place; the buffers ``analog_...`` of a layer are what differs from cell to cell.
        device: The imperfections.
        optimizer: Whose steps write; None if the handle's ``write()`` is called by hand.
        inputs: An example, for a trial forward pass that finds the sigmoids; None leaves them alone.
        layers: A pattern of the modules that are meant; all by default.
        error_scale: As for `AnalogLinear`: with a mean over the batch, the batch's size.
        seed: Of what differs from cell to cell.
        generator: For the noise of writes; torch's own by default.

    Returns:
        A `Deployment`: ``table()``, ``write()``, ``undo()``, which keeps the weights.

    Raises:
        InputError: If an argument cannot be used, or the optimizer holds none of the deployed weights.
        PatternError: If ``layers`` matches no module.
        UnsupportedError: If there is nothing to deploy. In the forward pass: under float16 autocast.

    References:
        Cho and Lee (1998), section 2.

    Example:
        >>> import counterflow as cf
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
        >>> print(cf.analog.deploy(model, cf.analog.DeviceModel.paper(), inputs=torch.zeros(2, 4)).table())
        Analog device
        layer  kind    cells  done
        0      Linear  15     synapses
        1      Tanh    3      neurons
        2      Linear  4      synapses
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    known_device(device)
    positive(error_scale, "error_scale")
    chosen = select(model, layers)
    rows: list[Row] = []
    undo: list[Callable[[], None]] = []
    arrays: list[Layer] = []
    reasons = {id(module): _why_not(module) for _, module in chosen}
    suited = [module for _, module in chosen if isinstance(module, Layer) and not reasons[id(module)]]
    widths = {} if inputs is None else _widths(model, inputs, suited)
    for name, module in chosen:
        kind = type(module).__name__
        reason = reasons[id(module)]
        if isinstance(module, Layer) and not reason:
            equip(module, device, seed, name)
            arrays.append(module)
            undo += [_unbuffer(module, each) for each in _BUFFERS]
            undo.append(
                module.register_forward_hook(_Array(device, error_scale), prepend=True, with_kwargs=True).remove
            )
            size = module.get_buffer("analog_cells")[0].numel()
            rows.append(Row(name, kind, "synapses", values={"cells": size}))
        elif isinstance(module, nn.Tanh | nn.Sigmoid) and not reason:
            found = widths.get(id(module), set())
            if len(found) == 1 and (place := next(iter(found))) is not None:
                width, dim = place
                like = next(model.parameters())
                parts = torch.as_tensor(neurons(device, width, seed, name), dtype=like.dtype, device=like.device)
                module.register_buffer("analog_neurons", parts)
                undo.append(_unbuffer(module, "analog_neurons"))
                undo.append(
                    module.register_forward_hook(
                        _Sigmoid(device, error_scale, dim), prepend=True, with_kwargs=True
                    ).remove
                )
                rows.append(Row(name, kind, "neurons", values={"cells": width}))
            else:
                why = "its neurons are not known; give inputs=" if inputs is None else _no_neurons(found)
                rows.append(Row(name, kind, "left alone", why))
        elif reason:
            rows.append(Row(name, kind, "left alone", reason))
    if not arrays:
        left = next((row for row in rows if row.why), None)
        why = f"{left.layer!r} ({left.kind}): {left.why}" if left else "it holds no linear layer or convolution"
        raise UnsupportedError(f"{type(model).__name__} has nothing to deploy for layers={layers!r}; {why}")
    undo += _converters(model, device)
    handle = Deployment(model, Table("Analog device", rows), undo, arrays, device)
    if optimizer is not None:
        try:
            handle._undo += _hook(optimizer, handle, generator)
        except InputError:
            handle.undo()
            raise
    reset_compiler()
    return handle


def _why_not(module: nn.Module) -> str:
    """Why a module is left alone; empty if it can be deployed, or has nothing that could be."""
    if "analog_cells" in module._buffers or "analog_neurons" in module._buffers:
        return "it is on a device already"
    if reason := why_taken(module):
        return reason
    if isinstance(module, Layer) and "weight" not in module._parameters:
        return "its weight is made of other parameters, and a capacitor holds the weight itself"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "attention uses its weights without calling it"
    if isinstance(module, Layer | nn.Tanh | nn.Sigmoid):
        return "it has no weights yet" if isinstance(module, nn.modules.lazy.LazyModuleMixin) else own_forward(module)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "its products are inside PyTorch's recurrent kernel; write the cell out with linear layers"
    if isinstance(module, nn.MultiheadAttention):
        return "its products are inside PyTorch's attention; write it out with linear layers"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "patches are brought to an array for Conv1d and Conv2d only"
    if module._parameters:
        return "it is no product of signals and weights that a synapse array makes"
    return ""


def _no_neurons(found: set[tuple[int, int] | None]) -> str:
    """Why a sigmoid is no row of neurons, from its places in a trial forward pass (see `_widths`)."""
    if not found:
        return "the model does not call it on these inputs"
    if None in found:
        return "it is not right behind a layer"
    return "it is behind layers of unlike widths or kinds; give each a sigmoid of its own"


class _Array(Adjoint):
    """A layer's forward hook: its output is the array's. An adjoint, so that no other one takes its place."""

    counts_every_row = True  # each example that is seen writes its charge

    def __init__(self, device: DeviceModel, scale: float) -> None:
        self.device, self.scale = device, scale

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if exporting():
            return output
        return self.replace(module, args[0] if args else kwargs["input"], output)

    def supports(self, module: nn.Module) -> str:
        """Linear layers and convolutions."""
        return "" if isinstance(module, Layer) else "it is no linear layer or convolution"

    def replace(self, module: Any, inputs: Tensor, output: Tensor) -> Tensor:
        """The array's output."""
        analog: Any = analog_linear if isinstance(module, nn.Linear) else analog_convolution
        found: Tensor = analog(module, inputs, self.device, self.scale)
        return found.to(output.dtype)

    def __repr__(self) -> str:
        return "an analog device"


class _Sigmoid:
    """A sigmoid's forward hook: its output is that of neurons, which lie along a dimension, seen from the last."""

    counts_every_row = True  # the amplifiers' offsets are errors of their own

    def __init__(self, device: DeviceModel, scale: float, dim: int) -> None:
        self.device, self.scale, self.dim = device, scale, dim

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if exporting():
            return output
        x = (args[0] if args else kwargs["input"]).movedim(self.dim, -1)
        kind = nn.Sigmoid if isinstance(module, nn.Sigmoid) else nn.Tanh
        found = analog_sigmoid(kind, x, module.get_buffer("analog_neurons"), self.device, self.scale)
        return found.movedim(-1, self.dim).to(output.dtype)

    def __repr__(self) -> str:
        return "an analog device"


def _convert(x: Tensor, bits: int, used: float) -> Tensor:
    """Through a converter of the range [-1, 1), with a straight way back."""
    levels = 2.0 ** (bits - 1)
    rounded = torch.clamp(torch.round(x.detach() * (used * levels)), -levels, levels - 1) / (levels * used)
    return x + (rounded - x.detach())


def _converters(model: nn.Module, device: DeviceModel) -> list[Callable[[], None]]:
    undo = []
    sent, read, used = device.output_bits, device.input_bits, device.converter_used
    if sent is not None:
        undo.append(model.register_forward_pre_hook(_Sends(sent, used), with_kwargs=True).remove)
    if read is not None:
        undo.append(model.register_forward_hook(_Reads(read, used)).remove)
    return undo


class _Converter:
    """A converter between the computer and the model, for all signals of a structure."""

    def __init__(self, bits: int, used: float) -> None:
        self.bits, self.used = bits, used

    def convert(self, values: Any) -> Any:
        """The same structure, with tensors of floating point converted."""
        return values if exporting() else tree_map(self._one, values)

    def _one(self, value: Any) -> Any:
        signal = isinstance(value, Tensor) and value.is_floating_point()
        return _convert(value, self.bits, self.used) if signal else value


class _Sends(_Converter):
    """What the computer sends to the model."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.convert((args, kwargs))


class _Reads(_Converter):
    """What it reads from it."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.convert(output)


def _unbuffer(module: nn.Module, name: str) -> Callable[[], None]:
    return lambda: delattr(module, name)


def _widths(model: nn.Module, inputs: Tensor, suited: Sequence[nn.Module]) -> dict[int, set[tuple[int, int] | None]]:
    """How many neurons each sigmoid is in its calls, and along which dimension they lie, seen from the last.

    It is found by a trial forward pass; None where no suited layer feeds it.
    """
    made: list[tuple[Tensor, int]] = []
    found: dict[int, set[tuple[int, int] | None]] = {}

    def remember(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        made.append((output, -1 if isinstance(module, nn.Linear) else -2 if isinstance(module, nn.Conv1d) else -3))

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        given = args[0] if args else kwargs["input"]
        fed = next((dim for each, dim in made if given is each), None)
        found.setdefault(id(module), set()).add(None if fed is None else (output.shape[fed], fed))

    hooks = [module.register_forward_hook(remember) for module in suited]
    sigmoids = [each for each in model.modules() if isinstance(each, nn.Tanh | nn.Sigmoid)]
    hooks += [each.register_forward_hook(look, with_kwargs=True) for each in sigmoids]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        for module, training in modes:
            module.training = training
        for hook in hooks:
            hook.remove()
    return found


def _hook(
    optimizer: torch.optim.Optimizer, handle: Deployment, generator: torch.Generator | None
) -> list[Callable[[], None]]:
    """Have an optimizer's steps take the device's rates and write the weights."""
    own = {id(parameter) for module in handle._arrays for parameter in module.parameters(recurse=False)}

    def held() -> list[dict[str, Any]]:
        return [group for group in optimizer.param_groups if any(id(each) in own for each in group["params"])]

    if not held():
        raise InputError("the optimizer holds none of the deployed weights; give the one that trains the model")
    for group in held():
        handle.device.rate(float(group["lr"]))
    rates: list[tuple[dict[str, Any], Any]] = []

    def before(*_: Any) -> None:
        rates[:] = [(group, group["lr"]) for group in held()]
        if handle.device.rate_resolution:
            rounded = [handle.device.rate(float(rate)) for _, rate in rates]  # all, or none: one may be refused
            for (group, _), rate in zip(rates, rounded, strict=True):
                group["lr"] = rate

    def after(*_: Any) -> None:
        for group, rate in rates:
            group["lr"] = rate
        handle.write(generator)

    hooks = optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)
    return [hook.remove for hook in hooks]
