r"""The short-time Fourier transform as a tight frame, and back.

A window :math:`w` that is moved by ``hop`` is divided by the root of :math:`\sum_n w^2(t - n\,\mathrm{hop})`. With the
window so corrected, and the orthonormal Fourier transform, analysis keeps energy, and its adjoint is its inverse. Waves
are (..., samples), spectra (..., frequencies, frames), as those of `torch.stft`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from counterflow.exceptions import InputError, ShapeError

__all__ = ["ShortTime"]

Shape = Literal["hamming", "hann"]


@dataclass(frozen=True)
class ShortTime:
    r"""A short-time Fourier transform that keeps energy, and its inverse.

    .. math::

       X_{ft} = \frac{1}{\sqrt{N}} \sum_{n=0}^{N-1} \tilde w_n\, x_{n + tH - P}\, e^{-2\pi i f n / N}, \qquad
       \tilde w_n = w_n \Big/ \sqrt{\textstyle\sum_k w_{n - kH}^2}

    The wave is padded by :math:`P = N - H` zeros in front, so that every sample lies in equally many frames.

    Args:
        size: N, samples a frame; even.
        hop: H, samples from frame to frame; it divides ``size``, and is at most half of it.
        window: ``"hamming"`` (the paper's) or ``"hann"``.

    Raises:
        InputError: If the sizes do not fit.

    Example:
        >>> transform = ShortTime(512, 128)
        >>> wave = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
        >>> spectrum = transform(wave)
        >>> spectrum.shape
        torch.Size([2, 257, 27])
        >>> bool((transform.inverse(spectrum, 3000) - wave).abs().max() < 1e-5)
        True
    """

    size: int = 512
    hop: int = 128
    window: Shape = "hamming"

    def __post_init__(self) -> None:
        fits = self.size >= 2 and self.size % 2 == 0 and self.hop >= 1 and self.size % self.hop == 0
        if not fits or self.hop > self.size // 2:
            raise InputError(
                f"size must be even, and hop divide it into two or more parts; got size={self.size}, hop={self.hop}"
            )
        if self.window not in ("hamming", "hann"):
            raise InputError(f"window must be 'hamming' or 'hann', got {self.window!r}")

    @property
    def frequencies(self) -> int:
        """Bins from 0 to half the rate."""
        return self.size // 2 + 1

    def frames(self, samples: int) -> int:
        """How many frames a wave has."""
        return -(-(samples + self.size - self.hop) // self.hop)

    def __call__(self, wave: Tensor) -> Tensor:
        """The spectrum of a wave, differentiable.

        Args:
            wave: Shape (..., samples), of floating point.

        Returns:
            Shape (..., size / 2 + 1, frames), complex.

        Raises:
            InputError: If it is not of floating point.
            ShapeError: If there is no sample.
        """
        if not wave.is_floating_point():
            raise InputError(
                f"wave must be of floating point in [-1, 1], got {wave.dtype}; divide by its largest number"
            )
        if not wave.ndim or not wave.shape[-1]:
            raise ShapeError(f"wave has no samples: shape {tuple(wave.shape)}")
        samples = wave.shape[-1]
        front = self.size - self.hop
        total = (self.frames(samples) - 1) * self.hop + self.size
        padded = torch.nn.functional.pad(wave, (front, total - front - samples))
        pieces = padded.unfold(-1, self.size, self.hop) * self._window(wave)
        spectrum: Tensor = torch.fft.rfft(pieces, norm="ortho")
        return spectrum.transpose(-1, -2)

    def inverse(self, spectrum: Tensor, samples: int) -> Tensor:
        """The wave of a spectrum, by overlapping and adding; differentiable.

        Args:
            spectrum: Shape (..., size / 2 + 1, frames).
            samples: How long the wave was.

        Raises:
            ShapeError: If the spectrum is not that of so long a wave.
        """
        wanted = (self.frequencies, self.frames(samples))
        if spectrum.ndim < 2 or tuple(spectrum.shape[-2:]) != wanted:
            raise ShapeError(
                f"the spectrum of {samples} samples is (..., {wanted[0]}, {wanted[1]}), got {tuple(spectrum.shape)}"
            )
        pieces = torch.fft.irfft(spectrum.transpose(-1, -2), self.size, norm="ortho")
        pieces = pieces * self._window(pieces)
        parts = self.size // self.hop
        lead, frames = pieces.shape[:-2], wanted[1]
        blocks = pieces.reshape(-1, frames, parts, self.hop)
        wave = pieces.new_zeros(blocks.shape[0], frames + parts - 1, self.hop)
        for part in range(parts):
            wave[:, part : part + frames] = wave[:, part : part + frames] + blocks[:, :, part]
        front = self.size - self.hop
        found: Tensor = wave.reshape(*lead, -1)[..., front : front + samples]
        return found

    def energy(self, spectrum: Tensor) -> Tensor:
        """The energy of the wave behind a spectrum: inner frequencies count twice, for their mirror images.

        Args:
            spectrum: Shape (..., size / 2 + 1, frames).

        Returns:
            Shape (...).

        Example:
            >>> wave = torch.randn(1000, dtype=torch.float64)
            >>> transform = ShortTime(64, 16)
            >>> torch.allclose(transform.energy(transform(wave)), wave.square().sum())
            True
        """
        power = spectrum.real.square() + spectrum.imag.square()
        found: Tensor = 2 * power.sum((-1, -2)) - power[..., 0, :].sum(-1) - power[..., -1, :].sum(-1)
        return found

    def _window(self, like: Tensor) -> Tensor:
        return _tight(self.size, self.hop, self.window).to(like)


@functools.lru_cache(maxsize=32)
def _tight(size: int, hop: int, shape: Shape) -> Tensor:
    make = torch.hamming_window if shape == "hamming" else torch.hann_window
    window = make(size, dtype=torch.float64)
    total = window.square().reshape(-1, hop).sum(0).repeat(size // hop)
    return window / total.sqrt()
