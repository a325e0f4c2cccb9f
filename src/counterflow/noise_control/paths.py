"""Between the source of the noise and the quiet zone: channels, the loudspeaker's distortion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from counterflow.adaptive import Signal, signal
from counterflow.exceptions import InputError, ShapeError

__all__ = ["CHANNELS", "CubicDistortion", "FiniteResponse", "noise_reduction"]

#: The paper's two differences of acoustic channels, one of minimum phase and one with a deep spectral null.
CHANNELS = MappingProxyType({"H1": (0.894, 0.447), "H2": (0.174, 0.6, 0.6, 0.174)})

LOUDEST_DB = 300.0


class FiniteResponse:
    r"""A channel with a finite impulse response, :math:`u_t = \sum_k h_k x_{t-k}`.

    Args:
        response: The impulse response h, or the name of one of `CHANNELS`.

    Raises:
        InputError: If the name is not known, or the response is empty or not finite.
        ShapeError: If the response has more than one dimension.

    References:
        Cho and Lee (1998), section 3.

    Example:
        >>> channel = FiniteResponse("H1")
        >>> channel.run([1.0, 0.0]).tolist(), channel.run([0.0]).tolist()
        ([0.894, 0.447], [0.0])
    """

    def __init__(self, response: ArrayLike | str) -> None:
        if isinstance(response, str):
            if response not in CHANNELS:
                raise InputError(f"channel is {response!r}; give one of {', '.join(CHANNELS)}, or an impulse response")
            response = CHANNELS[response]
        self.response = signal(response, "response")
        if not len(self.response):
            raise InputError("response is empty; give at least one sample of an impulse response")
        self._past = np.zeros(len(self.response) - 1)

    def run(self, samples: ArrayLike) -> Signal:
        """The next samples as they come out of the channel, as many as went in.

        Raises:
            InputError: If a sample is not finite.
            ShapeError: If there is more than one dimension.
        """
        x = signal(samples, "samples")
        joined = np.concatenate([self._past, x])
        last = len(self.response) - 1
        result = np.zeros(len(x))
        # One tap at a time, not one convolution: so a sample's terms are added in the same order in every block.
        for k, h in enumerate(self.response):
            result += h * joined[last - k : last - k + len(x)]
        self._past = joined[len(joined) - last :]
        return result


@dataclass(frozen=True)
class CubicDistortion:
    r"""A loudspeaker that distorts by a cubic term, :math:`u - c u^3`.

    Attributes:
        coefficient: c, in units of one over the signal squared; above zero it saturates, below zero it expands.

    References:
        Cho and Lee (1998), section 3, after Gao and Snelgrove (1991). The paper states neither the sign nor the
        definition of its ratio; both signs are here.
    """

    coefficient: float

    @classmethod
    def fit(cls, samples: ArrayLike, ratio_db: float, sign: Literal["saturating", "expanding"] = "saturating") -> Self:
        r"""The distortion that makes a given signal-to-distortion ratio on these samples.

        .. math::  \mathrm{SDR} = 10 \log_{10} \frac{\mathrm{E}[u^2]}{\mathrm{E}[(c u^3)^2]}

        Args:
            samples: u, before the distortion.
            ratio_db: The ratio in decibels.
            sign: ``"saturating"`` or ``"expanding"``.

        Raises:
            InputError: If the samples are silent or not finite, the ratio is no number between
                -300 and 300 or the sign not known.
            ShapeError: If the samples have more than one dimension.

        Example:
            >>> speaker = CubicDistortion.fit([1.0, -1.0], 20.0)
            >>> speaker([1.0]).tolist()
            [0.9]
        """
        u = signal(samples, "samples")
        if sign not in ("saturating", "expanding"):
            raise InputError(f"sign is {sign!r}; give 'saturating' or 'expanding'")
        check_decibels(ratio_db, "ratio_db")
        if not np.any(u):
            raise InputError("samples are silent; a ratio to their distortion needs a signal")
        size = math.sqrt(np.mean(u**2) / np.mean(u**6)) * 10 ** (-ratio_db / 20)
        return cls(size if sign == "saturating" else -size)

    def __call__(self, samples: ArrayLike) -> Signal:
        """The samples with the distortion; it has no memory.

        Raises:
            InputError: If a sample is not finite.
            ShapeError: If there is more than one dimension.
        """
        u = signal(samples, "samples")
        return u - self.coefficient * u**3


def check_decibels(value: float | None, name: str) -> None:
    """Raise InputError for decibels that are no finite number, or beyond every sound."""
    if value is not None and not abs(value) <= LOUDEST_DB:
        raise InputError(f"{name} is {value}; give decibels from {-LOUDEST_DB:g} to {LOUDEST_DB:g}")


def noise_reduction(noise: ArrayLike, residual: ArrayLike) -> float:
    r"""By how much the noise is weaker, :math:`10 \log_{10} (\sum d_t^2 / \sum e_t^2)` in decibels.

    The paper draws it with the other sign. Give the converged part of both signals to leave the learning out of it.

    Returns:
        Positive where there is less noise than before; infinite where nothing is left of it.

    Raises:
        InputError: If the noise is silent, or a sample is not finite.
        ShapeError: If the signals are not of one length and dimension.

    Example:
        >>> round(noise_reduction([1.0, -1.0], [0.1, 0.1]), 6)
        20.0
    """
    d, e = signal(noise, "noise"), signal(residual, "residual")
    if len(d) != len(e):
        raise ShapeError(f"noise has {len(d)} samples and residual {len(e)}; give the same part of both")
    before, after = float(d @ d), float(e @ e)
    if before == 0:
        raise InputError("noise is silent; a reduction needs something to reduce")
    return 10 * math.log10(before / after) if after else math.inf
