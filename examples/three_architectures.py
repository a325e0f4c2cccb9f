"""Temper, shape and probe a ResNet, a transformer and an LSTM.

python examples/three_architectures.py
"""

from __future__ import annotations

import torch
from models import ResNet, Tagger, Transformer
from torch import nn

import counterflow as cf
from counterflow import backward


def main() -> None:
    """Five steps each."""
    torch.manual_seed(0)
    tokens = torch.randint(50, (16, 12))
    for model, inputs, classes, transforms in (
        (ResNet(), torch.randn(16, 3, 16, 16), 10, {"blocks.*": backward.clip(3.0)}),
        (Transformer(), tokens, 5, {"layers.*.self_attn": backward.scale(0.5)}),
        (Tagger(), tokens, 5, {"lstm": backward.noise(0.01)}),
    ):
        targets = torch.randint(classes, (16,))
        tempered = cf.temper(model, inputs, loss="cross_entropy")
        shaped = cf.attach(model, transforms)
        optimizer = torch.optim.SGD(tempered.param_groups(lr=0.04), momentum=0.9)
        with cf.probe(model, every=1) as seen:
            for _ in range(5):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        print(f"\n{type(model).__name__}\n")
        for table in (tempered.table(), shaped.table(), seen.table()):
            print(table, end="\n\n")


if __name__ == "__main__":
    main()
