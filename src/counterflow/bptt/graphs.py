"""One step run with a graph: what it keeps for going back through it, how big that is, and what it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from counterflow.bptt.ambient import autocasting

__all__ = ["Internal", "Meter", "record"]

_ACCUMULATE: Any = type(get_gradient_edge(torch.zeros((), requires_grad=True)).node)

# One step: (leaves of its inputs, leaves of its state) to (leaves of its outputs, of the next state, its loss).
Step = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor], Tensor | None]]


@dataclass(slots=True)
class Internal:
    """What going back through one step needs.

    Args:
        inputs: Leaves of the step's inputs.
        state: Leaves of the hidden state that it started from.
        outputs: Where the error of its outputs enters, by leaf; None where none can.
        ends: The same for the next state.
        loss: The same for its loss.
        next_state: The next state, without a graph.
    """

    inputs: list[Tensor]
    state: list[Tensor]
    outputs: list[GradientEdge | None]
    ends: list[GradientEdge | None]
    loss: GradientEdge | None
    next_state: list[Tensor]


def differentiable(tensor: Tensor) -> bool:
    """Whether errors can flow to it at all: integers have none."""
    return tensor.is_floating_point() or tensor.is_complex()


def record(
    step: Step, inputs: Sequence[Tensor], state: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Internal, list[Tensor], Tensor | None]:
    """Run one step with a graph of its own.

    Args:
        step: The step.
        inputs: Leaves of its inputs.
        state: Leaves of its hidden state.
        wanted: Which inputs' gradients are wanted.

    Returns:
        What the step keeps, the leaves of its outputs and its loss, both without a graph.
    """
    with torch.enable_grad():
        fed = [x.detach().requires_grad_(want) for x, want in zip(inputs, wanted, strict=True)]
        begin = [s.detach().requires_grad_(differentiable(s)) for s in state]
        # The core gets lists of its own, so that nothing that it does to them reaches ours.
        outputs, ends, loss = step(_unremembered(fed), _unremembered(begin))
    internal = Internal(
        fed,
        begin,
        [_edge(y) for y in outputs],
        [_edge(s) for s in ends],
        None if loss is None else _edge(loss),
        [s.detach() for s in ends],
    )
    return internal, [y.detach() for y in outputs], None if loss is None else loss.detach()


def _unremembered(tensors: list[Tensor]) -> list[Tensor]:
    """What a step may be given so that nothing of it lives longer than its graph.

    Autocast remembers what it casts a leaf to until its outermost region ends, which would be a tensor a step.
    """
    if not torch.is_autocast_cache_enabled() or not autocasting(tensor.device for tensor in tensors):
        return list(tensors)
    return [tensor.view_as(tensor) if tensor.requires_grad else tensor for tensor in tensors]


def _edge(tensor: Tensor) -> GradientEdge | None:
    # The edge keeps the graph and not the values, which are the caller's.
    return get_gradient_edge(tensor) if tensor.requires_grad else None


class Meter(saved_tensors_hooks):
    """Counts the storages that autograd saves while it is entered, each once.

    Args:
        theirs: Tensors of the caller, which count for nothing.
    """

    def __init__(self, theirs: Iterable[Tensor]) -> None:
        # Not the tensor itself: what an operation puts out would keep its own node alive.
        super().__init__(lambda tensor: self.see(tensor).detach(), lambda tensor: tensor)
        theirs = list(theirs)
        self._theirs = {storage_of(tensor)[0] for tensor in theirs}
        # Asked now, since inside of an operation that it has cast for autocast is off.
        self._autocast = autocasting(t.device for t in theirs) if torch.is_autocast_cache_enabled() else []
        self._sizes: dict[int, int] = {}
        self._casts: dict[int, Tensor] = {}

    def see(self, tensor: Tensor) -> Tensor:
        """Count one tensor more."""
        key, size = storage_of(tensor)
        if key not in self._theirs:
            self._sizes[key] = size
            leaf = self._cast_from(tensor)
            if leaf is not None:
                self._casts[key] = leaf
        return tensor

    def _cast_from(self, tensor: Tensor) -> Tensor | None:
        """The leaf of which autocast has made this, to use it in every step; None if it has not."""
        whole: Any = tensor if tensor._base is None else tensor._base
        if (whole.device.type, whole.dtype) not in self._autocast or whole.grad_fn is None:
            return None
        (source, _), *_ = whole.grad_fn.next_functions
        return source.variable if whole.grad_fn.name() == "ToCopyBackward0" and type(source) is _ACCUMULATE else None

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Take out what turns out to be the caller's, with what autocast has made of it."""
        gone = dict.fromkeys(tensors)
        theirs = [storage_of(tensor)[0] for tensor in gone]
        for key in (*theirs, *(key for key, leaf in self._casts.items() if leaf in gone)):
            self._sizes.pop(key, None)

    def counts(self, key: int) -> bool:
        """Whether this storage was counted."""
        return key in self._sizes

    @property
    def total(self) -> int:
        """All bytes so far."""
        return sum(self._sizes.values())


def storage_of(tensor: Tensor) -> tuple[int, int]:
    """What tells a storage from others, and its size in bytes."""
    try:
        storage = tensor.untyped_storage()
    except NotImplementedError:  # sparse, or opaque
        return id(tensor), tensor.numel() * tensor.element_size()
    return storage._cdata, storage.nbytes()


def compact(tensor: Tensor) -> Tensor:
    """The tensor, copied where it would keep more alive than itself."""
    return tensor.clone() if storage_of(tensor)[1] > tensor.nbytes else tensor


def walk(internal: Internal, since: int) -> tuple[list[Tensor], list[Any]]:
    """The leaves that a step's graph leads to, and the nodes that were there before it.

    Args:
        internal: The step.
        since: A number that all nodes of the step exceed.

    Returns:
        The leaves apart from the step's own inputs and state, and the foreign nodes, each once.
    """
    own = {id(leaf) for leaf in (*internal.inputs, *internal.state)}
    edges = [edge for edge in (*internal.outputs, *internal.ends, internal.loss) if edge is not None]
    pending = [edge.node for edge in edges]
    seen = set(pending)
    leaves: dict[int, Tensor] = {}
    foreign = []
    while pending:
        node: Any = pending.pop()
        if isinstance(node, _ACCUMULATE):
            if id(node.variable) not in own:
                leaves[id(node.variable)] = node.variable
            continue
        if node._sequence_nr() <= since:
            foreign.append(node)
            continue
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return list(leaves.values()), foreign


def sequence_number() -> int:
    """The number that the next node of this thread's graph will exceed."""
    with torch.enable_grad():
        node: Any = torch.zeros((), requires_grad=True).view(()).grad_fn
    number: int = node._sequence_nr()
    return number
