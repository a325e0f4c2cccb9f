r"""What a budget costs in time: the trade-off between memory and recomputation, before anything is run.

A plan of :math:`F` forward operations for :math:`n` steps runs each step once with a graph, and :math:`F - n` times
without one. With :math:`f` the time of a step without a graph, :math:`g` with one, and :math:`b` that of going back
through it, an iteration is longer than plain backpropagation through time by the factor

.. math:: \frac{(F - n) f + n (g + b)}{n (g + b)} = 1 + \Bigl(\frac{F}{n} - 1\Bigr) \frac{f}{g + b} .

Unless they are measured, a backward operation is taken to cost two forward ones, as in section 4 of the paper:
:math:`f = g = 1, b = 2`.
"""

from __future__ import annotations

import functools
import html
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from counterflow.bptt.ambient import Buffers, devices_of, generator_states, set_generator_states
from counterflow.bptt.budget import Sizes, format_bytes, parse_bytes, weigh
from counterflow.bptt.choices import Choice, choose, least_mixed
from counterflow.bptt.chunks import check_chunk, choose_chunk
from counterflow.bptt.cores import adapt, modules_of
from counterflow.bptt.plans import Strategy
from counterflow.bptt.steps import Steps, zeros_for
from counterflow.exceptions import InputError

__all__ = ["Explanation", "Option", "StepTimes", "explain"]

_REPEATS = 9  # of a step that is timed
_COLUMNS = ("budget", "strategy", "slots", "chunk", "forwards a step", "memory", "slowdown")


@dataclass(frozen=True)
class StepTimes:
    """What one step of a plan takes, in any unit of time.

    Args:
        forward: Run without a graph.
        recorded: Run with one.
        backward: Gone back through.
    """

    forward: float = 1.0
    recorded: float = 1.0
    backward: float = 2.0

    def slowdown(self, forwards_per_step: float) -> float:
        """How many times as long as plain backpropagation through time an iteration takes.

        Args:
            forwards_per_step: Forward operations a step, those of the forward pass among them.

        Example:
            >>> round(StepTimes().slowdown(1.95), 4)
            1.3167
        """
        return 1 + (forwards_per_step - 1) * self.forward / (self.recorded + self.backward)


def format_slots(slots: float) -> str:
    """A number of slots, to hundredths and without an exponent."""
    return f"{slots:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Option:
    """What one budget buys.

    Args:
        budget: The budget in bytes.
        strategy: The cheapest strategy within it.
        slots: How many slots the plan fills at most, in the strategy's units: hidden states for ``"hidden"`` and
            ``"mixed"``, internal ones for ``"internal"``.
        chunk: Time steps to a step of the plan; more than 1 for fused layers only.
        steps: Steps of the plan.
        forwards: Forward operations of the plan.
        forwards_per_step: Forward operations a step.
        memory: The most bytes that are kept for going back at any time, as predicted.
        slowdown: The predicted time of an iteration over that of plain backpropagation through time.
    """

    budget: int
    strategy: str
    slots: float
    chunk: int
    steps: int
    forwards: int
    forwards_per_step: float
    memory: int
    slowdown: float

    def cells(self) -> tuple[str, ...]:
        """What stands in the columns of a table."""
        unit = "internal" if self.strategy == "internal" else "hidden"
        return (
            format_bytes(self.budget),
            self.strategy,
            f"{format_slots(self.slots)} {unit}",
            str(self.chunk),
            f"{self.forwards_per_step:.3f}",
            format_bytes(self.memory),
            f"{self.slowdown:.3f}",
        )


@dataclass(frozen=True)
class Explanation:
    """What a range of budgets costs for one core and one length of sequence.

    Args:
        core: What is run.
        time_steps: The length of the sequence.
        sizes: What the states of one step weigh; for a fused layer, those of one time step.
        times: Seconds that one step takes, where they were measured; else a backward operation counts two forward ones.
        options: One for each budget, from the smallest to the largest.
        smallest: The smallest budget that works, in bytes.
    """

    core: str
    time_steps: int
    sizes: Sizes
    times: StepTimes | None
    options: tuple[Option, ...]
    smallest: int

    @property
    def title(self) -> str:
        """Names the core and its states."""
        return (
            f"{self.core} over {self.time_steps} time steps: a hidden state takes {format_bytes(self.sizes.hidden)}, "
            f"an internal one {self.sizes.alpha:.3g} times that"
        )

    @property
    def note(self) -> str:
        """Where the slowdown comes from, and what the smallest budget is."""
        how = "step times measured here" if self.times is not None else "a backward step costing two forward ones"
        return f"slowdown against plain backpropagation through time, {how}; at least {format_bytes(self.smallest)}"

    def __len__(self) -> int:
        return len(self.options)

    def __iter__(self) -> Iterator[Option]:
        return iter(self.options)

    def __str__(self) -> str:
        lines = [_COLUMNS, *(option.cells() for option in self.options)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        rows = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        return "\n".join((self.title, *rows, self.note))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        lines = [_COLUMNS, *(option.cells() for option in self)]
        head, *body = ("".join(f"<td>{html.escape(text)}</td>" for text in line) for line in lines)
        rows = "".join(f"<tr>{row}</tr>" for row in body)
        table = f"<caption>{html.escape(self.title)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
        return f"<table>{table}</table><p>{html.escape(self.note)}</p>"

    def joined(self, other: Explanation) -> Explanation:
        """This one with the options of another one, of the same core and sequence, put in their places.

        Args:
            other: Its slowdowns are predicted again, from the step times of this one.
        """
        times = self.times or StepTimes()
        own = {option.budget: option for option in self}
        theirs = {o.budget: replace(o, slowdown=times.slowdown(o.forwards_per_step)) for o in other}
        options = sorted({**theirs, **own}.values(), key=lambda option: option.budget)
        return replace(self, options=tuple(options))

    def to_dict(self) -> dict[str, Any]:
        """Everything, with numbers as numbers."""
        return {
            "core": self.core,
            "time_steps": self.time_steps,
            "sizes": asdict(self.sizes) | {"alpha": self.sizes.alpha, "beta": self.sizes.beta},
            "times": None if self.times is None else asdict(self.times),
            "smallest": self.smallest,
            "options": [asdict(option) for option in self.options],
        }

    def plot(self, path: str | PathLike[str], budget: int | None = None) -> None:
        """Draw the trade-off curve: slowdown against memory.

        Args:
            path: Its suffix says what kind of picture: ``.png``, ``.svg`` or ``.pdf``.
            budget: Mark this one of the options' budgets, in bytes.

        Raises:
            InputError: If no such file can be written, or no option has the budget.
            MissingExtraError: If matplotlib is not installed.
        """
        from counterflow.bptt.tradeoff import draw

        budgets = [option.budget for option in self]
        if budget is not None and budget not in budgets:
            raise InputError(f"no option has budget={budget!r}; there are {', '.join(map(str, budgets))}")
        chosen = None if budget is None else budgets.index(budget)
        draw(path, [(option.memory, option.slowdown) for option in self], self.title, chosen)


def explain(
    core: Any,
    inputs: Any,
    state: Any = None,
    *,
    budgets: Sequence[str | int] | None = None,
    steps: int | None = None,
    strategy: Strategy | None = None,
    chunk: int | str | None = None,
    loss_fn: Callable[[int, Any], Tensor] | None = None,
    batch_first: bool | None = None,
    timed: bool = False,
) -> Explanation:
    r"""What a range of budgets buys: strategy, slots, forward operations, memory and slowdown, without running it.

    The sizes of a hidden and of an internal state are measured on one step; all else is computed from the plans that
    `unroll` would follow. With :math:`F` forward operations in :math:`n` steps the predicted slowdown is
    :math:`1 + (F/n - 1)/3`, a backward operation costing two forward ones (section 4), or the same with measured times.

    Args:
        core: As for `unroll`.
        inputs: As for `unroll`: a tensor ``(batch, time, ...)``, a pytree of them, or a function from ``t`` to the
            inputs there, of which one step or chunk is used.
        state: The start state; None starts PyTorch's own cells and layers from zeros.
        budgets: Bytes, or strings such as ``"64MiB"``. None takes the smallest that works, every power of two above it,
            and what needs no recomputation.
        steps: The number of time steps, where ``inputs`` is a function.
        strategy: ``"hidden"``, ``"internal"`` or ``"mixed"``; None takes the cheapest for each budget.
        chunk: For a fused layer, the time steps to a call; None and ``"auto"`` choose it for each budget.
        loss_fn: As for `unroll`; what it saves counts.
        batch_first: As for `unroll`.
        timed: Measure the times of one step, in place of a backward operation that costs two forward ones.

    Returns:
        A table that prints as text, with ``to_dict()`` and ``plot("curve.png")``.

    Raises:
        InputError: If an argument cannot be used, or a budget is too small; the message names the smallest that works.

    References:
        Gruslys et al., "Memory-Efficient Backpropagation Through Time", NIPS 2016, sections 3.6 and 4.

    Example:
        >>> import torch, counterflow as cf
        >>> cell = torch.nn.LSTMCell(256, 256)
        >>> table = cf.bptt.explain(cell, lambda t: torch.zeros(64, 256), steps=1000, budgets=["4MiB", "32MiB"])
        >>> [option.strategy for option in table]
        ['mixed', 'mixed']
        >>> table.options[0].slowdown > table.options[1].slowdown > 1
        True
    """
    if strategy not in (None, "hidden", "internal", "mixed"):
        raise InputError(
            f"strategy must be 'hidden', 'internal', 'mixed' or None, which a budget rules, got {strategy!r}"
        )
    if isinstance(budgets, str | int):
        raise InputError(f"budgets must be several, in a list such as ['16MiB', '64MiB'], got {budgets!r}")
    adapted = adapt(core)
    if batch_first is None:
        batch_first = adapted.fused is None or adapted.fused.batch_first
    begin = zeros_for(adapted, inputs, batch_first) if state is None else state

    @functools.cache
    def cut(length: int) -> Steps:
        return Steps(adapted, inputs, begin, steps, batch_first, length, None, loss_fn)

    @functools.cache
    def sizes(length: int) -> Sizes:
        return weigh(cut(length))

    count = cut(1).time_steps
    fixed = None if adapted.fused is not None and chunk is None else check_chunk(adapted, chunk, 1)
    unit = min(fixed or 1, count)
    needed = _smallest(sizes(unit), strategy)
    if budgets is None:
        asked = _range(sizes(unit), cut(unit).count, needed)
    else:
        asked = sorted({parse_bytes(b) for b in budgets})
    if not asked:
        raise InputError("budgets is empty; give some, such as ['16MiB', '64MiB'], or None")
    options = []
    times = _measured(cut(unit)) if timed else None
    for budget in asked:
        length = min(fixed or choose_chunk(count, budget, sizes, strategy), count)
        choice = choose(cut(length).count, sizes(length), budget, strategy=strategy)
        options.append(_option(choice, budget, length, times or StepTimes()))
    return Explanation(adapted.name, count, sizes(unit), times, tuple(options), needed)


def _option(choice: Choice, budget: int, chunk: int, times: StepTimes) -> Option:
    plan = choice.plan
    return Option(
        budget=budget,
        strategy=plan.strategy,
        slots=plan.peak_slots,
        chunk=chunk,
        steps=plan.steps,
        forwards=plan.forwards,
        forwards_per_step=plan.forwards_per_step,
        memory=choice.held,
        slowdown=times.slowdown(plan.forwards_per_step),
    )


def _smallest(sizes: Sizes, strategy: Strategy | None) -> int:
    """The smallest budget that works; a strategy that was asked for may need room for one state more."""
    more = {"internal": max(sizes.internal + sizes.generator, 1), "mixed": least_mixed(sizes)}
    return max(1, sizes.smallest + more.get(strategy or "", 0))  # an empty batch takes nothing


def _range(sizes: Sizes, steps: int, needed: int) -> list[int]:
    """The smallest budget that works, powers of two, and the budget that keeps every step."""
    everything = sizes.smallest + steps * max(1, sizes.shared + sizes.generator)
    if choose(steps, sizes, everything).plan.forwards > steps:  # the plan rounds sizes up
        everything = sizes.smallest + steps * max(1, sizes.internal + sizes.generator)
    powers = range(needed.bit_length(), (everything - 1).bit_length())
    return sorted({needed, *(2**power for power in powers), max(needed, everything)})


def _measured(steps: Steps) -> StepTimes:
    """Seconds of one step, the fastest of several, so that whatever else the machine does counts least."""
    inputs = steps.slices(steps.inputs, 0)
    modules = modules_of(steps.core, steps.loss_fn, steps.stream)
    devices = devices_of([*steps.inputs, *steps.state])
    generators, buffers = generator_states(devices), Buffers(modules)
    weights = [p for module in modules for p in module.parameters() if p.requires_grad]
    fed = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    begin = [s.detach().requires_grad_(s.is_floating_point()) for s in steps.state]
    wanted = [leaf for leaf in (*weights, *begin, *fed) if leaf.requires_grad]
    best = [math.inf] * 3
    for _ in range(_REPEATS):
        marks = [_now(devices)]
        with torch.no_grad():
            steps.run(0, list(inputs), list(steps.state))
        marks.append(_now(devices))
        with torch.enable_grad():
            outputs, ends, loss = steps.run(0, list(fed), list(begin))
        marks.append(_now(devices))
        roots = [y for y in (*ends, *((loss,) if loss is not None else outputs)) if y.requires_grad]
        if roots:  # none where nothing learns
            torch.autograd.grad(roots, wanted, [torch.ones_like(root) for root in roots], allow_unused=True)
        marks.append(_now(devices))
        best = [min(known, stop - start) for known, start, stop in zip(best, marks, marks[1:], strict=False)]
    set_generator_states(devices, generators)
    buffers.restore()
    return StepTimes(*best)


def _now(devices: Sequence[torch.device]) -> float:
    """Seconds, once these devices have done what they were given; a graphics card answers before that."""
    for device in devices:
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
    return time.perf_counter()
