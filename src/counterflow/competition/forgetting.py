"""What a net remembers of a first task after learning a second one, under an output layer for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from counterflow.exceptions import InputError, ShapeError

__all__ = ["Forgetting", "Task", "measure_forgetting"]


@dataclass(frozen=True)
class Task:
    """Inputs and classes, for training and for testing.

    Args:
        train_x: ``(examples, ...)``.
        train_y: ``(examples,)``, class indices from 0 on.
        test_x: ``(test examples, ...)``.
        test_y: ``(test examples,)``.

    Raises:
        InputError: If there is nothing to train on, or nothing to test on.
        ShapeError: If there is not one label for each input.

    Example:
        >>> x, y = torch.randn(30, 4), torch.randint(2, (30,))
        >>> task = Task(x[:20], y[:20], x[20:], y[20:])
        >>> len(task.test_x)
        10
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def __post_init__(self) -> None:
        for x, y, name in ((self.train_x, self.train_y, "train"), (self.test_x, self.test_y, "test")):
            if y.shape != (len(x),):
                raise ShapeError(f"{name}_y must be ({len(x)},), one class for each input, got {tuple(y.shape)}")
            if not len(x):
                raise InputError(f"{name}_x holds no example")


@dataclass(frozen=True)
class Forgetting:
    """What was found.

    Args:
        before: The test error on the first task after learning it, in percent.
        after: The same after learning the second task, under the first one's output layer.
        second: The test error on the second task, in percent.
        epochs: How many the first and the second task took.
        nll: The mean negative log-likelihoods on the training sets where training ended.
        reached: Whether both came down to the goal; a net whose training diverged did not.
    """

    before: float
    after: float
    second: float
    epochs: tuple[int, int]
    nll: tuple[float, float]
    reached: bool


def measure_forgetting(
    body: nn.Module,
    make_head: Callable[[], nn.Module],
    first: Task,
    second: Task,
    *,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    goal: float = 0.03,
    max_epochs: int = 100,
    batch_size: int = 20,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int, float], None] = lambda task, epoch, nll: None,
) -> Forgetting:
    """Train on a task, then on another from a fresh output layer, put the first one's back, and test.

    Each task has an output layer of its own, as in the paper: under one layer for all classes, every net forgets all,
    since the second task teaches it that the first one's classes no longer occur.

    Args:
        body: All layers but the output layer; it is trained in place.
        make_head: Makes a fresh output layer, from the body's outputs to class scores.
        first: The task that may be forgotten.
        second: The task that is learned after it.
        optimizer: Makes the optimizer from parameters, anew for each task.
        goal: The mean negative log-likelihood on the training set at which training ends, looked at after every epoch;
            .03 by default.
        max_epochs: At most so many for a task; 100 by default.
        batch_size: Examples a batch; 20 in the paper.
        generator: Of the batches' order; None is torch's default.
        progress: Called after every epoch with the task (0 or 1), the epoch and the negative log-likelihood.

    Returns:
        A `Forgetting`.

    Raises:
        InputError: If an argument is out of range.

    References:
        Srivastava et al., "Compete to Compute", NIPS 2013, section 6 and table 4.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from torch import nn
        >>> from counterflow import LocalWinnerTakeAll
        >>> from counterflow.competition import Task, measure_forgetting
        >>> x, y = torch.randn(200, 8), torch.randint(2, (200,))
        >>> task = Task(x[:100], y[:100], x[100:], y[100:])
        >>> found = measure_forgetting(
        ...     nn.Sequential(nn.Linear(8, 40), LocalWinnerTakeAll()), lambda: nn.Linear(40, 2), task, task,
        ...     optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), max_epochs=3,
        ... )
        >>> 0 <= found.after <= 100
        True
    """
    if not goal > 0:
        raise InputError(f"goal must be positive, got {goal!r}")
    for name, value in (("max_epochs", max_epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number >= 1, got {value!r}")
    heads, epochs, nlls = [], [], []
    before = 0.0
    for number, task in enumerate((first, second)):
        net = nn.Sequential(body, make_head())
        took, nll = _learn(net, task, optimizer, goal, max_epochs, batch_size, generator, number, progress)
        heads.append(net[1])
        epochs.append(took)
        nlls.append(nll)
        if number == 0:
            before = _error(net, task)
    return Forgetting(
        before,
        _error(nn.Sequential(body, heads[0]), first),
        _error(nn.Sequential(body, heads[1]), second),
        (epochs[0], epochs[1]),
        (nlls[0], nlls[1]),
        all(nll <= goal for nll in nlls),  # not so for NaN, whatever its place
    )


def _learn(
    net: nn.Module,
    task: Task,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    goal: float,
    max_epochs: int,
    batch_size: int,
    generator: torch.Generator | None,
    number: int,
    progress: Callable[[int, int, float], None],
) -> tuple[int, float]:
    steps = optimizer(net.parameters())
    nll = float("inf")
    for epoch in range(1, max_epochs + 1):
        net.train()
        for chosen in torch.split(torch.randperm(len(task.train_x), generator=generator), batch_size):
            steps.zero_grad()
            F.cross_entropy(net(task.train_x[chosen]), task.train_y[chosen]).backward()  # type: ignore[no-untyped-call]
            steps.step()
        nll = _nll(net, task)
        progress(number, epoch, nll)
        if not nll > goal:  # NaN ends it too
            return epoch, nll
    return max_epochs, nll


def _nll(net: nn.Module, task: Task) -> float:
    net.eval()
    with torch.no_grad():
        pairs = zip(torch.split(task.train_x, 1000), torch.split(task.train_y, 1000), strict=True)
        total = sum(float(F.cross_entropy(net(x), y, reduction="sum")) for x, y in pairs)
    return total / len(task.train_x)


def _error(net: nn.Module, task: Task) -> float:
    net.eval()
    with torch.no_grad():
        found = torch.cat([net(x).argmax(1) for x in torch.split(task.test_x, 1000)])
    return 100 * float((found != task.test_y).double().mean())
