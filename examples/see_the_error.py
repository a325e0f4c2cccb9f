"""See the error on its way back through a deep network: a table, and a picture.

    python examples/see_the_error.py [PICTURE]

Needs scikit-learn for the digits, and matplotlib for the picture.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import counterflow as cf
from counterflow.lab.data import digits


def main(picture: str = "error.png") -> None:
    """Train for a few steps while a probe looks."""
    torch.manual_seed(0)
    data = digits()
    pixels = torch.tensor(data.train_images).flatten(1).float() / data.maximum
    labels = torch.tensor(data.train_labels)
    blocks = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(8)]
    model = nn.Sequential(*blocks, nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with cf.probe(model) as seen:
        for _ in range(20):
            batch = torch.randint(len(pixels), (128,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels[batch]), labels[batch]).backward()
            optimizer.step()
    print(seen.table())
    seen.plot(picture)
    print(f"Picture: {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
