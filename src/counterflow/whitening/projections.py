r"""The projections inside attention and recurrent layers, whose weights are used without a module of their own.

Attention projects queries, keys and values, and their mixture; a recurrent layer its input and its state. Each such
projection is :math:`y = W h + b`, and is whitened at its weights, which other weights stand in for during the forward
call. In the canonical form all that the step needs is in the gradients that autograd gives,
:math:`G = \sum_t g_t h_t^T` and :math:`s = \sum_t g_t`:

.. math::
    G' = (G - s c^T) P, \qquad s' = s - G' c ,

so an identity stands before the weights whose backward pass maps (G, s) to (G', s'). In the explicit form parameters
hold V and d, and the call gets :math:`W = V U` and :math:`b = d - W c`.

Statistics are those of what each projection gets: of attention's output projection and of stacked recurrent layers that
is computed once more in the steps that gather, without dropout (``counterflow.whitening.inside``); of recurrent states,
which begin with the initial one, those of the outputs. Each entry of a packed sequence counts as an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from counterflow.backward.adjoint import own_forward
from counterflow.handle import Row, exporting
from counterflow.whitening.inside import levels, mixture
from counterflow.whitening.layers import Layer, Stand, tensor_of, which_form

__all__ = ["INSIDE", "Bend", "Part", "Unbend", "find_parts"]

INSIDE = (nn.MultiheadAttention, nn.RNNBase)
# Names on the module for the time of a forward call: its weights proper, and what its levels have handed on.
_SAVED, _LEVELS = "whiten_bent", "whiten_levels"
Source = tuple[Literal["argument", "mixture", "level"], int]


@dataclass(eq=False)
class Part(Layer):
    """A projection inside a module.

    Args:
        of: The name of the weight on the module.
        of_bias: That of the bias; empty where there is none.
        rows: Its rows of the weight, from and to.
        bias_rows: Its entries of the bias.
        source: What its input is: an argument of the call, by position; the mixture of attention's values; or what a
            level of a recurrent layer gives, of which ``columns`` are its own.
        columns: See there.
    """

    of: str = ""
    of_bias: str = ""
    rows: tuple[int, int] = (0, 0)
    bias_rows: tuple[int, int] = (0, 0)
    source: Source = ("argument", 0)
    columns: tuple[int, int] | None = None

    @property
    def parameters(self) -> tuple[Tensor, Tensor | None]:
        return tensor_of(self.module, self.of), tensor_of(self.module, self.of_bias) if self.of_bias else None

    @property
    def names(self) -> tuple[str, ...]:
        return (self.of, self.of_bias) if self.of_bias else (self.of,)

    def own(self, weight: Tensor) -> Tensor:
        """Its rows."""
        return weight[slice(*self.rows)]

    def own_bias(self, bias: Tensor) -> Tensor:
        """Its entries."""
        return bias[slice(*self.bias_rows)]

    @property
    def groups(self) -> int:
        return 1

    @property
    def sees_white(self) -> bool:
        return False

    def seen(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor:
        """Its input, examples first."""
        module, (kind, index) = self.module, self.source
        x: Any
        if kind == "mixture":
            assert isinstance(module, nn.MultiheadAttention)
            x = mixture(module, args, kwargs)
        elif kind == "level":
            assert isinstance(module, nn.RNNBase)
            if index == module.num_layers - 1:
                x = output[0]
            else:
                if _LEVELS not in vars(module):
                    vars(module)[_LEVELS] = levels(module, args, kwargs)
                x = vars(module)[_LEVELS][index]
        else:
            names = ("query", "key", "value") if isinstance(module, nn.MultiheadAttention) else ("input",)
            x = args[index] if len(args) > index else kwargs[names[index]]
        if isinstance(x, PackedSequence):
            x = x.data
        elif x.is_nested:
            x = torch.cat(x.unbind())
        elif x.ndim == 2:  # one example without a batch dimension
            x = x[None]
        elif not module.batch_first:
            x = x.transpose(0, 1)
        rows: Tensor = x if self.columns is None else x[..., slice(*self.columns)]
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


def _compose(weight: Tensor, bias: Tensor | None, part: Part) -> tuple[Tensor, Tensor | None]:
    """W and b of V and d, in the rows of a part."""
    mean, basis = (tensor_of(part.module, part.prefix + name)[0] for name in ("mean", "basis"))
    with torch.autocast(weight.device.type, enabled=False):
        plain = part.own(weight).to(basis.dtype) @ basis
        if bias is not None:
            bias = _put(bias, part.bias_rows, part.own_bias(bias).to(basis.dtype) - plain @ mean)
        return _put(weight, part.rows, plain), bias


class Bend:
    """The forward pre-hook that puts other weights in the place of the weights proper."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if isinstance(module, nn.RNNBase):
            # Its forward builds the list it computes with anew where parameters have been exchanged, as under
            # torch.func, and so would put the weights proper back: let it do so now.
            module._update_flat_weights()
        learns = torch.is_grad_enabled() and not exporting()
        parts = [part for part in self.parts if part.form == "explicit" or learns]
        names = [*{name: None for part in parts for name in (part.of, part.of_bias) if name}]
        proper = {name: tensor_of(module, name) for name in names}
        bent = dict(proper)
        for part in parts:
            bias = bent[part.of_bias] if part.of_bias else None
            if part.form == "explicit":
                weight, bias = _compose(bent[part.of], bias, part)
            else:
                mean, metric = (tensor_of(module, part.prefix + name) for name in ("mean", "metric"))
                # Where one of the two is frozen nothing is centered, as in `counterflow.whitening.canonical`. By the
                # weights proper, since a bent weight learns if its bias does.
                if bias is not None and proper[part.of].requires_grad != proper[part.of_bias].requires_grad:
                    bias = None
                weight, bias = _Bend.apply(bent[part.of], bias, part.rows, part.bias_rows, mean, metric)  # type: ignore[no-untyped-call]
            bent[part.of] = weight
            if bias is not None:
                bent[part.of_bias] = bias
        vars(module)[_SAVED] = proper
        _exchange(module, bent)


class Unbend:
    """The forward hook that puts the weights proper back, also where the call has raised."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        vars(module).pop(_LEVELS, None)
        proper = vars(module).pop(_SAVED, None)
        if proper is not None:
            _exchange(module, proper)


def _exchange(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if isinstance(module, nn.RNNBase):  # which computes with a list of its own
            module._flat_weights[module._flat_weights_names.index(name)] = weight
            continue
        path, _, leaf = name.rpartition(".")
        module.get_submodule(path)._parameters[leaf] = weight  # type: ignore[assignment]


def find_parts(
    model: nn.Module, optimizer: torch.optim.Optimizer, form: Stand, plain: bool
) -> tuple[list[Part], list[Row]]:
    """The projections to whiten, and a row for each module or weight that is left alone.

    Args:
        model: Where to look.
        optimizer: What trains it; only what it holds is whitened.
        form: What the user asked for.
        plain: Whether nothing is asked for that needs each sample's error.

    Raises:
        UnsupportedError: If the canonical form is asked for where it is not the whitened layer's step.
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
        reason = _why_not(module, plain)
        if reason:
            rows.append(Row(name, type(module).__name__, "left alone", reason))
            if isinstance(module, nn.MultiheadAttention):
                below = f"{name}.out_proj" if name else "out_proj"
                rows.append(Row(below, type(module.out_proj).__name__, "left alone", reason))
            continue
        found = _attention(name, module) if isinstance(module, nn.MultiheadAttention) else _recurrent(name, module)
        for part in found:
            reason = _why_not_part(part, groups, counts)
            if reason:
                rows.append(Row(part.label, type(module).__name__, "left alone", reason))
                continue
            part.form = which_form(part.label, *part.parameters, groups, optimizer, form)
            parts.append(part)
    return parts, rows


def _why_not(module: nn.Module, plain: bool) -> str:
    if not plain:
        return "diagonal and errors need each sample's error, which projections inside a module do not show"
    if any(is_parametrized(each) for each in module.modules()):
        return "its weight is parametrized"
    if getattr(module, "proj_size", 0):
        return "projections of a recurrent layer's state are not provided"
    return own_forward(module)


def _why_not_part(part: Part, groups: Mapping[int, Mapping[str, Any]], counts: Mapping[int, int]) -> str:
    weight, bias = part.parameters
    if not weight.requires_grad:
        return "its weight is frozen"
    if id(weight) not in groups:
        return "its weight is not in the optimizer"
    if any(counts[id(p)] > 1 for p in (weight, bias) if p is not None):
        return "it shares a parameter with another module, whose inputs are others"
    part.centered = bias is not None and bias.requires_grad and id(bias) in groups
    if not part.centered:
        part.of_bias = ""
    return ""


def _attention(name: str, module: nn.MultiheadAttention) -> list[Part]:
    e = module.embed_dim
    bias = "in_proj_bias" if module.in_proj_bias is not None else ""
    parts = []
    for index, letter in enumerate("qkv"):
        span = (index * e, (index + 1) * e)
        packed = module._qkv_same_embed_dim
        part = _part(name, module, letter, "in_proj_weight" if packed else f"{letter}_proj_weight", bias)
        part.rows, part.bias_rows, part.source = span if packed else (0, e), span, ("argument", index)
        parts.append(part)
    out = _part(
        name, module, "out_proj", "out_proj.weight", "out_proj.bias" if module.out_proj.bias is not None else ""
    )
    out.rows = out.bias_rows = (0, e)
    out.source = ("mixture", 0)
    return [*parts, out]


def _recurrent(name: str, module: nn.RNNBase) -> list[Part]:
    parts = []
    size, turns = module.hidden_size, 1 + module.bidirectional
    for level in range(module.num_layers):
        for turn, direction in enumerate(["", "_reverse"][:turns]):
            for kind in ("ih", "hh"):
                own = f"{kind}_l{level}{direction}"
                part = _part(name, module, own, f"weight_{own}", f"bias_{own}" if module.bias else "")
                part.rows = part.bias_rows = (0, len(tensor_of(module, f"weight_{own}")))
                if kind == "hh":
                    part.source, part.columns = ("level", level), (turn * size, (turn + 1) * size)
                elif level:
                    part.source = ("level", level - 1)
                parts.append(part)
    return parts


def _part(name: str, module: nn.Module, own: str, of: str, of_bias: str) -> Part:
    label = f"{name}.{own}" if name else own
    return Part(name, module, "canonical", True, prefix=f"whiten_{own}_", label=label, of=of, of_bias=of_bias)
