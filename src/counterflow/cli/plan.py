"""``counterflow plan``: what a memory budget costs for a recurrent net, before anything is trained."""

from __future__ import annotations

import sys
from dataclasses import asdict
from json import dumps as json_of  # the command has an option of the module's name
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from counterflow.cli.targets import require_json, write_json
from counterflow.exceptions import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from counterflow.bptt import Option

__all__ = ["plan_command"]

Kind = Literal["lstm", "gru", "rnn"]
CELLS = {"lstm": "LSTMCell", "gru": "GRUCell", "rnn": "RNNCell"}
LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


def plan_command(
    *,
    steps: Annotated[int, tyro.conf.arg(metavar="T")],
    budget: Annotated[str, tyro.conf.arg(metavar="SIZE")],
    core: Kind = "lstm",
    width: Annotated[int, tyro.conf.arg(metavar="N")] = 256,
    batch: Annotated[int, tyro.conf.arg(metavar="N")] = 64,
    inputs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    layers: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
    dtype: Literal["float32", "float64", "bfloat16"] = "float32",
    strategy: Literal["hidden", "internal", "mixed"] | None = None,
    chunk: Annotated[str | None, tyro.conf.arg(metavar="K|auto")] = None,
    timed: bool = False,
    plot: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None,
    json: Annotated[str | None, tyro.conf.arg(metavar="PATH|-")] = None,
) -> int:
    """Show what training a recurrent net within a memory budget costs in time, and the plan for one budget.

    Backpropagation through time keeps what every step saved. Within a budget, counterflow.bptt.unroll keeps some
    of it and runs the other steps again, by the plan that repeats the fewest. For a range of budgets this prints

      strategy         what is kept: hidden states (small, a step is run again to use one), internal states
                       (large, ready to use), or a mixture
      slots            how many, at most; a mixture counts in sizes of a hidden state
      forwards a step  how often a step is run forward on average; 1 is no repetition
      memory           the most that is kept for going back; inputs, outputs and parameters are not counted
      slowdown         an iteration's time over that of plain backpropagation through time, a backward step
                       costing two forward ones (--timed measures both instead)

    and the curve, with the budget of --budget marked. Sizes are measured by running one step here.

    For example:

      counterflow plan --steps 1000 --budget 64MiB --core lstm --width 256 --batch 64
      counterflow plan --steps 20000 --budget 1GiB --core gru --layers 2 --plot curve.png
      counterflow plan --steps 1000 --budget 64MiB --chunk auto --timed
      counterflow plan --steps 1000 --budget 64MiB --json -

    Exit status: 0; 2 for input that cannot be used, a budget too small among it: the message names the smallest.

    Args:
        steps: Time steps of a sequence.
        budget: What may be kept: bytes, or a number with a unit such as 64MiB, 1.5GB.
        core: The kind of recurrent net.
        width: Its hidden units.
        batch: Sequences at once.
        inputs: Features of the inputs; as many as hidden units by default.
        layers: Layers on top of each other; more than one are run by PyTorch's fused layer.
        dtype: Of parameters, inputs and states.
        strategy: Allow this one only; by default the cheapest for each budget.
        chunk: Run so many time steps in one call of PyTorch's fused layer, or auto; without it a single layer
            goes step by step.
        timed: Measure the times of one step on this machine.
        plot: Draw the curve into this file (needs counterflow[plot]) instead of the terminal.
        json: Write everything to this file as JSON; - is standard output.

    Returns:
        The exit status, 0.
    """
    for name, number in (("steps", steps), ("width", width), ("batch", batch), ("layers", layers), ("inputs", inputs)):
        if number is not None and number < 1:
            raise InputError(f"--{name} {number}: it has to be 1 or more")
    require_json(json)
    fused = layers > 1 or chunk is not None
    length = _chunk(chunk)

    from counterflow import bptt  # torch is loaded only now, so that help and complaints are quick
    from counterflow.bptt.tradeoff import letters
    from counterflow.pictures import require_picture

    size = bptt.parse_bytes(int(budget) if budget.isdecimal() else budget)
    if plot is not None:
        require_picture(plot, "drawing the curve")
    net, example = _net(core, width, batch, inputs or width, layers, dtype, fused)
    options: dict[str, Any] = {"steps": steps, "strategy": strategy, "chunk": length, "timed": timed}
    # The budget itself first: if it is too small, that is what the user wants to hear.
    exact = bptt.explain(net, lambda t: example, budgets=[size], **options)
    around = bptt.explain(net, lambda t: example, **{**options, "timed": False})
    (chosen,) = exact.options
    found = exact.joined(around)
    out = sys.stderr if json == "-" else sys.stdout
    print(f"{found}\n\n{_sentence(chosen, steps, _call(chosen, length, strategy))}", file=out)
    if plot is not None:
        found.plot(plot, chosen.budget)
        print(f"curve: {plot}", file=out)
    else:
        points = [(option.memory, option.slowdown) for option in found]
        curve = letters(points, found.options.index(chosen))
        print("\nslowdown over memory; @ is your budget", *curve, sep="\n", file=out)
    if json is not None:
        write_json(json, {**found.to_dict(), "chosen": asdict(chosen)})
    return 0


def _call(option: Option, chunk: int | str | None, strategy: str | None) -> str:
    """The call that makes the plan that is shown."""
    from counterflow.bptt import format_bytes

    given = {"budget": format_bytes(option.budget), "strategy": strategy, "chunk": chunk}
    said = ", ".join(f"{name}={json_of(value)}" for name, value in given.items() if value is not None)
    return f"counterflow.bptt.unroll(core, x, state, {said})"


def _sentence(option: Option, time_steps: int, call: str) -> str:
    """The chosen plan in words, and how to use it."""
    from counterflow.bptt import format_bytes
    from counterflow.bptt.explanation import format_slots

    per = f"{option.steps} calls of {option.chunk} time steps" if option.chunk > 1 else f"{time_steps} steps"
    slots = f"{format_slots(option.slots)} slot{'s' * (option.slots != 1)}"
    kept = "internal" if option.strategy == "internal" else "hidden"
    return (
        f"your budget, {format_bytes(option.budget)}: the {option.strategy} strategy with "
        f"{slots} of {kept} states; {option.forwards} forward operations for {per}, "
        f"{format_bytes(option.memory)} kept at most\n"
        f"use it: {call}"
    )


def _net(
    core: Kind, width: int, batch: int, inputs: int, layers: int, dtype: str, fused: bool
) -> tuple[nn.Module, Tensor]:
    """The net, and one time step of its inputs."""
    import torch
    from torch import nn

    kind = getattr(torch, dtype)
    try:
        net = (
            getattr(nn, LAYERS[core])(inputs, width, layers, batch_first=True, dtype=kind)
            if fused
            else getattr(nn, CELLS[core])(inputs, width, dtype=kind)
        )
        return net, torch.zeros(batch, inputs, dtype=kind)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise InputError(f"--width {width} with --batch {batch} does not fit into memory; make them smaller") from None


def _chunk(chunk: str | None) -> int | str | None:
    if chunk is None or chunk == "auto":
        return chunk
    if not chunk.isdecimal() or int(chunk) < 1:
        raise InputError(f"--chunk {chunk}: it has to be a whole number from 1 on, or auto")
    return int(chunk)
