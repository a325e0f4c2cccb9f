"""Temper the way back of a density net, whose hidden Markov models hear little of the error.

    python examples/temper_density_nets.py [PICTURE] [SEEDS] [STEPS]

A density net tells classes of sequences from the log-likelihoods of hidden Markov models, and the error of the
classes has to find its way to them: through the weights behind them, and through logistic units whose slope is a
quarter at most. Where those weights are small, the models learn next to nothing, while the layer behind them learns
at its own pace. Tempering gives each layer a rate that fits its inputs, and takes out of the error's size what the
weights behind the models, and the slopes of the units, have made of it. One would want it for any net that has
something else than a layer at its bottom: nothing in the models' own backward pass is changed.

In a relative density net the comparisons of models are fixed, in a comparative one they are learned; a perceptron on
the same sequences, brought to eight frames, has no models at all. Each way has gradient descent with momentum for as
many steps, at the best of as many rates, chosen on another seed than those it is judged by. It takes some time to show:
after 60 steps, on six seeds, no difference was found between a comparative net that is tempered and one that is not.
"""

from __future__ import annotations

import math
import sys

import torch
from comparison import Comparison, compare, error_path
from torch import Tensor, nn

import counterflow as cf
from counterflow import backward
from counterflow.density import ComparativeDensityNet

FEATURES, CLASSES, MODELS, STATES, FRAMES = 4, 4, 6, 3, 24
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
COUNTS = (60, 400)  # sequences to learn from, and to judge by


def sequences(count: int, source: torch.Generator, turns: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Classes visit the same places in other orders, and stay as long as they like; half of it is noise."""
    labels = torch.arange(count) % CLASSES
    state = torch.randint(STATES, (count,), generator=source)
    frames = []
    for _ in range(FRAMES):
        moves = torch.rand(count, generator=source) < 0.3
        state = torch.where(moves, turns[labels, state], state)
        frames.append(places[labels, state] + torch.randn(count, FEATURES, generator=source))
    return torch.stack(frames, 1), labels


def task(seed: int) -> list[tuple[Tensor, Tensor]]:
    """Sequences to learn from, and to judge by."""
    source = torch.Generator().manual_seed(seed)
    turns = torch.stack([(torch.arange(STATES) + 1 + number % 2) % STATES for number in range(CLASSES)])
    shared = torch.randn(STATES, FEATURES, generator=source)
    places = shared + 0.3 * torch.randn(CLASSES, STATES, FEATURES, generator=source)
    return [sequences(count, source, turns, places) for count in COUNTS]


class Perceptron(nn.Module):
    """Sequences brought to eight frames, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.output = nn.Linear(8 * FEATURES, 10), nn.Sigmoid(), nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """From (batch, time, features) to (batch, classes)."""
        short = nn.functional.adaptive_avg_pool1d(x.mT, 8)
        return self.output(self.act(self.first(short.flatten(1))))


def net_of(kind: str, x: Tensor, y: Tensor, seed: int) -> nn.Module:
    """As it begins. A comparative net that starts at the pairs, and keeps them, is a relative one."""
    torch.manual_seed(seed)
    if kind == "perceptron":
        return Perceptron()
    net = ComparativeDensityNet(
        MODELS, STATES, FEATURES, CLASSES, first="pairs" if kind == "relative net" else "random", first_scale=0.1
    )
    net.first.weight.requires_grad_(kind == "comparative net")
    net.initialize(x, None, y, generator=torch.Generator().manual_seed(seed))
    return net


def tempered(net: nn.Module, x: Tensor, rate: float) -> list[dict[str, object]]:
    """Attach what tempers the way back; groups of parameters with their rates.

    The models feed the first layer as linear units would: their error is divided by the root of the squared weights
    that they feed, and their rate is that of units with as many inputs as a frame has features.
    """
    if isinstance(net, Perceptron):
        handle = cf.temper(net, x, loss="cross_entropy", attenuation="weights", shunt=False)
        return handle.param_groups(lr=rate / math.sqrt(len(x)))
    assert isinstance(net, ComparativeDensityNet)
    with torch.no_grad():
        scores = net.scores(x)
        fed = float(net.first.weight.square().sum(0).mean().sqrt())
    top = nn.Sequential(net.first, nn.Sigmoid(), net.output)
    handle = cf.temper(top, scores, loss="cross_entropy", attenuation="weights", shunt=False)
    cf.attach(net, {"bank": backward.scale(1 / fed)})
    ceiling = rate / math.sqrt(len(x))
    return [*handle.param_groups(lr=ceiling), {"params": list(net.bank.parameters()), "lr": ceiling / FEATURES}]


def train(kind: str, temper: bool, data: tuple[Tensor, Tensor], rate: float, seed: int, steps: int) -> nn.Module | None:
    """The net after so many steps; None where it diverged."""
    x, y = data
    net = net_of(kind, x, y, seed)
    groups = tempered(net, x, rate) if temper else [{"params": [p for p in net.parameters() if p.requires_grad]}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        if not math.isfinite(loss.item()):
            return None
        loss.backward()
        optimizer.step()
    return net if all(bool(p.isfinite().all()) for p in net.parameters()) else None


def errors(net: nn.Module | None, data: tuple[Tensor, Tensor]) -> float:
    """Percent; guessing where there is no net."""
    if net is None:
        return 100.0 * (1 - 1 / CLASSES)
    with torch.no_grad():
        return 100.0 * float((net(data[0]).argmax(1) != data[1]).double().mean())


def main(picture: str = "", seeds: int | str = 8, steps: int | str = 100) -> Comparison:
    """Train all ways on all seeds."""
    seeds, steps = int(seeds), int(steps)
    ways = {
        f"{kind}{', tempered' if temper else ''}": (kind, temper)
        for kind in ("perceptron", "relative net", "comparative net")
        for temper in (False, True)
    }

    def score(way: str, rate: float, seed: int) -> float:
        kind, temper = ways[way]
        learned, judged = task(seed)
        return errors(train(kind, temper, learned, rate, seed, steps), judged)

    found = compare(
        f"Errors in {COUNTS[1]} new sequences of {CLASSES} classes, %",
        list(ways),
        RATES,
        score,
        seeds,
        asked=[
            (f"{kind}, tempered", other)
            for kind in ("relative net", "comparative net")
            for other in (kind, "perceptron, tempered", "perceptron")
        ],
        tuning=1,
    )
    for name, temper in {"as it is": False, "tempered": True}.items():
        x, y = task(0)[0]
        net = net_of("comparative net", x, y, 0)
        if temper:
            tempered(net, x, 1.0)

        def step(net: nn.Module = net, x: Tensor = x, y: Tensor = y) -> None:
            nn.functional.cross_entropy(net(x), y, reduction="sum").backward()

        found.paths[name] = error_path(net, step, ["bank", "first", "output"])
    found.heading = "The error of a comparative net, at its first step"
    return found.show(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
