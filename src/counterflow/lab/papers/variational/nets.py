"""The paper's nets with each of its kinds of dropout, and the readings of what it leaves open.

MNIST: three hidden layers of rectified units; dropout at p = .5 before every layer and .2 before the first. CIFAR-10:
two 5x5 convolutions of 32 k and 64 k maps with stride 2, two fully connected layers of 128 k, softplus; p = .5 before
the fully connected layers, none on pixels and maps. Weights are normal with deviation sqrt(2 / fan-in), biases zero. A
rate p is alpha = p / (1 - p). Adaptive nets begin at the fixed ones' rates, and learn one for each input unit (type A)
or each weight (type B), bounded by alpha <= 1. Optimization is Adam at its defaults; errors are those of parameters
averaged over time, with weights that fall exponentially, by .999 an update.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import counterflow as cf
from counterflow.seeding import torch_generator
from counterflow.variational import VariationalLinear

__all__ = ["Averaged", "convolutional", "dropout_rate", "kl_scale", "noisy", "perceptron"]

HIDDEN, INPUT = 0.5, 0.2
DECAY = 0.999


def perceptron(seed: int, width: int) -> nn.Sequential:
    """784 pixels, three hidden layers of rectified units, 10 classes."""
    sizes = [784, width, width, width]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return _initialized(nn.Sequential(*layers, nn.Linear(width, 10)), seed)


def convolutional(seed: int, k: int) -> nn.Sequential:
    """32x32 pixels of three colors, two convolutions (the maps), two fully connected layers, 10 classes (the head)."""
    maps = nn.Sequential(
        nn.Conv2d(3, 32 * k, 5, stride=2, padding=2),
        nn.Softplus(),
        nn.Conv2d(32 * k, 64 * k, 5, stride=2, padding=2),
        nn.Softplus(),
        nn.Flatten(),
    )
    head = nn.Sequential(
        nn.Linear(64 * k * 64, 128 * k),
        nn.Softplus(),
        nn.Linear(128 * k, 128 * k),
        nn.Softplus(),
        nn.Linear(128 * k, 10),
    )
    return _initialized(nn.Sequential(maps, head), seed)


def _initialized(net: nn.Sequential, seed: int) -> nn.Sequential:
    generator = torch_generator(seed, "weights")
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            with torch.no_grad():
                module.weight.normal_(0.0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
                assert module.bias is not None
                module.bias.zero_()
    return net


def noisy(net: nn.Sequential, method: str, image: bool = False) -> nn.Module:
    """A net under one of the paper's kinds of dropout.

    Args:
        net: `perceptron`'s, or with ``image`` that of `convolutional`, whose head alone has dropout.
        method: One of `counterflow.lab.papers.variational.plan.METHODS`.
        image: Which of both.
    """
    if method == "none":
        return net
    head = net[1] if image else net
    assert isinstance(head, nn.Sequential)
    first = HIDDEN if image else INPUT
    if method == "binary":
        parts: list[nn.Module] = []
        for module in head:
            if isinstance(module, nn.Linear):
                parts.append(nn.Dropout(HIDDEN if parts else first))
            parts.append(module)
        return nn.Sequential(net[0], *parts) if image else nn.Sequential(*parts)
    kind, letter = method.split()
    options: dict[str, Any] = {"noise": letter[0].upper(), "p": {"0": first, "*": HIDDEN}}
    if kind == "gaussian":
        options |= {"learn": False}
    else:
        options |= {"rates": "unit" if options["noise"] == "A" else "weight"}
    cf.make_variational(head, **options)
    return net


def kl_scale(method: str) -> float | None:
    """The weight of the divergence: A2's is a third; None where there is nothing to learn of the rates."""
    return {"variational a": 1.0, "variational a2": 1 / 3, "variational b": 1.0}.get(method)


def dropout_rate(net: nn.Module) -> float:
    """The mean of p = alpha / (1 + alpha) over the layers with noise but the first; 0 where there are none."""
    layers = [module for module in net.modules() if isinstance(module, VariationalLinear)]
    with torch.no_grad():
        rates = [float(torch.sigmoid(layer.log_alpha()).mean()) for layer in layers[1:]]
    return sum(rates) / len(rates) if rates else 0.0


class Averaged(nn.Module):
    """A net and the average of its parameters over time, to be kept together.

    Args:
        net: The net that learns.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Take the net's present parameters in."""
        self.average.update_parameters(self.net)

    def forward(self, x: Tensor) -> Tensor:
        """What the average makes of a batch."""
        y: Tensor = self.average(x)
        return y
