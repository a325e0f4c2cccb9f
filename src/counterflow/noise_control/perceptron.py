"""The paper's perceptron in double precision, learning on line by backpropagation."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.adaptive import Signal, count, follows, positive, tanh
from counterflow.noise_control._kernels import LOOSE, put, take
from counterflow.noise_control._loop import InLoop, Loop, Slope
from counterflow.noise_control.paths import CubicDistortion
from counterflow.seeding import numpy_generator

__all__ = ["Perceptron"]


class Perceptron(InLoop):
    r"""A perceptron of one hidden layer over the delay line, by on-line backpropagation.

    .. math::  y_t = b + \sum_j v_j \tanh(a_j + \sum_k W_{jk} x_{t-k})

    Each sample takes one step of size :math:`\eta` down the gradient of :math:`\tfrac12 (d_t - y_t)^2`. The paper gives
    no size, no initial weights and no output unit: 25 taps and 10 hidden units, what one synapse chip holds, and a
    linear output are our choice.

    With a loudspeaker in the loop the output goes through it and the error back through its slope, or through one;
    with a secondary path after it, through that path as well, as in `LMS`.

    Args:
        taps: Length of the delay line.
        hidden: Number of hidden units.
        step: :math:`\eta`, the learning rate of all weights.
        seed: Of the initial weights, uniform within one over the root of a unit's number of inputs; biases start at
            zero.
        speaker: The loudspeaker in the loop; None for none.
        slope: ``"known"`` to the backward pass, or taken as ``"one"``.
        secondary: The path from the loudspeaker to the quiet zone; None for none.

    Raises:
        InputError: If a setting is outside of its range.

    References:
        Cho and Lee (1998), section 3.

    Example:
        >>> x = 0.5 * np.random.default_rng(0).standard_normal(4000)
        >>> y, e = Perceptron(taps=2, hidden=4, step=0.1).run(x, np.tanh(x))
        >>> bool(np.mean(e[-500:] ** 2) < 0.01 * np.mean(np.tanh(x) ** 2))
        True
    """

    _learned = ("hidden_weights", "hidden_biases", "output_weights", "output_bias")

    def __init__(
        self,
        taps: int = 25,
        hidden: int = 10,
        step: float = 0.05,
        seed: int = 0,
        *,
        speaker: CubicDistortion | None = None,
        slope: Slope = "known",
        secondary: ArrayLike | None = None,
    ) -> None:
        super().__init__(taps, Loop(speaker, slope, secondary))
        self.hidden = count(hidden, "hidden")
        self.step = positive(step, "step")
        draw = numpy_generator(seed, "perceptron")
        first, second = 1 / math.sqrt(self.taps), 1 / math.sqrt(self.hidden)
        self._arrays["hidden_weights"] = draw.uniform(-first, first, (self.hidden, self.taps))
        self._arrays["hidden_biases"] = np.zeros(self.hidden)
        self._arrays["output_weights"] = draw.uniform(-second, second, self.hidden)
        self._arrays["output_bias"] = np.zeros(1)
        if self.loop.delay:
            self._arrays["activations"] = np.zeros((self.loop.delay, self.hidden))

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        names = ("hidden_weights", "hidden_biases", "output_weights", "output_bias", "peak")
        given = [arrays[name] for name in names]
        plain: Any = _backpropagate
        through: Any = _backpropagate_through
        if self.loop.open:
            return int(plain(x, d, y, *given, self.step))
        memory = [arrays[name] for name in ("sounds", "slopes", "errors")]
        acts = arrays.get("activations", np.zeros((0, self.hidden)))
        loop = self.loop.response, self.loop.cubic, self.loop.known
        return int(through(x, d, y, *given, self.step, *memory, acts, *loop))


@numba.njit(cache=True, error_model="numpy", fastmath=LOOSE)
def _forward(line, w, a, z):  # type: ignore[no-untyped-def]
    for j in range(len(a)):
        row = w[j]
        total = a[j]
        for k in range(len(row)):
            total += row[k] * line[k]
        z[j] = total


@numba.njit(cache=True, error_model="numpy", fastmath=LOOSE)
def _backward(line, h, error, w, a, v, b):  # type: ignore[no-untyped-def]
    b[0] += error
    for j in range(len(a)):
        delta = error * v[j] * (1.0 - h[j] * h[j])
        v[j] += error * h[j]
        a[j] += delta
        row = w[j]
        for k in range(len(row)):
            row[k] += delta * line[k]


@numba.njit(cache=True, error_model="numpy", fastmath=LOOSE)
def _backpropagate(x, d, y, w, a, v, b, peak, step):  # type: ignore[no-untyped-def]
    hidden, taps = w.shape
    # Whole vectors of units; those that are not there stay zero.
    z, h = np.zeros((hidden + 3) // 4 * 4), np.zeros((hidden + 3) // 4 * 4)
    for t in range(len(d)):
        line = x[t : t + taps]
        _forward(line, w, a, z)
        tanh(z, h)
        out = b[0]
        for j in range(hidden):
            out += v[j] * h[j]
        error = d[t] - out
        if not follows(error, line[taps - 1], d[t], peak):
            return t
        y[t] = out
        _backward(line, h, step * error, w, a, v, b)
    return len(d)


@numba.njit(cache=True, error_model="numpy", fastmath=LOOSE)
def _backpropagate_through(  # type: ignore[no-untyped-def]
    x, d, y, w, a, v, b, peak, step, sounds, slopes, errors, activations, path, cubic, known
):
    hidden, taps = w.shape
    delay, n = len(path) - 1, len(d)
    sound, slope, wrong = np.empty(delay + n), np.empty(delay + n), np.empty(delay + n)
    put(sounds, sound, 0)
    put(slopes, slope, 0)
    put(errors, wrong, 0)
    h, z = np.empty((delay + n, hidden)), np.empty(hidden)
    for k in range(delay):
        put(activations[k], h[k], 0)
    for t in range(n):
        now = t + delay
        _forward(x[now : now + taps], w, a, z)
        tanh(z, h[now])
        drive = b[0]
        for j in range(hidden):
            drive += v[j] * h[now, j]
        sound[now] = drive - cubic * drive * drive * drive
        slope[now] = 1.0 - 3.0 * cubic * drive * drive if known else 1.0
        out = 0.0
        for k in range(delay + 1):
            out += path[k] * sound[now - k]
        error = d[t] - out
        if not follows(error, x[now + taps - 1], d[t], peak):
            return t
        y[t] = out
        wrong[now] = error
        back = 0.0
        for k in range(delay + 1):
            back += path[k] * wrong[t + k]
        _backward(x[t : t + taps], h[t], step * back * slope[t], w, a, v, b)
    take(sound, n, sounds)
    take(slope, n, slopes)
    take(wrong, n, errors)
    for k in range(delay):
        put(h[n + k], activations[k], 0)
    return n
