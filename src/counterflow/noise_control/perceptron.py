"""The paper's perceptron in double precision, learning on line by backpropagation."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from counterflow.adaptive import Controller, Signal, count, follows, positive
from counterflow.seeding import numpy_generator

__all__ = ["Perceptron"]


class Perceptron(Controller):
    r"""A perceptron of one hidden layer over the delay line, by on-line backpropagation.

    .. math::  y_t = b + \sum_j v_j \tanh(a_j + \sum_k W_{jk} x_{t-k})

    Each sample takes one step of size :math:`\eta` down the gradient of :math:`\tfrac12 (d_t - y_t)^2`. The paper gives
    no size, no initial weights and no output unit: 25 taps and 10 hidden units, what one synapse chip holds, and a
    linear output are our choice.

    Args:
        taps: Length of the delay line.
        hidden: Number of hidden units.
        step: :math:`\eta`, the learning rate of all weights.
        seed: Of the initial weights, uniform within one over the root of a unit's number of inputs; biases start at
            zero.

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

    def __init__(self, taps: int = 25, hidden: int = 10, step: float = 0.05, seed: int = 0) -> None:
        super().__init__(taps)
        self.hidden = count(hidden, "hidden")
        self.step = positive(step, "step")
        draw = numpy_generator(seed, "perceptron")
        first, second = 1 / math.sqrt(self.taps), 1 / math.sqrt(self.hidden)
        self._arrays["hidden_weights"] = draw.uniform(-first, first, (self.hidden, self.taps))
        self._arrays["hidden_biases"] = np.zeros(self.hidden)
        self._arrays["output_weights"] = draw.uniform(-second, second, self.hidden)
        self._arrays["output_bias"] = np.zeros(1)

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        w, a = arrays["hidden_weights"], arrays["hidden_biases"]
        v, b = arrays["output_weights"], arrays["output_bias"]
        return int(_backpropagate(x, d, y, w, a, v, b, arrays["peak"], self.step))


@numba.njit(cache=True)
def _backpropagate(x, d, y, w, a, v, b, peak, step):  # type: ignore[no-untyped-def]
    hidden, taps = w.shape
    h = np.empty(hidden)
    for t in range(len(d)):
        out = b[0]
        for j in range(hidden):
            total = a[j]
            for k in range(taps):
                total += w[j, k] * x[t + k]
            h[j] = math.tanh(total)
            out += v[j] * h[j]
        error = d[t] - out
        if not follows(error, x[t + taps - 1], d[t], peak):
            return t
        y[t] = out
        b[0] += step * error
        for j in range(hidden):
            delta = step * error * v[j] * (1 - h[j] * h[j])
            v[j] += step * error * h[j]
            a[j] += delta
            for k in range(taps):
                w[j, k] += delta * x[t + k]
    return len(d)
