"""Linear adaptive filters over a delay line."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from counterflow.adaptive import Controller, Signal, follows, positive
from counterflow.exceptions import InputError

__all__ = ["LMS", "NLMS", "RLS"]


class LMS(Controller):
    r"""The least mean square filter, :math:`w \leftarrow w + \mu\, e_t\, x_t`.

    :math:`y_t = \sum_k w_k x_{t-k}`, :math:`e_t = d_t - y_t`. It is stable in the mean for
    :math:`0 < \mu < 2 / \lambda_{max}` of the reference's autocorrelation.

    Args:
        taps: Length of the delay line; 25 are on one of the paper's chips.
        step: :math:`\mu`. Widrow writes :math:`2 \mu` for it.

    Raises:
        InputError: If a setting is outside of its range.

    References:
        Widrow and others, "Adaptive Noise Cancelling: Principles and Applications", Proc. IEEE 63 (1975).

    Example:
        >>> from counterflow.noise_control import FiniteResponse
        >>> x = np.random.default_rng(0).standard_normal(2000)
        >>> lms = LMS(taps=2, step=0.05)
        >>> y, e = lms.run(x, FiniteResponse("H1").run(x))
        >>> lms.coefficients.round(3).tolist()
        [0.894, 0.447]
    """

    def __init__(self, taps: int = 25, step: float = 0.01) -> None:
        super().__init__(taps)
        self.step = positive(step, "step")
        self._arrays["weights"] = np.zeros(self.taps)

    @property
    def coefficients(self) -> Signal:
        """The impulse response that it has learned, newest sample first."""
        return self._arrays["weights"][::-1].copy()

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        return int(_lms(x, d, y, arrays["weights"], arrays["peak"], self.step, 0.0, False))


class NLMS(LMS):
    r"""The normalized least mean square filter, :math:`w \leftarrow w + \mu\, e_t\, x_t / (\epsilon + x_t^\top x_t)`.

    Args:
        taps: Length of the delay line.
        step: :math:`\mu`, stable between 0 and 2.
        epsilon: :math:`\epsilon`, in units of the reference squared.

    Raises:
        InputError: If a setting is outside of its range.

    References:
        Haykin, "Adaptive Filter Theory" (2002), chapter 6. The paper has no such filter.
    """

    def __init__(self, taps: int = 25, step: float = 0.5, epsilon: float = 1e-3) -> None:
        super().__init__(taps, step)
        self.epsilon = positive(epsilon, "epsilon")

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        return int(_lms(x, d, y, arrays["weights"], arrays["peak"], self.step, self.epsilon, True))


class RLS(Controller):
    r"""The recursive least squares filter.

    .. math::  k = \frac{R x_t}{\lambda + x_t^\top R x_t}, \quad w \leftarrow w + e_t k, \quad
               R \leftarrow (R - k\, x_t^\top R) / \lambda

    Args:
        taps: Length of the delay line.
        forgetting: :math:`\lambda`, above 0 and at most 1; 1 forgets nothing.
        epsilon: :math:`R` starts as the identity over it.

    Raises:
        InputError: If a setting is outside of its range.

    References:
        Haykin, "Adaptive Filter Theory" (2002), chapter 9. The paper has no such filter.
    """

    _adjustable = "forgetting"

    def __init__(self, taps: int = 25, forgetting: float = 0.999, epsilon: float = 0.1) -> None:
        super().__init__(taps)
        self.forgetting = positive(forgetting, "forgetting")
        if self.forgetting > 1:
            raise InputError(f"forgetting is {forgetting}; give a factor above 0 and at most 1")
        self.epsilon = positive(epsilon, "epsilon")
        self._arrays["weights"] = np.zeros(self.taps)
        self._arrays["inverse"] = np.eye(self.taps) / self.epsilon

    @property
    def coefficients(self) -> Signal:
        """The impulse response that it has learned, newest sample first."""
        return self._arrays["weights"][::-1].copy()

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        return int(_rls(x, d, y, arrays["weights"], arrays["inverse"], arrays["peak"], self.forgetting))


# The weights lie in the order of the samples, oldest first, so that both are read forward.


@numba.njit(cache=True)
def _lms(x, d, y, w, peak, step, epsilon, normalized):  # type: ignore[no-untyped-def]
    taps = len(w)
    for t in range(len(d)):
        out = power = 0.0
        for k in range(taps):
            out += w[k] * x[t + k]
        if normalized:
            for k in range(taps):
                power += x[t + k] * x[t + k]
        error = d[t] - out
        if not follows(error, x[t + taps - 1], d[t], peak):
            return t
        y[t] = out
        scale = step * error / (epsilon + power) if normalized else step * error
        for k in range(taps):
            w[k] += scale * x[t + k]
    return len(d)


@numba.njit(cache=True)
def _rls(x, d, y, w, r, peak, forgetting):  # type: ignore[no-untyped-def]
    taps = len(w)
    rx = np.empty(taps)
    for t in range(len(d)):
        out = 0.0
        denominator = forgetting
        for i in range(taps):
            total = 0.0
            for k in range(taps):
                total += r[i, k] * x[t + k]
            rx[i] = total
            out += w[i] * x[t + i]
            denominator += total * x[t + i]
        error = d[t] - out
        if not (denominator > 0 and follows(error, x[t + taps - 1], d[t], peak)):
            return t
        y[t] = out
        for i in range(taps):
            gain = rx[i] / denominator
            w[i] += gain * error
            # R stays symmetric to the bit: each pair is computed once.
            for k in range(i + 1):
                r[i, k] = r[k, i] = (r[i, k] - rx[i] * rx[k] / denominator) / forgetting
    return len(d)
