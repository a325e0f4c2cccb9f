"""A deep auto-encoder of handwritten digits with and without whitened layers, and with Adam.

    python examples/whiten_digits.py

Each gets the best of four learning rates. ``counterflow reproduce whitening`` runs the paper's own experiments.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import digits

SIZES = (64, 48, 24, 8, 24, 48, 64)
RATES = (0.001, 0.01, 0.1, 1.0)


def autoencoder() -> nn.Sequential:
    """Logistic hidden layers, a linear code of eight, and logits of the pixels."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index, (n, m) in enumerate(itertools.pairwise(SIZES)):
        layers += [nn.Linear(n, m)] if index in (2, 5) else [nn.Linear(n, m), nn.Sigmoid()]
    return nn.Sequential(*layers)


def error(logits: Tensor, pictures: Tensor) -> Tensor:
    """Squared error of the pixels, summed over a picture."""
    return (torch.sigmoid(logits) - pictures).square().sum(1).mean()


def train(
    pictures: Tensor, kind: type[torch.optim.Optimizer], lr: float, whitened: bool, steps: int
) -> tuple[float, nn.Module, cf.handle.Table | None]:
    """The error in the end, the plain model, and the handle's table."""
    model = autoencoder()
    optimizer = kind(model.parameters(), lr=lr)
    h = cf.whiten(model, optimizer, every=100, samples=1000, epsilon=0.01) if whitened else None
    for step in range(steps):
        x = pictures[torch.randint(len(pictures), (64,), generator=torch.Generator().manual_seed(step))]
        optimizer.zero_grad()
        error(model(x), x).backward()
        optimizer.step()
    plain = model if h is None else h.fold()
    with torch.no_grad():
        final = float(error(plain(pictures), pictures))
    return final if math.isfinite(final) else math.inf, plain, None if h is None else h.table()


def main(steps: int = 1000) -> None:
    """Train all three at each rate, and show the best."""
    pictures = torch.tensor(digits().train_images, dtype=torch.float32).flatten(1) / 16.0
    ways: dict[str, tuple[type[torch.optim.Optimizer], bool]] = {
        "SGD": (torch.optim.SGD, False),
        "Adam": (torch.optim.Adam, False),
        "SGD, whitened": (torch.optim.SGD, True),
    }
    for name, (kind, whitened) in ways.items():
        results = {rate: train(pictures, kind, rate, whitened, steps) for rate in RATES}
        best = min(results, key=lambda rate: results[rate][0])
        final, plain, table = results[best]
        if table is not None:
            print(table)
            bare = autoencoder()
            bare.load_state_dict(plain.state_dict())  # an ordinary model again
        print(f"{name}: an error of {final:.2f} after {steps} steps at a rate of {best:g}")


if __name__ == "__main__":
    main()
