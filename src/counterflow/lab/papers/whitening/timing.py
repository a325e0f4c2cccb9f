"""Section 4.2's costs: what an epoch takes with each method, and the shares of whitening and statistics.

Times are processor seconds of one thread; every repeat runs all that is compared, so that a ratio is taken within it. A
seed is a repeat. PRONG's are put together from its parts: a step, a projection every T of them, and of that the
statistics, which are what a projection takes longer with N_s examples than with two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from counterflow.lab.papers.whitening.autoencoder import build, error, load_pictures, make_optimizer, whitened
from counterflow.lab.trials import Context, Outcome

__all__ = ["times"]

METHODS = ("sgd", "rmsprop", "adam", "bn", "prong")
RATE = 1e-5  # of no consequence: nothing is learned from these steps


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def times(settings: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Outcome:
    """Seconds an example of each method, and of PRONG's parts, one value a repeat.

    Args:
        settings: ``sizes``, ``batch`` and ``bn batch``, ``steps`` a repeat, ``every``, ``samples``, ``epsilon``.
        seeds: The repeats.
        context: The trial's.
    """
    pictures = load_pictures().training
    ways: dict[str, Callable[[], None]] = {}
    examples = {name: settings["steps"] * settings["bn batch" if name == "bn" else "batch"] for name in METHODS}
    projections: dict[str, Callable[[], None]] = {}
    for name in METHODS:
        model = build(0, settings["sizes"], name == "bn")
        optimizer = make_optimizer(name, model, RATE)
        if name == "prong":
            common = {**settings, "initial": True}
            projections["projection"] = whitened(model, optimizer, pictures, 0, common).project
            twin = build(0, settings["sizes"], False)
            bare = {**common, "samples": 2}
            projections["bare"] = whitened(twin, make_optimizer(name, twin, RATE), pictures, 0, bare).project
        ways[name] = _steps(model, optimizer, pictures[: examples[name] // settings["steps"]], settings["steps"])
        ways[name]()
    found: dict[str, list[float]] = {name: [] for name in (*ways, "whitening", "statistics")}
    for number in range(len(seeds)):
        # Whichever comes first may find the machine in another state, so each does in turn.
        turned = [*ways][number % len(ways) :] + [*ways][: number % len(ways)]
        for name in turned:
            found[name].append(_seconds(ways[name]) / examples[name])
        apart = settings["every"] * settings["batch"]  # examples between two projections
        whole, bare_time = (_seconds(projections[name]) / apart for name in ("projection", "bare"))
        found["prong"][-1] += whole
        found["whitening"].append(bare_time)
        found["statistics"].append(max(whole - bare_time, 0.0))
        context.progress((number + 1) / len(seeds), f"repeat {number + 1}")
    return Outcome(found)


def _steps(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor, count: int
) -> Callable[[], None]:
    def work() -> None:
        for _ in range(count):
            optimizer.zero_grad()
            error(model, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return work
