"""Linear adaptive filters over a delay line."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.adaptive import Signal, follows, positive
from counterflow.exceptions import InputError
from counterflow.noise_control._kernels import LOOSE, adapt
from counterflow.noise_control._loop import InLoop, Loop, Slope
from counterflow.noise_control.paths import CubicDistortion

__all__ = ["LMS", "NLMS", "RLS"]


class LMS(InLoop):
    r"""The least mean square filter, :math:`w \leftarrow w + \mu\, e_t\, x_t`.

    :math:`y_t = \sum_k w_k x_{t-k}`, :math:`e_t = d_t - y_t`. It is stable in the mean for
    :math:`0 < \mu < 2 / \lambda_{max}` of the reference's autocorrelation.

    With a loudspeaker f in the loop, :math:`y_t = f(w^\top x_t)` and the step is multiplied by
    :math:`f'(w^\top x_t)`, or by one. With a secondary path c after it, the error goes back through that path (the
    adjoint LMS): :math:`w \leftarrow w + \mu\, f' x_{t-D} \sum_k c_k e_{t-D+k}`, D being the path's last delay.

    Args:
        taps: Length of the delay line; 25 are on one of the paper's chips.
        step: :math:`\mu`. Widrow writes :math:`2 \mu` for it.
        speaker: The loudspeaker in the loop; None for none.
        slope: ``"known"`` to the backward pass, or taken as ``"one"``.
        secondary: The path from the loudspeaker to the quiet zone; None for none.

    Raises:
        InputError: If a setting is outside of its range.

    References:
        Widrow and others, "Adaptive Noise Cancelling: Principles and Applications", Proc. IEEE 63 (1975); Wan,
        "Adjoint LMS: an efficient alternative to the filtered-x LMS and multiple error LMS algorithms", ICASSP (1996).

    Example:
        >>> from counterflow.noise_control import FiniteResponse
        >>> x = np.random.default_rng(0).standard_normal(2000)
        >>> lms = LMS(taps=2, step=0.05)
        >>> y, e = lms.run(x, FiniteResponse("H1").run(x))
        >>> lms.coefficients.round(3).tolist()
        [0.894, 0.447]
    """

    def __init__(
        self,
        taps: int = 25,
        step: float = 0.01,
        *,
        speaker: CubicDistortion | None = None,
        slope: Slope = "known",
        secondary: ArrayLike | None = None,
    ) -> None:
        super().__init__(taps, Loop(speaker, slope, secondary))
        self.step = positive(step, "step")
        self._arrays["weights"] = np.zeros(self.taps)
        if self.loop.open:
            # The last update waits for the next sample: so it is read and written once.
            self._arrays |= {"past": np.zeros(self.taps), "pending": np.zeros(1)}
        else:
            self._arrays |= {"powers": np.zeros(1), "counted": np.zeros(1)}

    @property
    def coefficients(self) -> Signal:
        """The impulse response that it has learned, newest sample first."""
        return self.weights()["weights"][::-1].copy()

    def weights(self) -> dict[str, NDArray[np.float64]]:
        """As of any controller, with the last update."""
        found = super().weights()
        if self.loop.open:
            found["weights"] += self._arrays["pending"] * self._arrays["past"]
        return found

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        return self._descend(x, d, y, arrays, 0.0, False)

    def _descend(
        self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]], epsilon: float, normalized: bool
    ) -> int:
        if self.loop.open:
            memory = arrays["pending"], arrays["peak"]
            return int(_lms(x, d, y, arrays["weights"], *memory, self.step, epsilon, normalized))
        groups = np.array([0, self.taps])
        return adapt(self._lines, x, d, y, arrays, groups, self.step, np.array([epsilon]), normalized, self.loop)

    def _lines(self, x: Signal) -> NDArray[np.float64]:
        """The delay line at each sample, oldest sample first, ``(samples, taps)``."""
        return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(x, self.taps))


class NLMS(LMS):
    r"""The normalized least mean square filter, :math:`w \leftarrow w + \mu\, e_t\, x_t / (\epsilon + x_t^\top x_t)`.

    Args:
        taps: Length of the delay line.
        step: :math:`\mu`, stable between 0 and 2.
        epsilon: :math:`\epsilon`, in units of the reference squared.
        speaker: The loudspeaker in the loop, as in `LMS`.
        slope: As in `LMS`.
        secondary: As in `LMS`; the step is then also divided by the sum of its squares.

    Raises:
        InputError: If a setting is outside of its range.

    References:
        Haykin, "Adaptive Filter Theory" (2002), chapter 6. The paper has no such filter.

    Example:
        >>> x = np.random.default_rng(0).standard_normal(2000)
        >>> output, residual = NLMS(taps=4).run(x, 0.5 * x)
        >>> bool(abs(residual[-100:]).max() < 1e-3)
        True
    """

    def __init__(
        self,
        taps: int = 25,
        step: float = 0.5,
        epsilon: float = 1e-3,
        *,
        speaker: CubicDistortion | None = None,
        slope: Slope = "known",
        secondary: ArrayLike | None = None,
    ) -> None:
        super().__init__(taps, step, speaker=speaker, slope=slope, secondary=secondary)
        self.epsilon = positive(epsilon, "epsilon")

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        return self._descend(x, d, y, arrays, self.epsilon, True)


class RLS(InLoop):
    r"""The recursive least squares filter.

    .. math::  k = \frac{R x_t}{\lambda + x_t^\top R x_t}, \quad w \leftarrow w + e_t k, \quad
               R \leftarrow (R - k\, x_t^\top R) / \lambda

    With a loudspeaker in the loop :math:`x_t` is multiplied by its slope in these, or by one.

    Args:
        taps: Length of the delay line.
        forgetting: :math:`\lambda`, above 0 and at most 1; 1 forgets nothing.
        epsilon: :math:`R` starts as the identity over it.
        speaker: The loudspeaker in the loop, as in `LMS`.
        slope: As in `LMS`.

    Raises:
        InputError: If a setting is outside of its range.

    References:
        Haykin, "Adaptive Filter Theory" (2002), chapter 9. The paper has no such filter.

    Example:
        >>> x = np.random.default_rng(0).standard_normal(200)
        >>> output, residual = RLS(taps=4).run(x, 0.5 * x)
        >>> bool(abs(residual[-100:]).max() < 1e-2)
        True
    """

    _adjustable = "forgetting"

    def __init__(
        self,
        taps: int = 25,
        forgetting: float = 0.999,
        epsilon: float = 0.1,
        *,
        speaker: CubicDistortion | None = None,
        slope: Slope = "known",
    ) -> None:
        super().__init__(taps, Loop(speaker, slope))
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
        loop = self.loop
        args = arrays["weights"], arrays["inverse"], arrays["peak"], self.forgetting, loop.cubic, loop.known
        return int(_rls(x, d, y, *args))


# The weights lie in the order of the samples, oldest first, so that both are read forward.


@numba.njit(cache=True, error_model="numpy", fastmath=LOOSE)
def _lms(x, d, y, w, pending, peak, step, epsilon, normalized):  # type: ignore[no-untyped-def]
    # With s x_{t-1} the update that waits, the output is (w + s x_{t-1}) x_t = w x_t + s (x_{t-1} x_t): both products
    # are there before s is, and the processor need not wait for it.
    taps = len(w)
    scale = pending[0]
    for t in range(len(d)):
        before, now = x[t : t + taps], x[t + 1 : t + 1 + taps]
        drive = shared = power = 0.0
        for k in range(taps):
            drive += w[k] * now[k]
            shared += before[k] * now[k]
            power += now[k] * now[k]
            w[k] += scale * before[k]
        out = drive + scale * shared
        error = d[t] - out
        if not follows(error, now[taps - 1], d[t], peak):
            return t
        y[t] = out
        scale = step * error / (epsilon + power) if normalized else step * error
    pending[0] = scale
    return len(d)


# Products are not reordered here: rx_i rx_k is rx_k rx_i to the bit, so R stays symmetric.
@numba.njit(cache=True, error_model="numpy", fastmath={"contract"})
def _shrink(r, rx, gain, shrink):  # type: ignore[no-untyped-def]
    for i in range(len(rx)):
        row, own = r[i], rx[i]
        for k in range(len(rx)):
            row[k] = (row[k] - gain * (own * rx[k])) * shrink


@numba.njit(cache=True, error_model="numpy", fastmath=LOOSE)
def _rls(x, d, y, w, r, peak, forgetting, cubic, known):  # type: ignore[no-untyped-def]
    taps = len(w)
    rx = np.empty(taps)
    for t in range(len(d)):
        line = x[t : t + taps]
        drive = 0.0
        for i in range(taps):
            drive += w[i] * line[i]
        slope = 1.0 - 3.0 * cubic * drive * drive if known else 1.0
        out = drive - cubic * drive * drive * drive
        denominator = forgetting
        for i in range(taps):
            total = 0.0
            row = r[i]
            for k in range(taps):
                total += row[k] * line[k]
            rx[i] = slope * total
            denominator += rx[i] * slope * line[i]
        error = d[t] - out
        if not (denominator > 0 and follows(error, line[taps - 1], d[t], peak)):
            return t
        y[t] = out
        gain = 1.0 / denominator
        for i in range(taps):
            w[i] += rx[i] * gain * error
        _shrink(r, rx, gain, 1.0 / forgetting)
    return len(d)
