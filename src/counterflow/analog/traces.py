"""A chip in the training loop, and the recorded trace that can stand for it later."""

from __future__ import annotations

import os
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from counterflow import persist
from counterflow.analog.board import Chip
from counterflow.analog.circuits import Array
from counterflow.exceptions import InputError, ShapeError

__all__ = ["Recorder", "Replay", "learn"]

_KIND = "analog trace"


def learn(chip: Chip, inputs: ArrayLike, targets: ArrayLike, step: float) -> tuple[Array, Array]:
    """Train a chip in the loop: for each example forward, the error, backward, update.

    Args:
        chip: Anything that keeps the protocol.
        inputs: ``(examples, inputs)``.
        targets: ``(examples, outputs)``.
        step: The learning rate.

    Returns:
        The outputs, each before the weights learned from it, and the errors, target less output,
        ``(examples, outputs)`` each.

    Raises:
        ShapeError: If there are not as many targets as inputs, or not as wide as the chip's outputs.

    Example:
        >>> from counterflow.analog import Board
        >>> x = np.random.default_rng(0).uniform(-1, 1, (300, 2))
        >>> _, errors = learn(Board(2, 3, 1), x, x[:, :1] * x[:, 1:], 0.3)
        >>> errors.shape
        (300, 1)
    """
    x, wanted = np.asarray(inputs, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if x.ndim != 2 or wanted.ndim != 2 or len(x) != len(wanted):
        raise ShapeError(
            f"inputs have shape {x.shape} and targets {wanted.shape}; give (examples, inputs) and (examples, outputs)"
        )
    outputs = np.zeros(wanted.shape)
    for i in range(len(x)):
        made = np.asarray(chip.forward(x[i]))
        if made.shape != outputs[i].shape:
            raise ShapeError(f"targets have shape {wanted.shape}, and the chip's outputs {made.shape} an example")
        outputs[i] = made
        chip.backward(wanted[i] - outputs[i])
        chip.update(step)
    return outputs, wanted - outputs


class Recorder:
    """A chip that is written down while it is used: what went in, what came out, in which order.

    Args:
        chip: The chip; all calls go to it.

    Example:
        >>> import tempfile
        >>> from counterflow.analog import Board
        >>> recorder = Recorder(Board(2, 3, 1))
        >>> outputs, _ = learn(recorder, [[0.1, 0.2], [0.3, 0.4]], [[0.5], [0.6]], 0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     recorder.save(folder)
        ...     trace = Replay.load(folder)
        >>> again, _ = learn(trace, [[0.1, 0.2], [0.3, 0.4]], [[0.5], [0.6]], 0.1)
        >>> bool((again == outputs).all()), trace.remaining
        (True, 0)
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self._calls: list[tuple[str, Array, Array]] = []

    def forward(self, x: ArrayLike) -> Array:
        """The chip's outputs."""
        return self._record("forward", x, self.chip.forward(x))

    def backward(self, delta: ArrayLike) -> Array:
        """The chip's errors at its inputs."""
        return self._record("backward", delta, self.chip.backward(delta))

    def update(self, step: float) -> None:
        """Have the chip learn."""
        self.chip.update(step)
        self._record("update", [step], np.zeros(0))

    def _record(self, kind: str, given: ArrayLike, returned: Array) -> Array:
        self._calls.append((kind, np.asarray(given, dtype=np.float64).copy(), returned.copy()))
        return returned

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the trace.

        Args:
            folder: Where to; it is made if it does not exist.

        Raises:
            InputError: If nothing was recorded, or the folder cannot be written.
        """
        if not self._calls:
            raise InputError("nothing was recorded; use the chip before its trace is saved")
        tensors = {}
        for kind in {kind for kind, _, _ in self._calls}:
            for name, at in (("given", 1), ("returned", 2)):
                arrays = [call[at] for call in self._calls if call[0] == kind]
                tensors[f"{kind}.{name}"] = torch.from_numpy(np.stack(arrays))
        persist.save(folder, _KIND, {"calls": [kind for kind, _, _ in self._calls]}, tensors)


class Replay:
    """A recorded trace in a chip's place: it gives the recorded answers, and refuses other questions.

    Args:
        calls: What was called, in order, ``(kind, given, returned)`` each.
        tolerance: How far what is given may be from what was recorded, in each number.

    Attributes:
        remaining: How many calls of the trace are left.

    Example:
        >>> chip = Replay([("forward", np.array([0.1, 0.2]), np.array([0.5]))])
        >>> chip.forward([0.1, 0.2]), chip.remaining
        (array([0.5]), 0)
    """

    def __init__(self, calls: list[tuple[str, Array, Array]], tolerance: float = 0.0) -> None:
        self.tolerance = tolerance
        self._calls, self._next = calls, 0

    @classmethod
    def load(cls, folder: str | os.PathLike[str], tolerance: float = 0.0) -> Self:
        """Read what `Recorder.save` wrote.

        Raises:
            InputError: If it is not there, is damaged, or is something else.
        """
        config, tensors = persist.load(folder, _KIND)
        kinds = config.get("calls")
        if not isinstance(kinds, list) or any(kind not in ("forward", "backward", "update") for kind in kinds):
            raise InputError(f"the trace in {folder} is damaged: it does not say what was called; record it again")
        rows = dict.fromkeys(kinds, 0)
        calls = []
        try:
            for kind in kinds:
                given, returned = (tensors[f"{kind}.{name}"][rows[kind]].numpy() for name in ("given", "returned"))
                calls.append((kind, given, returned))
                rows[kind] += 1
        except (KeyError, IndexError, TypeError):  # of a type that NumPy lacks, such as bfloat16
            raise InputError(
                f"the trace in {folder} is damaged: it holds fewer answers than calls, or others"
            ) from None
        return cls(calls, tolerance)

    @property
    def remaining(self) -> int:
        """How many calls of the trace are left."""
        return len(self._calls) - self._next

    def forward(self, x: ArrayLike) -> Array:
        """The recorded outputs.

        Raises:
            InputError: If the trace is at its end, has another call here, or was given something else.
        """
        return self._answer("forward", x)

    def backward(self, delta: ArrayLike) -> Array:
        """The recorded errors at the inputs.

        Raises:
            InputError: If the trace is at its end, has another call here, or was given something else.
        """
        return self._answer("backward", delta)

    def update(self, step: float) -> None:
        """Go on in the trace.

        Raises:
            InputError: If the trace is at its end, has another call here, or another step.
        """
        self._answer("update", [step])

    def _answer(self, kind: str, given: ArrayLike) -> Array:
        if not self.remaining:
            raise InputError(f"the trace ends after {len(self._calls)} calls; record a longer one")
        recorded, wanted, returned = self._calls[self._next]
        if recorded != kind:
            raise InputError(f"call {self._next} of the trace is {recorded}, not {kind}; use it as the chip was used")
        array = np.asarray(given, dtype=np.float64)
        if array.shape != wanted.shape:
            raise ShapeError(f"call {self._next} of the trace, {kind}, was given {wanted.shape}, not {array.shape}")
        off = float(np.abs(array - wanted).max(initial=0.0))
        if not off <= self.tolerance:
            raise InputError(
                f"call {self._next} of the trace, {kind}, was given other numbers, off by up to {off:.3g}; give the "
                f"same, or a tolerance (now {self.tolerance:g})"
            )
        self._next += 1
        return returned.copy()
