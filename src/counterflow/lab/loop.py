"""A training loop that can be stopped, and goes on to the bit: what the papers' larger experiments share.

Every so many seconds, at a point where the curves are measured, all that the next step depends on is written to the
trial's folder: the model with whatever a method keeps in it, the optimizer, the curves. Batches are drawn anew from the
seed, epoch by epoch, and so is noise, update by update; no generator has to be kept.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from counterflow.lab.trials import Context
from counterflow.lab.trials.record import write_whole
from counterflow.seeding import numpy_generator, seed_of

__all__ = ["Batches", "Curves", "Parts", "keep_freed_memory", "moved", "points", "train"]

Curves = dict[str, list[float | None]]
Parts = dict[str, tuple[Tensor, Tensor]]

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 30.0
SCHEDULED = ("lr", "momentum")  # options of an optimizer that change while a model learns
HOPELESS = 10.0  # a loss this many times the first one ends a run: it has diverged


class Batches:
    """Batches of indices, every epoch in a new order that depends on the seed alone.

    Args:
        examples: How many there are.
        size: Of a batch; the rest of an epoch that fills none is left out.
        seed: Of the orders.
    """

    def __init__(self, examples: int, size: int, seed: int) -> None:
        self.examples, self.size, self.seed = examples, size, seed
        self.of_epoch = examples // size
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, step: int) -> NDArray[np.int64]:
        epoch, place = divmod(step, self.of_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = numpy_generator(self.seed, "order", epoch).permutation(self.examples)
        return self._order[place * self.size : (place + 1) * self.size]


def keep_freed_memory() -> bool:
    """Have glibc keep memory that is freed, for as long as this process runs; elsewhere nothing happens.

    A small batch's gradients are as large as the model. Where their pages go back to the system after every update and
    are fetched anew, that is a third of the update.

    Returns:
        Whether it does.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
    # Before glibc 2.35 the second may be 32 MiB at most, and a greater one would leave it at 128 KiB.
    return bool(mallopt(trim, 2**30)) and bool(mallopt(mmap, 2**30) or mallopt(mmap, 2**25))


def moved(parts: Parts, context: Context) -> Parts:
    """Inputs and targets of each part of a data set, where the trial is to run.

    Args:
        parts: Such as ``"train"`` and ``"test"``.
        context: The trial's.
    """
    return {name: (x.to(context.device), y.to(context.device)) for name, (x, y) in parts.items()}


def points(updates: int, count: int) -> list[int]:
    """Where curves are measured: the first update, the last, and more densely early on.

    Example:
        >>> points(100, 5)
        [0, 4, 16, 36, 64, 100]
    """
    return sorted({round(updates * (number / count) ** 2) for number in range(count + 1)})


def train(
    model: nn.Module,
    optimizer: Optimizer,
    loss: Callable[[int], Tensor | None],
    measure: Callable[[], dict[str, float]],
    at: Sequence[int],
    context: Context,
    annealing: torch.optim.lr_scheduler.ReduceLROnPlateau | None = None,
    noise: int | None = None,
    schedules: Sequence[LRScheduler] = (),
    until: Callable[[dict[str, float]], bool] = lambda found: False,
) -> Curves:
    """Train, and measure at some updates.

    Args:
        model: In training mode; it may be whitened.
        optimizer: Its optimizer.
        loss: From the number of the update to the loss of its batch; None if it has run the backward pass itself.
        measure: What the curves are of; ``"error"`` decides whether the run has diverged, and ends it.
        at: After how many updates to measure, rising from 0 to the last.
        context: Where checkpoints go, and progress.
        annealing: Steps on ``"validation"`` at every measured point but the first.
        noise: The seed of what the model draws from torch's own generator, which is seeded before every update and
            every measurement; None leaves it alone.
        schedules: Each steps at every measured point but the first; what they set follows from how often they did.
        until: From what was measured to whether it is enough, so that the run ends.

    Returns:
        Curves by name, ``"update"`` among them. They end early where the run diverged; the value there is None.
    """
    path = context.folder / CHECKPOINT
    done, curves = _load(path, model, optimizer, annealing, schedules)
    saved = time.monotonic()
    first = curves["error"][0] if curves else None
    for point in at:
        if curves and point <= done:
            continue
        while done < point:
            _seed(noise, "update", done)
            optimizer.zero_grad()
            of_batch = loss(done)
            if of_batch is not None:
                of_batch.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            context.progress(done / at[-1], f"update {done}")
        _seed(noise, "measurement", done)
        found = measure()
        first = found["error"] if first is None else first
        diverged = not found["error"] <= HOPELESS * first
        for name, value in {"update": float(point), **found}.items():
            kept = name == "update" or (math.isfinite(value) and not diverged)
            curves.setdefault(name, []).append(value if kept else None)
        if diverged or until(found):
            break
        if point:
            for schedule in schedules:
                schedule.step()
        if annealing is not None and point:
            annealing.step(found["validation"])
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save(path, model, optimizer, annealing, schedules, done, curves)
            saved = time.monotonic()
    return curves


def _seed(noise: int | None, purpose: str, number: int) -> None:
    if noise is not None:
        torch.manual_seed(seed_of(noise, purpose, number))


def _save(
    path: Path,
    model: nn.Module,
    optimizer: Optimizer,
    annealing: Any,
    schedules: Sequence[LRScheduler],
    done: int,
    curves: Curves,
) -> None:
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    state = optimizer.state_dict()
    for number, of_parameter in state["state"].items():
        for name, value in of_parameter.items():
            if value is not None:
                tensors[f"optimizer/{number}/{name}"] = torch.as_tensor(value)
    numbers = {
        "done": done,
        "curves": curves,
        "rates": [{name: group[name] for name in SCHEDULED if name in group} for group in state["param_groups"]],
        "schedules": [schedule.last_epoch for schedule in schedules],
        "annealing": None if annealing is None else [annealing.best, annealing.num_bad_epochs],
    }
    copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    write_whole(path, safetensors.torch.save(copies, {"numbers": json.dumps(numbers)}))


def _load(
    path: Path, model: nn.Module, optimizer: Optimizer, annealing: Any, schedules: Sequence[LRScheduler]
) -> tuple[int, Curves]:
    if not path.exists():
        return 0, {}
    with safetensors.safe_open(path, "pt") as file:
        numbers = json.loads(file.metadata()["numbers"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    prefix = "model/"
    model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            number, _, name = rest.partition("/")
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, rate in zip(optimizer.param_groups, numbers["rates"], strict=True):
        group.update(rate)
    for schedule, epoch in zip(schedules, numbers["schedules"], strict=True):
        schedule.last_epoch = epoch
    if annealing is not None:
        annealing.best, annealing.num_bad_epochs = numbers["annealing"]
    return numbers["done"], numbers["curves"]
