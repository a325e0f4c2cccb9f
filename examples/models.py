"""A small ResNet, a transformer and an LSTM, so that the examples need nothing but PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ResNet", "Tagger", "Transformer"]


class Block(nn.Module):
    """Two convolutions and a skip around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, height, width of the picture) to the same."""
        inside = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(inside)))


class ResNet(nn.Module):
    """Pictures (batch, 3, height, width) to logits (batch, classes)."""

    def __init__(self, width: int = 8, depth: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Transformer(nn.Module):
    """Tokens (batch, time) to logits (batch, classes)."""

    def __init__(self, tokens: int = 50, width: int = 16, depth: int = 2, classes: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, nhead=2, dim_feedforward=2 * width, dropout=0.0, batch_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


class Tagger(nn.Module):
    """Tokens (batch, time) to logits (batch, classes) by an LSTM's last output."""

    def __init__(self, tokens: int = 50, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        outputs, _ = self.lstm(self.embedding(tokens))
        return self.head(outputs[:, -1])
