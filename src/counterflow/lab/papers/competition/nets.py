"""The paper's nets, and those that it cites beside them at the sizes of their sources.

Weights are normal with deviation sqrt(2 / fan-in), biases zero: the squared winner of two normal net inputs is 1 on
average, so that a block of two passes as much as two rectified units. Nets of one seed and size have the same initial
parameters, whatever their activation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from counterflow.competition import LocalWinnerTakeAll
from counterflow.seeding import torch_generator

__all__ = ["METHODS", "PerceptronKind", "body", "convolutional", "head", "perceptron", "texts"]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "lwta": lambda: LocalWinnerTakeAll(2),
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class PerceptronKind:
    """A net of table 2.

    Args:
        activation: Of its hidden layers.
        hidden: The share of hidden units that is dropped while it learns.
        pixels: The share of pixels.
    """

    activation: str
    hidden: float = 0.0
    pixels: float = 0.0


METHODS: Mapping[str, PerceptronKind] = {
    "lwta": PerceptronKind("lwta"),
    "relu": PerceptronKind("relu"),
    "sigmoid": PerceptronKind("sigmoid"),
    "dropout": PerceptronKind("relu", hidden=0.5),
    "dropout input": PerceptronKind("relu", hidden=0.5, pixels=0.2),
}


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    _begin(layer, generator)
    return layer


def _begin(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    with torch.no_grad():
        layer.weight.normal_(0.0, (2 / layer.weight[0].numel()) ** 0.5, generator=generator)
        assert layer.bias is not None
        layer.bias.zero_()


def body(activation: str, seed: int, inputs: int, units: Sequence[int]) -> nn.Sequential:
    """Fully connected hidden layers.

    Args:
        activation: ``"lwta"``, blocks of two, ``"relu"`` or ``"sigmoid"``.
        seed: Of the weights.
        inputs: How many there are.
        units: Of each layer.
    """
    generator = torch_generator(seed, "weights")
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *units), units, strict=False):
        layers += [_linear(before, after, generator), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def head(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A fresh output layer."""
    return _linear(inputs, outputs, generator)


def perceptron(method: str, seed: int, units: Sequence[int]) -> nn.Sequential:
    """A net of table 2: rows of pixels in, ten classes out.

    Args:
        method: One of `METHODS`.
        seed: Of the weights.
        units: Of each hidden layer.
    """
    kind = METHODS[method]
    hidden = body(kind.activation, seed, 784, units)
    layers: list[nn.Module] = [nn.Dropout(kind.pixels)] if kind.pixels else []
    for module in hidden:
        layers.append(module)
        if kind.hidden and not isinstance(module, nn.Linear):
            layers.append(nn.Dropout(kind.hidden))
    return nn.Sequential(*layers, head(units[-1], 10, torch_generator(seed, "head")))


def convolutional(seed: int) -> nn.Sequential:
    """The net of table 3: 16 maps of 7x7 and 32 of 6x6, each with 2x2 pooling, two layers of 64 blocks, ten classes."""
    generator = torch_generator(seed, "weights")
    maps = [nn.Conv2d(1, 16, 7), nn.Conv2d(16, 32, 6)]
    for each in maps:
        _begin(each, generator)
    net = nn.Sequential(
        *(part for each in maps for part in (each, nn.ReLU(), nn.MaxPool2d(2))),
        nn.Flatten(),
        *body("lwta", seed, 288, (128, 128)),
        head(128, 10, torch_generator(seed, "head")),
    )
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # about a third faster
    return net


def texts(seed: int, words: int, units: Sequence[int]) -> nn.Sequential:
    """Section 5.3's net: words in, two classes out."""
    return nn.Sequential(*body("lwta", seed, words, units), head(units[-1], 2, torch_generator(seed, "head")))
