"""A filter that is linear in products of samples: the classical answer to a distorting loudspeaker."""

from __future__ import annotations

import itertools

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.adaptive import Signal, count, positive
from counterflow.exceptions import InputError
from counterflow.noise_control._kernels import adapt, put
from counterflow.noise_control._loop import InLoop, Loop, Slope
from counterflow.noise_control.paths import CubicDistortion

__all__ = ["Volterra"]


class Volterra(InLoop):
    r"""The cubic Volterra filter, learning by normalized least mean squares.

    .. math::  y_t = \sum_{p=1}^3 w_p^\top \phi_p(x_t), \qquad
               w_p \leftarrow w_p + \mu\, e_t \frac{\phi_p}{P_p} \Big/ \sum_q \frac{\epsilon^q + |\phi_q|^2}{P_q}

    :math:`\phi_1` is the delay line, :math:`\phi_2` and :math:`\phi_3` all products of two and of three of its newest
    ``memory`` samples, each once. :math:`P_p` is the mean of :math:`\epsilon^p + |\phi_p|^2` so far: the orders' powers
    differ by far, and so each learns as fast as the others.

    Args:
        taps: Length of the delay line.
        memory: How many of its newest samples are multiplied with each other, at most ``taps``.
        step: :math:`\mu`, stable between 0 and 2.
        epsilon: :math:`\epsilon`, in units of the reference squared.
        speaker: The loudspeaker in the loop, as in `LMS`.
        slope: As in `LMS`.
        secondary: As in `LMS`; the step is then also divided by the sum of its squares.

    Raises:
        InputError: If a setting is outside of its range.

    References:
        Tan and Jiang, "Adaptive Volterra filters for active control of nonlinear noise processes", IEEE Transactions
        on Signal Processing 49 (2001). The paper has no such filter.

    Example:
        >>> x = np.random.default_rng(0).standard_normal(20000)
        >>> y, e = Volterra(taps=2, memory=1).run(x, x - 0.1 * x**3)
        >>> bool(np.mean(e[-500:] ** 2) < 1e-6)
        True
    """

    def __init__(
        self,
        taps: int = 25,
        memory: int = 5,
        step: float = 0.5,
        epsilon: float = 1e-3,
        *,
        speaker: CubicDistortion | None = None,
        slope: Slope = "known",
        secondary: ArrayLike | None = None,
    ) -> None:
        super().__init__(taps, Loop(speaker, slope, secondary))
        self.memory = count(memory, "memory")
        if self.memory > self.taps:
            raise InputError(f"memory is {memory}, and the delay line has {taps} taps; give at most as many")
        self.step, self.epsilon = positive(step, "step"), positive(epsilon, "epsilon")
        newest = range(self.taps - self.memory, self.taps)
        self._pairs = np.array(list(itertools.combinations_with_replacement(newest, 2)))
        self._triples = np.array(list(itertools.combinations_with_replacement(newest, 3)))
        self._groups = np.cumsum([0, self.taps, len(self._pairs), len(self._triples)])
        self._arrays["weights"] = np.zeros(self._groups[-1])
        self._arrays |= {"powers": np.zeros(3), "counted": np.zeros(1)}
        if self.loop.open:
            self._arrays |= {name: np.zeros(0) for name in ("sounds", "slopes", "errors")}

    @property
    def coefficients(self) -> Signal:
        """The impulse response of its linear part, newest sample first."""
        return self._arrays["weights"][: self.taps][::-1].copy()

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        epsilons = self.epsilon ** np.arange(1.0, 4.0)
        return adapt(self._products, x, d, y, arrays, self._groups, self.step, epsilons, True, self.loop)

    def _products(self, x: Signal) -> NDArray[np.float64]:
        """The features at each sample, ``(samples, weights)``."""
        rows = np.empty((len(x) - self.taps + 1, self._groups[-1]))
        _multiply(x, self.taps, self._pairs, self._triples, rows)
        return rows


@numba.njit(cache=True, error_model="numpy")
def _multiply(x, taps, pairs, triples, rows):  # type: ignore[no-untyped-def]
    for t in range(len(rows)):
        line = x[t : t + taps]
        put(line, rows[t], 0)
        at = taps
        for n in range(len(pairs)):
            rows[t, at + n] = line[pairs[n, 0]] * line[pairs[n, 1]]
        at += len(pairs)
        for n in range(len(triples)):
            rows[t, at + n] = line[triples[n, 0]] * line[triples[n, 1]] * line[triples[n, 2]]
