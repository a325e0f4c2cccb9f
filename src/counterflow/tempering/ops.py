"""What the operations of a traced model are: layers with weights, functions, or plumbing.

Names are those of `torch.ops.aten` without the overload and without the underscore of in-place variants.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx

from counterflow.tempering.activations import names

__all__ = [
    "BLOCKED",
    "JOINS",
    "POOLS",
    "PRODUCTS",
    "READERS",
    "STRUCTURE",
    "VIEWS",
    "Weighted",
    "is_float",
    "operation",
    "scope",
    "weighted",
]

Kind = Literal["linear", "convolution", "embedding", "norm", "scale", "recurrent", "parameter"]

# Operations that move values about: what comes out are values that went in.
VIEWS = names(
    "_conj _unsafe_view alias chunk clone contiguous diagonal expand expand_as flatten flip getitem lift_fresh "
    "movedim narrow numpy_T permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape "
    "reshape_as roll select slice split split_with_sizes squeeze swapaxes swapdims t tile to _to_copy transpose "
    "type_as unbind unflatten unfold unsqueeze view view_as channel_shuffle tensor_split float double half"
)
# Pooling never makes values larger, so a bound holds behind it too.
POOLS = names(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d amax amin avg_pool1d avg_pool2d avg_pool3d max max_pool1d max_pool2d max_pool3d "
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices mean min upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_trilinear3d"
)
JOINS = names("cat concat concatenate stack hstack vstack dstack column_stack")
# Everything else through which an error passes as through fixed weights, which leave the scale to the weights'
# own size (the paper's equation 12): sums, mixtures over positions, normalization without parameters.
STRUCTURE = (
    VIEWS
    | POOLS
    | JOINS
    | names(
        "_pack_padded_sequence _pad_packed_sequence add addcmul alpha_dropout baddbmm batch_norm bmm "
        "broadcast_tensors col2im constant_pad_nd cumsum "
        "dropout einsum feature_alpha_dropout feature_dropout fft_fft fft_ifft fft_irfft fft_rfft gather "
        "glu grid_sampler group_norm im2col index index_select instance_norm layer_norm lerp masked_fill matmul "
        "maximum minimum mm mv dot neg pad reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d "
        "replication_pad3d rms_norm rsub scaled_dot_product_attention sort std sub sum topk tril triu var "
        "var_mean where zero_pad2d logsumexp linalg_vector_norm norm real imag take_along_dim masked_select "
        "copy slice_scatter select_scatter index_put scatter scatter_add index_add outer index_copy"
    )
)
# Products in which a parameter is a factor like any other only as a layer's weight.
PRODUCTS = names("addcmul baddbmm bmm dot einsum lerp matmul mm mv outer")
# An error does not pass.
BLOCKED = names(
    "detach detach_ zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full "
    "new_empty bernoulli sign round floor ceil heaviside sym_size sym_stride sym_numel argmax argmin "
    "_assert_tensor_metadata size one_hot"
)


def operation(node: fx.Node) -> str:
    """The name of what a node computes; ``""`` for placeholders and the output."""
    if node.op != "call_function":
        return ""
    if node.target is operator.getitem:
        return "getitem"
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return str(getattr(node.target, "__name__", node.target))
    space, _, name = str(schema.name).partition("::")
    if space != "aten":
        return str(schema.name)
    return name if name.startswith("_") or not name.endswith("_") else name[:-1]


def scope(node: fx.Node) -> str:
    """The name of the innermost module in which a node was traced."""
    stack = list((node.meta.get("nn_module_stack") or {"": ("", None)}).values())
    return re.sub(r"@\d+", "", str(stack[-1][0]))


def is_float(node: fx.Node) -> bool:
    """Whether a node's value, or a list of values, can carry an error."""
    value = node.meta.get("val")
    dtype = getattr(value, "dtype", None)
    return isinstance(value, list | tuple) or (dtype is not None and bool(dtype.is_floating_point or dtype.is_complex))


@dataclass(frozen=True)
class Weighted:
    """A node that multiplies its input by a parameter.

    Args:
        kind: What it is.
        inputs: The nodes whose values it weighs.
        weight: The argument that holds the weights.
        others: Further arguments that may hold parameters: biases, recurrent weights.
        fan_in: Input elements that one output unit sums.
        fan_out: Output units that one input element feeds.
        biases: How many always-active inputs a unit has.
        level: For recurrent layers, which one of the stack.
        kept: For recurrent layers behind dropout inside the stack, the share that it keeps.
    """

    kind: Kind
    inputs: tuple[fx.Node, ...]
    weight: fx.Node
    others: tuple[fx.Node, ...]
    fan_in: float
    fan_out: float
    biases: int
    level: int = 0
    kept: float = 1.0


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def _argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _linear(node: fx.Node) -> list[Weighted]:
    x, weight, bias = (_argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    out, into = _shape(weight)
    return [Weighted("linear", (x,), weight, _nodes(bias), into, out, int(bias is not None))]


def _convolution(node: fx.Node) -> list[Weighted]:
    x, weight, bias = (_argument(node, i, n) for i, n in enumerate(("input", "weight", "bias")))
    shape = _shape(weight)
    kernel = math.prod(shape[2:])
    stride = _argument(node, 3, "stride", 1)
    steps = (
        math.prod(stride) ** (1 if len(stride) > 1 else len(shape) - 2)
        if isinstance(stride, list | tuple)
        else stride ** (len(shape) - 2)
    )
    bias_nodes, biases = _nodes(bias), int(bias is not None)
    if operation(node).startswith("conv_transpose"):
        groups = _argument(node, 6, "groups", 1)
        return [
            Weighted(
                "convolution",
                (x,),
                weight,
                bias_nodes,
                shape[0] / groups * kernel / steps,
                shape[1] * kernel,
                biases,
            )
        ]
    groups = _argument(node, 6, "groups", 1)
    return [
        Weighted(
            "convolution",
            (x,),
            weight,
            bias_nodes,
            shape[1] * kernel,
            shape[0] / groups * kernel / steps,
            biases,
        )
    ]


def _embedding(node: fx.Node) -> list[Weighted]:
    # A look-up is a linear layer on a one-hot input: one active input of power one, no bias.
    return [Weighted("embedding", (), _argument(node, 0, "weight"), (), 1, 0, 0)]


def _norm(weight_at: int) -> Callable[[fx.Node], list[Weighted]]:
    def read(node: fx.Node) -> list[Weighted]:
        x, weight, bias = (
            node.args[0],
            _argument(node, weight_at, "weight"),
            _argument(node, weight_at + 1, "bias"),
        )
        bias = bias if isinstance(bias, fx.Node) and operation(node) != "rms_norm" else None
        if weight is None:
            return []
        assert isinstance(x, fx.Node)
        return [Weighted("norm", (x,), weight, _nodes(bias), 1, 1, int(bias is not None))]

    return read


def _prelu(node: fx.Node) -> list[Weighted]:
    x, weight = node.args[0], node.args[1]
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    return [Weighted("scale", (x,), weight, (), 1, 1, 0)]


def _addmm(node: fx.Node) -> list[Weighted]:
    bias, x, weight = node.args[0], node.args[1], node.args[2]
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    into, out = _shape(weight)
    return [Weighted("linear", (x,), weight, _nodes(bias), into, out, 1)]


def _recurrent(node: fx.Node) -> list[Weighted]:
    x, state, parameters, has_biases, levels, dropout, train, bidirectional = node.args[:8]
    assert isinstance(x, fx.Node)
    assert isinstance(parameters, list | tuple)
    assert isinstance(levels, int)
    directions = 2 if bidirectional else 1
    each = len(parameters) // (levels * directions)
    found = []
    for index in range(levels * directions):
        weight, recurrent, *rest = _nodes(parameters)[index * each : (index + 1) * each]
        level = index // directions
        found.append(
            Weighted(
                "recurrent",
                (x, *_nodes(state)) if level == 0 else (),
                weight,
                (recurrent, *rest),
                _shape(weight)[1],
                _shape(weight)[0],
                2 if has_biases else 0,
                level,
                1.0 - float(dropout) if train and level > 0 else 1.0,  # type: ignore[arg-type]
            )
        )
    return found


def _cell(node: fx.Node) -> list[Weighted]:
    x, state, weight, recurrent = node.args[:4]
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    biases = [a for a in node.args[4:] if isinstance(a, fx.Node)]
    return [
        Weighted(
            "recurrent",
            (x, *_nodes(state)),
            weight,
            (*_nodes(recurrent), *biases),
            _shape(weight)[1],
            _shape(weight)[0],
            len(biases),
        )
    ]


def _nodes(argument: Any) -> tuple[fx.Node, ...]:
    if isinstance(argument, fx.Node):
        return (argument,)
    if isinstance(argument, list | tuple):
        return tuple(a for a in argument if isinstance(a, fx.Node))
    return ()


READERS: dict[str, Callable[[fx.Node], list[Weighted]]] = {
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(
        (
            "conv1d",
            "conv2d",
            "conv3d",
            "conv_transpose1d",
            "conv_transpose2d",
            "conv_transpose3d",
        ),
        _convolution,
    ),
    "embedding": _embedding,
    "batch_norm": _norm(1),
    "instance_norm": _norm(1),
    "layer_norm": _norm(2),
    "group_norm": _norm(2),
    "rms_norm": _norm(2),
    "prelu": _prelu,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
}


def _einsum(node: fx.Node, holds: Callable[[Any], bool]) -> list[Weighted]:
    equation, operands = node.args[0], _nodes(node.args[1])
    if len(operands) != 2 or holds(operands[0]) == holds(operands[1]) or "." in str(equation):
        return []
    left, _, result = str(equation).replace(" ", "").partition("->")
    letters = left.split(",")
    at = 0 if holds(operands[0]) else 1
    sizes = dict(zip(letters[at], _shape(operands[at]), strict=True))
    fan_in = math.prod(size for letter, size in sizes.items() if letter not in result)
    fan_out = math.prod(size for letter, size in sizes.items() if letter not in letters[1 - at])
    return [Weighted("linear", (operands[1 - at],), operands[at], (), fan_in, fan_out, 0)]


def weighted(node: fx.Node, holds: Callable[[Any], bool]) -> list[Weighted]:
    """The layers that a node computes; none where it multiplies by no parameter.

    Args:
        node: A node of the trace.
        holds: Whether an argument is a parameter, seen through views.
    """
    name = operation(node)
    if name == "einsum":
        return _einsum(node, holds)
    if name in READERS:
        return [layer for layer in READERS[name](node) if holds(layer.weight)]
    first, second = (*node.args, None, None)[:2]
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or holds(first) == holds(second):
        return []
    x, weight = (second, first) if holds(first) else (first, second)
    if name == "mul":
        return [Weighted("scale", (x,), weight, (), 1, 1, 0)]
    if name in ("matmul", "mm", "bmm"):
        shape = _shape(weight)
        # Rows are inputs where the weights stand behind the input, columns where they stand before it.
        into, out = (
            (shape[-1], math.prod(shape[-2:-1]))
            if holds(first)
            else (shape[-2] if len(shape) > 1 else shape[0], shape[-1] if len(shape) > 1 else 1)
        )
        return [Weighted("linear", (x,), weight, (), into, out, 0)]
    return []
