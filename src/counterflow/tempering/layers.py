"""The arithmetic of tempering: one layer's input power, slope, fan-out, rate and attenuation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from counterflow.exceptions import InputError
from counterflow.handle import select
from counterflow.tempering.flow import Flow, Flows
from counterflow.tempering.losses import Loss
from counterflow.tempering.recurrent import hidden_state, squared_power
from counterflow.tempering.trace import Power, Trace, Use

__all__ = ["Layer", "effective_rates", "output_ratio", "read_layers", "set_attenuations", "units"]

Source = Literal["bound", "measured", "stated"]


@dataclass(eq=False)
class Layer:
    r"""One row: a module's weight with its bias, over all calls in one forward pass.

    Args:
        name: The module's name, or the parameter's where a module has several weights.
        module: The name of the module whose parameters they are.
        kind: What kind of layer.
        uses: Its calls.
        flows: Where the output of each call goes.
        tapped_flows: Where that part of it goes whose error is attenuated: all but an LSTM's cell state.
        parameters: The names of its parameters.
        squared_power: :math:`\xi^2`.
        power_source: How that is known.
        slope: :math:`s(f)`.
        range: :math:`p(f)` of what leaves its activation function.
        fan_out: :math:`|P|` of that part, the largest of any call.
        counted: The fan-out with a local-code output layer as one unit.
        attenuation: :math:`a`, that of the start where it changes; 1 where the layer is not attenuated, None where it
            will be measured.
        by: What the attenuation is taken from.
        tapped: The name of the module at whose output the attenuation acts; None where it does not.
        shunted: Whether its weights learn from centered errors and its bias from the mean.
        notes: What the reader must know.
    """

    name: str
    module: str
    kind: str
    uses: list[Use]
    flows: list[Flow]
    tapped_flows: list[Flow]
    parameters: tuple[str, ...]
    squared_power: float
    power_source: Source
    slope: float
    range: float | None
    fan_out: float
    counted: float
    attenuation: float | None = 1.0
    by: Literal["fan-out", "weights", "measured variance"] = "fan-out"
    tapped: str | None = None
    shunted: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        r""":math:`\eta_j / \eta`."""
        return 1.0 / (self.slope * math.sqrt(self.squared_power))

    @property
    def is_output(self) -> bool:
        """Whether its output reaches the model's."""
        return any(flow.output is not None for flow in self.flows)


def read_layers(trace: Trace, loss: Loss, local: bool, stated: Mapping[str, float]) -> list[Layer]:
    """All layers of a trace with what equations 5 to 9 say of them, in the order in which they run."""
    ways = Flows(trace)
    flows = {use: ways.of(use) for use in trace.uses}
    groups: dict[tuple[object, ...], list[Use]] = {}
    for use in trace.uses:
        level = use.facts.level if use.facts else 0
        weights = () if use.kind == "recurrent" else use.weights
        groups.setdefault((use.layer, use.kind, level, weights), []).append(use)
    alone = [key[0] for key in groups]
    powers = _stated_powers(trace.model, stated, {use.layer for use in trace.uses})
    layers = []
    for uses in groups.values():
        first = uses[0]
        name = first.layer
        if first.facts is None or alone.count(name) > 1:
            name = first.weights[0]
        if first.kind == "recurrent":
            power = squared_power(trace, uses)
            squared, source = power.value, _source(power)
        else:
            squared, source = max(_squared_power(trace, use) for use in uses)
        if first.layer in powers and first.facts is not None:
            squared, source = powers[first.layer], "stated"
        own = [flows[use] for use in uses]
        tapped = [ways.tapped(use) for use in uses]
        layers.append(
            Layer(
                name=name,
                module=first.layer,
                kind=first.kind,
                uses=uses,
                flows=own,
                tapped_flows=tapped,
                parameters=tuple(dict.fromkeys(p for use in uses for p in use.parameters)),
                squared_power=squared,
                power_source=source,
                slope=max(_slope(flow, loss) for flow in own),
                range=None,
                fan_out=max(sum(units(flow, use) for use in flow.counted) for flow in tapped),
                counted=max(_counted(flow, flows, local) for flow in tapped),
            )
        )
    for layer in layers:
        layer.range = _range(trace, layer, loss.inside)
        if not layer.squared_power > 0:
            raise InputError(
                f"{layer.name!r}: all its inputs are zero on sample_input, so no rate follows from their power; state "
                f"it: input_power={{{layer.module!r}: ...}}"
            )
    return layers


def _stated_powers(model: nn.Module, stated: Mapping[str, float], known: set[str]) -> dict[str, float]:
    if not isinstance(stated, Mapping):
        raise InputError(f"input_power must be a dictionary from layers to numbers, {{'0': 4.0}} say, got {stated!r}")
    powers: dict[str, float] = {}
    for pattern, value in stated.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value > 0):
            raise InputError(f"input_power[{pattern!r}] must be a number > 0, got {value!r}")
        names = {name for name, _ in select(model, pattern)}
        if not names & known:
            raise InputError(
                f"input_power[{pattern!r}]: {', '.join(map(repr, sorted(names)))} has no weights of its own; name "
                "layers that have"
            )
        powers |= dict.fromkeys(names & known, float(value))
    return powers


def _source(power: Power) -> Source:
    return "measured" if power.measured else "bound"


def _squared_power(trace: Trace, use: Use) -> tuple[float, Source]:
    r""":math:`\xi^2` of one call: equation 7 for external inputs, equation 9 for those from other layers."""
    facts = use.facts
    if facts is None or facts.kind == "embedding":
        return 1.0, "bound"
    if facts.kind == "norm":
        return 1.0 + facts.biases, "bound"
    if use.node in trace.squared_input_power:
        return trace.squared_input_power[use.node], "measured"
    power = trace.power(facts.inputs[0])
    source = _source(power)
    if facts.kind == "scale":
        # Its one input may be tiny at the start, as behind a projection that begins at zero, and grow.
        return max(1.0, power.value**2), source
    return facts.fan_in * power.value**2 + facts.biases, source


def _slope(flow: Flow, loss: Loss) -> float:
    slopes = list(flow.consumers.values())
    if flow.output is not None:
        slopes.append(flow.output * loss.inside)
    return max(slopes, default=1.0) or 1.0


def units(flow: Flow, consumer: Use) -> float:
    """How many units one element feeds in a consumer; a state that is carried on feeds itself at the next step."""
    fan_out = consumer.facts.fan_out if consumer.facts else 1.0
    return fan_out * len(flow.ways[consumer]) + (consumer in flow.carried)


def _counted(flow: Flow, flows: Mapping[Use, Flow], local: bool) -> float:
    # One or two targets of a local code are active at a time, so an output layer counts as one unit; so does the
    # output itself for a layer that feeds others too.
    def is_output(use: Use) -> bool:
        return flows[use].output is not None and not flows[use].consumers

    count = sum(1.0 if local and is_output(use) else units(flow, use) for use in flow.counted)
    return count + (1.0 if flow.output is not None and flow.consumers else 0.0)


def _range(trace: Trace, layer: Layer, inside: float) -> float | None:
    r""":math:`p(f)`: the power of what the nearest consumer takes."""
    for use, flow in zip(layer.uses, layer.flows, strict=True):
        for consumer in flow.consumers:
            if consumer.facts and consumer.facts.inputs and layer.kind != "recurrent":
                return trace.power(consumer.facts.inputs[0]).value
        if flow.output is not None and not flow.consumers:
            # Where the output function is inside the loss, what leaves the model is not its activation.
            return trace.power(trace.output_node()).value if inside == 1 else None
        if layer.kind == "recurrent" and trace.squashes(use.node):
            return 1.0
    return None


def output_ratio(layers: list[Layer], loss: Loss, cancelled: float) -> float:
    r""":math:`\phi` of equation 10, the largest of the output layers."""
    slopes = [flow.output for layer in layers for flow in layer.flows if flow.output is not None]
    return loss.ratio * max(slopes, default=1.0) / cancelled


def set_attenuations(trace: Trace, layers: list[Layer]) -> None:
    """Equation 14, wherever an error can be tapped alone."""
    for layer in layers:
        reached = True
        if layer.kind == "recurrent":
            reached, notes = hidden_state(trace, layer.uses, layer.flows, layer.counted)
            layer.notes += notes
        if not any(flow.consumers for flow in layer.flows):
            if not layer.is_output:
                layer.notes.append("no error reaches it")
            continue
        if not reached:
            continue
        if layer.kind == "parameter":
            layer.notes.append("not attenuated: a bare parameter has no module's output to itself")
            continue
        scopes = {use.scope for use in layer.uses}
        if len(scopes) > 1 or not all(trace.owns_its_output(use) for use in layer.uses):
            layer.notes.append(f"not attenuated: the output of {_named(min(scopes))} is not its own")
            continue
        layer.attenuation = 1.0 / (layer.slope * math.sqrt(layer.counted))
        layer.tapped = scopes.pop()
        if layer.tapped != layer.module and layer.attenuation != 1.0:
            layer.notes.append(f"attenuated at the output of {_named(layer.tapped)}")


def _named(module: str) -> str:
    return repr(module) if module else "the model"


def effective_rates(trace: Trace, layers: list[Layer]) -> dict[str, float | None] | None:
    """Rate times all attenuations on the way to the output; None where the network is not strictly layered.

    In the dictionary, None stands where the ways to the output differ.
    """
    of_use = {use: (layer, flow) for layer in layers for use, flow in zip(layer.uses, layer.flows, strict=True)}
    depth: dict[Use, int] = {}
    product: dict[Use, float | None] = {}
    for use in sorted(of_use, key=trace.order, reverse=True):
        layer, flow = of_use[use]
        below = [c for c in flow.consumers if c in depth]
        if len(below) != len(flow.consumers):
            return None
        if flow.consumers and (flow.output is not None or len({depth[c] for c in below}) != 1):
            return None
        depth[use] = 1 + depth[below[0]] if below else 0
        ways = [product[c] for c in below] or [1.0]
        first = ways[0]
        equal = first is not None and all(w is not None and math.isclose(w, first) for w in ways)
        known = equal and first is not None and layer.attenuation is not None
        product[use] = layer.attenuation * first if known else None  # type: ignore[operator]
    result: dict[str, float | None] = {}
    for layer in layers:
        values = [product[use] for use in layer.uses]
        first = values[0]
        same = first is not None and all(v is not None and math.isclose(v, first) for v in values)
        result[layer.name] = layer.rate * first if same and first is not None else None
    return result
