"""The gradients of a backward pass through a plan, step by step as far as it has come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from counterflow.bptt.ambient import plainly
from counterflow.bptt.graphs import Internal

if TYPE_CHECKING:
    from counterflow.bptt.executor import Run

__all__ = ["Gradients"]

Optional = list[Tensor | None]

_NOTHING = contextlib.nullcontext()


class Gradients:
    """What the steps that have been gone back through have put into each gradient.

    Args:
        run: The sequence.
        tensors: Leaves of the inputs and of the start state, then the run's leaves.
        outputs: The errors of the outputs over time, by leaf.
        state: The errors of the final state, by leaf; after every step, those of the state before it.
        loss: The error of the summed loss.
    """

    def __init__(
        self,
        run: Run,
        tensors: Sequence[Tensor],
        outputs: Sequence[Tensor | None],
        state: Optional,
        loss: Tensor | None,
    ) -> None:
        self._run, self._tensors, self._outputs, self._loss = run, tensors, outputs, loss
        self.state = state
        self.inputs: Optional = [None] * len(run.wanted)
        self.leaves: Optional = [None] * len(run.leaves)

    def go_back(self, internal: Internal, index: int) -> None:
        """Through one step."""
        arrived: dict[tuple[Any, int], tuple[GradientEdge, Tensor]] = {}

        def enter(edges: Iterable[GradientEdge | None], errors: Iterable[Tensor | None]) -> None:
            for edge, error in zip(edges, errors, strict=True):
                if edge is not None and error is not None:
                    # A cell's output is its hidden state: one root is cheaper than two.
                    known = arrived.get(place := (edge.node, edge.output_nr))
                    arrived[place] = (edge, error if known is None else known[1] + error)

        steps = self._run.steps
        if steps.loss_fn is None:
            parts = [None if error is None else steps.slices([error], index)[0] for error in self._outputs]
            enter(internal.outputs, parts)
        else:
            enter([internal.loss], [self._loss])
        enter(internal.ends, self.state)
        inputs = [x for x in internal.inputs if x.requires_grad]
        state = [s for s in internal.state if s.requires_grad]
        self.state = [None] * len(self.state)
        if not arrived or not (inputs or state or self._run.leaves):
            self._add_inputs(internal, index, iter([None] * len(inputs)))
            return
        wanted = [*state, *inputs, *self._run.leaves]
        roots, errors = zip(*arrived.values(), strict=True)
        with plainly(self._run.autocast) if self._run.autocast else _NOTHING:
            found = iter(torch.autograd.grad(roots, wanted, errors, allow_unused=True))
        self.state = [next(found) if s.requires_grad else None for s in internal.state]
        self._add_inputs(internal, index, found)
        for place, gradient in enumerate(found):
            if gradient is not None:
                known = self.leaves[place]
                if known is None:
                    # It may be the caller's own: a leaf that is put out gets the error itself.
                    self.leaves[place] = gradient.clone()
                elif known.layout == torch.strided == gradient.layout:
                    known.add_(gradient)
                else:
                    self.leaves[place] = known + gradient

    def _add_inputs(self, internal: Internal, index: int, found: Iterator[Tensor | None]) -> None:
        for place, x in enumerate(internal.inputs):
            if not x.requires_grad:
                continue
            gradient = next(found)
            whole = self.inputs[place]
            if whole is None:
                whole = self.inputs[place] = torch.empty_like(self._tensors[place])
            (part,) = self._run.steps.slices([whole], index)
            if gradient is None:
                part.zero_()
            else:
                part.copy_(gradient)
