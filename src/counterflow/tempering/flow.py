"""Following the data through a model: which layers feed which, through what functions.

From the output of each layer with weights the error's way back is known by following the data forward: through
functions (which have slopes), sums, joins, pooling and attention, to all layers that weigh it next. A skip is followed
like any other way: it is no unit of its own, and what lies behind it is fed by the layer too.

Two things are otherwise where a loop unrolls a cell. A sequence that is taken apart feeds the cell at every step, but
each of its elements at one step alone, so the steps count once. And the state that a GRU carries on past its gates is
tapped at the next step: that is one more unit that is fed, of weight one at most, and no skip to all that lies behind.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from counterflow.exceptions import UnsupportedError
from counterflow.tempering.ops import BLOCKED, is_float, operation
from counterflow.tempering.trace import Trace, Use, place

__all__ = ["Flow", "Flows"]


@dataclass
class Flow:
    """Where a value goes.

    Args:
        consumers: The layers that weigh it next, and the greatest slope on a way there.
        output: The greatest slope on a way to the model's output; None if no way leads there.
        unknown: An operation on the way that is not known, if there is one.
        apart: Those of the consumers that other elements feed, at another step of a layer that is counted already.
        ways: The names of the weights by which each of the consumers takes it: a recurrent layer has two.
        carried: Those of the consumers that hand it on past their gates.
    """

    consumers: dict[Use, float] = field(default_factory=dict)
    output: float | None = None
    unknown: fx.Node | None = None
    apart: set[Use] = field(default_factory=set)
    ways: dict[Use, frozenset[str]] = field(default_factory=dict)
    carried: set[Use] = field(default_factory=set)

    @property
    def counted(self) -> list[Use]:
        """The consumers that one element feeds."""
        return [use for use in self.consumers if use not in self.apart]

    @property
    def leads_nowhere(self) -> bool:
        """Whether no error comes back."""
        return not self.consumers and self.output is None and self.unknown is None

    def take(self, behind: Flow, gain: float = 1.0, *, other_elements: bool = False) -> None:
        """Add where a function of the value goes.

        Args:
            behind: That way.
            gain: The function's slope.
            other_elements: Whether other elements take it than the ways that were added before. Of the steps of one
                layer, those of the element that feeds the most of them count.
        """
        mine, theirs = (Counter(use.weights for use in flow.counted) for flow in (self, behind))
        known = {weights for weights in mine if other_elements and mine[weights] >= theirs[weights]}
        if other_elements:
            self.apart |= {use for use in self.counted if use.weights not in known and use.weights in theirs}
        for use, slope in behind.consumers.items():
            if use in behind.apart or use.weights in known:
                self.apart |= {use} - self.consumers.keys()
            else:
                self.apart.discard(use)
            self.consumers[use] = max(self.consumers.get(use, 0.0), gain * slope)
            self.ways[use] = self.ways.get(use, frozenset()) | behind.ways.get(use, frozenset())
        if behind.output is not None:
            self.output = max(self.output or 0.0, gain * behind.output)
        self.unknown = self.unknown or behind.unknown
        self.carried |= behind.carried


class Flows:
    """The ways of all values of a trace.

    Args:
        trace: The trace, measured.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._behind: dict[fx.Node, Flow] = {}
        # Users stand behind a node in the graph, so one walk from the back needs no recursion.
        for node in reversed(trace.graph.nodes):
            self._behind[node] = self._from_users(node)

    def of(self, use: Use) -> Flow:
        """Where a layer's output goes.

        Raises:
            UnsupportedError: If its error passes a function that is not known.
        """
        inner = self._inner(use)
        if inner is not None:
            return inner
        flow = self._behind[use.node]
        if flow.unknown is not None:
            name = operation(flow.unknown)
            raise UnsupportedError(
                f"the error of {use.layer or use.weights[0]!r} passes {name!r} in {place(flow.unknown)}, whose slope "
                f"temper does not know; state it: activations={{{name!r}: tempering.Bounds(slope=..., power=...)}}"
            )
        return flow

    def tapped(self, use: Use) -> Flow:
        """Where that part of a layer's output goes whose error is attenuated: all but an LSTM's cell state."""
        inner = self._inner(use)
        if inner is not None or use.kind != "recurrent":
            return inner or self.of(use)
        flow = Flow()
        for state in self.trace.hidden_states(use.node):
            flow.take(self._behind[state])
        return flow

    def _inner(self, use: Use) -> Flow | None:
        """Where the output of a layer goes that stands below another one in one recurrent kernel."""
        level = use.facts.level if use.facts else 0
        above = [u for u in self.trace.uses_at(use.node) if u.facts and u.facts.level == level + 1]
        ways = {u: frozenset(u.weights) for u in above}
        return Flow(dict.fromkeys(above, 1.0), ways=ways) if above else None

    def _from_users(self, node: fx.Node) -> Flow:
        flow = Flow()
        # By the way in which users divide the value between them, and by the part that each takes.
        divided: dict[object, dict[object, Flow]] = {}
        for user in node.users:
            part = _part(user)
            way = flow if part is None else divided.setdefault(part[0], {}).setdefault(part[1], Flow())
            self._through(node, user, way)
        for ways in divided.values():
            together = Flow()
            for way in ways.values():
                together.take(way, other_elements=True)
            flow.take(together)
        return flow

    def _through(self, node: fx.Node, user: fx.Node, flow: Flow) -> None:
        """Add to a flow what lies behind one of a node's users."""
        trace = self.trace
        if user.op == "output":
            flow.take(Flow(output=1.0))
            return
        uses = trace.uses_at(user)
        if uses:
            for use in uses:
                assert use.facts is not None
                if node not in use.facts.inputs:
                    continue
                ways = set(use.weights[:1] if node is use.facts.inputs[0] else ())
                carried = set()
                if node in use.facts.inputs[1:]:
                    ways.update(trace.parameters_at(use.facts.others[0]))
                    carried = {use} if operation(user) in ("gru", "gru_cell") else set()
                flow.take(Flow({use: 1.0}, ways={use: frozenset(ways)}, carried=carried))
            if operation(user) != "addmm" or node is not user.args[0] or trace.parameters_at(node):
                return
        behind = self._behind[user]
        if operation(user) in BLOCKED or not is_float(user) or behind.leads_nowhere:
            return
        if trace.passes(user):
            flow.take(behind, trace.gain(user, node))
        else:
            flow.unknown = user


def _part(user: fx.Node) -> tuple[object, object] | None:
    """How a user divides a value, and which part it takes; None where it takes all of it, or cannot be told."""
    name = operation(user)
    if name == "getitem" and operation(user.all_input_nodes[0]) in _DIVIDE:
        return "items", user.args[1]
    if name not in ("select", "slice"):
        return None
    arguments: list[Any] = [*user.args]
    source, dim, *which = arguments
    steps = range(int(source.meta["val"].shape[dim]))
    if name == "select":
        return dim, steps[which[0]]
    taken = steps[slice(*which)]
    return (dim, taken[0]) if len(taken) == 1 else None


_DIVIDE = frozenset({"chunk", "split", "split_with_sizes", "tensor_split", "unbind"})
