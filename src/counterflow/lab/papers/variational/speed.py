"""Section 5's times: an update with a weight sample per data point over one with local reparameterization, and what
learning the rates costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

import counterflow as cf
from counterflow.lab.papers.variational import nets
from counterflow.lab.trials import Context, Outcome
from counterflow.variational import Estimator

__all__ = ["times"]


def times(settings: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Outcome:
    """Seconds of an update (forward, backward, Adam), side by side.

    Args:
        settings: ``width`` of the three hidden layers, ``batch``.
        seeds: One repeat each.
        context: The trial's.

    Returns:
        ``per_datum``, ``local``, ``"variational a"``, ``"gaussian a"``.
    """
    batch, width = settings["batch"], settings["width"]
    x, y = torch.rand(batch, 784), torch.randint(10, (batch,))

    def update(method: str, estimator: Estimator) -> Callable[[], None]:
        net = nets.noisy(nets.perceptron(0, width), method)
        optimizer = torch.optim.Adam(net.parameters())
        scale = nets.kl_scale(method)

        def step() -> None:
            optimizer.zero_grad()
            with cf.variational.estimating(net, estimator):
                nll = F.cross_entropy(net(x), y, reduction="none")
                loss = nll.mean() if scale is None else cf.variational.elbo(nll, net, data_size=60_000).loss
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step

    steps = {
        "local": update("variational b", "local"),
        "variational a": update("variational a", "local"),
        "gaussian a": update("gaussian a", "local"),
        "per_datum": update("variational b", "per_datum"),
    }
    found: dict[str, list[float | None]] = {name: [] for name in steps}
    for repeat in range(len(seeds)):
        for name, step in steps.items():
            if name != "per_datum" or not repeat:
                step()  # what is allocated or compiled once
            count = 1 if name == "per_datum" else 10
            began = time.process_time()
            for _ in range(count):
                step()
            found[name].append((time.process_time() - began) / count)
        context.progress((repeat + 1) / len(seeds))
    return Outcome(found)
