"""Choosing a step with the same budget for every controller."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.adaptive import Signal, signal
from counterflow.exceptions import DivergenceError, InputError
from counterflow.noise_control.paths import noise_reduction

__all__ = ["Learner", "Tuned", "tune"]


class Learner(Protocol):
    """What can be tuned: any controller, of this package or of one's own."""

    def run(self, reference: ArrayLike, target: ArrayLike, /) -> tuple[Signal, Signal]:
        """The output and the residual of the next samples."""


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
        best: The value with the largest reduction.
        tried: All values.
        reductions_db: Of each, minus infinity where it diverged.
    """

    best: float
    tried: tuple[float, ...]
    reductions_db: tuple[float, ...]

    @property
    def interior(self) -> bool:
        """Whether values on both sides of the best were tried and did worse."""
        return self.best not in (min(self.tried), max(self.tried))


def tune(
    make: Callable[[float], Learner],
    values: Sequence[float] | NDArray[np.float64],
    reference: ArrayLike,
    target: ArrayLike,
    *,
    noise: ArrayLike | None = None,
    converged: float = 0.5,
) -> Tuned:
    """Run a fresh controller for each value, and take the one with the largest noise reduction.

    Comparing controllers that had equally many values each is fair; so is judging them on samples after those that
    chose.

    Args:
        make: From a value, such as a step, to a controller.
        values: What is tried: the budget is their number.
        reference: x, ``(samples,)``.
        target: d, ``(samples,)``, as the controller gets it.
        noise: What has to be canceled, ``(samples,)``, where a converter is before the target; the target by default.
        converged: The part at the end that is judged.

    Raises:
        DivergenceError: If the controller diverges at every value.
        InputError: If there is no value, or the noise is silent where it is judged.

    Example:
        >>> from counterflow.noise_control import NLMS, FiniteResponse
        >>> x = np.random.default_rng(0).standard_normal(3000)
        >>> tune(lambda step: NLMS(4, step), [0.001, 0.5, 3.0], x, FiniteResponse("H1").run(x)).best
        0.5
    """
    x, d = signal(reference, "reference"), signal(target, "target")
    heard = d if noise is None else signal(noise, "noise")
    tried = tuple(float(value) for value in values)
    if not tried:
        raise InputError("values is empty; give at least one to try")
    first = len(d) - max(1, round(len(d) * converged))
    if not np.any(heard[first:]):
        raise InputError(
            "the noise is silent in the part on which a step is chosen; give a step, or cut the silent beginning off"
        )
    found = []
    for value in tried:
        try:
            output, _ = make(value).run(x, d)
        except DivergenceError:
            found.append(-math.inf)
        else:
            found.append(noise_reduction(heard[first:], heard[first:] - output[first:]))
    best = int(np.argmax(found))
    if found[best] == -math.inf:
        least, most = min(tried), max(tried)
        raise DivergenceError(
            f"values are from {least:g} to {most:g}: the controller diverged at all of them; give others"
        )
    return Tuned(tried[best], tried, tuple(found))
