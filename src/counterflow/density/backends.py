"""How the error goes through the banks of a model: exchanged and taken back by a handle."""

from __future__ import annotations

import functools

from torch import nn

from counterflow.density.hmm import _CHOICES, Backend, GaussianHMM
from counterflow.exceptions import InputError, UnsupportedError
from counterflow.handle import Handle, Row, Table, reset_compiler

__all__ = ["use_backend"]


def use_backend(model: nn.Module, backend: Backend = "auto") -> Handle:
    """Choose how all banks of hidden Markov models in a model are computed, and how their error goes back.

    Args:
        model: A model that holds at least one `GaussianHMM`.
        backend: ``"auto"``, ``"numba"``, ``"torch"`` or ``"autograd"``, as `GaussianHMM` explains them.

    Returns:
        A handle whose ``undo()`` puts each bank's own choice back.

    Raises:
        InputError: If there is no such backend.
        UnsupportedError: If the model has no bank.

    Example:
        >>> import torch
        >>> from counterflow.density import RelativeDensityNet
        >>> net = RelativeDensityNet(3, 2, 4, 2, backend="autograd")
        >>> print(use_backend(net, "torch"))
        Banks computed by torch
        layer  kind         before    done
        bank   GaussianHMM  autograd  torch
    """
    if backend not in _CHOICES["backend"]:
        raise InputError(f"backend must be one of {', '.join(_CHOICES['backend'])}, got {backend!r}")
    banks = [(name, module) for name, module in model.named_modules() if isinstance(module, GaussianHMM)]
    if not banks:
        raise UnsupportedError(f"there is no GaussianHMM in this {type(model).__name__}; its backend cannot be chosen")
    rows = [Row(name, type(bank).__name__, backend, values={"before": bank.backend}) for name, bank in banks]
    undo = [functools.partial(setattr, bank, "backend", bank.backend) for _, bank in banks]
    for _, bank in banks:
        bank.backend = backend
    reset_compiler()
    return Handle(model, Table(f"Banks computed by {backend}", rows), undo)
