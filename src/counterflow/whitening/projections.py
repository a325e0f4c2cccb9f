r"""The projections inside attention and recurrent layers, whose weights are used without a module of their own.

Attention projects queries, keys and values, a recurrent layer its input and its state. Each such projection is
:math:`y = W h + b`, and all that the canonical step needs is in the gradients that autograd gives,
:math:`G = \sum_t g_t h_t^T` and :math:`s = \sum_t g_t`:

.. math::
    G' = (G - s c^T) P, \qquad s' = s - G' c .

So an identity stands before the weights for the time of the forward call, whose backward pass maps (G, s) to (G', s').

What cannot be seen from outside is left alone: the input of attention's output projection, and what recurrent layers
above the first and states below the last get. Statistics of recurrent states are those of the outputs; each entry of a
packed sequence counts as an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from counterflow.handle import Row
from counterflow.whitening.layers import Layer, tensor_of, unequal_setting

__all__ = ["INSIDE", "Bend", "Part", "Unbend", "find_parts"]

INSIDE = (nn.MultiheadAttention, nn.RNNBase)
_SAVED = "whiten_bent"  # where the weights proper are kept for the time of a forward call


@dataclass(eq=False)
class Part(Layer):
    """A projection inside a module, in the canonical form.

    Args:
        of: The name of the weight on the module.
        of_bias: That of the bias; empty where there is none.
        rows: Its rows of the weight, from and to.
        bias_rows: Its entries of the bias.
        label: What it is called in the table and in the names of buffers.
        source: Which argument is its input, or ``"output"`` for a state, of which ``columns`` are its own.
        columns: See there.
    """

    of: str = ""
    of_bias: str = ""
    rows: tuple[int, int] = (0, 0)
    bias_rows: tuple[int, int] = (0, 0)
    source: int | str = 0
    columns: tuple[int, int] = (0, 0)

    @property
    def weight(self) -> Tensor:
        """W: its rows of the module's weight."""
        return tensor_of(self.module, self.of)[slice(*self.rows)]

    @property
    def groups(self) -> int:
        return 1

    def seen(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        """Its input, examples first."""
        if isinstance(self.module, nn.MultiheadAttention):
            assert isinstance(self.source, int)
            name = ("query", "key", "value")[self.source]
            x = args[self.source] if len(args) > self.source else kwargs[name]
        elif self.source == "output":
            x = output[0]
        else:
            x = args[0] if args else kwargs["input"]
        if isinstance(x, PackedSequence):
            x = x.data
        elif x.ndim == 3 and not self.module.batch_first:
            x = x.transpose(0, 1)
        rows: Tensor = x[..., slice(*self.columns)] if self.source == "output" else x
        return rows


class _Bend(Function):
    """Identity forward; backward, the gradients of a weight and its bias become those of the canonical step."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        weight: Tensor,
        bias: Tensor | None,
        rows: tuple[int, int],
        bias_rows: tuple[int, int],
        mean: Tensor,
        metric: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        return weight.detach(), None if bias is None else bias.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, ctx.rows, ctx.bias_rows, ctx.mean, ctx.metric = inputs

    @staticmethod
    def backward(ctx: Any, of_weight: Tensor, of_bias: Tensor | None) -> tuple[Tensor | None, ...]:
        mean, metric = ctx.mean[0], ctx.metric[0]
        gradient = of_weight[slice(*ctx.rows)].to(mean.dtype)
        if of_bias is not None:
            total = of_bias[slice(*ctx.bias_rows)].to(mean.dtype)
            gradient = gradient - total[:, None] * mean
        gradient = gradient @ metric
        if of_bias is not None:
            of_bias = _put(of_bias, ctx.bias_rows, total - gradient @ mean)
        return _put(of_weight, ctx.rows, gradient), of_bias, None, None, None, None


def _put(whole: Tensor, rows: tuple[int, int], part: Tensor) -> Tensor:
    return torch.cat([whole[: rows[0]], part.to(whole.dtype), whole[rows[1] :]])


class Bend:
    """The forward pre-hook that puts bent weights in the place of the weights proper."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return
        names = [*{name: None for part in self.parts for name in (part.of, part.of_bias) if name}]
        bent = {name: tensor_of(module, name) for name in names}
        proper = dict(bent)
        for part in self.parts:
            bias = bent[part.of_bias] if part.of_bias else None
            mean, metric = (tensor_of(module, part.prefix + name) for name in ("mean", "metric"))
            weight, bias = _Bend.apply(bent[part.of], bias, part.rows, part.bias_rows, mean, metric)  # type: ignore[no-untyped-call]
            bent[part.of] = weight
            if bias is not None:
                bent[part.of_bias] = bias
        vars(module)[_SAVED] = proper
        _exchange(module, bent)


class Unbend:
    """The forward hook that puts the weights proper back, also where the call has raised."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        proper = vars(module).pop(_SAVED, None)
        if proper is not None:
            _exchange(module, proper)


def _exchange(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    if isinstance(module, nn.RNNBase):  # which computes with a list of its own
        for name, weight in weights.items():
            module._flat_weights[module._flat_weights_names.index(name)] = weight
        return
    for name, weight in weights.items():
        module._parameters[name] = weight  # type: ignore[assignment]


def find_parts(model: nn.Module, optimizer: torch.optim.Optimizer, plain: bool) -> tuple[list[Part], list[Row]]:
    """The projections to whiten, and a row for each module that has some and for each weight that is left alone.

    Args:
        model: Where to look.
        optimizer: What trains it.
        plain: Whether nothing is asked for that needs another form than the canonical, or the errors.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    counts: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    parts: list[Part] = []
    rows: list[Row] = []
    for name, module in model.named_modules():
        if not isinstance(module, INSIDE):
            continue
        reason = _why_not(module, optimizer, plain)
        if reason:
            rows.append(Row(name, type(module).__name__, "left alone", reason))
            continue
        found, hidden = (
            _attention(name, module) if isinstance(module, nn.MultiheadAttention) else _recurrent(name, module)
        )
        rows += [
            Row(f"{name}.{weight}", type(module).__name__, "left alone", "its input cannot be seen from outside")
            for weight in hidden
        ]
        for part in found:
            reason = _why_not_part(part, groups, counts)
            if reason:
                rows.append(Row(part.label, type(module).__name__, "left alone", reason))
            else:
                parts.append(part)
    return parts, rows


def _why_not(module: nn.Module, optimizer: torch.optim.Optimizer, plain: bool) -> str:
    if type(optimizer) is not torch.optim.SGD or not plain:
        return "projections inside a module are whitened in the canonical form only, by torch.optim.SGD, inputs only"
    if is_parametrized(module):
        return "its weight is parametrized"
    if getattr(module, "proj_size", 0):
        return "projections of a recurrent layer's state are not provided"
    owner = next(c for c in type(module).__mro__ if "forward" in vars(c))
    return "" if owner.__module__.startswith("torch.nn.modules") else "its class overrides forward"


def _why_not_part(part: Part, groups: Mapping[int, Mapping[str, Any]], counts: Mapping[int, int]) -> str:
    weight = tensor_of(part.module, part.of)
    if not weight.requires_grad:
        return "its weight is frozen"
    if id(weight) not in groups:
        return "its weight is not in the optimizer"
    if counts[id(weight)] > 1:
        return "it shares a parameter with another module, whose inputs are others"
    if part.of_bias:
        bias = tensor_of(part.module, part.of_bias)
        part.centered = bias.requires_grad and id(bias) in groups
        if not part.centered:
            part.of_bias = ""
        else:
            return unequal_setting(groups, weight, bias)
    return ""


def _attention(name: str, module: nn.MultiheadAttention) -> tuple[list[Part], list[str]]:
    e = module.embed_dim
    bias = "in_proj_bias" if module.in_proj_bias is not None else ""
    parts = []
    for index, letter in enumerate("qkv"):
        span = (index * e, (index + 1) * e)
        packed = module._qkv_same_embed_dim
        of, rows = ("in_proj_weight", span) if packed else (f"{letter}_proj_weight", (0, e))
        parts.append(
            Part(
                name,
                module,
                "canonical",
                bool(bias),
                prefix=f"whiten_{letter}_",
                label=f"{name}.{letter}" if name else letter,
                of=of,
                of_bias=bias,
                rows=rows,
                bias_rows=span,
                source=index,
            )
        )
    return parts, []


def _recurrent(name: str, module: nn.RNNBase) -> tuple[list[Part], list[str]]:
    parts, hidden = [], []
    directions = ["", "_reverse"] if module.bidirectional else [""]
    for level in range(module.num_layers):
        for turn, direction in enumerate(directions):
            for kind, visible in (("ih", level == 0), ("hh", level == module.num_layers - 1)):
                own = f"{kind}_l{level}{direction}"
                if not visible:
                    hidden.append(f"weight_{own}")
                    continue
                size = tensor_of(module, f"weight_{own}").shape[0]
                parts.append(
                    Part(
                        name,
                        module,
                        "canonical",
                        module.bias,
                        prefix=f"whiten_{own}_",
                        label=f"{name}.{own}" if name else own,
                        of=f"weight_{own}",
                        of_bias=f"bias_{own}" if module.bias else "",
                        rows=(0, size),
                        bias_rows=(0, size),
                        source=0 if kind == "ih" else "output",
                        columns=(turn * module.hidden_size, (turn + 1) * module.hidden_size),
                    )
                )
    return parts, hidden
