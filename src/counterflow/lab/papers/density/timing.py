"""The cost in sections 4 and 8: a likelihood's over the number of states, and many small models beside few large."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from counterflow.density import Alphanet, DensityNet, GaussianHMM, RelativeDensityNet, matched_sizes
from counterflow.lab.papers.density.nets import STATES
from counterflow.lab.trials import Context, Outcome

__all__ = ["times"]


def times(settings: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Outcome:
    """Processor seconds of one thread, one repeat a seed, all in turns.

    Args:
        settings: ``states`` of one model, whose likelihood alone is timed; ``models``, ``classes``, ``features``,
            ``batch`` and ``frames`` of the nets.
        seeds: The repeats.
        context: The trial's.

    Returns:
        ``rdn`` and ``alphanet``: likelihood and all gradients. ``states N`` for each size, and ``power``, their
        exponent.
    """
    torch.manual_seed(0)
    features, classes = settings["features"], settings["classes"]
    x = torch.randn(settings["batch"], settings["frames"], features, dtype=torch.float64)
    y = torch.arange(len(x)) % classes
    sizes = matched_sizes(settings["models"], classes, features, STATES)
    nets: dict[str, DensityNet] = {
        "rdn": RelativeDensityNet(settings["models"], STATES, features, classes, dtype=torch.float64),
        "alphanet": Alphanet(sizes.alphanet_states, features, classes, dtype=torch.float64),
    }
    works: dict[str, Callable[[], object]] = {}
    for name, net in nets.items():
        parameters = list(net.parameters())
        works[name] = lambda net=net, own=parameters: torch.autograd.grad(F.cross_entropy(net(x), y), own)  # type: ignore[misc]
    few = x[:1, :, :2].contiguous()
    for states in settings["states"]:
        bank = GaussianHMM(1, states, 2, dtype=torch.float64)
        works[f"states {states}"] = lambda bank=bank: _likelihood(bank, few)  # type: ignore[misc]
    found: dict[str, list[float | None]] = {name: [] for name in (*works, "power")}
    for work in works.values():
        work()  # what is compiled or allocated once
    for number in range(len(seeds)):
        for name, work in works.items():
            began = time.process_time()
            work()
            found[name].append(time.process_time() - began)
        took = [found[f"states {states}"][-1] or 1e-9 for states in settings["states"]]
        found["power"].append(float(np.polyfit(np.log(settings["states"]), [math.log(t) for t in took], 1)[0]))
        context.progress((number + 1) / len(seeds), f"repeat {number + 1}")
    return Outcome(found)


def _likelihood(bank: GaussianHMM, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return bank.log_likelihood(x)
