"""Adjoints: one `autograd.Function` in place of a layer's own backward pass.

Where a tap changes the error that everything below sees, an adjoint changes what one layer makes of the
error: its parameters' gradients, or the error that it hands down.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from counterflow.backward.reduce import prepare_ranks
from counterflow.exceptions import UnsupportedError
from counterflow.handle import exporting

__all__ = ["Adjoint", "own_forward", "why_taken"]


def why_taken(module: nn.Module) -> str:
    """Why no adjoint can be put on a layer: a hook has its backward pass, or a share in it; empty if none has.

    Args:
        module: The layer.
    """
    for hook in module._forward_hooks.values():
        if isinstance(hook, Adjoint) or getattr(hook, "learns", False):
            return f"it has {hook!r} already, and a layer has one backward pass; undo that first"
    return ""


def own_forward(module: nn.Module) -> str:
    """Why a module may compute something else than its kind does in PyTorch; empty if it computes that.

    Args:
        module: One whose kind is in `torch.nn`.
    """
    if "forward" in vars(module):
        return "its forward has been exchanged on the module itself"
    owner = next(c for c in type(module).__mro__ if "forward" in vars(c))  # where `forward` is written
    known = owner.__module__.startswith("torch.nn.modules")
    return "" if known else "its class overrides forward, so its arithmetic is unknown"


class Adjoint(ABC):
    """A forward hook that replaces a layer's backward pass. Subclass it and give `supports` and `replace`.

    The layer's output is kept to the bit: `replace` gets it detached from the layer's own graph, which is
    dropped, and ties it to an `autograd.Function` of its own. What another hook has computed from the weight would be
    dropped with it: such a hook says ``learns = True``, and the layer is refused.

    Attributes:
        batch_coupled: Whether it mixes the examples of a batch.
        counts_every_row: Whether an example counts even where its error is zero, so that it must not be left out.
    """

    batch_coupled: bool = False
    counts_every_row: bool = False

    @abstractmethod
    def supports(self, module: nn.Module) -> str:
        """Empty if it can replace this module's backward pass; else the reason why not."""

    @abstractmethod
    def replace(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        """The output again, tied to another backward pass.

        Args:
            module: The layer.
            inputs: What the layer was called on.
            output: What it returned, detached.
        """

    def buffers(self, module: nn.Module) -> Mapping[str, Tensor]:
        """What it keeps from step to step on this module, by its name there; the state_dict has it."""
        return {}

    def why_not(self, module: nn.Module) -> str:
        """Why this module's backward pass cannot be replaced, or must not be once more; empty if it can."""
        return why_taken(module) or self.supports(module)

    def check(self, name: str, module: nn.Module) -> None:
        """Raise if this module's backward pass cannot be replaced, or has been already.

        Raises:
            UnsupportedError: With the layer's name and the reason.
        """
        reason = self.why_not(module)
        if reason:
            raise UnsupportedError(f"{self!r} cannot be attached to {name!r} ({type(module).__name__}): {reason}")

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or exporting():
            return output
        if self.batch_coupled and not torch.compiler.is_compiling():
            prepare_ranks()
        inputs = args[0] if args else kwargs["input"]
        return self.replace(module, inputs, output.detach())
