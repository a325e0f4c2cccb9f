"""Compiled loops that several controllers share.

Sums over taps may be taken in any order, as vector instructions do; no flag here lets the compiler assume that
numbers are finite, for divergence has to be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from counterflow.adaptive import Signal, follows
from counterflow.noise_control._loop import Loop

LOOSE = {"contract", "reassoc", "nsz"}


@numba.njit(cache=True)
def put(source, target, begin):  # type: ignore[no-untyped-def]
    """Copy a whole array to a place in another; a slice would do, and costs seconds when it is compiled."""
    for i in range(len(source)):
        target[begin + i] = source[i]


@numba.njit(cache=True)
def take(source, begin, target):  # type: ignore[no-untyped-def]
    """Fill a whole array from a place in another."""
    for i in range(len(target)):
        target[i] = source[begin + i]


_ROWS = 2048  # samples whose features are held at once


def adapt(
    features: Callable[[Signal], NDArray[np.float64]],
    x: Signal,
    d: Signal,
    y: Signal,
    arrays: dict[str, NDArray[np.float64]],
    groups: NDArray[Any],
    step: float,
    epsilons: NDArray[np.float64],
    normalized: bool,
    loop: Loop,
) -> int:
    """Descend with weights that are linear in features, with a loudspeaker and a path in the loop.

    Args:
        features: From a part of the reference to the features at its samples, one row for each with a whole delay line.
        x: The reference, with all that the first row needs before the block.
        d: The target.
        y: The output goes here.
        arrays: The controller's; ``weights`` and what the loop remembers change in place.
        groups: Bounds of the groups of features, of powers that differ; ``powers`` keeps the mean of each so far.
        step: Of all groups together.
        epsilons: Added to each group's power.
        normalized: Whether to divide by powers: by the group's mean, and by the sum over groups of present over mean.
            With one group this is what normalizing means; a mean that moves slowly keeps the step stable with several.
        loop: What lies between the drive and the quiet zone.

    Returns:
        How many samples went well.
    """
    given = [arrays[name] for name in ("weights", "peak", "sounds", "slopes", "errors")]
    settings = (
        groups,
        arrays["powers"],
        arrays["counted"],
        step,
        epsilons,
        normalized,
        loop.response,
        loop.cubic,
        loop.known,
    )
    before = len(x) - len(d)
    kernel: Any = _adapt
    for first in range(0, len(d), _ROWS):
        last = min(first + _ROWS, len(d))
        rows, newest = features(x[first : before + last]), x[before + first : before + last]
        stopped = int(kernel(rows, newest, d[first:last], y[first:last], *given, *settings))
        if stopped < last - first:
            return first + stopped
    return len(d)


@numba.njit(cache=True, error_model="numpy", fastmath=LOOSE)
def _adapt(  # type: ignore[no-untyped-def]
    features,
    newest,
    d,
    y,
    w,
    peak,
    sounds,
    slopes,
    errors,
    groups,
    powers,
    seen,
    step,
    epsilons,
    normalized,
    path,
    cubic,
    known,
):
    delay = len(path) - 1
    n, size = len(d), len(w)
    sound, slope, wrong = np.empty(delay + n), np.empty(delay + n), np.empty(delay + n)
    put(sounds, sound, 0)
    put(slopes, slope, 0)
    put(errors, wrong, 0)
    gain = 0.0
    for k in range(delay + 1):
        gain += path[k] * path[k]
    for t in range(n):
        drive = 0.0
        for i in range(size):
            drive += w[i] * features[t + delay, i]
        sound[t + delay] = drive - cubic * drive * drive * drive
        slope[t + delay] = 1.0 - 3.0 * cubic * drive * drive if known else 1.0
        out = 0.0
        for k in range(delay + 1):
            out += path[k] * sound[t + delay - k]
        error = d[t] - out
        if not follows(error, newest[t], d[t], peak):
            return t
        y[t] = out
        wrong[t + delay] = error
        back = 0.0
        for k in range(delay + 1):
            back += path[k] * wrong[t + k]
        back *= step * slope[t]
        if normalized:
            seen[0] += 1.0
            total = 0.0
            for g in range(len(groups) - 1):
                power = epsilons[g]
                for i in range(groups[g], groups[g + 1]):
                    power += features[t, i] * features[t, i]
                powers[g] += (power - powers[g]) / seen[0]
                total += power / powers[g]
            back /= total * gain
        for g in range(len(groups) - 1):
            scale = back / powers[g] if normalized else back
            for i in range(groups[g], groups[g + 1]):
                w[i] += scale * features[t, i]
    take(sound, n, sounds)
    take(slope, n, slopes)
    take(wrong, n, errors)
    return n
