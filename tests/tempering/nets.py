"""Small networks that the tests temper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FamilyNet(nn.Module):
    """The network of figure 1."""

    def __init__(self) -> None:
        super().__init__()
        self.person = nn.Linear(24, 6)
        self.relation = nn.Linear(12, 6)
        self.association = nn.Linear(12, 12)
        self.code = nn.Linear(12, 6)
        self.output = nn.Linear(6, 24)

    def forward(self, person: Tensor, relation: Tensor) -> Tensor:
        x = torch.cat([torch.tanh(self.person(person)), self.relation(relation).tanh()], -1)
        x = torch.tanh(self.association(x))
        y: Tensor = self.output(torch.tanh(self.code(x)))
        return y


def family_inputs() -> tuple[Tensor, Tensor]:
    """One-hot persons and relations."""
    return torch.eye(24).repeat(5, 1)[:100], torch.eye(12).repeat(9, 1)[:100]


class Residual(nn.Module):
    """A block of a residual network; it widens where the sizes differ."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.down = None if into == out else nn.Conv2d(into, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.down is None else self.down(x)
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += skip
        z: Tensor = self.relu(y)
        return z


def resnet() -> nn.Module:
    """A residual network for pictures of 8 by 8."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        Residual(4, 4, 1),
        Residual(4, 8, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def transformer() -> nn.Module:
    """A language model of one pre-norm block."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(11, 8), encoder, nn.Linear(8, 11))


class Classifier(nn.Module):
    """Words through an LSTM to a class."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 7, num_layers=2, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, words: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(self.embedding(words))[0][:, -1])
        return y


class Branched(nn.Module):
    """A branch, a skip and functions that are no modules."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 6)
        self.left = nn.Linear(6, 6)
        self.right = nn.Linear(6, 3)
        self.join = nn.Linear(9, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.stem(x))
        left = h + torch.tanh(self.left(h))
        y: Tensor = self.head(F.relu(self.join(torch.cat([left, F.softsign(self.right(h))], -1))))
        return y


class Tied(nn.Module):
    """An embedding whose weight is the head's, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.position = nn.Parameter(torch.zeros(5, 6))
        self.layer = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.layer(self.embedding(words) + self.position)))
        return y.flatten(0, 1)
