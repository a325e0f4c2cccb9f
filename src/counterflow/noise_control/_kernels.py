"""Compiled loops that several controllers share.

Sums over taps may be taken in any order, as vector instructions do; no flag here lets the compiler assume that
numbers are finite, for divergence has to be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from numpy.typing import NDArray

from counterflow.adaptive import Signal, follows
from counterflow.noise_control._loop import Loop

LOOSE = {"contract", "reassoc", "nsz"}
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
    sound[:delay], slope[:delay], wrong[:delay] = sounds, slopes, errors
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
    sounds[:], slopes[:], errors[:] = sound[n:], slope[n:], wrong[n:]
    return n


def _cast(signature: Any, to: Any) -> Any:
    """The same 64 bits as another kind of number."""

    def typed(typing_context: Any, value: Any) -> Any:
        return signature, lambda context, builder, signature, arguments: builder.bitcast(arguments[0], to)

    return intrinsic(typed)


_as_float = _cast(numba.types.float64(numba.types.int64), ir.DoubleType())
_as_bits = _cast(numba.types.int64(numba.types.float64), ir.IntType(64))

# Adding it rounds a small number to a whole one, which is then in the low bits.
_ROUND = 6755399441055744.0
_FAR = 20.0  # tanh is 1 to the last bit from 19.1 on


@numba.njit(cache=True, error_model="numpy", fastmath={"contract"})
def tanh(z, h):  # type: ignore[no-untyped-def]
    r"""Tanh of each of some numbers, within 3e-16, by vector instructions; NaN stays NaN.

    1 - 2 / (1 + exp 2z), exp being a power of two by its bits and a series for the rest. No sums may be reordered
    here: adding and subtracting ``_ROUND`` would cancel.
    """
    for j in range(len(z)):
        inside = z[j] if z[j] > -_FAR else -_FAR
        inside = inside if inside < _FAR else _FAR
        twice = 2.0 * inside
        shifted = twice * 1.4426950408889634 + _ROUND
        whole = shifted - _ROUND
        r = (twice - whole * 0.6931471803691238) - whole * 1.9082149292705877e-10
        p = 1.0 / 6227020800.0
        p = p * r + 1.0 / 479001600.0
        p = p * r + 1.0 / 39916800.0
        p = p * r + 1.0 / 3628800.0
        p = p * r + 1.0 / 362880.0
        p = p * r + 1.0 / 40320.0
        p = p * r + 1.0 / 5040.0
        p = p * r + 1.0 / 720.0
        p = p * r + 1.0 / 120.0
        p = p * r + 1.0 / 24.0
        p = p * r + 1.0 / 6.0
        p = p * r + 0.5
        p = p * r + 1.0
        p = p * r + 1.0
        power = _as_float((_as_bits(shifted) + 1023) << 52)
        found = 1.0 - 2.0 / (1.0 + p * power)
        h[j] = found if z[j] == z[j] else z[j]
