"""A classifier of digits, trained in software, moved onto an analog chip, and trained on the chip.

    python examples/train_on_a_chip.py [EPOCHS]

On the chip a net could learn around the offsets and gains of its own cells, if its updates had none of their own: the
last two rows show what the offsets of the multipliers cost.
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import counterflow as cf

BATCH = 16


def net() -> nn.Sequential:
    """64 pixels, 30 hidden units, 10 classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 10))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Plain epochs; the chip writes its weights in the optimizer's steps."""
    targets = nn.functional.one_hot(y, 10) * 1.0
    order = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=order).split(BATCH):
            optimizer.zero_grad()
            (0.5 * (model(x[rows]) - targets[rows]).square().sum()).backward()
            optimizer.step()


def main(epochs: int = 20) -> None:
    """Print the errors on the last 500 digits."""
    digits = load_digits()
    x = torch.tensor(digits.data / 8 - 1, dtype=torch.float32)
    y = torch.tensor(digits.target)
    train_x, train_y, test_x, test_y = x[:-500], y[:-500], x[-500:], y[-500:]

    def errors(model: nn.Module) -> str:
        with torch.no_grad():
            return f"{100 * (model(test_x).argmax(1) != test_y).double().mean():.1f} % errors"

    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.02)

    software = net()
    train(software, optimizer_of(software), train_x, train_y, epochs)
    print("in software:", errors(software))
    chip = cf.analog.DeviceModel.paper()
    with cf.analog.deploy(software, chip, inputs=x[:1]):
        print("the same weights on the chip:", errors(software))
    for words, device in {"": chip, " without offsets": chip.without("multiplier_offset", "update_offset")}.items():
        model = net()
        optimizer = optimizer_of(model)
        cf.analog.deploy(model, device, optimizer=optimizer, inputs=x[:1])
        train(model, optimizer, train_x, train_y, epochs)
        print(f"trained on the chip{words}:", errors(model))


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
