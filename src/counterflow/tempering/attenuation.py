r"""Attenuation that follows the weights, or the measured errors, while training runs.

The paper's equation 12 lets the error of unit :math:`i` vary as much as its posterior nodes' errors do on average, each
of them weighted by :math:`w_{ij}^2`; that is ad hoc, it says, and makes (14) independent of the weights. Its last
section names two refinements, and both are here.

**The weights as they are.** With :math:`s` the largest slope on the way, (13) says of independent errors

.. math:: \langle\delta_i^2\rangle \le a_i^2 s^2 \sum_{j \in P_i} w_{ij}^2 \langle\delta_j^2\rangle .

Here every unit has its own :math:`a_i = 1 / (s \sqrt{\sum_j w_{ij}^2})`, from the size of its vector of outgoing
weights, so that

.. math::
    \langle\delta_i^2\rangle \le \frac{\sum_j w_{ij}^2 \langle\delta_j^2\rangle}{\sum_j w_{ij}^2}
    \le \max_j \langle\delta_j^2\rangle

whatever the weights are: a true average, whose shares add up to one. Where the posterior errors are of equal variance
it is their plain mean. (To stay below the plain mean for variances of any kind would take :math:`1/(s \sqrt{|P_i|}
\max_j |w_{ij}|)`, which falls short of it otherwise.) Fixed maps on the way, such as pooling, are taken for ones that
do not enlarge the error. Below a strided convolution, whose pixels meet unlike parts of the kernel, the pixel with the
largest vector stands for all of a channel. A recurrent cell in a loop feeds its own gates by its recurrent weights, so
the average runs over the errors of the next step too.

**The error's variance, measured.** With :math:`g_i` the error of a unit before attenuation, :math:`\delta_i = a g_i`.
The bound (13) on :math:`\langle g_i^2\rangle` is replaced by what the layer's errors are: in each backward pass, over
all units of the layer and all samples,

.. math::
    q = \frac{\langle g^2\rangle}{\frac{1}{|P|}\sum_{j \in P} \langle\delta_j^2\rangle}, \qquad
    \bar q \to m\,\bar q + (1 - m)\,q, \qquad a = 1 / \sqrt{\bar q}, \qquad m = 0.9,

:math:`\bar q` being the first :math:`q` at the start. It is the running mean square of the layer's error in units of
the layers that it feeds, so that it neither lags behind as errors get smaller in training, nor sees a loss that is
scaled. With :math:`\bar q = q` (12) holds with equality, without the weights in it: :math:`\langle\delta^2\rangle =
\frac{1}{|P|} \sum_j \langle\delta_j^2\rangle`, and the error keeps its scale all the way down. :math:`|P|` is the
fan-out that (14) counts: an output layer with a local code is one unit here too.

The buffer ``temper_power_ratio`` of a module is :math:`\bar q`; the state_dict has it. Every backward pass counts as
one measurement, so accumulating over four parts makes four, each of its own part; a part's errors are scaled by what is
known when it comes. Ranks of a distributed run measure together. A pass in which an error is not finite, or all those
above are zero, or the batch is empty, leaves it as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from counterflow.backward.reduce import error_rms, world_size
from counterflow.backward.shunting import shunt
from counterflow.backward.tap import State, Tap, Transform
from counterflow.tempering.activations import UNARY
from counterflow.tempering.layers import Layer, units
from counterflow.tempering.ops import JOINS, operation
from counterflow.tempering.recurrent import at_hidden_state
from counterflow.tempering.trace import Trace, Use

__all__ = ["ByWeights", "Link", "Measured", "Outgoing", "install_linked", "plan_measured", "plan_weights"]

PREFIX = "temper_"
MOMENTUM = 0.9
Link = tuple[nn.Module, str]


class LinkedTap(Tap):
    """A tap whose transform sees parameters and buffers of other modules too, as they are when the model runs.

    Args:
        transform: What to do to the error.
        links: By the name that the transform's state has them under: module and attribute. Modules are held, not
            tensors, so that ``.to``, ``deepcopy`` and `torch.func.functional_call` are followed.
    """

    def __init__(self, transform: Transform, links: Mapping[str, Link]) -> None:
        super().__init__(transform, PREFIX)
        self.own = self.names
        self.names = (*self.own, *links)
        self.links = tuple(links.values())

    def state(self, module: nn.Module) -> list[Tensor]:
        linked = [getattr(other, name) for other, name in self.links]
        # No gradient flows into a weight by way of the attenuation.
        linked = [value.detach() if isinstance(value, nn.Parameter) else value for value in linked]
        return [getattr(module, PREFIX + name) for name in self.own] + linked


def install_linked(module: nn.Module, transform: Transform, links: Mapping[str, Link]) -> Callable[[], None]:
    """Put a transform with links on a module; returns the function that takes it off again."""
    buffers = transform.buffers()
    parameter = next(module.parameters(), None)
    for name, (value, persistent) in buffers.items():
        if parameter is not None:
            double = parameter.dtype == torch.float64
            value = value.to(parameter.device, torch.float64 if double else value.dtype)
        module.register_buffer(PREFIX + name, value, persistent=persistent)
    handle = module.register_forward_hook(at_hidden_state(module, LinkedTap(transform, links)), with_kwargs=True)

    def remove() -> None:
        handle.remove()
        for name in buffers:
            delattr(module, PREFIX + name)

    return remove


# -- from the weights -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outgoing:
    """One layer that is fed.

    Args:
        link: The name of its weight.
        slope: The largest slope on the way there.
        kind: How the weight's inputs are arranged: (out, in), (out, in / groups, ...) or (in, out / groups, ...).
        groups: Of a convolution.
        periods: Of a convolution, how far apart two kernel positions are, by axis, that one pixel can meet.
        start: Which of its inputs the first unit is; None where units cannot be told apart, and the largest vector
            stands for all of them.
        shape: That of the squared sizes, broadcastable against one example's error; None where start is.
    """

    link: str
    slope: float
    kind: str
    groups: int = 1
    periods: tuple[int, ...] = ()
    start: int | None = None
    shape: tuple[int, ...] | None = None

    def squares(self, weight: Tensor) -> Tensor:
        """The squared size of every unit's vector of outgoing weights."""
        squared = (weight if weight.dtype == torch.float64 else weight.float()).square() * self.slope**2
        if self.kind == "transposed":
            sizes = squared.flatten(1).sum(1)
        else:
            sizes = torch.unflatten(squared, 0, (self.groups, -1)).sum(1).flatten(0, 1)
            for axis, period in enumerate(self.periods, 1):
                each = [sizes[(slice(None),) * axis + (slice(first, None, period),)] for first in range(period)]
                sizes = torch.stack([met.sum(axis) for met in each], axis)
            sizes = sizes.reshape(sizes.shape[0], -1).amax(1)
        if self.start is None or self.shape is None:
            return sizes.max()
        return sizes[self.start : self.start + math.prod(self.shape)].reshape(self.shape)


class ByWeights(Transform):
    r"""Multiply the error of unit :math:`i` by :math:`a_i`, from its outgoing weights (see the module's docstring).

    Args:
        calls: For each way in which the layer is called, the layers that it feeds, the slope of a way to the output
            that meets no weight (0 where there is none), and what the mean of the squares is multiplied by: 1, but for
            an output layer with a local code, which counts as one unit.
    """

    def __init__(self, calls: tuple[tuple[tuple[Outgoing, ...], float, float], ...]) -> None:
        self.calls = calls

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        return error * self.factor(state).to(error.dtype)

    def factor(self, state: State) -> Tensor:
        """:math:`a_i`, broadcastable against the error."""
        largest = None
        for outgoing, direct, share in self.calls:
            total: Tensor | None = None
            for way in outgoing:
                squares = way.squares(state[way.link])
                total = squares if total is None else total + squares
            assert total is not None
            total = (total + direct**2) / share
            largest = total if largest is None else torch.maximum(largest, total)
        assert largest is not None
        # A unit that feeds nothing has no error to scale.
        return torch.where(largest > 0, largest, 1.0).rsqrt()

    def __repr__(self) -> str:
        return "attenuated by the weights"


def plan_weights(trace: Trace, layer: Layer) -> tuple[ByWeights, dict[str, Link]] | str:
    """The transform for a layer that can be tapped, and the weights that it looks at; or why there is none."""
    links: dict[str, Link] = {}
    calls: dict[tuple[tuple[Outgoing, ...], float, float], None] = {}
    for use, flow in zip(layer.uses, layer.tapped_flows, strict=True):
        if not flow.counted:
            continue
        outgoing = []
        for consumer in flow.counted:
            if not _is_product(consumer):
                return f"what {consumer.layer!r} makes of its input is no plain product with weights"
            state = consumer.kind == "recurrent" and flow.ways[consumer] != {consumer.weights[0]}
            if state and len(trace.uses_at(consumer.node)) > 1:
                return f"which layer of the stack {consumer.layer!r} takes its state cannot be told"
            for parameter in sorted(flow.ways[consumer]):
                owner, _, attribute = parameter.rpartition(".")
                links[parameter] = (trace.model.get_submodule(owner), attribute)
                outgoing.append(_outgoing(trace, layer, use, consumer, parameter, flow.consumers[consumer]))
        fan_out = sum(units(flow, consumer) for consumer in flow.counted)
        # A state that is carried past the gates meets a weight of one at most, as what reaches the output does.
        direct = math.hypot(flow.output or 0.0, math.sqrt(len(flow.carried.intersection(flow.counted))))
        count = fan_out + (1.0 if flow.output else 0.0)
        calls[tuple(outgoing), direct, max(1.0, count / layer.counted)] = None
    return ByWeights(tuple(calls)), links


def _is_product(consumer: Use) -> bool:
    """Whether a layer multiplies all that it takes by parameters as they are."""
    facts, name = consumer.facts, operation(consumer.node)
    if facts is None or facts.weight.op != "placeholder":
        return False
    if facts.kind == "recurrent":
        return facts.others[0].op == "placeholder"
    return name == "linear" or name.startswith("conv")


def _outgoing(trace: Trace, layer: Layer, use: Use, consumer: Use, link: str, slope: float) -> Outgoing:
    name = operation(consumer.node)
    if not name.startswith("conv"):
        return Outgoing(link, slope, "linear", 1, (), *_units(trace, layer, use, consumer))
    (groups,) = _settings(consumer.node, 6, "groups", 1)
    if name.startswith("conv_transpose"):  # a pixel meets the whole kernel, whatever the stride
        return Outgoing(link, slope, "transposed", groups, (), *_units(trace, layer, use, consumer))
    axes = len(trace.model.get_parameter(consumer.weights[0]).shape) - 2
    steps, gaps = (_settings(consumer.node, at, of, axes) for at, of in ((3, "stride"), (5, "dilation")))
    periods = tuple(step // math.gcd(step, gap) for step, gap in zip(steps, gaps, strict=True))
    return Outgoing(link, slope, name, groups, periods, *_units(trace, layer, use, consumer))


def _settings(node: fx.Node, at: int, name: str, count: int) -> list[int]:
    """A convolution's argument, as many numbers as it stands for."""
    found: Any = node.args[at] if len(node.args) > at else node.kwargs.get(name, 1)
    numbers = list(found) if isinstance(found, list | tuple) else [found]
    return numbers * count if len(numbers) == 1 else numbers


def _units(trace: Trace, layer: Layer, use: Use, consumer: Use) -> tuple[int | None, tuple[int, ...] | None]:
    """Which inputs of a consumer the units of a layer are, where each keeps its own."""
    lost = (None, None)
    if layer.kind not in ("linear", "convolution", "recurrent") or layer.tapped != layer.module:
        return lost
    module, first = trace.model.get_submodule(layer.module), use.node
    if layer.kind == "recurrent":
        if type(module) not in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
            return lost
        (first,) = trace.hidden_states(use.node)
    elif shunt().supports(module):  # it must put out its net input itself, units where it has them always
        return lost
    assert consumer.facts is not None
    shape = tuple(first.meta["val"].shape)
    convolution = layer.kind == "convolution"
    if convolution and len(shape) != len(trace.model.get_parameter(use.weights[0]).shape):
        return lost
    axis = 1 if convolution else len(shape) - 1
    found: set[tuple[int | None, bool]] = set()
    seen: set[tuple[fx.Node, int | None, bool]] = set()
    ways: list[tuple[fx.Node, int | None, bool]] = [(first, 0, False)]
    while ways:
        way = ways.pop()
        if way in seen:
            continue
        seen.add(way)
        node, start, flat = way
        for user in node.users:
            if consumer in trace.uses_at(user):
                if node in consumer.facts.inputs:
                    found.add((start, flat))
            elif user.op != "output" and not trace.uses_at(user):
                ways.append((user, *_moved(node, user, start, flat, axis)))
    if len(found) != 1:
        return lost
    start, flat = found.pop()
    if start is None or operation(consumer.node).startswith("conv") == (flat or not convolution):
        return lost
    if not convolution:
        return start, shape[-1:]
    return start, shape[1:] if flat else (shape[1], *(1 for _ in shape[2:]))


_STILL = UNARY | frozenset(("add", "alias", "clone", "contiguous", "div", "dropout", "mul", "sub", "to", "_to_copy"))


def _moved(node: fx.Node, user: fx.Node, start: int | None, flat: bool, axis: int) -> tuple[int | None, bool]:
    """Where the first unit stands behind one more operation; None where it cannot be told."""
    name = operation(user)
    before, after = (getattr(n.meta.get("val"), "shape", None) for n in (node, user))
    if start is None or before is None or after is None:
        return None, flat
    if name in _STILL and before == after:
        return start, flat
    if name in ("flatten", "view", "reshape") and not flat and axis == 1 and start == 0:
        whole = len(before) > 2 and tuple(after) == (before[0], math.prod(before[1:]))
        return (0, True) if whole else (None, flat)
    if name in JOINS & {"cat", "concat", "concatenate"}:
        parts = user.args[0]
        dim = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
        assert isinstance(parts, list | tuple)
        assert isinstance(dim, int)
        at = 1 if flat else axis
        if dim % len(before) == at and list(parts).count(node) == 1:
            first = list(parts).index(node)
            return start + sum(int(p.meta["val"].shape[at]) for p in parts[:first] if isinstance(p, fx.Node)), flat
    return None, flat


# -- from measured errors ---------------------------------------------------------------------------------------------


class Measured(Transform):
    r"""Hold the mean square of a layer's error to that of the layers above (see the module's docstring).

    Args:
        above: For each layer that is fed, the link to its measured mean square, and its share :math:`n/|P|`. Empty for
            a layer whose error is measured and handed on as it is.
    """

    stateful = True
    batch_coupled = True

    def __init__(self, above: tuple[tuple[str, float], ...]) -> None:
        self.above = above

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        # All elements count alike, so a single example tells a layer's mean square too.
        # Errors are larger by the number of ranks, over which DistributedDataParallel averages.
        now = (error_rms(error, repr(self)) / world_size()).square()
        with torch.no_grad():
            factor = self._follow(now, state) if self.above else torch.ones_like(now)
            # What the layer below looks at, later in this backward pass.
            state["error_power"].copy_(now * factor.square())
        return error * factor.to(error.dtype)

    def _follow(self, now: Tensor, state: State) -> Tensor:
        wanted = sum((share * state[link].to(now.dtype) for link, share in self.above), torch.zeros_like(now))
        running = state["power_ratio"]
        ratio = (now / wanted).to(running.dtype)
        new = torch.where(running < 0, ratio, MOMENTUM * running + (1 - MOMENTUM) * ratio)
        running.copy_(torch.where(ratio.isfinite(), new, running))
        # Zero or less: no error was seen yet, so that there is nothing to scale.
        return torch.where(running > 0, running, 1.0).to(now.dtype).rsqrt()

    def buffers(self) -> Mapping[str, tuple[Tensor, bool]]:
        # The first lives for one backward pass only.
        own = {"error_power": (torch.tensor(0.0), False)}
        return own | {"power_ratio": (torch.tensor(-1.0), True)} if self.above else own

    def __repr__(self) -> str:
        return "attenuated by the measured variance"


def plan_measured(trace: Trace, layers: list[Layer]) -> dict[Layer, tuple[str, Measured, dict[str, Link]]]:
    """The layers to measure, those that are fed by an attenuated one among them: where, and how."""
    owner = {use: layer for layer in layers for use in layer.uses}
    plans: dict[Layer, tuple[str, Measured, dict[str, Link]]] = {}
    for layer in layers:
        if layer.tapped is None:
            continue
        above = [owner[use] for use in layer.flows[0].consumers]
        reason = next((why for each in (layer, *above) if (why := _unmeasurable(trace, each))), "")
        if layer.is_output:
            reason = "it feeds the output beside layers"
        if reason:
            layer.notes.append(f"attenuated by its fan-out: {reason}")
            continue
        links: dict[str, Link] = {}
        shares = []
        for use in layer.flows[0].consumers:
            name = use.scope + ".error_power"  # with a dot, which this layer's own names have not
            links[name] = (trace.model.get_submodule(use.scope), PREFIX + "error_power")
            shares.append((name, (use.facts.fan_out if use.facts else 1.0) / layer.counted))
        plans[layer] = (layer.tapped, Measured(tuple(shares)), links)
    for use in [use for layer in plans for use in layer.flows[0].consumers]:
        plans.setdefault(owner[use], (use.scope, Measured(()), {}))
    return plans


def _unmeasurable(trace: Trace, layer: Layer) -> str:
    if layer.kind in ("recurrent", "parameter"):
        return f"the error of {layer.name!r} cannot be measured by itself"
    if len(layer.uses) > 1:
        return f"{layer.name!r} is called {len(layer.uses)} times"
    if not trace.owns_its_output(layer.uses[0]):
        return f"the error of {layer.name!r} cannot be measured by itself"
    return ""
