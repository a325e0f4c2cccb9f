r"""Taps: identities at a module's output in the forward pass that map error to error in the backward pass.

With :math:`y` the output of a module and :math:`\delta = \partial E/\partial y` the error that reaches it, a
tap leaves :math:`y` as it is and hands :math:`T(\delta)` on in place of :math:`\delta`, so that everything
below, the module's own parameters included, learns from the changed error.

A tap is a forward hook that applies an `autograd.Function` to the output. That way it survives
`torch.compile(fullgraph=True)`, `torch.func`, DistributedDataParallel, activation checkpointing and deepcopy,
and changes neither the keys of the state_dict nor the type of any module.
"""

from __future__ import annotations

import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from counterflow.backward.adjoint import Adjoint, own_forward
from counterflow.backward.reduce import prepare_ranks
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table, exporting, reset_compiler, select

__all__ = ["Chain", "State", "Tap", "Transform", "attach"]

State = Mapping[str, Tensor]


class Transform(ABC):
    """One thing to do to an error. Subclass it and give ``__call__``; `Chain` puts several in a row.

    A transform holds settings, never results: what it keeps from step to step lives in buffers of the module
    that it sits on (`buffers`), where ``.to``, ``state_dict`` and ``deepcopy`` find it, and is changed only
    in the backward pass.

    Attributes:
        batch_coupled: Whether it mixes the examples of a batch.
        homogeneous: Whether scaling the error scales the result by the same factor. If not, it is refused
            under float16 autocast, whose loss scaling it would see as part of the error.
        stateful: Whether the backward pass changes its buffers. Such a transform is refused under
            `torch.func`.
        counts_every_row: Whether an example counts even where its error is zero, so that it must not be left out.
    """

    batch_coupled: bool = False
    homogeneous: bool = True
    stateful: bool = False
    counts_every_row: bool = False

    @abstractmethod
    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        """The error to hand on.

        Args:
            error: The error that reached the module's output, shaped as the output.
            batch: The dimensions of ``error`` that count examples.
            state: The transform's own buffers by name.
        """

    def buffers(self) -> Mapping[str, tuple[Tensor, bool]]:
        """The buffers that it needs on its module: initial value, and whether the state_dict has it."""
        return {}

    def scheduled(self) -> tuple[Tensor, ...]:
        """The buffers that the user changes in place, which therefore must not be copied to another device."""
        return ()


class Chain(Transform):
    """Several transforms, applied to the error in the order given.

    Args:
        transforms: Two or more make sense; one is allowed.

    Raises:
        InputError: If there is none, or if one is not a `Transform`.

    Example:
        >>> from counterflow import backward
        >>> backward.Chain(backward.clip(3.0), backward.scale(0.5))
        Chain(clip(3.0), scale(0.5))
    """

    def __init__(self, *transforms: Transform) -> None:
        if not transforms:
            raise InputError("Chain() needs one transform or more, such as Chain(clip(3.0), noise(0.01))")
        for transform in transforms:
            if not isinstance(transform, Transform):
                raise InputError(f"Chain takes transforms such as backward.scale(0.5), got {transform!r}")
        self.transforms = transforms
        self.batch_coupled = any(t.batch_coupled for t in transforms)
        self.homogeneous = all(t.homogeneous for t in transforms)
        self.stateful = any(t.stateful for t in transforms)
        self.counts_every_row = any(t.counts_every_row for t in transforms)

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        for index, transform in enumerate(self.transforms):
            own = {name: state[f"{index}_{name}"] for name in transform.buffers()}
            error = transform(error, batch, own)
        return error

    def buffers(self) -> Mapping[str, tuple[Tensor, bool]]:
        return {
            f"{index}_{name}": buffer
            for index, transform in enumerate(self.transforms)
            for name, buffer in transform.buffers().items()
        }

    def scheduled(self) -> tuple[Tensor, ...]:
        return tuple(tensor for transform in self.transforms for tensor in transform.scheduled())

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.transforms))})"


class _Bend(Function):
    """Identity forward; the transform backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, transform: Transform, batch: tuple[int, ...], names: tuple[str, ...], *state: Tensor
    ) -> Tensor:
        # Returning `x` itself or a view makes a following in-place operation raise; `x.data` would be
        # silently wrong.
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.transform, ctx.batch, ctx.names, *ctx.state = inputs

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        # State is kept on the context, not saved: saved tensors may not change between two backward passes.
        state = dict(zip(ctx.names, ctx.state, strict=True))
        bent = ctx.transform(error, ctx.batch, state)
        return (bent.to(error.dtype), None, None, None, *(None for _ in ctx.state))


class _BendForwardMode(_Bend):
    """The same with a tangent for forward-mode differentiation; Dynamo refuses a Function that has one."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return tangent.view_as(tangent)


# PyTorch binds the arguments of `apply` by this signature; stating it halves the cost of a call.
vars(_Bend.forward)["__signature__"] = inspect.signature(_Bend.forward)


class Tap:
    """The forward hook that puts a transform on a module's output.

    Every floating-point tensor of the output is tapped, in whatever tuple, list or dictionary it stands. Where it is
    the very tensor that the module was given, as with `torch.nn.Identity` or dropout that is off, it becomes a copy.

    Args:
        transform: What to do to the error.
        prefix: What the names of its buffers on the module begin with.
    """

    def __init__(self, transform: Transform, prefix: str) -> None:
        self.transform = transform
        self.names = tuple(transform.buffers())
        self.prefix = prefix

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        # An exported model is the bare model, and `detach` would cut its gradients.
        if not torch.is_grad_enabled() or exporting():
            return output
        transform = self.transform
        _refuse_scaled(transform)
        compiling = torch.compiler.is_compiling()
        if not compiling:
            if transform.batch_coupled:
                prepare_ranks()
            _refuse_functional(transform)
        state = self.state(module)
        bend = _Bend if compiling else _BendForwardMode
        leaves, tree = tree_flatten(output)
        floating = [
            index
            for index, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        ]
        if not floating:
            raise UnsupportedError(
                f"{transform!r} on a {type(module).__name__}: its output, a {type(output).__name__}, "
                "holds no floating-point tensor that can be reached; tuples, lists, dictionaries and classes "
                "registered with torch.utils._pytree can be looked into"
            )
        given: Any = (*args, *kwargs.values())
        if not all(isinstance(value, Tensor) for value in given):  # a walk costs as much as the rest, and is rare
            given = tree_leaves(given)
        for index in self.choose(leaves, floating):
            leaf = leaves[index]
            if any(leaf is value for value in given):
                # What passes a module through would be one memory under two gradients: a later in-place operation on
                # the output would change the input too, and its gradient would not know.
                leaf = leaf.clone()
            dims = batch_dims(module, output, leaf, index)
            leaves[index] = bend.apply(leaf, transform, dims, self.names, *state)  # type: ignore[no-untyped-call]
        return tree_unflatten(leaves, tree)

    def choose(self, leaves: list[Any], floating: list[int]) -> list[int]:
        """Which leaves of the output are tapped.

        Args:
            leaves: All of them.
            floating: The places of the floating-point tensors among them.
        """
        return floating

    def state(self, module: nn.Module) -> list[Tensor]:
        """What the transform sees, by `names`: its buffers on the module."""
        return [getattr(module, self.prefix + name) for name in self.names]


def batch_dims(module: nn.Module, output: Any, leaf: Tensor, index: int) -> tuple[int, ...]:
    """The dimensions that count examples in one tensor of a module's output; empty where there are none.

    It is the first, but for PyTorch's recurrent and attention layers that put time first. That a module was
    called on a single example without a batch dimension shows in the layers that fix the number of dimensions
    only.

    Args:
        module: The layer.
        output: All that it returned.
        leaf: One tensor of it.
        index: The tensor's place among those of the output.
    """
    if isinstance(module, nn.RNNBase):
        # The final states are (layers, batch, features) always, the output is (time, batch, features) unless
        # batch_first, or packed: (batch and time in one, features).
        if leaf.ndim == 3:
            return (1,) if index > 0 or not module.batch_first else (0,)
        return (0,) if index == 0 and isinstance(output[0], PackedSequence) else ()
    if isinstance(module, nn.modules.conv._ConvNd):
        return (0,) if leaf.ndim == module.weight.ndim else ()
    if isinstance(module, _ATTENTION) and index == 0:
        attention = next(m for m in module.modules() if isinstance(m, nn.MultiheadAttention))
        if leaf.ndim == 2:
            return ()
        return (0,) if attention.batch_first else (1,)
    return (0,)


_ATTENTION = (
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
)


def _refuse_functional(transform: Transform) -> None:
    if transform.stateful and torch._C._functorch.maybe_current_level() is not None:
        raise UnsupportedError(
            f"{transform!r} keeps state from step to step, which torch.func cannot carry; undo it there, or "
            "use a transform without state"
        )


def _refuse_scaled(transform: Transform) -> None:
    if not transform.homogeneous:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
                raise UnsupportedError(
                    f"{transform!r} depends on the error's absolute size, which float16 loss scaling "
                    "changes; use bfloat16 autocast, or give it units of the error's own size"
                )


def attach(model: nn.Module, transforms: Mapping[str, Transform | Adjoint]) -> Handle:
    """Put transforms on the modules that patterns name.

    Do it before ``torch.compile``, DistributedDataParallel and the optimizer. Where several patterns name a
    module, its transforms act on the error in the reverse of the order in which they were attached, since the
    one attached last stands nearest to the loss; an adjoint acts last, wherever it stands.

    A pattern with a wildcard leaves alone what its transform cannot work on, and the table says why; a name
    without one raises.

    Args:
        model: Changed in place; no module, parameter or key is replaced.
        transforms: Pattern (see `counterflow.handle`) to transform or adjoint. The *output's* error of the
            named modules is meant.

    Returns:
        A `Handle`; ``undo()`` takes the transforms off.

    Raises:
        PatternError: If a pattern matches no module.
        InputError: If the model is no module, a value is not a transform, or the tensor of a `scale` is on another
            device than its module.
        UnsupportedError: If a module that is named outright never runs its own ``forward``, if an adjoint
            does not know the layer, or if all that a pattern names had to be left alone.

    Example:
        >>> import torch, counterflow as cf
        >>> from counterflow import backward
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> with cf.attach(model, {"0": backward.scale(0.5)}) as h:
        ...     print(h.table())
        Attached
        layer  kind    done
        0      Linear  scale(0.5)
    """
    if not isinstance(transforms, Mapping) or not transforms:
        raise InputError(
            f"attach needs a dictionary of patterns to transforms, such as {{'head': scale(0.5)}}, got {transforms!r}"
        )
    plan: list[tuple[str, nn.Module, Transform | Adjoint]] = []
    rows: list[Row] = []
    adjoints: dict[int, Adjoint] = {}
    for pattern, transform in transforms.items():
        if not isinstance(transform, Transform | Adjoint):
            raise InputError(f"{pattern!r}: a transform such as backward.scale(0.5) is needed, got {transform!r}")
        selected = select(model, pattern)
        reasons = []
        for name, module in selected:
            reason = _why_not(model, name, module, transform, adjoints)
            if reason:
                reasons.append(f"{name!r} ({type(module).__name__}): {reason}")
                rows.append(Row(name, type(module).__name__, "left alone", reason))
                continue
            if isinstance(transform, Adjoint):
                adjoints[id(module)] = transform
            else:
                _refuse_elsewhere(model, name, module, transform)
            plan.append((name, module, transform))
            rows.append(Row(name, type(module).__name__, repr(transform)))
        if reasons and ("*" not in pattern or len(reasons) == len(selected)):
            raise UnsupportedError(f"{transform!r} cannot be attached to {reasons[0]}")
    if any(transform.batch_coupled for _, _, transform in plan):
        prepare_ranks()
    undo: list[Callable[[], None]] = []
    try:
        for _, module, transform in plan:
            undo.append(install(module, transform, model))
    except Exception:
        for take_off in reversed(undo):
            take_off()
        raise
    reset_compiler()
    return Handle(model, Table("Attached", rows), undo)


def install(module: nn.Module, transform: Transform | Adjoint, model: nn.Module) -> Callable[[], None]:
    """Put one transform or adjoint on one module of a model; returns the function that takes it off again.

    The caller resets the compiler once all are installed.
    """
    if isinstance(transform, Adjoint):
        # An adjoint replaces the layer's own gradient: it must see the raw output, before any tap.
        kept = transform.buffers(module)
        for name, initial in kept.items():
            module.register_buffer(name, initial)
        hook = module.register_forward_hook(transform, prepend=True, with_kwargs=True)

        def take_off() -> None:
            hook.remove()
            for name in kept:
                delattr(module, name)

        return take_off
    buffers = transform.buffers()
    prefix = _free_prefix(module) if buffers else ""
    device = _device(module, model)
    for name, (value, persistent) in buffers.items():
        value = value if device is None else value.to(device)
        module.register_buffer(prefix + name, value, persistent=persistent)
    handle = module.register_forward_hook(Tap(transform, prefix), with_kwargs=True)

    def remove() -> None:
        handle.remove()
        for name in buffers:
            delattr(module, prefix + name)

    return remove


def _device(module: nn.Module, model: nn.Module) -> torch.device | None:
    # A module without parameters, such as an activation, is where the model is.
    parameter = next(itertools.chain(module.parameters(), model.parameters()), None)
    return None if parameter is None else parameter.device


def _refuse_elsewhere(model: nn.Module, name: str, module: nn.Module, transform: Transform) -> None:
    device = _device(module, model)
    for tensor in transform.scheduled():
        if device is not None and tensor.device != device:
            raise InputError(
                f"{transform!r} on {name!r}: its tensor is on {tensor.device}, the module on {device}, where it would "
                f"be a copy that changes no more; make the tensor on {device}, one for each device"
            )


def _free_prefix(module: nn.Module) -> str:
    taken = set(module._buffers)
    index = 0
    while any(name.startswith(f"tap{index}_") for name in taken):
        index += 1
    return f"tap{index}_"


def never_called(model: nn.Module, name: str, module: nn.Module) -> str:
    """Why a module's ``forward`` never runs, nor any hook on it; empty if it may.

    Args:
        model: What it is in.
        name: Its dotted name there.
        module: The module.
    """
    if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict):
        return f"a {type(module).__name__} is never called; name its members, such as '{name}.*'"
    parent, _, own = name.rpartition(".")
    if own == "out_proj":
        holder = model.get_submodule(parent)
        # PyTorch's attention uses the weights of its projection without calling it; another forward may call it.
        if isinstance(holder, nn.MultiheadAttention) and not own_forward(holder):
            return f"MultiheadAttention never calls it, so nothing attached here would run; name {parent!r} instead"
    return ""


def _why_not(
    model: nn.Module,
    name: str,
    module: nn.Module,
    transform: Transform | Adjoint,
    adjoints: Mapping[int, Adjoint],
) -> str:
    """Why the transform would do nothing, or the wrong thing, on this module; empty if it would work."""
    reason = never_called(model, name, module)
    if reason:
        return reason
    if isinstance(transform, Adjoint):
        taken = adjoints.get(id(module))
        if taken is not None:
            return f"it has {taken!r} already, and a layer has one backward pass"
        return transform.why_not(module)
    return ""
