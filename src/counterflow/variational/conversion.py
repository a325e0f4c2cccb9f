"""From plain models to models with a posterior, and back."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table, reset_compiler, why_kept
from counterflow.variational.attention import VariationalMultiheadAttention, attention_around, plain_attention, unlike
from counterflow.variational.divergence import Approximation
from counterflow.variational.dropout import GaussianDropout
from counterflow.variational.layers import GEOMETRY, KINDS, variational_layer
from counterflow.variational.objective import stochastic_layers
from counterflow.variational.posterior import Noise, Rates, Stochastic
from counterflow.variational.priors import Prior

__all__ = ["VariationalHandle", "deterministic", "make_variational", "plain_in_place"]


class VariationalHandle(Handle):
    """What `make_variational` returns: a `Handle` that knows the rates."""

    def __init__(
        self, model: nn.Module, table: Table | Callable[[], Table], undo: Sequence[Callable[[], None]], plain: nn.Module
    ) -> None:
        super().__init__(model, table, undo)
        self._plain = plain  # another module where the root has been exchanged

    def undo(self) -> None:
        """Take the change back and keep what was learned. A second call does nothing."""
        super().undo()
        self.model = self._plain

    def rates(self) -> list[nn.Parameter]:
        """What is learned beside the model's own parameters, each once: rates, or the posteriors' variances."""
        found: dict[int, nn.Parameter] = {}
        for module in self.model.modules():
            if isinstance(module, Stochastic):
                own = module.log_variance if module.prior is not None else module.rate.rho
                if isinstance(own, nn.Parameter):
                    found[id(own)] = own
        return list(found.values())


def make_variational(
    model: nn.Module,
    *,
    noise: Noise = "B",
    rates: Rates = "layer",
    p: float | Mapping[str, float] = 0.5,
    learn: bool = True,
    max_alpha: float | None = 1.0,
    prior: Prior = "log-uniform",
    approximation: Approximation = "exact",
) -> VariationalHandle:
    """Give the weights of a model's linear and convolutional layers and attention projections a posterior.

    The posterior means are the model's own parameters, so a trained model keeps what it knows, and an optimizer that
    has been made goes on with them; add the rates to it: ``optimizer.add_param_group({"params": h.rates()})``. Layers
    that share a weight share its rates.

    Args:
        model: Changed in place; ``Handle.model`` is the module to use.
        noise: ``"A"``, correlated noise on the inputs, or ``"B"`` (default), independent noise on the pre-activations.
        rates: One rate for a ``"layer"`` (default), an input ``"unit"`` or, type B only, a ``"weight"``.
        p: The dropout rate to begin with, or one by the layer's name; ``"*"`` in a mapping stands for the others.
        learn: Whether rates are learned; False is Gaussian dropout.
        max_alpha: The bound of section 3.4, 1 by default; None lifts it.
        prior: ``"log-uniform"`` (default), or one with Gaussian posteriors; see `VariationalLinear`.
        approximation: Of the divergence; see `dropout_kl`.

    Returns:
        A handle. ``table()`` lists what has a posterior, and what was left alone and why.

    Raises:
        InputError: If an argument is out of range, two do not go together, a name in ``p`` is no layer's, or ``p`` has
            two rates for layers that share a weight.
        UnsupportedError: If no layer can have a posterior.

    References:
        Kingma et al., "Variational Dropout and the Local Reparameterization Trick", NIPS 2015.

    Example:
        >>> import torch, counterflow as cf
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> h = cf.make_variational(model, noise="B", rates="weight", p={"0": 0.2, "*": 0.5})
        >>> [(row.layer, row.done) for row in h.table()]
        [('0', 'variational'), ('2', 'variational')]
        >>> plain = cf.variational.deterministic(h.model)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    rows: list[Row] = []
    found: list[tuple[str, nn.Module]] = []
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        reason = _reason(module)
        if reason is None:
            continue
        if isinstance(module, nn.MultiheadAttention | Stochastic | GaussianDropout):
            inside |= {id(part) for part in module.modules()}
        rows.append(Row(name, type(module).__name__, "left alone" if reason else "variational", reason))
        if not reason:
            found.append((name, module))
    if not found:
        why = "; ".join(f"{row.layer!r} ({row.kind}): {row.why}" for row in rows) or "it has no layer with weights"
        raise UnsupportedError(f"no layer of this {type(model).__name__} can have a posterior: {why}")
    begin = _rates_by_name(p, [name for name, _ in found])
    options: dict[str, Any] = {
        "noise": noise,
        "rates": rates,
        "learn": learn,
        "max_alpha": max_alpha,
        "prior": prior,
        "approximation": approximation,
    }
    made: list[tuple[str, nn.Module, Any]] = []
    by_weight: dict[int, Any] = {}
    for name, module in found:  # all are made before any is put in, so that an error changes nothing
        p_of = begin[name]
        if isinstance(module, nn.MultiheadAttention):
            layer: Any = attention_around(module, {**options, "p": p_of})
            parts = [(name, layer), (f"{name}.out_proj" if name else "out_proj", layer.out_proj)]
        else:
            layer = variational_layer(module, {**options, "p": p_of})
            parts = [(name, layer)]
        for label, part in parts:
            first, other, p_of_other = by_weight.setdefault(id(part.weight), (part, label, p_of))
            if first is not part:
                if p_of_other != p_of:
                    raise InputError(
                        f"p begins layer {other!r} at {p_of_other!r} and {label!r} at {p_of!r}, but they share "
                        "a weight and its rates; give both one"
                    )
                _tie(first, part)
        made.append((name, module, layer))
    places = {id(module): layer for _, module, layer in made}
    undo: list[Callable[[], None]] = []
    for parent in list(model.modules()):  # every place, where one module stands in several
        for child, module in list(parent._modules.items()):
            if module is not None and id(module) in places:
                parent._modules[child] = places[id(module)]
                undo.append(functools.partial(parent._modules.__setitem__, child, module))
    undo += [functools.partial(_give_back, layer, module) for _, module, layer in made]
    root = places.get(id(model), model)
    title = f"Variational dropout, type {noise}"

    def table() -> Table:
        values = {name: _values(layer) for name, _, layer in made}
        return Table(title, [Row(r.layer, r.kind, r.done, r.why, values.get(r.layer, {})) for r in rows])

    reset_compiler()
    return VariationalHandle(root, table, undo, model)


def _reason(module: nn.Module) -> str | None:
    """Why a module is left alone; empty if it is not, None if it is nobody's business."""
    if isinstance(module, Stochastic | GaussianDropout):
        return "it has noise already"
    if isinstance(module, nn.MultiheadAttention) or type(module) in KINDS:
        reason = why_kept(module)  # an attention block is exchanged with what is inside
        if reason or not isinstance(module, nn.MultiheadAttention):
            return reason
        if type(module) is not nn.MultiheadAttention:
            return f"{type(module).__name__} may have a forward of its own"
        if type(module.out_proj) not in KINDS:
            return f"its out_proj ({type(module.out_proj).__name__}) has no layer with a posterior"
        return unlike(module)
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        what = "a transposed convolution" if "Transpose" in type(module).__name__ else "a type of its own"
        return f"{what} ({type(module).__name__}) has no layer with a posterior"
    if any(True for _ in module.parameters(recurse=False)):
        kind = type(module).__name__
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            return "the noise of a recurrent layer would have to stay the same over time"
        if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm):
            return "scales and shifts are estimated by maximum likelihood"
        return f"{kind} multiplies by no weights that noise is defined for"
    return None


def _rates_by_name(p: float | Mapping[str, float], names: list[str]) -> dict[str, float]:
    if not isinstance(p, Mapping):
        return dict.fromkeys(names, p)
    unknown = sorted(set(p) - {*names, "*"})
    if unknown:
        raise InputError(f"p names {unknown[0]!r}, which is no layer with a posterior; there are {', '.join(names)}")
    missing = [name for name in names if name not in p and "*" not in p]
    if missing:
        raise InputError(f"p has no rate for layer {missing[0]!r}; name it, or give '*' for all others")
    return {name: p.get(name, p.get("*", 0.5)) for name in names}


def _tie(first: Stochastic, second: Stochastic) -> None:
    """Layers that share a weight share what is known of it."""
    if first.prior is not None:
        second.log_variance = first.log_variance
    else:
        second.rate = first.rate


def _give_back(layer: nn.Module, plain: nn.Module) -> None:
    """A plain layer again, with what has happened meanwhile to the one in its place: its mode, other parameters."""
    plain.train(layer.training)
    for name, _ in list(plain.named_parameters()):
        owner, _, own = name.rpartition(".")
        now = getattr(layer.get_submodule(owner), own)
        if isinstance(now, nn.Parameter):
            plain.get_submodule(owner)._parameters[own] = now


def _values(layer: Stochastic) -> dict[str, float | int | str | None]:
    with torch.no_grad():
        log_alpha = layer.log_alpha().double()
        rate = torch.sigmoid(log_alpha)  # alpha / (1 + alpha)
        return {"mean p": round(float(rate.mean()), 3), "rates": layer.rates if layer.prior is None else "variance"}


def deterministic(model: nn.Module) -> nn.Module:
    """A plain copy of a model: the posterior means, and nothing else.

    In eval mode it computes the same to the bit; its state_dict loads into the original architecture.

    Args:
        model: With layers that have a posterior; it stays as it is.

    Raises:
        UnsupportedError: If it has none.

    Example:
        >>> import torch
        >>> from counterflow import variational
        >>> variational.deterministic(variational.VariationalLinear(3, 2))
        Linear(in_features=3, out_features=2, bias=True)
    """
    if not any(True for _ in stochastic_layers(model)):
        raise UnsupportedError(f"no layer of this {type(model).__name__} has a posterior; it is plain already")
    return plain_in_place(copy.deepcopy(model))


def plain_in_place(module: nn.Module) -> nn.Module:
    """Exchange every layer with a posterior for the plain layer of its means, within the module given."""
    if isinstance(module, VariationalMultiheadAttention):
        return plain_attention(module, plain_in_place(module.out_proj))
    if isinstance(module, GaussianDropout) and module.layer is not None:
        return plain_in_place(module.layer)
    if isinstance(module, Stochastic):
        base = next(kind for kind, ours in KINDS.items() if isinstance(module, ours))
        return _bare(module, base)
    for name, child in list(module._modules.items()):
        if child is not None:
            module._modules[name] = plain_in_place(child)
    return module


def _bare(layer: Any, base: type[Any]) -> nn.Module:
    if base is nn.Linear:
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    else:
        plain = base(**{name: getattr(layer, name) for name in GEOMETRY}, bias=layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    plain.train(layer.training)
    return plain
