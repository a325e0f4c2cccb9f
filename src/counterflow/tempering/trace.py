"""Reading a model: which of its steps are layers with weights, what functions the others are, and at what power.

A model is traced by `torch.export`, so functions count wherever they are called, as modules or not. A cell that a loop
calls stands in the trace once a step, each time with the same parameters. Where the values go is told by
`counterflow.tempering.flow`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn
from torch.utils._pytree import tree_leaves

from counterflow.exceptions import UnsupportedError
from counterflow.tempering.activations import UNARY, Bounds, bounds_of_call
from counterflow.tempering.ops import (
    BLOCKED,
    JOINS,
    POOLS,
    PRODUCTS,
    READERS,
    STRUCTURE,
    VIEWS,
    Weighted,
    is_float,
    operation,
    scope,
    weighted,
)

__all__ = ["Power", "Trace", "Use", "place"]

SOFTMAX = frozenset({"softmax", "_softmax"})
LOG_SOFTMAX = frozenset({"log_softmax", "_log_softmax"})


@dataclass(frozen=True)
class Power:
    """The paper's :math:`p` of a tensor's elements.

    Args:
        value: The bound on the square, or its mean.
        measured: Whether it was seen on the sample, for want of a bound.
    """

    value: float
    measured: bool


@dataclass(eq=False)
class Use:
    """One call of one layer with weights.

    Args:
        node: Where its output stands in the trace.
        facts: What it computes; None for a parameter that is itself an activation.
        layer: The name of the module whose parameters are used.
        scope: The name of the innermost module that was being called.
        weights: The names of the parameters that stand as its weight.
        parameters: The names of all its parameters.
    """

    node: fx.Node
    facts: Weighted | None
    layer: str
    scope: str
    weights: tuple[str, ...]
    parameters: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The kind of layer."""
        return "parameter" if self.facts is None else self.facts.kind


class Trace:
    """A model's graph, with what tempering asks of it.

    Args:
        model: The model that was traced.
        graph: Its graph.
        parameters: The names of the parameters by their placeholders.
        inputs: The placeholders of the model's inputs.
        given: Bounds that the user states, by function.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: fx.Graph,
        parameters: Mapping[fx.Node, str],
        inputs: set[fx.Node],
        given: Mapping[str, Bounds],
    ) -> None:
        self.model = model
        self.graph = graph
        self.given = given
        self.uses: list[Use] = []
        # What a run on the sample told (counterflow.tempering.measure).
        self.mean_square: dict[fx.Node, float] = {}
        self.squared_input_power: dict[fx.Node, float] = {}
        self.measured_slope: dict[fx.Node, float] = {}
        # A module that stands in several places has one name here.
        self._first_name = {id(module): name for name, module in model.named_modules()}
        self._uses_at: dict[fx.Node, list[Use]] = {}
        # Which parameters a node shows, through views alone; what depends on parameters, and on the inputs.
        self._views: dict[fx.Node, tuple[str, ...]] = {node: (name,) for node, name in parameters.items()}
        self._tainted = set(parameters)
        self._fed = set(inputs)
        _follow_in_place(graph)
        self.position = {node: index for index, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            if node.op == "call_function":
                self._read(node)

    # -- which nodes are layers -------------------------------------------------------------------------------

    def _read(self, node: fx.Node) -> None:
        name, sources = operation(node), node.all_input_nodes
        if name in BLOCKED:
            return
        if not self._fed.isdisjoint(sources):
            self._fed.add(node)
        if not self._tainted.isdisjoint(sources):
            self._tainted.add(node)
        shown = [source for source in sources if source in self._views]
        if shown and name in VIEWS and len(shown) == len(sources):
            self._views[node] = tuple(dict.fromkeys(p for s in shown for p in self._views[s]))
            return
        layers = weighted(node, lambda a: isinstance(a, fx.Node) and a in self._views)
        if not layers:
            self._refuse_computed_weight(node, name)
        taken: set[fx.Node] = set()
        for facts in layers:
            parts = [n for n in (facts.weight, *facts.others) if n in self._views]
            taken.update(parts)
            names = tuple(dict.fromkeys(p for n in parts for p in self._views[n]))
            self._add(node, facts, self._views[facts.weight], names, scope(node))
        operands = {x for facts in layers for x in facts.inputs}
        for source in shown:
            if source in taken:
                continue
            if source not in operands and (name in PRODUCTS or not self.passes(node)):
                self._refuse_parameter(self._views[source], node)
            elif all(use.node is not source for use in self.uses):
                self._add(source, None, self._views[source], self._views[source], scope(node))

    def _add(
        self,
        node: fx.Node,
        facts: Weighted | None,
        weights: tuple[str, ...],
        names: tuple[str, ...],
        where: str,
    ) -> None:
        # Tied parameters have one name in a trace: the module being called says whose they are here.
        own = {id(p) for p in self.model.get_submodule(where)._parameters.values() if p is not None}
        mine = any(id(self.model.get_parameter(name)) in own for name in names)
        where = self._first_name[id(self.model.get_submodule(where))]
        use = Use(node, facts, where if mine else weights[0].rpartition(".")[0], where, weights, names)
        self.uses.append(use)
        if facts is not None:
            self._uses_at.setdefault(node, []).append(use)

    def _refuse_parameter(self, names: tuple[str, ...], node: fx.Node) -> None:
        if any(self.model.get_parameter(name).requires_grad for name in names):
            raise UnsupportedError(
                f"parameter {names[0]!r} is used by {operation(node)!r} in {place(node)}, which temper does not know; "
                "write that step with layers that it knows, or freeze the parameter with requires_grad_(False)"
            )

    def _refuse_computed_weight(self, node: fx.Node, name: str) -> None:
        if name not in READERS:
            return
        computed = [n for n in node.all_input_nodes if n in self._tainted and n not in self._fed]
        weights = [n for n in computed if n not in self._views and n in node.args[1:3]]
        if weights:
            raise UnsupportedError(
                f"{place(node)} computes its weight from other parameters (as weight_norm does, and noise on weights), "
                "and temper has no rate for those; take that off first"
            )

    # -- where values go --------------------------------------------------------------------------------------

    def uses_at(self, node: fx.Node) -> list[Use]:
        """The layers that a node computes."""
        return self._uses_at.get(node, [])

    def parameters_at(self, node: fx.Node) -> tuple[str, ...]:
        """The names of the parameters that a value is, seen through views; none where it is none."""
        return self._views.get(node, ())

    def order(self, use: Use) -> tuple[int, int]:
        """Sorts calls so that a layer stands before all that it feeds."""
        return self.position[use.node], use.facts.level if use.facts else 0

    def is_external(self, node: fx.Node) -> bool:
        """Whether a value depends on no parameter."""
        return node not in self._tainted

    def passes(self, node: fx.Node) -> bool:
        """Whether an error passes a node in a way that is known."""
        name = operation(node)
        known = STRUCTURE | UNARY | SOFTMAX | LOG_SOFTMAX | {"mul", "div"} | READERS.keys()
        return name in known or name in self.given

    # -- slopes and powers ------------------------------------------------------------------------------------

    def bounds(self, node: fx.Node) -> Bounds:
        """The bounds of the function that a node computes, as stated or found."""
        name = operation(node)
        if name in self.given:
            return self.given[name]
        return bounds_of_call(node.target, tuple(node.args[1:]), node.kwargs)  # type: ignore[arg-type]

    def gain(self, node: fx.Node, source: fx.Node) -> float:
        """The slope of a node in one of its inputs."""
        name = operation(node)
        if name in self.given or name in UNARY:
            slope = self.bounds(node).slope
            return self.measured_slope.get(node, 1.0) if slope is None else slope
        if name in SOFTMAX:
            return 0.25  # of each unit in itself: x(1 - x)
        if name == "mul":
            other = [a for a in node.args if a is not source]
            if not other:
                other = [source]
            return abs(other[0]) if isinstance(other[0], int | float) else self._rms(other[0])
        if name == "div":
            if isinstance(node.args[1], int | float):
                return 1.0 / abs(node.args[1]) if node.args[1] else 1.0
            if _is_softsign(node):
                return 1.0
            return self._rms(node) / max(self._rms(source), 1e-12)
        return 1.0

    def _rms(self, node: object) -> float:
        return math.sqrt(self.power(node).value) if isinstance(node, fx.Node) else 1.0

    def power(self, node: fx.Node) -> Power:
        """The paper's :math:`p(f)` of a value's elements: bounded where its function is, else measured."""
        bound = self._bound(node)
        return Power(bound, False) if bound is not None else Power(self.mean_square.get(node, 1.0), True)

    def _bound(self, node: fx.Node) -> float | None:
        name = operation(node)
        nodes = node.all_input_nodes
        if name in self.given or name in UNARY:
            return self.bounds(node).power
        if name in SOFTMAX:
            # Their squares sum to one at most: a local code over the classes.
            dim = node.args[1]
            size = node.meta["val"].shape[dim] if isinstance(dim, int) else 1
            return float(1.0 / math.sqrt(size))
        if name == "div" and _is_softsign(node):
            return 1.0
        if name == "getitem" and nodes and self.squashes(nodes[0]):
            return 1.0 if node in self.hidden_states(nodes[0]) else None
        if self.squashes(node):
            return 1.0
        if name == "dropout":
            bound = self._bound(nodes[0])
            kept = 1.0 - float(node.args[1]) if node.args[2] else 1.0  # type: ignore[arg-type]
            return None if bound is None or kept <= 0 else bound / kept
        if name in VIEWS | POOLS and nodes and len(nodes) == 1:
            return self._bound(nodes[0])
        if name in JOINS:
            return self._joined(node, nodes)
        return None

    def _joined(self, node: fx.Node, nodes: list[fx.Node]) -> float | None:
        parts = node.args[0]
        assert isinstance(parts, list | tuple)
        found = [(self._bound(n), n.meta["val"].numel()) for n in parts if isinstance(n, fx.Node)]
        if any(bound is None for bound, _ in found):
            return None
        # Squared, since the sum over inputs is one of squared bounds.
        total = sum(count for _, count in found)
        return math.sqrt(sum(count * (bound or 0.0) ** 2 for bound, count in found) / total)

    def squashes(self, node: fx.Node) -> bool:
        """Whether a recurrent layer's output lies in [-1, 1]: no ReLU, and no projection behind the cell."""
        return operation(node).removesuffix("_cell") in ("lstm", "gru", "rnn_tanh") and not any(
            use.facts is not None and sum(n.meta["val"].ndim > 1 for n in use.facts.others) > 1
            for use in self.uses_at(node)
        )

    def hidden_states(self, node: fx.Node) -> list[fx.Node]:
        """What a recurrent layer puts out, its cell state aside."""
        name = operation(node)
        if name.endswith("_cell") and name != "lstm_cell":
            return [node]
        # A layer returns (outputs, hidden state, cell state), a cell (hidden state, cell state).
        count = 1 if name == "lstm_cell" else 2
        parts = [user for user in node.users if operation(user) == "getitem"]
        return [part for part in parts if isinstance(part.args[1], int) and part.args[1] < count]

    def output_nodes(self) -> list[fx.Node]:
        """The model's floating-point outputs; one that it returns twice stands here twice."""
        output: fx.Node = next(n for n in self.graph.nodes if n.op == "output")
        return [n for n in tree_leaves(output.args) if isinstance(n, fx.Node) and is_float(n)]

    def output_node(self) -> fx.Node:
        """The model's first floating-point output."""
        return next(iter(self.output_nodes()), next(n for n in self.graph.nodes if n.op == "output"))

    def returns_a_loss(self) -> bool:
        """Whether an output without dimensions is computed from another output, as a loss is from logits."""
        outputs = self.output_nodes()
        reached = set([n for n in outputs if n.meta["val"].ndim > 0][:1])
        for node in self.graph.nodes:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        return any(n in reached and n.meta["val"].ndim == 0 for n in outputs)

    def last_function(self) -> str:
        """The name of the function that makes the model's first output, seen through views."""
        node = self.output_node()
        while operation(node) in VIEWS and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return operation(node).removeprefix("_")

    # -- where an error can be tapped -------------------------------------------------------------------------

    def owns_its_output(self, use: Use) -> bool:
        """Whether the module being called puts out nothing but this layer's output, functions of it aside."""
        if use.facts is None:
            return False
        key = next(reversed(use.node.meta["nn_module_stack"]))
        inside = {n for n in self.graph.nodes if key in (n.meta.get("nn_module_stack") or {})}
        stack = [n for n in inside if any(user not in inside for user in n.users) and is_float(n)]
        seen = set(stack)
        while stack:
            node = stack.pop()
            if node is use.node:
                continue
            if self.uses_at(node) or (node not in inside and node in self._tainted):
                return False
            new = [n for n in node.all_input_nodes if n not in seen] if node in inside else []
            seen.update(new)
            stack += new
        return use.node in seen


def _is_softsign(node: fx.Node) -> bool:
    """Whether a division is x / (1 + abs(x)), as torch.nn.functional.softsign is written."""
    x, below = node.args
    if not (isinstance(below, fx.Node) and operation(below) == "add" and 1 in below.args):
        return False
    inner = below.args[0]
    return isinstance(inner, fx.Node) and operation(inner) == "abs" and inner.args[0] is x


def _follow_in_place(graph: fx.Graph) -> None:
    """Let whoever comes behind an in-place operation use its result."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable or not schema.name.endswith("_") or not node.args:
            continue
        changed = node.args[0]
        if isinstance(changed, fx.Node):
            changed.replace_all_uses_with(node, lambda user, at=order[node]: order[user] > at)  # type: ignore[misc]


def place(node: fx.Node) -> str:
    """Where in the model a node was traced, in words."""
    where = scope(node)
    return f"module {where!r}" if where else "the model's own forward"
