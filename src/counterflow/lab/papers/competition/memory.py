"""Table 4: what is left of digits 0 to 4 after learning 5 to 9, and table 1."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from counterflow.competition import Task, lwta, max_norm, measure_forgetting
from counterflow.lab.data import mnist
from counterflow.lab.papers.competition import nets
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import torch_generator

__all__ = ["forget", "tasks", "truth_table"]

ROWS = ((1, 1, True), (1, -1, True), (-1, -1, True), (1, 1, False), (-1, 1, False), (-1, -1, False))
"""Table 1's rows: the signs of both net inputs, and whether the first one is the larger."""


@functools.lru_cache(maxsize=1)
def tasks(examples: int, tested: int) -> tuple[Task, Task]:
    """The two halves of the digits, each with classes 0 to 4.

    Args:
        examples: Training pictures of each, the first ones; at most all.
        tested: Test pictures of each, likewise.
    """
    raw = mnist()

    def of(images: Any, labels: Any, first: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = (labels // 5 == first // 5).nonzero()[0][:most]
        x = torch.tensor(images[chosen]).flatten(1).float().div_(raw.maximum)
        return x, torch.tensor(labels[chosen] - first)

    def task(first: int) -> Task:
        train = of(raw.train_images, raw.train_labels, first, examples)
        return Task(*train, *of(raw.test_images, raw.test_labels, first, tested))

    return task(0), task(5)


def forget(activation: str, seed: int, settings: Mapping[str, Any], context: Context) -> Outcome:
    """One initialization of one activation.

    Args:
        activation: One of `counterflow.lab.papers.competition.plan.ACTIVATIONS`.
        seed: Of the weights of the hidden layers and of both output layers, the same for all activations, and of the
            batches.
        settings: ``rate``, ``momentum``, ``units``, ``examples``, ``tested``, ``epochs`` (for a task, at the most),
            ``goal``, ``batch``, ``limit``.
        context: The trial's.

    Returns:
        ``before`` and ``after``, test errors on the first task in percent; ``second``, that on the second;
        ``epochs first`` and ``epochs second``; ``reached``, 1 if both tasks were learned to the goal.
    """
    units = settings["units"]
    body = nets.body(activation, seed, 784, (units, units, units)).to(context.device)
    fresh = torch_generator(seed, "head")

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        sgd = torch.optim.SGD(parameters, lr=settings["rate"], momentum=settings["momentum"], fused=True)
        max_norm(body, sgd, settings["limit"])
        return sgd

    def progress(task: int, epoch: int, nll: float) -> None:
        context.progress((task + epoch / settings["epochs"]) / 2, f"task {task + 1}, epoch {epoch}")

    found = measure_forgetting(
        body,
        lambda: nets.head(units, 5, fresh).to(context.device),
        *(_moved(task, context) for task in tasks(settings["examples"], settings["tested"])),
        optimizer=optimizer,
        goal=settings["goal"],
        max_epochs=settings["epochs"],
        batch_size=settings["batch"],
        generator=torch_generator(seed, "order"),
        progress=progress,
    )
    numbers = {
        "before": found.before,
        "after": found.after,
        "second": found.second,
        "epochs first": float(found.epochs[0]),
        "epochs second": float(found.epochs[1]),
        "reached": float(found.reached),
    }
    return Outcome({name: [value] for name, value in numbers.items()})


def _moved(task: Task, context: Context) -> Task:
    return Task(*(part.to(context.device) for part in (task.train_x, task.train_y, task.test_x, task.test_y)))


def truth_table(seed: int, pairs: int) -> Outcome:
    """Table 1, row by row over drawn pairs of net inputs.

    Returns:
        ``lwta wrong`` and ``relu wrong``: pairs whose outputs are not those of the table. ``lwta passed`` and ``relu
        passed``: the share of net inputs that are passed on, all rows counted alike. ``both``: pairs of which not
        exactly one is passed on by competition.
    """
    x = torch.randn(pairs, 2, generator=torch_generator(seed, "pairs"), dtype=torch.float64)
    competing, rectified = lwta(x), torch.relu(x)
    wanted = {"lwta": torch.zeros_like(x), "relu": torch.zeros_like(x)}
    passed: dict[str, list[float]] = {"lwta": [], "relu": []}
    for first, second, larger in ROWS:
        row = (x[:, 0].sign() == first) & (x[:, 1].sign() == second) & ((x[:, 0] > x[:, 1]) == larger)
        kept = {"lwta": (larger, not larger), "relu": (first > 0, second > 0)}
        for name, y in (("lwta", competing), ("relu", rectified)):
            wanted[name][row] = x[row] * torch.tensor(kept[name], dtype=torch.float64)
            passed[name].append(float((y[row] != 0).double().mean()))
    return Outcome(
        {
            "lwta wrong": [float((competing != wanted["lwta"]).any(1).sum())],
            "relu wrong": [float((rectified != wanted["relu"]).any(1).sum())],
            "lwta passed": [sum(passed["lwta"]) / len(ROWS)],
            "relu passed": [sum(passed["relu"]) / len(ROWS)],
            "both": [float(((competing != 0).sum(1) != 1).sum())],
        }
    )
