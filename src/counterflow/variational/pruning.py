"""Smaller plain models: what the learned noise has drowned is taken out."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from counterflow.exceptions import InputError, UnsupportedError
from counterflow.variational.conversion import plain_in_place
from counterflow.variational.objective import stochastic_layers
from counterflow.variational.reading import called_whole, places

__all__ = ["prune"]

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# What keeps a unit a unit of its own, as a module, a function or a method.
_ELEMENTWISE = (
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign, nn.Dropout),
)
_OVER_SPACE = (
    *(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_ELEMENTWISE_FUNCTIONS = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.tanh, F.sigmoid),
    *(F.hardtanh, F.hardswish, F.hardsigmoid, F.softsign, F.dropout, torch.relu, torch.tanh, torch.sigmoid),
}
_ELEMENTWISE_METHODS = {"relu", "relu_", "tanh", "sigmoid", "contiguous"}
_OVER_SPACE_FUNCTIONS = {
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.dropout1d, F.dropout2d, F.dropout3d),
}


def prune(model: nn.Module, threshold: float = 3.0) -> nn.Module:
    r"""A smaller plain model: without the weights or units whose noise drowns them, :math:`\log\alpha` above a
    threshold.

    Weights (``rates="weight"``, or Gaussian posteriors) and the weights of input units (``rates="unit"``) become zero.
    Where a linear or convolutional layer feeds another one alone, with nothing between them but what treats each unit
    by itself (activations, dropout, pooling, batch normalization, flattening), units of the first that the second no
    longer uses are taken out of both. What feeds what is read from the model's graphs in eval and in training mode
    (`torch.fx`); of a model that cannot be traced, from those of its largest parts that can and that, by its source, it
    calls as a whole. All other units stay. The function in `eval()` is that of the posterior means with zeros, exactly.

    No graph tells steps of time from units where there are as many: behind a linear layer, a `torch.nn.BatchNorm1d` of
    as many entries as that has units is taken for a norm over these, as for ``(batch, units)``. A model that gives it
    ``(batch, steps, units)`` with as many steps must not be pruned.

    Args:
        model: With learned rates; it stays as it is.
        threshold: On log alpha; 3 is a dropout rate of .95.

    Returns:
        The plain model.

    Raises:
        InputError: If a bound on alpha forbids rates above the threshold.
        UnsupportedError: If no layer has a posterior whose rates are learned by unit or by weight.

    References:
        Molchanov et al., "Variational Dropout Sparsifies Deep Neural Networks", ICML 2017, section 4.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from counterflow import variational
        >>> first = variational.VariationalLinear(4, 8, rates="unit", max_alpha=None)
        >>> second = variational.VariationalLinear(8, 2, rates="unit", max_alpha=None)
        >>> second.rate.rho.data.view(-1)[:5] = 4.0  # log alpha: five units have drowned
        >>> variational.prune(nn.Sequential(first, nn.ReLU(), second))[0]
        Linear(in_features=4, out_features=3, bias=True)
    """
    twin = copy.deepcopy(model)
    some = False
    for name, layer in stochastic_layers(twin):
        if layer.prior is None:
            if layer.rates == "layer" or not layer.rate.learned:
                continue
            bound = layer.rate.max_alpha
            if bound is not None and math.log(bound) <= threshold:
                raise InputError(
                    f"threshold={threshold:g} cannot be exceeded in layer {name!r}: its rates are bounded by "
                    f"max_alpha={bound:g}, log alpha <= {math.log(bound):.3g}; train with max_alpha=None"
                )
        some = True
        with torch.no_grad():
            large = layer.log_alpha() > threshold
            if layer.noise == "A":  # one an input unit; in groups, in the order of the channels
                groups = layer.groups_of()
                per_group = large.reshape(groups, -1).repeat_interleave(len(layer.weight) // groups, 0)
                large = per_group.reshape(len(layer.weight), -1, *[1] * (layer.weight.ndim - 2))
            layer.weight.masked_fill_(large.expand_as(layer.weight), 0.0)
    if not some:
        raise UnsupportedError(
            f"nothing in this {type(model).__name__} can be pruned: no rates are learned by unit or by weight"
        )
    plain = plain_in_place(twin)
    _take_out(plain, _uses(plain), places(plain))
    return plain


def _uses(model: nn.Module) -> Counter[int]:
    """How many modules hold each parameter: what is shared must keep its shape. (One made since then has one owner.)"""
    every = (p for module in model.modules() for p in module.parameters(recurse=False))
    return Counter(id(p) for p in every)


def _take_out(model: nn.Module, uses: Counter[int], everywhere: Counter[int]) -> None:
    """Take units out that the layer behind them does not use, from the model's last layers to its first."""
    graphs = _graphs(model)
    if not graphs:  # a forward pass that depends on its data: its parts may not
        for part in called_whole(model, everywhere):
            _take_out(part, uses, everywhere)
        return
    found = [_pairs(model, graph, uses) for graph in graphs]
    for pairs, _ in found:
        for first, (norms, second) in pairs.items():
            parts = {first, *norms, second}
            # In the other mode, too, units have no other use, or none of these layers has any.
            if all(other.get(first) == (norms, second) or not parts & used for other, used in found):
                of_units, last = [model.get_submodule(norm) for norm in norms], model.get_submodule(second)
                _shrink(model.get_submodule(first), of_units, last)


def _graphs(model: nn.Module) -> list[fx.Graph]:
    """The model's graphs in eval and in training mode, which may differ; none if one of them cannot be traced."""
    if "forward" in vars(model):  # which the tracer would pass over
        return []
    before = {module: dict(vars(module)) for module in model.modules()}
    graphs = []
    try:
        for mode in (False, True):
            for module in before:
                module.training = mode
            graphs.append(fx.Tracer().trace(model))
    except Exception:
        return []
    finally:  # their modes, and no trace of what a forward pass keeps on its module
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
    return graphs


def _pairs(
    model: nn.Module, graph: fx.Graph, uses: Counter[int]
) -> tuple[dict[str, tuple[tuple[str, ...], str]], set[str]]:
    """Layers by name, from the last to the first, with the norms and the layer that alone use their units.

    Beside them the names of all modules that the graph uses.
    """
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def whole(node: fx.Node) -> bool:
        """Whether the node is a layer that may lose units: used once, of one group, with parameters of its own."""
        if node.op != "call_module" or calls[node.target] > 1 or node.target in read:
            return False
        layer: Any = model.get_submodule(str(node.target))
        return (
            isinstance(layer, _LAYERS)
            and getattr(layer, "groups", 1) == 1
            and not _hooked(layer)
            and all(uses[id(p)] <= 1 for p in layer.parameters())
        )

    pairs: dict[str, tuple[tuple[str, ...], str]] = {}
    for node in reversed(graph.nodes):
        if whole(node):
            norms, last = _behind(model, node, calls)
            alone = all(uses[id(p)] <= 1 for norm in norms for p in model.get_submodule(norm).parameters())
            if last is not None and whole(last) and alone:
                pairs[str(node.target)] = tuple(norms), str(last.target)
    return pairs, {str(target) for target in calls} | read


def _behind(model: nn.Module, node: fx.Node, calls: Counter[Any]) -> tuple[list[str], fx.Node | None]:
    """The node that alone is fed by a layer, through what treats each unit by itself, and the norms on the way by name.

    None where there is no such node: the units must stay.
    """
    first: Any = model.get_submodule(str(node.target))
    linear = isinstance(first, nn.Linear)
    flat = False  # a convolution's channels, behind nn.Flatten
    norms: list[str] = []
    while True:
        if len(node.users) != 1:
            return norms, None
        node = next(iter(node.users))
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            if isinstance(module, _LAYERS):
                fits = isinstance(module, nn.Linear) == (linear or flat)
                return norms, node if fits else None
            if _hooked(module):
                return norms, None
            if isinstance(module, _NORMS) and calls[node.target] == 1 and not flat:
                # Behind a linear layer over sequences or pictures it normalizes steps of time or channels instead.
                over_units = not linear or isinstance(module, nn.BatchNorm1d)
                if not over_units or module.num_features != len(first.weight):
                    return norms, None
                norms.append(str(node.target))
            elif isinstance(module, nn.Flatten) and not linear and (module.start_dim, module.end_dim) == (1, -1):
                flat = True
            elif not isinstance(module, _ELEMENTWISE) and (linear or flat or not isinstance(module, _OVER_SPACE)):
                return norms, None
        elif node.op == "call_function":
            if node.target is torch.flatten and not linear and _flattens(node):
                flat = True
            elif node.target not in _ELEMENTWISE_FUNCTIONS and (
                linear or flat or node.target not in _OVER_SPACE_FUNCTIONS
            ):
                return norms, None
        elif node.op == "call_method":
            if node.target == "flatten" and not linear and _flattens(node):
                flat = True
            elif node.target not in _ELEMENTWISE_METHODS:
                return norms, None
        else:
            return norms, None


def _hooked(module: nn.Module) -> bool:
    """Whether there is more to a module than its forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _flattens(node: fx.Node) -> bool:
    """Whether a call of flatten joins everything behind the batch."""
    found = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
    return (found.get("start_dim", 0), found.get("end_dim", -1)) == (1, -1)


def _shrink(first: Any, norms: list[nn.Module], second: Any) -> None:
    units = len(first.weight)
    weight = second.weight.detach()
    used = weight.reshape(len(weight), units, -1).any(2).any(0)  # a flattened channel is several inputs
    if bool(used.all()):
        return
    used[0] |= not bool(used.any())  # a layer without units would be none
    keep = used.nonzero().flatten()
    for module in (first, *norms):
        for name in ("weight", "bias", "running_mean", "running_var"):
            old = getattr(module, name, None)
            if old is not None:
                new = old.detach()[keep].clone()
                setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    for norm in norms:
        norm.num_features = len(keep)  # type: ignore[assignment]
    columns = weight.reshape(len(weight), units, -1, *weight.shape[2:])[:, keep].flatten(1, 2)
    second.weight = nn.Parameter(columns.clone(), second.weight.requires_grad)
    if isinstance(first, nn.Linear):
        first.out_features = len(keep)
    else:
        first.out_channels = len(keep)
    if isinstance(second, nn.Linear):
        second.in_features = columns.shape[1]
    else:
        second.in_channels = len(keep)
