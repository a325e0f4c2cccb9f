"""Dividing the groups of an optimizer that has been made, and of the schedulers that are on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["Part", "divide"]

_RATES = ("lr", "initial_lr", "max_lr", "min_lr")  # of a group, where schedulers note theirs, too
_LISTS = {  # of a scheduler, one element a group; whether they are rates
    "base_lrs": True,
    "max_lrs": True,
    "min_lrs": True,
    "_last_lr": True,
    "lr_lambdas": False,
    "base_momentums": False,
    "max_momentums": False,
}


class Part(NamedTuple):
    """A share of a group.

    Args:
        parameters: Whose.
        factor: What the group's learning rate is multiplied by.
        changes: Settings in place of the group's.
    """

    parameters: Sequence[nn.Parameter]
    factor: float = 1.0
    changes: dict[str, Any] = {}  # noqa: RUF012 - never changed


def divide(
    optimizer: Optimizer,
    schedulers: Iterable[LRScheduler],
    parts: Callable[[dict[str, Any]], Sequence[Part]],
) -> None:
    """Replace each group by its parts; a parameter that is in none of them keeps the group's settings.

    Args:
        optimizer: Its state stays, which is by parameter.
        schedulers: All that are on it; they go on as if they had been made for the parts.
        parts: Of a group, without parameters of others.
    """
    groups: list[dict[str, Any]] = []
    origins: list[tuple[int, float]] = []
    for index, group in enumerate(optimizer.param_groups):
        found = [part for part in parts(group) if part.parameters]
        taken = {id(p) for part in found for p in part.parameters}
        rest = [p for p in group["params"] if id(p) not in taken]
        for part in [Part(rest), *found] if rest else found:
            groups.append(_part_of(group, part))
            origins.append((index, part.factor))
    before = len(optimizer.param_groups)
    optimizer.param_groups[:] = groups
    for scheduler in schedulers:
        _follow(scheduler, before, origins)


def _part_of(group: dict[str, Any], part: Part) -> dict[str, Any]:
    new = {**group, "params": list(part.parameters)}
    if "param_names" in group:  # of an optimizer that was given named parameters
        names = {id(p): name for p, name in zip(group["params"], group["param_names"], strict=True)}
        new["param_names"] = [names[id(p)] for p in part.parameters]
    for name in _RATES:
        if name in group:
            new[name] = group[name] * part.factor
    return new | part.changes


def _follow(scheduler: LRScheduler, before: int, origins: Sequence[tuple[int, float]]) -> None:
    for inner in getattr(scheduler, "_schedulers", ()):
        _follow(inner, before, origins)
    for name, is_rate in _LISTS.items():
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and len(values) == before:
            setattr(scheduler, name, [values[i] * factor if is_rate else values[i] for i, factor in origins])
