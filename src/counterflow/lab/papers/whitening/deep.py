"""The paper's negative findings, on perceptrons of two depths: plain PRONG against PRONG+, and two-sided whitening.

The paper saw them on Inception and ImageNet, which is out of reach; here MNIST is learned by narrow rectified nets, so
deep that plain SGD has trouble. A run that diverges, or ends above the untrained net, counts as that. All methods have
momentum .9 and equally many rates; each is judged at the rate that was best on the validation pictures of a seed apart.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import mnist
from counterflow.lab.loop import HOPELESS, Batches
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import numpy_generator, torch_generator

__all__ = ["TREATMENTS", "build", "compare", "damping_of", "key"]

TREATMENTS = ("sgd", "bn", "prong", "prong+", "two-sided 0.01", "two-sided 0.1", "two-sided 1")
VALIDATION = 5000
MOMENTUM = 0.9


def key(name: str, rate: float) -> str:
    """The metric that holds a number at a rate."""
    return f"{name}@{rate:g}"


def damping_of(treatment: str) -> float | None:
    """How much the errors' whitening is damped; None where they are not whitened."""
    kind, _, damping = treatment.partition(" ")
    return float(damping) if kind == "two-sided" else None


@functools.lru_cache(maxsize=1)
def _pictures() -> tuple[Tensor, Tensor]:
    data = mnist()
    order = numpy_generator(0, "whitening validation").permutation(len(data.train_images))
    rows = data.train_images.reshape(len(order), -1)[order] / 255.0
    return torch.from_numpy(rows).float(), torch.from_numpy(data.train_labels[order])


def build(seed: int, depth: int, width: int, normalized: bool) -> nn.Sequential:
    """Hidden layers of one width, rectified; weights normal with deviation sqrt(2 / fan-in), biases zero."""
    generator = torch_generator(seed, "weights")
    sizes = [784, *[width] * depth, 10]
    modules: list[nn.Module] = []
    for number in range(depth + 1):
        linear = nn.Linear(sizes[number], sizes[number + 1])
        with torch.no_grad():
            linear.weight.normal_(0.0, (2 / sizes[number]) ** 0.5, generator=generator)
            linear.bias.zero_()
        modules.append(linear)
        if number < depth:
            modules += [nn.BatchNorm1d(width)] if normalized else []
            modules.append(nn.ReLU())
    return nn.Sequential(*modules)


def compare(treatment: str, seeds: Sequence[int], settings: Mapping[str, Any], context: Context) -> Outcome:
    """One treatment at one depth: every rate, every seed.

    Args:
        treatment: One of `TREATMENTS`; the number of a two-sided one is its damping.
        seeds: The first chooses the rate, the others judge.
        settings: ``depth``, ``width``, ``batch``, ``updates``, ``rates``, ``every``, ``samples``, ``epsilon``,
            ``monitored``.
        context: The trial's.

    Returns:
        By rate, ``error@rate`` (cross-entropy on some training pictures) and ``validation@rate``.
    """
    metrics: dict[str, list[float | None]] = {}
    rates = settings["rates"]
    for number, seed in enumerate(seeds):
        for place, rate in enumerate(rates):
            error, validation = _learn(treatment, seed, rate, settings)
            metrics.setdefault(key("error", rate), []).append(error)
            metrics.setdefault(key("validation", rate), []).append(validation)
            context.progress((number + (place + 1) / len(rates)) / len(seeds), f"rate {rate:g}")
    return Outcome(metrics)


def _learn(treatment: str, seed: int, rate: float, settings: Mapping[str, Any]) -> tuple[float, float]:
    pictures, labels = _pictures()
    count, monitored = len(pictures) - VALIDATION, settings["monitored"]
    model = build(seed, settings["depth"], settings["width"], treatment in ("bn", "prong+"))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=MOMENTUM)
    if treatment not in ("sgd", "bn"):
        cf.whiten(
            model,
            optimizer,
            every=settings["every"],
            samples=settings["samples"],
            epsilon=settings["epsilon"],
            errors=damping_of(treatment),
        )
    batches = Batches(count, settings["batch"], seed)

    def measured(part: slice) -> float:
        model.eval()
        with torch.no_grad():
            value = float(F.cross_entropy(model(pictures[part]), labels[part]))
        model.train()
        return value

    parts = slice(0, monitored), slice(count, count + monitored)
    start = [measured(part) for part in parts]
    for step in range(settings["updates"]):
        chosen = torch.from_numpy(batches[step])
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pictures[chosen]), labels[chosen])
        if not float(loss.detach()) <= HOPELESS * max(start[0], 1.0):
            return start[0], start[1]
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    ends = [measured(part) for part in parts]
    error, validation = (end if end <= begin else begin for end, begin in zip(ends, start, strict=True))
    return error, validation
