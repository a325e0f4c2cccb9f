"""What a signal and a setting must be, said in one line where they are not."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.exceptions import InputError, ShapeError

__all__ = ["Signal", "count", "positive", "signal"]

#: Samples of one channel.
Signal = NDArray[np.float64]


def signal(values: ArrayLike, name: str) -> Signal:
    """Samples as float64, all of them numbers.

    Example:
        >>> signal([0, 1], "reference")
        array([0., 1.])
    """
    array = np.ascontiguousarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ShapeError(f"{name} has shape {array.shape}; give one channel, (samples,)")
    # One sample that is not finite makes the sum of squares so, which is sooner known than which one it is.
    with np.errstate(all="ignore"):
        total = float(np.dot(array, array))
    if not math.isfinite(total):
        bad = np.flatnonzero(~np.isfinite(array))
        if len(bad):
            raise InputError(f"{name}: sample {bad[0]} is {array[bad[0]]}; give finite samples")
    return array


def positive(value: float, name: str) -> float:
    """A finite number above zero.

    Example:
        >>> positive(2, "step")
        2.0
    """
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}; give a finite number > 0")
    return float(value)


def count(value: int, name: str) -> int:
    """A whole number of at least one.

    Example:
        >>> count(3, "taps")
        3
        >>> count(0, "taps")
        Traceback (most recent call last):
        counterflow.exceptions.InputError: taps is 0; give a whole number >= 1
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} is {value!r}; give a whole number >= 1")
    return int(value)
