"""The circuits of a cell: saturation, noise, refresh, and what differs from cell to cell."""

from __future__ import annotations

import enum
import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from counterflow.analog.device import DeviceModel
from counterflow.seeding import numpy_generator, seed_of

__all__ = ["Cell", "Neuron", "cells", "compress", "neurons", "noise_key", "normals", "refresh", "saturate", "signs"]

Array = NDArray[np.float64]

# Where Lambert's continued fraction of the hyperbolic tangent reaches 1, nearly level.
FULL = 4.971786858528409
T1, T2, T3 = (each / 135135 for each in (17325, 378, 1))
B1, B2, B3 = (each / 135135 for each in (62370, 3150, 28))


class Cell(enum.IntEnum):
    """What differs from synapse to synapse: the first axis of `cells`."""

    FORWARD_GAIN = 0
    FORWARD_SIGNAL = 1  # offset of the multiplier's input x
    FORWARD_WEIGHT = 2
    BACKWARD_GAIN = 3
    BACKWARD_ERROR = 4
    BACKWARD_WEIGHT = 5
    UPDATE_GAIN = 6
    UPDATE_SIGNAL = 7
    UPDATE_ERROR = 8
    UPDATE_CHARGE = 9


class Neuron(enum.IntEnum):
    """What differs from neuron to neuron: the first axis of `neurons`."""

    INPUT = 0  # offset of the sum of currents
    OUTPUT = 1  # offset of the amplifier of its activation
    ERROR = 2  # and of its error
    BELL = 3  # height of the derivative's bell


def cells(device: DeviceModel, shape: tuple[int, ...], seed: int, *purpose: str) -> Array:
    """The synapses of one chip, ``(10, *shape)``: gains about 1, offsets about 0."""
    draw = numpy_generator(seed, "mismatch", *purpose)
    found = draw.standard_normal((len(Cell), *shape))
    gains = [Cell.FORWARD_GAIN, Cell.BACKWARD_GAIN, Cell.UPDATE_GAIN]
    offsets = [each for each in Cell if each not in gains and each != Cell.UPDATE_CHARGE]
    found[gains] = 1 + device.gain_error * found[gains]
    found[offsets] *= device.multiplier_offset
    found[Cell.UPDATE_CHARGE] *= device.update_offset
    return found


def neurons(device: DeviceModel, count: int, seed: int, *purpose: str) -> Array:
    """The neurons of one chip, ``(4, count)``."""
    found = numpy_generator(seed, "mismatch", *purpose).standard_normal((len(Neuron), count))
    found[Neuron.INPUT] *= device.neuron_offset
    found[[Neuron.OUTPUT, Neuron.ERROR]] *= device.amplifier_offset
    found[Neuron.BELL] = 1 + device.derivative_error * found[Neuron.BELL]
    return found


def fraction(u: Any, z: Any) -> Any:
    """The hyperbolic tangent of a number, u times a function of its square z; with z zero it is u to the bit."""
    top = 1 + z * (T1 + z * (T2 + z * T3))
    bottom = 1 + z * (B1 + z * (B2 + z * B3))
    return u * (top / bottom)


def compress(u: Array, device: DeviceModel) -> Array:
    """What an input stage makes of a signal, S: clipped to the signals' range, then saturated."""
    return np.asarray(saturate(np.clip(u, -device.signal_range, device.signal_range), device.saturation))


def saturate(u: Any, saturation: float) -> Any:
    """A differential pair's characteristic; an array, or a tensor, which clips itself as well."""
    if not math.isfinite(saturation):
        return u
    u = u.clip(-FULL * saturation, FULL * saturation)
    return fraction(u, (u / saturation) ** 2)


# Noise is a function of where and when, not of a generator's state: so it needs no state to resume from.

_GOLDEN, _ODD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _16, _32, _48 = (np.uint64(each) for each in (30, 27, 31, 16, 32, 48))
_LOW = np.uint64(0xFFFF)
_CENTER, _DEVIATION = 2 * 65535.0, math.sqrt((65536.0**2 - 1) / 3)


def _hash(key: Any, sample: Any, cell: Any) -> Any:
    z = key + sample * _GOLDEN + cell * _ODD
    z = (z ^ (z >> _30)) * _MIX1
    z = (z ^ (z >> _27)) * _MIX2
    return z ^ (z >> _31)


hash_of = numba.njit(inline="always")(_hash)


@numba.njit(inline="always")
def normal(key: Any, sample: Any, cell: Any) -> Any:
    """A deviate of mean 0 and variance 1 for one cell at one sample, the sum of four uniform ones."""
    z = hash_of(key, sample, cell)
    total = (z & _LOW) + ((z >> _16) & _LOW) + ((z >> _32) & _LOW) + (z >> _48)
    return (np.float64(total) - _CENTER) / _DEVIATION


@numba.njit(inline="always")
def sign(key: Any, sample: Any, cell: Any) -> Any:
    """1 or -1 for one cell at one sample."""
    return 1.0 if hash_of(key, sample, cell) & np.uint64(1) else -1.0


def noise_key(seed: int, *purpose: str) -> np.uint64:
    """What tells one array's noise from another's."""
    return np.uint64(seed_of(seed, "noise", *purpose))


@numba.njit(cache=True)
def normals(key: Any, sample: Any, count: Any) -> Any:
    """`normal` of the first cells."""
    result = np.empty(count)
    for i in range(count):
        result[i] = normal(key, np.uint64(sample), np.uint64(i))
    return result


@numba.njit(cache=True)
def signs(key: Any, sample: Any, count: Any) -> Any:
    """`sign` of the first cells."""
    result = np.empty(count)
    for i in range(count):
        result[i] = sign(key, np.uint64(sample), np.uint64(i))
    return result


@numba.njit(cache=True)
def refresh(w: Any, sample: Any, share: Any, levels: Any) -> None:
    """Round those weights, of a flat array, whose turn comes at this sample; a share of them has its turn at each."""
    count = len(w)
    start, end = math.floor(sample * share), math.floor((sample + 1) * share)
    for i in range(start, end):
        at = i % count
        w[at] = math.floor(w[at] / levels + 0.5) * levels
