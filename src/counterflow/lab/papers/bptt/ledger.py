"""What is kept in memory for going back, counted storage by storage while a net is trained for one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

__all__ = ["Ledger"]

_Reference: Any = StorageWeakRef  # it has no types


class Ledger(nn.Module):
    """A core that runs another one, and counts the bytes that live because of it.

    Counted are the storages of its states and of all that autograd saves in it, each once and for as long as it lives,
    looked at when a step begins, when it has run, and when errors of a state pass. What the caller holds anyway is not.

    Args:
        core: A cell, or a module ``(x_t, state) -> (y_t, state)``.
        theirs: Tensors of the caller: inputs, and outputs where they are known beforehand.
        run: What runs a step, where it is not the core itself.

    Attributes:
        calls: Forward operations so far.
        peak: The most bytes that lived at a time.
    """

    def __init__(
        self, core: nn.Module, theirs: Iterable[Tensor] = (), run: Callable[[Tensor, Any], Any] | None = None
    ) -> None:
        super().__init__()
        self.core, self.calls, self.peak = core, 0, 0
        self._run = run
        self._theirs = {_key(tensor) for tensor in (*theirs, *core.parameters(), *core.buffers())}
        self._alive: dict[Any, int] = {}

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step of the core."""
        self.calls += 1
        fed = {_key(leaf) for leaf in tree_leaves(x)}
        self._enter(tree_leaves(state), fed)
        self._look()

        with saved_tensors_hooks(*self._hooks(fed)):
            result = (self._run or self.core)(x, state)
        y, after = result if isinstance(self.core, nn.RNNBase) else _split(self.core, result)
        self._enter(tree_leaves(after), fed)
        self._look()
        for leaf in tree_leaves(after):
            if leaf.requires_grad:
                leaf.register_hook(self._passing)
        return y, after

    def _hooks(self, fed: set[int]) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
        """See what is saved, and hand it on to the hooks of whoever runs this core, since only the last are asked."""
        outer: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
        keep, give = outer or (Tensor.detach, _same)  # not the tensor itself, which may hold its own node

        def pack(tensor: Tensor) -> Any:
            self._enter([tensor], fed)
            return keep(tensor)

        return pack, give

    def _passing(self, error: Tensor) -> None:
        if error.untyped_storage().nbytes() == error.nbytes:  # else it is a part of the outputs' error, the caller's
            self._enter([error], set())
        self._look()

    def _enter(self, tensors: Iterable[Tensor], fed: set[int]) -> None:
        for tensor in tensors:
            if _key(tensor) not in self._theirs and _key(tensor) not in fed:
                storage = tensor.untyped_storage()
                self._alive.setdefault(_Reference(storage), storage.nbytes())

    def _look(self) -> None:
        self._alive = {reference: size for reference, size in self._alive.items() if not reference.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _split(core: nn.Module, result: Any) -> tuple[Tensor, Any]:
    if isinstance(core, nn.LSTMCell):
        return result[0], result
    if isinstance(core, nn.RNNCellBase):
        return result, result
    y, after = result
    return y, after
