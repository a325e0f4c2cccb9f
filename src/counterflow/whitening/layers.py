"""Which layers of a model can be whitened, in which form, and why the others are left alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from counterflow.backward.adjoint import own_forward, why_taken
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Row

__all__ = ["Form", "Layer", "Layers", "Stand", "find_layers", "tensor_of", "which_form"]

Form = Literal["canonical", "explicit"]
Stand = Literal["auto", "canonical", "explicit"]
Layers = list["Layer"]

_WEIGHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# What must agree between the groups of a weight and its bias for the canonical form to be the whitened layer's step.
_SHARED = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


@dataclass(eq=False)
class Layer:
    """A layer that is whitened. What it keeps lives in buffers of its module, named ``whiten_...``.

    Args:
        name: The module's dotted name.
        module: The layer.
        form: Whether its parameters stay canonical, or hold V and d.
        centered: Whether a bias that learns can take up the mean; without one, c is 0.
        note: What the table says of its last projection.
        drift: How far it had drifted when that was last looked at.
        prefix: What the names of its buffers begin with.
        label: Its name in the table.
    """

    name: str
    module: nn.Module
    form: Form
    centered: bool
    note: str = ""
    drift: float | None = None
    prefix: str = "whiten_"
    label: str = ""

    @property
    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """The parameters that an optimizer holds; None for a bias that cannot take up the mean."""
        return tensor_of(self.module, "weight"), self.module.get_parameter("bias") if self.centered else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parameters on the module."""
        return ("weight", "bias") if self.centered else ("weight",)

    def check(self) -> None:
        """Raise if another basis would change the function: V or d is computed from other parameters by now.

        Raises:
            UnsupportedError: With the layer's name and what to do.
        """
        if self.form == "canonical":  # whose parameters stay as they are
            return
        for name in self.names:
            path, _, leaf = name.rpartition(".")
            if leaf not in self.module.get_submodule(path)._parameters:
                raise UnsupportedError(
                    f"{self.label!r} ({type(self.module).__name__}) is whitened in the explicit form, and its {leaf} "
                    "is computed from other parameters since; make it a parameter again first (prune.remove, "
                    "remove_weight_norm, remove_parametrizations), or do that before whiten()"
                )

    def own(self, weight: Tensor) -> Tensor:
        """What is this layer's of a tensor shaped as the weight that an optimizer holds."""
        return weight

    def own_bias(self, bias: Tensor) -> Tensor:
        """The same of the bias."""
        return bias

    @property
    def weight(self) -> Tensor:
        """W, or V in the explicit form."""
        return self.own(self.parameters[0])

    @property
    def bias(self) -> Tensor | None:
        """The bias b, or d in the explicit form; None where it cannot take up the mean."""
        bias = self.parameters[1]
        return None if bias is None else self.own_bias(bias)

    @property
    def sees_white(self) -> bool:
        """Whether the inputs that statistics are taken from are whitened already."""
        return self.form == "explicit"

    @property
    def groups(self) -> int:
        """How many sets of channels are whitened each by itself; 1 but for grouped convolutions."""
        groups = getattr(self.module, "groups", 1)
        assert isinstance(groups, int)
        return groups

    @property
    def inputs(self) -> int:
        """Inputs or channels of one group, n."""
        return self.weight.shape[1]

    @property
    def outputs(self) -> int:
        """Outputs or channels of one group, m."""
        return self.weight.shape[0] // self.groups

    def __getitem__(self, name: str) -> Tensor:
        return self.module.get_buffer(self.prefix + name)

    def add_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Put buffers on the module, whose names there begin with ``whiten_``."""
        for name, value in buffers.items():
            self.module.register_buffer(self.prefix + name, value)

    def remove_buffers(self) -> None:
        """Take all of them off again."""
        for name in [name for name in self.module._buffers if name.startswith(self.prefix)]:
            delattr(self.module, name)

    def seen(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        """Its input in a call of the module, with a batch dimension where the call had none."""
        x: Tensor = args[0] if args else kwargs["input"]
        if x.is_nested:
            return torch.cat(x.unbind())
        own = 2 if isinstance(self.module, nn.Linear) else self.weight.ndim
        return x[None] if x.ndim < own else x

    def matrices(self, size: int, start: float = 0.0) -> Tensor:
        """One matrix a group in the precision of statistics: ``start`` times the identity."""
        eye = torch.eye(size, device=self.weight.device, dtype=self.wide)
        return (start * eye).expand(self.groups, size, size).clone()

    def vectors(self, size: int) -> Tensor:
        """One vector of zeros a group in the precision of statistics."""
        return self.weight.detach().new_zeros(self.groups, size, dtype=self.wide)

    @property
    def wide(self) -> torch.dtype:
        """The precision of statistics: float64 where the weight is, else float32."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def kernel(self, weight: Tensor) -> Tensor:
        """A tensor shaped as the weight as (groups, outputs, inputs, kernel positions), in float64."""
        return weight.detach().double().reshape(self.groups, self.outputs, self.inputs, -1)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer, here or in a submodule, or what `torch.func` has put in its place."""
    path, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(path) if path else module, leaf)
    assert isinstance(value, Tensor)
    return value


def _unequal_setting(groups: Mapping[int, Mapping[str, Any]], weight: Tensor, bias: Tensor) -> str:
    """What keeps the canonical form from being the whitened layer's step; empty if nothing does."""
    first, second = groups[id(weight)], groups[id(bias)]
    unequal = [key for key in _SHARED if first[key] != second[key]]
    return (
        f"weight and bias have different {unequal[0]}: {first[unequal[0]]} and {second[unequal[0]]}" if unequal else ""
    )


def find_layers(
    model: nn.Module, optimizer: torch.optim.Optimizer, form: Stand, inside: tuple[type[nn.Module], ...] = ()
) -> tuple[Layers, list[Row]]:
    """The layers to whiten, and a row for each module with weights of its own that is left alone.

    Args:
        model: Where to look.
        optimizer: What trains it; only what it holds is whitened.
        form: What the user asked for.
        inside: Kinds of modules that are looked at elsewhere.

    Raises:
        UnsupportedError: If the canonical form is asked for where it is not the whitened layer's step.
        InputError: If the optimizer holds no parameter of the model.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in groups for p in model.parameters()):
        raise InputError(
            f"optimizer holds no parameter of this {type(model).__name__}; make it from model.parameters() first"
        )
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(id(module))
    layers: Layers = []
    rows: list[Row] = []
    attention = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    for name, module in model.named_modules():
        elsewhere = isinstance(module, inside) or id(module) in attention
        if elsewhere or not any(p is not None for p in module._parameters.values()):
            continue
        reason = _why_not(module, groups, owners)
        if reason:
            rows.append(Row(name, type(module).__name__, "left alone", reason))
            continue
        bias = module.bias
        centered = isinstance(bias, nn.Parameter) and bias.requires_grad and id(bias) in groups
        kind = which_form(name, module.get_parameter("weight"), bias if centered else None, groups, optimizer, form)
        layers.append(Layer(name, module, kind, centered, label=name))
    return layers, rows


def _why_not(module: nn.Module, groups: Mapping[int, Any], owners: Mapping[int, set[int]]) -> str:
    """Why a module is left alone; empty if it can be whitened."""
    if is_parametrized(module):
        return "its weight is parametrized"
    if not isinstance(module, _WEIGHED):
        return f"whitening knows no linear map of the inputs in a {type(module).__name__}"
    reason = own_forward(module)
    if reason:
        return reason
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None:
        return "its weight is computed from other parameters"
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "its weight has no shape yet; run a batch through the model first"
    if weight.is_complex():
        return "its weight is complex"
    if not weight.requires_grad:
        return "its weight is frozen"
    if id(weight) not in groups:
        return "its weight is not in the optimizer"
    if any(len(owners[id(p)]) > 1 for p in (weight, bias) if p is not None):
        return "it shares a parameter with another module, whose inputs are others"
    return why_taken(module)


def which_form(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    groups: Mapping[int, Mapping[str, Any]],
    optimizer: torch.optim.Optimizer,
    form: Stand,
) -> Form:
    """The form of a layer, from what the user asked for and what the optimizer can do.

    Args:
        name: The layer's, for the message.
        weight: Its weight, as the optimizer holds it.
        bias: Its bias, where that learns.
        groups: The optimizer's settings by the identity of the parameter.
        optimizer: What trains it.
        form: What the user asked for.

    Raises:
        UnsupportedError: If the canonical form is asked for where it is not the whitened layer's step.
    """
    if form == "explicit":
        return "explicit"
    why = ""
    if type(optimizer) is not torch.optim.SGD:
        why = f"{type(optimizer).__name__} is not linear in its gradients as torch.optim.SGD is"
    elif bias is not None:
        why = _unequal_setting(groups, weight, bias)
    if not why:
        return "canonical"
    if form == "canonical":
        raise UnsupportedError(
            f"form='canonical' is not whitening for {name!r}, since {why}; use form='explicit' or 'auto'"
        )
    return "explicit"
