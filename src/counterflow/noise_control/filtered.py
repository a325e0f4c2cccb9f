"""Filtered-x least mean squares: the linear controller for a loudspeaker with an acoustic path after it."""

from __future__ import annotations

from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.adaptive import Signal, count, follows, positive, signal
from counterflow.exceptions import InputError
from counterflow.noise_control._kernels import LOOSE, put, take
from counterflow.noise_control._loop import InLoop, Loop, Slope
from counterflow.noise_control.paths import CubicDistortion

__all__ = ["FilteredX"]


class FilteredX(InLoop):
    r"""The filtered-x least mean square filter, sample by sample, in blocks, or in blocks in the frequency domain.

    .. math::  y_t = \sum_k c_k f(w^\top x_{t-k}), \quad r_t = \sum_k \hat c_k f'_{t-k} x_{t-k}, \quad
               w \leftarrow w + \mu \sum_{t \in \text{block}} \frac{e_t\, r_t}{\epsilon + r_t^\top r_t}

    f is the loudspeaker, :math:`f'` its slope or one, c the secondary path and :math:`\hat c` what the controller takes
    for it. In the frequency domain the sum over a block is taken by Fourier transforms, and every frequency is
    normalized by its own power, which is what a colored noise needs:

    .. math::  G = \mathcal{F}\big[ \mathcal{F}^{-1} (\bar R_f E_f / (\epsilon + P_f)) \big]_{0 \dots taps - 1}, \quad
               P \leftarrow \beta P + (1 - \beta) |R|^2, \quad \beta = 0.9

    The weights stand still within a block; outputs come sample by sample, so a block delays nothing.

    Args:
        taps: Length of the delay line.
        step: :math:`\mu`. In blocks it is stable below about 2 over a block's samples, in the frequency domain below 2.
        epsilon: :math:`\epsilon`, in units of the filtered reference squared.
        secondary: c, an impulse response; None where nothing is between loudspeaker and quiet zone.
        model: :math:`\hat c`; c itself by default.
        block: Samples of a block; 1 by default, in the frequency domain ``taps``.
        domain: ``"time"`` or ``"frequency"``.
        normalized: Whether to divide by powers.
        speaker: The loudspeaker in the loop, as in `LMS`.
        slope: As in `LMS`.

    Raises:
        InputError: If a setting is outside of its range.

    References:
        Kuo and Morgan, "Active noise control: a tutorial review", Proc. IEEE 87 (1999). The paper has no such filter.

    Example:
        >>> from counterflow.noise_control import FiniteResponse, noise_reduction
        >>> x = np.random.default_rng(0).standard_normal(4000)
        >>> p = FiniteResponse([0.0, 0.0, 0.9, 0.4]).run(x)
        >>> y, e = FilteredX(taps=8, secondary=[0.0, 0.8, 0.1]).run(x, p)
        >>> noise_reduction(p[2000:], e[2000:]) > 40
        True
    """

    def __init__(
        self,
        taps: int = 25,
        step: float = 0.1,
        epsilon: float = 1e-3,
        *,
        secondary: ArrayLike | None = None,
        model: ArrayLike | None = None,
        block: int | None = None,
        domain: Literal["time", "frequency"] = "time",
        normalized: bool = True,
        speaker: CubicDistortion | None = None,
        slope: Slope = "known",
    ) -> None:
        super().__init__(taps, Loop(speaker, slope, secondary))
        if domain not in ("time", "frequency"):
            raise InputError(f"domain is {domain!r}; give 'time' or 'frequency'")
        self.step, self.epsilon = positive(step, "step"), positive(epsilon, "epsilon")
        self.model = self.loop.response if model is None else signal(model, "model")
        if not np.any(self.model):
            raise InputError("model is silent; give an impulse response with a sample that is not zero")
        self.domain, self.normalized = domain, normalized
        self.block = count((1 if domain == "time" else taps) if block is None else block, "block")
        if domain == "frequency" and self.loop.speaker and self.loop.known:
            raise InputError("slope is 'known' in the frequency domain, where it is no filter; give slope='one'")
        # The filtered reference is as far back as what is filtered.
        reach = max(self.loop.delay, len(self.model) - 1)
        self._arrays["past"] = np.zeros(self.taps - 1 + reach)
        self._arrays |= {
            "weights": np.zeros(self.taps),
            "sounds": np.zeros(self.loop.delay),
            "slopes": np.ones(len(self.model) - 1),
            "errors": np.zeros(self.block),
            "gradient": np.zeros(self.taps),
            "filled": np.zeros(1),
        }
        self._size = self.taps + self.block
        self._arrays["filtered"] = np.zeros(self._size if domain == "frequency" else self.taps - 1)
        if domain == "frequency":
            self._arrays["power"] = np.zeros(self._size // 2 + 1)

    @property
    def coefficients(self) -> Signal:
        """The impulse response that it has learned, newest sample first."""
        return self._arrays["weights"][::-1].copy()

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, NDArray[np.float64]]) -> int:
        before = len(arrays["past"])
        names = ("weights", "peak", "sounds", "slopes", "errors", "gradient", "filled", "filtered")
        given = [arrays[name] for name in names]
        loop = self.loop.response, self.loop.cubic, self.loop.known
        settings = self.step, self.epsilon, self.normalized, self.block, self.domain == "time"
        kernel: Any = _filtered_x
        first = 0
        while first < len(d):
            # In the frequency domain the compiled loop comes back at the end of each block.
            last = len(d)
            if self.domain == "frequency":
                last = min(last, first + self.block - int(arrays["filled"][0]))
            part = x[first : before + last]
            stopped = int(kernel(part, d[first:last], y[first:last], *given, self.model, *loop, *settings))
            if stopped < last - first:
                return first + stopped
            if self.domain == "frequency" and int(arrays["filled"][0]) == self.block:
                self._turn(arrays)
            first = last
        return len(d)

    def _turn(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        """The update at the end of a block, by Fourier transforms."""
        errors = np.concatenate([np.zeros(self.taps), arrays["errors"]])
        spectrum = np.fft.rfft(arrays["filtered"])
        product = np.conj(spectrum) * np.fft.rfft(errors)
        if self.normalized:
            present = np.abs(spectrum) ** 2
            power = arrays["power"]
            # The first block has no past to be averaged with.
            power[:] = 0.9 * power + 0.1 * present if power.any() else present
            product /= self.epsilon * self._size + power
        change = np.fft.irfft(product, self._size)[: self.taps]
        arrays["weights"] += self.step * change[::-1]
        arrays["filled"][0] = 0


@numba.njit(cache=True, error_model="numpy", fastmath=LOOSE)
def _filtered_x(  # type: ignore[no-untyped-def]
    x, d, y, w, peak, sounds, slopes, errors, gradient, filled, held, model, path, cubic, known, step, epsilon,
    normalized, block, in_time,
):  # fmt: skip
    taps, delay, lag, n = len(w), len(path) - 1, len(model) - 1, len(d)
    sound, slope = np.empty(delay + n), np.empty(lag + n)
    put(sounds, sound, 0)
    put(slopes, slope, 0)
    start = len(x) - n - (taps - 1)  # of the delay line of the first sample
    kept = len(held)
    filtered = np.empty(kept + n)
    put(held, filtered, 0)
    plain = cubic == 0.0 or not known
    r = np.empty(taps)
    for t in range(n):
        line = x[start + t : start + t + taps]
        drive = 0.0
        for k in range(taps):
            drive += w[k] * line[k]
        sound[delay + t] = drive - cubic * drive * drive * drive
        slope[lag + t] = 1.0 if plain else 1.0 - 3.0 * cubic * drive * drive
        out = 0.0
        for k in range(delay + 1):
            out += path[k] * sound[delay + t - k]
        error = d[t] - out
        if not follows(error, line[taps - 1], d[t], peak):
            return t
        y[t] = out
        at = int(filled[0])
        errors[at] = error
        newest = 0.0
        for k in range(lag + 1):
            newest += model[k] * x[start + t + taps - 1 - k]
        filtered[kept + t] = newest
        if in_time:
            if plain:
                take(filtered, kept + t - taps + 1, r)
            else:
                for i in range(taps):
                    r[i] = 0.0
                for k in range(lag + 1):
                    scale = model[k] * slope[lag + t - k]
                    for i in range(taps):
                        r[i] += scale * x[start + t + i - k]
            power = 0.0
            for i in range(taps):
                power += r[i] * r[i]
            scale = step * error / (epsilon + power) if normalized else step * error
            for i in range(taps):
                gradient[i] += scale * r[i]
        filled[0] = at + 1
        if in_time and at + 1 == block:
            for i in range(taps):
                w[i] += gradient[i]
                gradient[i] = 0.0
            filled[0] = 0.0
    take(sound, n, sounds)
    take(slope, n, slopes)
    take(filtered, n, held)
    return n
