"""How much weaker the noise is: overall, as the ear weighs it, by third octaves, and while it is being learned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from counterflow.adaptive import Signal, count
from counterflow.exceptions import InputError

__all__ = ["Measures", "a_weighting", "third_octaves"]

CURVE = 200  # points of a learning curve


def a_weighting(frequencies: ArrayLike) -> NDArray[np.float64]:
    r"""The A-weighting of frequencies, as a factor of power; one at 1 kHz.

    .. math::  R(f) = \frac{12194^2 f^4}{(f^2 + 20.6^2) \sqrt{(f^2 + 107.7^2)(f^2 + 737.9^2)} (f^2 + 12194^2)}

    Args:
        frequencies: In hertz.

    Returns:
        :math:`R(f)^2 / R(1000)^2`.

    References:
        IEC 61672-1:2013, annex E.

    Example:
        >>> [round(10 * math.log10(value), 1) for value in a_weighting([100.0, 1000.0, 10000.0])]
        [-19.1, 0.0, -2.5]
    """

    def response(f: NDArray[np.float64]) -> NDArray[np.float64]:
        q = f**2
        below = (q + 20.6**2) * np.sqrt((q + 107.7**2) * (q + 737.9**2)) * (q + 12194.0**2)
        return 12194.0**2 * q**2 / below

    f = np.asarray(frequencies, dtype=np.float64)
    found: NDArray[np.float64] = (response(f) / response(np.array(1000.0))) ** 2
    return found


def third_octaves(rate: float) -> NDArray[np.float64]:
    r"""The mid-band frequencies of the third octaves below half the rate, from 25 Hz on.

    They are :math:`1000 \cdot 10^{n / 10}` hertz; a band is from :math:`10^{-1/20}` to :math:`10^{1/20}` times that.

    References:
        IEC 61260-1:2014.

    Example:
        >>> third_octaves(200.0).round(1)
        array([25.1, 31.6, 39.8, 50.1, 63.1, 79.4])
    """
    middles = 1000 * 10 ** (np.arange(-16, 14) / 10)
    found: NDArray[np.float64] = middles[middles * 10**0.05 <= rate / 2]
    return found


NOMINAL = (25, 31.5, 40, 50, 63, 80, 100, 125, 160, 200)  # of the first ten bands; the next ten are ten times that


def nominal(middle: float) -> float:
    """The name of a third octave, as instruments and standards write it: 31.5 for 31.623 Hz.

    Args:
        middle: One of `third_octaves`.

    References:
        IEC 61260-1:2014, annex E.

    Example:
        >>> [nominal(f) for f in third_octaves(400.0)]
        [25.0, 31.5, 40.0, 50.0, 63.0, 80.0, 100.0, 125.0, 160.0]
        >>> [nominal(1000.0), nominal(third_octaves(48000.0)[-1])]
        [1000.0, 20000.0]
    """
    decades, band = divmod(round(10 * math.log10(middle / 1000)) + 16, len(NOMINAL))
    return NOMINAL[band] * 10.0**decades


def decibels(before: float, after: float) -> float:
    """A reduction of power; infinite where nothing is left, not a number where nothing was."""
    if before <= 0:
        return math.nan
    return 10 * math.log10(before / after) if after > 0 else math.inf


@dataclass
class _Spectrum:
    """Welch's estimate: the mean over half overlapping windows of the squared Fourier transform."""

    size: int
    held: Signal
    power: NDArray[np.float64]

    @classmethod
    def of(cls, size: int) -> _Spectrum:
        """An empty one, of windows of so many samples."""
        return cls(size, np.zeros(0), np.zeros(size // 2 + 1))

    def add(self, samples: Signal) -> None:
        """Take in the next samples."""
        self.held = np.concatenate([self.held, samples])
        hop = self.size // 2
        number = (len(self.held) - self.size) // hop + 1
        if number > 0:
            frames = np.lib.stride_tricks.sliding_window_view(self.held, self.size)[: number * hop : hop]
            shaped = np.fft.rfft(frames * np.hanning(self.size))
            self.power += (np.abs(shaped) ** 2).sum(0)
            self.held = self.held[number * hop :]


class Measures:
    """What is measured of a noise and of what is left of it, as both stream by; memory does not grow.

    Reductions are those of the converged part, the last half unless said otherwise.

    Args:
        samples: How many there will be.
        rate: Samples a second.
        converged: The part of them that counts as learned, at the end.

    Raises:
        InputError: If a number is outside of its range.

    Example:
        >>> seen = Measures(2000, rate=8000)
        >>> noise = np.random.default_rng(0).standard_normal(2000)
        >>> seen.add(noise, 0.1 * noise)
        >>> round(seen.reduction_db, 6), round(seen.a_weighted_db, 6)
        (20.0, 20.0)
    """

    def __init__(self, samples: int, rate: float, converged: float = 0.5) -> None:
        self.samples = count(samples, "samples")
        if not (math.isfinite(rate) and rate > 0):
            raise InputError(f"rate is {rate}; give samples a second, > 0")
        if not 0 < converged <= 1:
            raise InputError(f"converged is {converged}; give a part above 0 and at most 1")
        self.rate = float(rate)
        self.begin = samples - max(1, round(samples * converged))
        length = samples - self.begin
        size = 1 << max(4, min(13, int(math.log2(max(length // 4, 1)))))
        self._spectra = _Spectrum.of(size), _Spectrum.of(size)
        self._sums = np.zeros(2)
        self._curve = np.zeros((2, min(CURVE, samples)))
        self._seen = 0

    def add(self, noise: Signal, residual: Signal) -> None:
        """The next samples of both."""
        first, last = self._seen, self._seen + len(noise)
        places = np.arange(first, last) * self._curve.shape[1] // self.samples
        places = np.minimum(places, self._curve.shape[1] - 1)
        cut = max(self.begin - first, 0)
        for row, part in enumerate((noise, residual)):
            self._curve[row] += np.bincount(places, part**2, self._curve.shape[1])
            if cut < len(part):
                late = part[cut:]
                self._sums[row] += float(late @ late)
                self._spectra[row].add(late)
        self._seen = last

    @property
    def reduction_db(self) -> float:
        """Noise over residual in decibels; positive is good."""
        return decibels(*self._sums)

    @property
    def a_weighted_db(self) -> float:
        """The same of A-weighted spectra; not a number where the part is too short for a spectrum."""
        weights = a_weighting(self._frequencies())
        return decibels(*(float(weights @ each.power) for each in self._spectra))

    @property
    def thirds_db(self) -> dict[float, float]:
        """The same by third octaves, mid-band frequency to decibels, without bands narrower than a bin."""
        f = self._frequencies()
        width = f[1]
        found = {}
        for middle in third_octaves(self.rate):
            low, high = middle * 10**-0.05, middle * 10**0.05
            if high - low < width:
                continue
            share = np.clip((np.minimum(f + width / 2, high) - np.maximum(f - width / 2, low)) / width, 0, 1)
            found[float(middle)] = decibels(*(float(share @ each.power) for each in self._spectra))
        return found

    @property
    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The learning curve, in seconds, and the reduction in decibels around them."""
        points = self._curve.shape[1]
        seconds = (np.arange(points) + 0.5) * self.samples / points / self.rate
        return seconds, np.array([decibels(*pair) for pair in self._curve.T], np.float64)

    def _frequencies(self) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.fft.rfftfreq(self._spectra[0].size, 1 / self.rate).astype(np.float64)
        return found
