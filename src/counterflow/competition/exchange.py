"""`compete`: the activation modules of a model become competing units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from counterflow.competition.calls import Call, is_leaf, see, trace, upstream
from counterflow.competition.layers import Competition, LocalWinnerTakeAll, name_of
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table, reset_compiler, select, why_kept

__all__ = ["compete"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.RReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)
# By the names that a function itself goes by, which are not always those that it is called by.
FUNCTIONS = {kind.__name__.lower() for kind in ACTIVATIONS} | _words("leaky_relu log_sigmoid expit special_expit")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
TRANSFORMERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
# Beyond activations, what leaves the dimension of the units where it was; of a module, a part of its class's name.
PASSING = ("Norm", "Dropout", "Pool", "Pad", "Upsampl", "Identity", "LocalWinnerTakeAll")
PASSING_FUNCTIONS = FUNCTIONS | _words(
    "add iadd sub isub mul imul div truediv itruediv neg pow exp sqrt square abs clamp clip where cat concat to "
    "contiguous clone detach float double half bfloat16 type type_as requires_grad interpolate dropout dropout1d "
    "dropout2d dropout3d alpha_dropout feature_dropout batch_norm layer_norm group_norm instance_norm rms_norm "
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d lp_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"
)
WEIGHING_FUNCTIONS = _words(
    "linear bilinear matmul mm bmm einsum addmm baddbmm embedding multi_head_attention_forward "
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
)
PRODUCTS = _words("mul mul_ imul multiply __mul__ __imul__ __rmul__")
RESHAPES = _words("getitem __getitem__ unsqueeze view reshape expand expand_as view_as flatten unflatten")


@dataclass(frozen=True)
class _Units:
    """Where a layer's units lie: the dimension from the end, and how many there are, where that is known."""

    dim: int
    width: int | None


def compete(
    model: nn.Module,
    block: int = 2,
    *,
    inputs: Tensor | tuple[Any, ...] | dict[str, Any] | None = None,
    layers: str = "**",
    dim: int | None = None,
    activation: Callable[[Tensor], Tensor] | None = None,
    competition: Competition | None = None,
) -> Handle:
    r"""Exchange a model's activation modules for local winner-take-all.

    .. math::
        y_i^j = \begin{cases} h_i^j & \text{if } h_i^j \ge h_i^k \; \forall k = 1 \dots n \\
        0 & \text{otherwise} \end{cases}

    Each activation between two layers with weights becomes a `LocalWinnerTakeAll`, which has no parameters: the
    state_dict stays. Units compete along the dimension on which the layer before it has put them, the channels of a
    convolution, the last one of a linear layer. Do it before ``torch.compile``, DistributedDataParallel and the
    optimizer.

    The activations inside PyTorch's transformer layers are exchanged too, and its fast path for inference, which knows
    ReLU and GELU only, is switched off. Left alone are: an activation behind the last layer, which makes the output; a
    gate, whose result multiplies another one; `torch.nn.PReLU`, whose parameters a checkpoint holds; what has a hook,
    which would be lost; recurrent layers; and what does not fit, with the reason in the table.

    Args:
        model: Changed in place.
        block: The units of a block, n; 2 by default, as in the paper.
        inputs: An example for a trial forward pass: a tensor, a tuple of arguments or a dictionary of named ones. None
            (default) follows the code by `torch.fx` instead, which not every model allows.
        layers: A pattern of the modules that are meant; all by default. An activation that is a function belongs to
            the module in whose ``forward`` it is called.
        dim: The dimension of the units, for all; None finds it out for each.
        activation: As for `LocalWinnerTakeAll`: f of the paper's equation 2.
        competition: As for `LocalWinnerTakeAll`: g of equation 1.

    Returns:
        A `Handle`: ``table()``, ``undo()``.

    Raises:
        InputError: If an argument cannot be used, or the model is wrapped already.
        PatternError: If ``layers`` matches no module.
        UnsupportedError: If an activation is a function and no module, with the place where it is called; if an
            activation that is named outright cannot be exchanged; if there is none to exchange; or if `torch.fx`
            cannot follow the model and there are no ``inputs``.

    References:
        Srivastava et al., "Compete to Compute", NIPS 2013.

    Example:
        >>> import counterflow as cf
        >>> from torch import nn
        >>> head = nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 2)
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), *head)
        >>> print(cf.compete(model).table())
        Local winner-take-all
        layer  kind  dim  blocks  done
        1      ReLU  -3   4       LWTA-2
        4      ReLU  -1   3       LWTA-2
        >>> model[1]
        LocalWinnerTakeAll(block=2, dim=-3)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(model, "_orig_mod"):
        raise InputError(
            f"model is a {type(model).__name__} already; call compete before torch.compile and DistributedDataParallel"
        )
    LocalWinnerTakeAll(block, 1 if dim is None else dim, activation, competition)  # sees to it that they can be used
    chosen = {id(module) for _, module in select(model, layers)}

    def make(units: _Units, training: bool) -> LocalWinnerTakeAll:
        return LocalWinnerTakeAll(block, units.dim, activation, competition).train(training)

    # PyTorch's own models hold no activation but in the layers that are looked into below.
    calls = [] if is_leaf(model) else trace(model) if inputs is None else see(model, inputs)
    _refuse_functions(model, calls, chosen)
    rows: list[Row] = []
    undo: list[Callable[[], None]] = []
    done_with: set[int] = set()
    for name, module in model.named_modules():
        parts = isinstance(module, TRANSFORMERS)
        inner = module._modules.get("activation") if parts else None
        if parts and (id(module) in chosen or id(inner) in chosen):
            done_with.add(id(inner))
            why = "" if inner is None else why_kept(inner)
            units, why = (None, why) if why else _fitting([_Units(-1, module.linear1.out_features)], block, dim)
            own = f"{name}.activation" if name else "activation"
            was = module.activation
            kind = type(was).__name__ if isinstance(was, nn.Module) else name_of(was)
            rows.append(_row(own, kind, units, block, why))
            if units is not None:
                undo.append(_into_transformer(module, make(units, module.training)))
        elif id(module) in chosen and id(module) not in done_with:
            if isinstance(module, nn.RNNBase | nn.RNNCellBase):
                why = "its nonlinearity is part of PyTorch's recurrent kernel; write the cell out with modules"
                rows.append(Row(name, type(module).__name__, "left alone", why))
            elif isinstance(module, ACTIVATIONS):
                units, why = _units_of(module, calls, block, dim)
                rows.append(_row(name, type(module).__name__, units, block, why))
                if units is not None:
                    undo.append(_exchange(model, module, make(units, module.training)))
    exchanged = [row for row in rows if row.done != "left alone"]
    if not exchanged or ("*" not in layers and len(exchanged) < len(rows)):
        for each in undo:
            each()
        left = next((row for row in rows if row.done == "left alone"), None)
        reason = f"{left.layer!r} ({left.kind}): {left.why}" if left else "it holds no activation module"
        raise UnsupportedError(f"{type(model).__name__} has no activation to exchange for layers={layers!r}; {reason}")
    for encoder in (each for each in model.modules() if isinstance(each, nn.TransformerEncoder)):
        undo.append(_set(encoder, "use_nested_tensor", False))
    reset_compiler()
    return Handle(model, Table("Local winner-take-all", rows), undo)


def _row(name: str, kind: str, units: _Units | None, block: int, why: str) -> Row:
    if units is None:
        return Row(name, kind, "left alone", why)
    blocks = None if units.width is None else units.width // block
    return Row(name, kind, f"LWTA-{block}", values={"dim": units.dim, "blocks": blocks})


def _refuse_functions(model: nn.Module, calls: list[Call], chosen: set[int]) -> None:
    feeding = set(upstream([call for call in calls if _weighs(call)]))
    for call in calls:
        if isinstance(call.what, str) and call.what.strip("_") in FUNCTIONS and call in feeding:
            scope = model.get_submodule(call.name)
            if id(scope) in chosen and not _is_gate(call, calls):
                where = f"module {call.name!r} ({type(scope).__name__})" if call.name else type(scope).__name__
                raise UnsupportedError(
                    f"{where} calls the activation {call.what!r} as a function"
                    f"{f' ({call.place})' if call.place else ''}, which nothing can stand in for; make it a module in "
                    "__init__, such as torch.nn.ReLU(), or leave that module out by layers=..."
                )


def _is_gate(call: Call, calls: list[Call]) -> bool:
    """Whether a result is used for nothing but multiplying something else, straight or after a change of shape."""
    users = [each for each in calls if call in each.inputs]
    products = [each.what in PRODUCTS and len(each.inputs) > 1 for each in users]
    return bool(users) and all(
        product or (each.what in RESHAPES and _is_gate(each, calls))
        for each, product in zip(users, products, strict=True)
    )


def _weighs(call: Call) -> bool:
    if isinstance(call.what, str):
        return call.what in WEIGHING_FUNCTIONS
    return call.is_a(*CONVOLUTIONS, *LAST, *TRANSFORMERS, nn.TransformerEncoder, nn.TransformerDecoder)


def _units_of(module: nn.Module, calls: list[Call], block: int, dim: int | None) -> tuple[_Units | None, str]:
    """Where the units of an activation lie that all its calls agree on, or None and the reason."""
    kept = why_kept(module)
    if kept:
        return None, kept
    if next(module.parameters(), None) is not None:
        return None, "it has parameters of its own, which a checkpoint holds"
    mine = [call for call in calls if call.what is module]
    if not mine:
        return None, "it is not called in the forward pass"
    feeding = set(upstream([call for call in calls if _weighs(call)]))
    if not any(call in feeding for call in mine):
        return None, "no layer with weights follows: it makes the model's output"
    if all(_is_gate(call, calls) for call in mine):
        return None, "it is a gate: what it makes is multiplied with something else"
    found: list[_Units] = []
    for call in mine:
        if dim is not None:
            if call.shape is not None and not -len(call.shape) <= dim < len(call.shape):
                return None, f"dim={dim} is not a dimension of what it makes, which has shape {call.shape}"
            found.append(_Units(dim, None if call.shape is None else call.shape[dim]))
            continue
        units, why = _source(call)
        if units is None:
            return None, why
        found.append(units)
    return _fitting(found, block, dim)


def _fitting(found: list[_Units], block: int, dim: int | None) -> tuple[_Units | None, str]:
    found = [each if dim is None else _Units(dim, each.width) for each in found]
    if len({each.dim for each in found}) > 1:
        return None, "it is called on units in different dimensions; use one module for each call"
    widths = {each.width for each in found}
    bad = next((width for width in widths if width is not None and width % block), None)
    if bad is not None:
        return None, f"block={block} does not divide its {bad} units"
    return (found[0] if len(widths) == 1 else _Units(found[0].dim, None)), ""


def _source(call: Call) -> tuple[_Units | None, str]:
    """Follow an activation's input back to the layers that made it."""
    queue, seen = list(call.inputs), set(call.inputs)
    found: list[_Units] = []
    joined = False
    while queue:
        each = queue.pop(0)
        units = _made_by(each)
        if units is not None:
            found.append(units)
            continue
        if not _passes(each):
            what = each.what if isinstance(each.what, str) else f"{each.name!r} ({type(each.what).__name__})"
            return None, f"{what} comes before it, behind which units may lie in any dimension; name it by dim=..."
        joined |= each.what in ("cat", "concat")
        new = [source for source in each.inputs if source not in seen]
        seen.update(new)
        queue += new
    dims = {units.dim for units in found}
    if not dims:
        return None, "no layer with weights comes before it; name the dimension of its units by dim=..."
    if len(dims) > 1:
        return None, "the layers before it have their units in different dimensions; name it by dim=..."
    (at,) = dims
    if call.shape is not None:
        return _Units(at, call.shape[at]), ""
    widths = {units.width for units in found}
    return _Units(at, widths.pop() if len(widths) == 1 and not joined else None), ""


def _made_by(call: Call) -> _Units | None:
    what = call.what
    if isinstance(what, str):
        if what == "linear":
            return _Units(-1, None)
        if what.startswith("conv") and what[-2:] in ("1d", "2d", "3d"):
            return _Units(-1 - int(what[-2]), None)
        return None
    if isinstance(what, CONVOLUTIONS):
        return _Units(-len(what.kernel_size) - 1, what.out_channels)
    if isinstance(what, nn.Linear | nn.Bilinear):
        return _Units(-1, what.out_features)
    return _Units(-1, None) if call.is_a(*LAST, *TRANSFORMERS) else None


def _passes(call: Call) -> bool:
    what = call.what
    if isinstance(what, str):
        # One of a layer's several results; of a tensor it may take a dimension away.
        picked = what == "getitem" and any(source.is_a(*LAST) for source in call.inputs)
        return picked or what.strip("_") in PASSING_FUNCTIONS
    return isinstance(what, ACTIVATIONS) or any(part in type(what).__name__ for part in PASSING)


def _exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> Callable[[], None]:
    """Put a module in the place of another one under all its names; returns what takes it back, in the mode of then."""
    places = [(parent, key) for parent in model.modules() for key, child in parent._modules.items() if child is old]

    def put(module: nn.Module) -> None:
        for parent, key in places:
            parent._modules[key] = module

    put(new)
    return lambda: put(old.train(new.training))


def _into_transformer(layer: nn.Module, new: nn.Module) -> Callable[[], None]:
    """Give a transformer layer another activation, which may be a function or a module, and no fast path."""
    was = layer.activation
    if isinstance(was, nn.Module):
        undo = [_exchange(layer, was, new)]
    else:
        layer.activation = new

        def restore() -> None:
            del layer.activation
            layer.activation = was

        undo = [restore]
    if hasattr(layer, "activation_relu_or_gelu"):
        undo.append(_set(layer, "activation_relu_or_gelu", 0))

    def back() -> None:
        for each in undo:
            each()

    return back


def _set(module: nn.Module, name: str, value: object) -> Callable[[], None]:
    was = getattr(module, name)
    setattr(module, name, value)
    return lambda: setattr(module, name, was)
