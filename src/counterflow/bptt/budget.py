"""A budget in bytes, and what the states of a core weigh against it.

What the budget covers is all that is kept for going back: the start state, every stored hidden and internal state with
the random generator's state where the core draws random numbers, the one internal state that is worked on, and the
errors of the hidden state that are on their way. What it does not cover is the caller's: inputs and their gradients,
outputs, parameters (with what autocast makes of them) and their gradients, and what the start state may be a part of;
nor what an operation needs while it runs.

Between what is stored, the C library's heap gets holes; where they add up, they are given back to the system (with
glibc), so that the process grows by the budget and little more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from counterflow.bptt.ambient import Buffers, devices_of, draws, generator_states, moved, set_generator_states
from counterflow.bptt.cores import adapt, modules_of, tensors_of
from counterflow.bptt.graphs import Internal, Meter, differentiable, sequence_number, storage_of, walk
from counterflow.bptt.steps import Steps, record_first
from counterflow.exceptions import InputError

__all__ = ["Sizes", "format_bytes", "measure", "parse_bytes"]

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS[f"{_letter}B"] = 1000**_power
    _UNITS[f"{_letter}IB"] = 1024**_power


def parse_bytes(budget: str | int) -> int:
    """The number of bytes that a budget means.

    Args:
        budget: Bytes, or a number with a unit: ``B``, ``KiB``, ``MiB``, ``GiB``, ``TiB`` (powers of 1024), ``kB``,
            ``MB``, ``GB``, ``TB`` (powers of 1000), in capitals or not.

    Raises:
        InputError: If it is neither, or less than a byte.

    Example:
        >>> parse_bytes("64MiB"), parse_bytes("1.5 GB"), parse_bytes(4096)
        (67108864, 1500000000, 4096)
    """
    if isinstance(budget, bool) or not isinstance(budget, str | int):
        raise InputError(f"budget must be bytes or a string such as '64MiB', got {budget!r}")
    if isinstance(budget, int):
        size = budget
    else:
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", budget, re.ASCII)
        if match is None or match[2].upper() not in _UNITS:
            raise InputError(f"budget must be bytes or a string such as '64MiB', got {budget!r}")
        size = int(Fraction(match[1]) * _UNITS[match[2].upper()])  # no float, which a long number overflows
    if size < 1:
        raise InputError(f"budget must be a byte or more, got {budget!r}")
    return size


def format_bytes(size: int) -> str:
    """A size in the largest binary unit that it reaches, rounded up, so that it is a budget that holds the size.

    Example:
        >>> format_bytes(67108864), format_bytes(1500), format_bytes(12)
        ('64MiB', '1.47KiB', '12B')
        >>> parse_bytes(format_bytes(123456789)) >= 123456789
        True
    """
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            hundredths = -(-size * 100 // 1024**power)
            return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".") + unit
    return f"{size}B"


@dataclass(frozen=True)
class Sizes:
    r"""What one step's states weigh, in bytes.

    Args:
        hidden: A hidden state.
        internal: An internal state: all storages that autograd saves in the step, with the hidden states that it
            starts from and ends with, without parameters and whatever else the caller holds anyway.
        shared: An internal state without the hidden state that it starts from.
        gradient: The errors of one hidden state.
        generator: A copy of the random generator's state, which goes with every stored state; 0 where the core draws no
            random numbers.
        outputs: What a step puts out, until it is handed on, as far as it is no part of the internal state.
    """

    hidden: int
    internal: int
    shared: int
    gradient: int
    generator: int = 0
    outputs: int = 0

    @property
    def alpha(self) -> float:
        r"""An internal state in units of a hidden one, :math:`\alpha`."""
        return max(self.internal + self.generator, 1) / self.stored

    @property
    def beta(self) -> float:
        r"""The same where the hidden state that it starts from is stored already, :math:`\beta`."""
        return max(self.shared + self.generator, 1) / self.stored

    @property
    def stored(self) -> int:
        """What a stored hidden state takes; a byte at least, since a state may be empty, and what it costs divides."""
        return max(self.hidden + self.generator, 1)

    @property
    def smallest(self) -> int:
        """What is needed before anything is stored, hence the smallest budget that works.

        The start state and the error of the final one; then the largest of an internal state with the errors at both
        its ends, of one with the error at its end and its outputs, and of two hidden states, before and behind a step,
        with outputs and the error that waits.
        """
        run = max(self.internal, 2 * self.hidden) + self.gradient + self.outputs
        working = max(self.internal + 2 * self.gradient, run)
        # The generator's state is kept for the start, and once for the caller while steps are run again.
        return self.hidden + self.gradient + working + 2 * self.generator


def measure(core: Any, x: Any, state: Any = None, *, loss_fn: Any = None) -> Sizes:
    """Measure a core's states by running one step of it.

    Args:
        core: A cell, a fused layer, or any module or function ``(x_t, state) -> (y_t, state)``.
        x: The inputs of one step; for a fused layer those of a chunk, ``(batch, time, features)`` if it is
            ``batch_first``.
        state: The hidden state that the step starts from; None means zeros for PyTorch's own cells and layers.
        loss_fn: ``loss_fn(0, y)``, if a loss is taken in every step: what it saves is part of the internal state.

    Raises:
        InputError: If ``state`` is None and the core is not one of PyTorch's, or ``x`` is nothing that it takes.

    Example:
        >>> import torch
        >>> sizes = measure(torch.nn.LSTMCell(256, 256), torch.zeros(64, 256))
        >>> sizes.hidden, sizes.alpha, sizes.beta
        (131072, 4.5, 3.5)
    """
    adapted = adapt(core)
    leaves = tree_leaves(x)
    if state is None:
        if not leaves or not isinstance(leaves[0], Tensor):
            raise InputError(f"state=None: x must be a tensor for {adapted.name}, got {type(x).__name__}")
        single = leaves[0].dim() == (1 if adapted.fused is None else 2)
        place = 1 if adapted.fused is not None and not adapted.fused.batch_first else 0
        state = adapted.start(leaves[0], None if single else leaves[0].shape[place])
    if adapted.fused is None:
        return weigh(Steps(adapted, lambda t: x, state, 1, loss_fn=loss_fn))
    whole = leaves[0] if leaves else None
    if not isinstance(whole, Tensor):
        raise InputError(f"x must be a tensor for {adapted.name}, the inputs of a chunk, got {type(x).__name__}")
    dim = 1 if adapted.fused.batch_first and whole.dim() == 3 else 0
    return weigh(Steps(adapted, x, state, None, dim == 1, whole.shape[dim], loss_fn=loss_fn))


@dataclass(frozen=True)
class Observed:
    """A sequence's first step, run with a graph, and what there is to know of it.

    Args:
        internal: What going back through it needs.
        outputs: Leaves of its outputs.
        loss: Its loss.
        leaves: What its graph leads to, apart from its own inputs and state.
        foreign: Nodes of its graph that were there before it.
        sizes: What it weighs.
        modules: Those that it reaches.
        devices: Where it may draw random numbers.
        generators: The states of the random generators there before it.
        buffers: The modules' buffers before it.
    """

    internal: Internal
    outputs: list[Tensor]
    loss: Tensor | None
    leaves: list[Tensor]
    foreign: list[Any]
    sizes: Sizes
    modules: list[nn.Module]
    devices: list[torch.device]
    generators: list[Tensor]
    buffers: Buffers


def observe(steps: Steps) -> Observed:
    """Run a sequence's first step with a graph, and look at what it keeps, draws and depends on."""
    functions = (steps.core, steps.loss_fn, steps.stream)
    modules = modules_of(*functions)
    devices = devices_of([*steps.inputs, *steps.state])
    generators, buffers = generator_states(devices), Buffers(modules)
    # A weight that autocast has cast for something else before would lead out of the step's own graph.
    torch.clear_autocast_cache()
    since = sequence_number()
    meter = Meter([*steps.inputs, *tensors_of(*functions)])
    with meter:
        internal, outputs, loss = record_first(steps)
    leaves, foreign = walk(internal, since)
    meter.forget(leaves)
    drew = draws(modules) or moved(generators, generator_states(devices))
    sizes = sizes_of(internal, outputs, meter, generators if drew else [])
    return Observed(internal, outputs, loss, leaves, foreign, sizes, modules, devices, generators, buffers)


def weigh(steps: Steps) -> Sizes:
    """Measure the states of a sequence's first step, and leave random generators and buffers as they were."""
    seen = observe(steps)
    set_generator_states(seen.devices, seen.generators)
    seen.buffers.restore()
    return seen.sizes


def sizes_of(internal: Internal, outputs: Sequence[Tensor], meter: Meter, generators: Sequence[Tensor]) -> Sizes:
    """What a recorded step weighs.

    Args:
        internal: The step.
        outputs: Leaves of its outputs.
        meter: What was entered while it ran.
        generators: The states of the random generators that it draws from.
    """
    for tensor in (*internal.state, *internal.next_state):
        meter.see(tensor)
    kept = meter.total
    starts, ends = (dict(map(storage_of, state)) for state in (internal.state, internal.next_state))
    shared = kept - sum(size for key, size in starts.items() if meter.counts(key))
    hidden = max(_dense(internal.state), _dense(internal.next_state))
    # How the start state lies in memory says nothing: it may be expanded, learned or a part of the inputs. What the
    # other steps start from is what a step ends with, which may be a part of something larger.
    begin = sum(size for key, size in ends.items() if meter.counts(key) and key not in starts)
    for tensor in outputs:
        meter.see(tensor)
    return Sizes(
        hidden=hidden,
        internal=shared + max(hidden, begin),
        shared=shared,
        gradient=sum(s.nbytes for s in internal.next_state if differentiable(s)),
        generator=sum(each.nbytes for each in generators),
        outputs=meter.total - kept,
    )


def _dense(tensors: Iterable[Tensor]) -> int:
    """What a stored state takes: its tensors without the storages that they may be a part of, each once."""
    return sum({(storage_of(each)[0], each.data_ptr(), each.nbytes): each.nbytes for each in tensors}.values())
