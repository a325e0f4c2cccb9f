"""Whiten the plain layers of a net whose first layer has a posterior.

    python examples/whiten_behind_noise.py [PICTURE] [SEEDS] [STEPS]

A layer with a posterior draws noise on its inputs and learns how much of it each pixel bears: a net that has few
examples overfits less. But gradients are noisier for it, and a deep net of tanh units learns slowly as it is.
Whitening gives the layers behind it natural gradients: their inputs, with the noise that comes from in front, are
decorrelated, and their steps are as long in every direction. It leaves the layer with the posterior alone, whose
arithmetic is its own, and hands the error down to it as it was. One would want both where data are few and the net is
deep.

The digits are those of scikit-learn, 300 to learn from. All ways have the same examples, first weights and steps of
gradient descent with momentum, and each the best of as many rates, chosen on another seed than those it is judged by.
"""

from __future__ import annotations

import itertools
import math
import sys

import torch
from comparison import Comparison, compare, error_path
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import digits

LEARNED, BATCH = 300, 50
SIZES = (64, 32, 32, 32, 10)
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


def task(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Pixels and labels to learn from, drawn anew for each seed, and to judge by."""
    data = digits()
    pixels, labels = torch.tensor(data.train_images).flatten(1) / data.maximum, torch.tensor(data.train_labels)
    rows = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:LEARNED]
    judged = torch.tensor(data.test_images).flatten(1) / data.maximum, torch.tensor(data.test_labels)
    return (pixels[rows], labels[rows]), judged


def net_of(noisy: bool, seed: int) -> nn.Sequential:
    """Three hidden layers of tanh units; the first layer has a posterior or not."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(SIZES):
        layers += [nn.Linear(n, m), nn.Tanh()]
    if noisy:
        layers[0] = cf.make_variational(layers[0], noise="A", rates="unit", p=0.3).model
    return nn.Sequential(*layers[:-1])


def loss_of(model: nn.Module, x: Tensor, y: Tensor, noisy: bool) -> Tensor:
    """The cross-entropy; with a posterior the negative lower bound, an example."""
    nll = nn.functional.cross_entropy(model(x), y, reduction="none")
    return cf.variational.elbo(nll, model, data_size=LEARNED).loss if noisy else nll.mean()


def trained(noisy: bool, whitened: bool, rate: float, seed: int, steps: int) -> nn.Module:
    """The plain model again, but for its posterior."""
    x, y = task(seed)[0]
    model = net_of(noisy, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    h = cf.whiten(model, optimizer, every=25, samples=LEARNED, epsilon=0.1) if whitened else None
    source = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(LEARNED, (BATCH,), generator=source)
        optimizer.zero_grad()
        loss = loss_of(model, x[rows], y[rows], noisy)
        if not math.isfinite(loss.item()):
            break
        loss.backward()
        optimizer.step()
    return model if h is None else h.fold()


def main(picture: str = "", seeds: int | str = 6, steps: int | str = 100) -> Comparison:
    """Train all ways on all seeds."""
    seeds, steps = int(seeds), int(steps)
    ways = {
        "neither": (False, False),
        "posterior": (True, False),
        "whitening": (False, True),
        "whitening behind a posterior": (True, True),
    }

    def score(way: str, rate: float, seed: int) -> float:
        model = trained(*ways[way], rate, seed, steps).eval()
        x, y = task(seed)[1]
        with torch.no_grad():
            found = float(nn.functional.cross_entropy(model(x), y))
        return found if math.isfinite(found) else math.log(SIZES[-1])  # guessing

    found = compare("Cross-entropy of new digits, nats", list(ways), RATES, score, seeds, tuning=1)
    x, y = task(0)[0]
    for name, noisy, whitened, learned in (
        ("neither, at first", False, False, 0),
        ("neither, having learned", False, False, steps),
        ("both, having learned", True, True, steps),
    ):
        model = trained(noisy, whitened, 0.01, 0, learned).train()

        def step(model: nn.Module = model) -> None:
            nn.functional.cross_entropy(model(x), y, reduction="sum").backward()

        found.paths[name] = error_path(model, step, ["0", "2", "4", "6"])
    found.heading = "The error on its way through the net"
    return found.show(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
