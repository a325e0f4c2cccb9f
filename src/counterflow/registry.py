"""The methods of the house, what each declares, and a small model to try each on.

A method is registered where it is defined, so that the contract suite, ``counterflow list`` and the docs
find it without a list kept by hand.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from counterflow.exceptions import InputError
from counterflow.handle import Handle

__all__ = [
    "Contract",
    "Example",
    "Method",
    "Site",
    "Waiver",
    "attention_example",
    "cnn_example",
    "methods",
    "mlp_example",
    "register",
]

Site = Literal["tap", "adjoint", "source", "update", "plan"]

Contract = Literal[
    "forward",  # the forward pass equals the bare model's to the bit
    "identity",  # gradients equal the bare model's to the bit
    "state_dict",  # no key of the bare model changes, and state survives a round trip
    "parameters",  # the Parameter objects, isinstance and type() stay
    "undo",
    "deepcopy",
    "compile",  # torch.compile(fullgraph=True)
    "grad",  # torch.func.grad
    "vmap",  # vmap over models; per-sample vmap works, or raises where the method couples the batch
    "checkpoint",  # activation checkpointing, both forms
    "amp",  # bf16 autocast
    "accumulation",  # gradient accumulation
    "ddp",  # two processes against one
    "double",  # float64 throughout
    "scaling",  # a scaled loss scales the gradients, or does not, as declared
]


@dataclass(frozen=True)
class Example:
    """A small model with data and a loss, on which a method is held to the contracts.

    Args:
        name: A word for test output.
        model: Makes the model from the current torch seed.
        inputs: Makes a batch of inputs of the given size from the current torch seed.
        targets: Makes the targets for such a batch.
        loss: Maps (outputs, targets) to a scalar that is a *sum* over the batch.
    """

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[int], torch.Tensor]
    targets: Callable[[int], torch.Tensor]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Waiver:
    """A contract that a method cannot keep.

    Args:
        reason: Why, in a sentence that the docs repeat.
        error: The exception that a user sees who tries; the contract's test expects it.
        match: A regular expression that its message matches.
    """

    reason: str
    error: type[BaseException]
    match: str


@dataclass(frozen=True)
class Method:
    """One entry of the registry.

    Args:
        key: The name in lists; a paper's key where the method is a paper's.
        summary: One line that says what it does to the error.
        site: Where it touches the error.
        attach: Attaches it to an example's model, given that model and a batch of inputs.
        examples: Small models to try it on.
        paper: The source, one line; empty for elementary transforms.
        identity: Whether it leaves every gradient as it was (a probe does).
        keeps_forward: Whether it leaves the forward pass as it was, to the bit.
        batch_coupled: Whether it mixes examples: it needs two or more, and under DDP its sums are global.
        homogeneous: Whether scaling the loss scales what it passes on by the same factor.
        stateful: Whether it keeps state from one backward pass to the next.
        adds_buffers: Whether it adds buffers to the modules that it sits on, without being stateful.
        sums_ranks: Whether it makes up for DistributedDataParallel's averaging: its gradients are then those of the
            whole batch's summed loss, not that sum divided by the number of ranks.
        random: Whether two equal backward passes may differ.
        discontinuous: Whether rounding may turn what it passes on into something else, as where the larger of two
            numbers wins: in bfloat16 a winner by a hair may be another.
        waivers: Contracts that it cannot keep.
    """

    key: str
    summary: str
    site: Site
    attach: Callable[[nn.Module, torch.Tensor], Handle]
    examples: tuple[Example, ...]
    paper: str = ""
    identity: bool = False
    keeps_forward: bool = True
    batch_coupled: bool = False
    homogeneous: bool = True
    stateful: bool = False
    adds_buffers: bool = False
    sums_ranks: bool = False
    random: bool = False
    discontinuous: bool = False
    waivers: Mapping[Contract, Waiver] = field(default_factory=dict)


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Enter a method.

    Raises:
        InputError: If its key is taken, or if it brings no example.

    Example:
        >>> register(methods()["scale"])
        Traceback (most recent call last):
        counterflow.exceptions.InputError: a method named 'scale' is registered already; choose another key
    """
    if method.key in _METHODS:
        raise InputError(f"a method named {method.key!r} is registered already; choose another key")
    if not method.examples:
        raise InputError(f"method {method.key!r} brings no example; the contracts need one")
    _METHODS[method.key] = method
    return method


def methods() -> Mapping[str, Method]:
    """All registered methods by key, in the order of registration.

    Example:
        >>> methods()["tempering"].site
        'update'
    """
    # A method registers itself when its module is loaded, and the package loads its public names on demand.
    package = importlib.import_module("counterflow")
    for name in package.__all__:
        getattr(package, name)
    return MappingProxyType(_METHODS)


def mlp_example() -> Example:
    """A three-layer perceptron on random data, with squared error summed over the batch.

    Example:
        >>> example = mlp_example()
        >>> x, y = example.inputs(4), example.targets(4)
        >>> example.loss(example.model()(x), y).shape
        torch.Size([])
    """
    return Example(
        name="mlp",
        model=lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)),
        inputs=lambda n: torch.randn(n, 6),
        targets=lambda n: torch.randn(n, 3),
        loss=lambda y, t: (y - t).square().sum(),
    )


def cnn_example() -> Example:
    """Two convolutions and a linear layer on random pictures, with cross-entropy summed over the batch.

    Example:
        >>> example = cnn_example()
        >>> example.model()(example.inputs(4)).shape
        torch.Size([4, 5])
    """
    return Example(
        name="cnn",
        model=lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 6, 3, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(54, 5),
        ),
        inputs=lambda n: torch.randn(n, 1, 8, 8),
        targets=lambda n: torch.randint(5, (n,)),
        loss=lambda y, t: nn.functional.cross_entropy(y, t, reduction="sum"),
    )


class _Attention(nn.Module):
    """Self-attention over four time steps of four features, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.unflatten(x, 1, (4, 4))
        seen, _ = self.attention(x, x, x, need_weights=False)
        y: torch.Tensor = (x + seen).flatten(1)
        return y


def attention_example() -> Example:
    """Self-attention with a skip and a linear layer on random sequences, with cross-entropy summed over the batch.

    Example:
        >>> example = attention_example()
        >>> example.model()(example.inputs(4)).shape
        torch.Size([4, 3])
    """
    return Example(
        name="attention",
        model=lambda: nn.Sequential(_Attention(), nn.Linear(16, 3)),
        inputs=lambda n: torch.randn(n, 16),
        targets=lambda n: torch.randint(3, (n,)),
        loss=lambda y, t: nn.functional.cross_entropy(y, t, reduction="sum"),
    )
