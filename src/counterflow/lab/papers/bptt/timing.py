"""What the paper measured: an iteration's time and memory on a real LSTM (figure 2b, section 4).

Times are processor seconds of one thread; every repeat runs all that is compared, so that a ratio is taken within it.
A seed is a repeat.
"""

from __future__ import annotations

import functools
import gc
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from counterflow import bptt
from counterflow.bptt.plans import Strategy
from counterflow.lab.papers.bptt.costs import MEMORIES
from counterflow.lab.papers.bptt.ledger import Ledger
from counterflow.lab.trials import Context, Outcome
from counterflow.seeding import torch_generator

__all__ = ["TRIALS", "plain"]


class _Task:
    """One LSTM, one batch of sequences, and the errors of its outputs.

    Args:
        settings: Width, batch and steps.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        width, batch, self.steps = settings["width"], settings["batch"], settings["steps"]
        generator = torch_generator(0, "inputs")
        self.cell = nn.LSTMCell(width, width)
        with torch.no_grad():
            for parameter in self.cell.parameters():
                parameter.uniform_(-(width**-0.5), width**-0.5, generator=generator)
        self.inputs = torch.randn(batch, self.steps, width, generator=generator)
        self.errors = torch.randn(batch, self.steps, width, generator=generator)
        self.start = (torch.zeros(batch, width), torch.zeros(batch, width))

    def seconds(self, forward: Callable[[], Tensor]) -> tuple[float, float]:
        """Processor seconds of the forward and of the backward pass of one iteration."""
        self.cell.zero_grad()
        gc.collect()
        began = time.process_time()
        y = forward()
        between = time.process_time()
        torch.autograd.backward(y, self.errors)
        return between - began, time.process_time() - between

    def plain(self) -> Tensor:
        """Standard backpropagation through time."""
        return plain(self.cell, self.inputs, self.start)

    def planned(self, slots: int, strategy: Strategy) -> Tensor:
        """Within a plan."""
        y: Tensor = bptt.unroll(self.cell, self.inputs, self.start, slots=slots, strategy=strategy)[0]
        return y

    def kept(self, forward: Callable[[nn.Module], Tensor]) -> Ledger:
        """An iteration in which every byte is counted."""
        ledger = Ledger(self.cell, [self.inputs])
        torch.autograd.backward(forward(ledger), self.errors)
        return ledger


def plain(core: nn.Module, inputs: Tensor, start: Any) -> Tensor:
    """The loop that everybody writes.

    Args:
        core: A cell, or a module that returns outputs and state.
        inputs: ``(batch, time, features)``.
        start: The start state.

    Returns:
        Outputs over time.
    """
    outputs: list[Tensor] = []
    state = start
    for x in inputs.unbind(1):
        if isinstance(core, nn.LSTMCell):
            state = core(x, state)
            outputs.append(state[0])
        else:
            y, state = core(x, state)
            outputs.append(y)
    return torch.stack(outputs, 1)


def iteration(settings: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Outcome:
    """Internal states against standard BPTT at one length: times, and bytes."""
    task, slots = _Task(settings), settings["slots"]
    for forward in (task.plain, lambda: task.planned(slots, "internal")):
        task.seconds(forward)
    found: dict[str, list[float]] = {"plain": [], "planned": [], "forward": [], "backward": []}
    for number in range(len(seeds)):
        there, back = task.seconds(task.plain)
        found["forward"].append(there)
        found["backward"].append(back)
        found["plain"].append(there + back)
        found["planned"].append(sum(task.seconds(lambda: task.planned(slots, "internal"))))
        context.progress((number + 1) / (len(seeds) + 1), f"repeat {number + 1}")
    whole = task.kept(lambda core: plain(core, task.inputs, task.start))
    part = task.kept(lambda core: bptt.unroll(core, task.inputs, task.start, slots=slots, strategy="internal")[0])
    found["plain bytes"], found["planned bytes"] = [whole.peak] * len(seeds), [part.peak] * len(seeds)
    found["planned calls"] = [part.calls] * len(seeds)
    return Outcome(found)


def lengths(settings: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Outcome:
    """Figure 2b at one length: seconds a step of standard BPTT and with five numbers of hidden states."""
    task = _Task(settings)
    ways: dict[str, Callable[[], Tensor]] = {"plain": task.plain}
    for m in MEMORIES:
        ways[f"m{m}"] = functools.partial(task.planned, min(m, task.steps), "hidden")
    task.seconds(task.plain)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(len(seeds)):
        # Whichever comes first may find the machine in another state, so each does in turn.
        turned = [*ways][number % len(ways) :] + [*ways][: number % len(ways)]
        for name in turned:
            found[name].append(sum(task.seconds(ways[name])) / task.steps)
        context.progress((number + 1) / len(seeds), f"repeat {number + 1}")
    return Outcome(found)


def budgets(settings: Mapping[str, Any], seeds: Sequence[int], context: Context) -> Outcome:
    """Budgets from the smallest that works to one that keeps everything: what is kept, over the budget."""
    task = _Task(settings)
    explained = bptt.explain(task.cell, task.inputs, task.start)
    sizes = [option.budget for option in explained]
    sizes += [(a + b) // 2 for a, b in itertools.pairwise(sizes)]
    kept, calls = [], []

    def within(size: int, core: nn.Module) -> Tensor:
        y: Tensor = bptt.unroll(core, task.inputs, task.start, budget=size)[0]
        return y

    for number, size in enumerate(sorted(sizes)):
        ledger = task.kept(functools.partial(within, size))
        kept.append(ledger.peak)
        calls.append(ledger.calls)
        context.progress((number + 1) / len(sizes))
    ratios = [peak / size for peak, size in zip(kept, sorted(sizes), strict=True)]
    return Outcome({"fits": [max(ratios)] * len(seeds)}, {"budget": sorted(sizes), "kept": kept, "calls": calls})


TRIALS: Mapping[str, Callable[[Mapping[str, Any], Sequence[int], Context], Outcome]] = {
    "iteration": iteration,
    "figure 2b": lengths,
    "budgets": budgets,
}
