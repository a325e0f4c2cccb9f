"""The members of figure 3's ensembles that see pictures: CIFAR10-Quick, and a small fully convolutional segmenter.

CIFAR10-Quick is Caffe's, with Caffe's initialization and the input that its learning rate belongs to: pixels from 0 to
255 less the mean picture, and biases at twice the rate of weights. With inputs in [0, 1] and PyTorch's initialization
that rate moves nothing. The paper's segmenter is FCN on a pretrained VGG16; ours begins from nothing and is small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterflow.seeding import torch_generator

__all__ = ["Segmenter", "pixel_losses", "quick", "weights_and_biases"]

# Standard deviations of the weights, layer by layer.
QUICK = (1e-4, 0.01, 0.01, 0.1, 0.1)


def quick(seed: int) -> nn.Sequential:
    """CIFAR10-Quick: three convolutions with pooling and two fully connected layers, 145,578 parameters.

    Args:
        seed: Of the weights.

    Returns:
        A net from pictures ``(batch, 3, 32, 32)`` to ``(batch, 10)``.
    """
    net = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.Linear(64, 10),
    )
    generator = torch_generator(seed, "weights")
    layers = [module for module in net if isinstance(module, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer, deviation in zip(layers, QUICK, strict=True):
            layer.weight.normal_(0.0, deviation, generator=generator)
            assert layer.bias is not None
            layer.bias.zero_()
    return net


def weights_and_biases(net: nn.Module) -> list[dict[str, Any]]:
    """A net's parameters in two groups, of which the second is to have twice the rate, as in Caffe's examples."""
    named = list(net.named_parameters())
    return [
        {"params": [p for name, p in named if not name.endswith("bias")], "factor": 1.0},
        {"params": [p for name, p in named if name.endswith("bias")], "factor": 2.0},
    ]


class Segmenter(nn.Module):
    """A small fully convolutional net: scores at a quarter of the resolution, refined by a skip, and scaled up.

    Args:
        classes: How many.
        seed: Of the weights.
        maps: Of the three convolutions.
    """

    def __init__(self, classes: int, seed: int, maps: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        a, b, c = maps
        self.first = nn.Sequential(nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.second = nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU())
        self.third = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(b, c, 3, padding=1), nn.ReLU())
        self.fourth = nn.Sequential(nn.Conv2d(c, c, 3, padding=2, dilation=2), nn.ReLU())
        self.skip = nn.Conv2d(b, classes, 1)
        self.score = nn.Conv2d(c, classes, 1)
        generator = torch_generator(seed, "weights")
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    fan_in = module.weight[0].numel()
                    module.weight.normal_(0.0, (2 / fan_in) ** 0.5, generator=generator)
                    assert module.bias is not None
                    module.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """From pictures ``(batch, 3, height, width)`` to scores ``(batch, classes, height, width)``."""
        half = self.second(self.first(x))
        scores = F.interpolate(self.score(self.fourth(self.third(half))), half.shape[-2:], mode="bilinear")
        return F.interpolate(self.skip(half) + scores, x.shape[-2:], mode="bilinear")


def pixel_losses(scores: Tensor, masks: Tensor, ignore: int) -> Tensor:
    """The mean cross-entropy of each picture's pixels but those that are ignored; 0 where none is left.

    Args:
        scores: ``(batch, classes, height, width)``.
        masks: The right classes, ``(batch, height, width)``.
        ignore: The label of pixels that do not count.
    """
    each = F.cross_entropy(scores, masks, ignore_index=ignore, reduction="none").sum((1, 2))
    return each / (masks != ignore).sum((1, 2)).clamp(min=1)
