"""What all controllers have in common: blocks, the delay line between them, divergence, state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.adaptive.checks import Signal, count, signal
from counterflow.exceptions import DivergenceError, InputError, ShapeError

__all__ = ["Controller", "follows"]

# An error this many times the largest sample so far is no error of a filter that follows.
DIVERGED = 1e6


class Controller:
    """What learns, sample by sample, to turn the reference into the target; the base class of all controllers.

    A subclass adds its state's arrays to ``_arrays``, names those that are weights in ``_learned``, and learns from one
    block in ``_learn``. The delay line stands
    still at the end of a call and goes on in the next.
    """

    _adjustable = "step"
    _learned: tuple[str, ...] = ("weights",)

    def __init__(self, taps: int) -> None:
        self.taps = count(taps, "taps")
        self._arrays: dict[str, NDArray[np.float64]] = {
            "past": np.zeros(self.taps - 1),
            "peak": np.zeros(1),
            "samples": np.zeros(1),
        }

    def run(self, reference: ArrayLike, target: ArrayLike) -> tuple[Signal, Signal]:
        """Learn from the next samples.

        Each sample's output is made before the weights learn from it.

        Args:
            reference: x, ``(samples,)``.
            target: d, ``(samples,)``.

        Returns:
            The output y and the residual d - y, ``(samples,)`` each.

        Raises:
            DivergenceError: If its error is a million times the largest sample that it has seen. It is then as it was
                before the call.
            InputError: If a sample is not finite.
            ShapeError: If the signals are not of one length and dimension.
        """
        x, d = signal(reference, "reference"), signal(target, "target")
        if len(x) != len(d):
            raise ShapeError(f"reference has {len(x)} samples and target {len(d)}; give the same number of both")
        arrays = {name: array.copy() for name, array in self._arrays.items()}
        joined = np.concatenate([arrays["past"], x])
        output = np.zeros(len(x))
        stopped = int(self._learn(joined, d, output, arrays))
        if stopped < len(x):
            at = int(arrays["samples"][0]) + stopped
            setting = getattr(self, self._adjustable)
            mend = "lower it" if self._adjustable == "step" else "bring it nearer to 1"
            raise DivergenceError(
                f"{self._adjustable} is {setting}: {type(self).__name__} diverged at sample {at}; {mend}"
            )
        arrays["past"] = joined[len(joined) - len(arrays["past"]) :].copy()
        arrays["samples"][0] += len(x)
        self._arrays = arrays
        return output, d - output

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        """Write the outputs, change the arrays in place; return how many samples went well."""
        raise NotImplementedError

    def weights(self) -> dict[str, NDArray[np.float64]]:
        """A copy of what the controller has learned, by name, without what it remembers; the oldest sample's first."""
        return {name: self._arrays[name].copy() for name in self._learned}

    def state(self) -> dict[str, NDArray[np.float64]]:
        """A copy of all that the controller has learned and remembers; `restore` goes on from it bit for bit."""
        return {name: array.copy() for name, array in self._arrays.items()}

    def restore(self, state: Mapping[str, ArrayLike]) -> None:
        """Go on from what `state` gave.

        Raises:
            InputError: If it is of another kind of controller, or holds what is not finite.
            ShapeError: If it is of another size.
        """
        if set(state) != set(self._arrays):
            held, needed = (", ".join(sorted(names)) for names in (state, self._arrays))
            raise InputError(f"state holds {held}; a controller of class {type(self).__name__} needs {needed}")
        arrays: dict[str, Any] = {}
        for name, mine in self._arrays.items():
            array = np.array(state[name], dtype=np.float64)
            if array.shape != mine.shape:
                raise ShapeError(f"state: {name} has shape {array.shape}; this controller's is {mine.shape}")
            if not np.isfinite(array).all():
                raise InputError(f"state: {name} is not finite; give a state that was saved")
            arrays[name] = array
        self._arrays = arrays


@numba.njit(cache=True, inline="always")
def follows(error, x, d, peak):  # type: ignore[no-untyped-def]
    """Whether the error is one of a filter that follows; raises the largest sample so far."""
    peak[0] = max(peak[0], abs(x), abs(d))
    return abs(error) <= DIVERGED * peak[0]  # false for NaN, too
