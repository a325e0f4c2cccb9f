r"""Features of speech.

As in A. D. Brown, G. E. Hinton, "Relative Density Nets", NIPS 2001, section 6: pre-emphasis, the Fourier transform of
32 ms frames every 10 ms, band-pass filters spaced by the mel scale, and the logarithm of their responses. Waves are
(..., samples), features (..., frames, filters).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from counterflow.exceptions import InputError, MissingExtraError, ShapeError

__all__ = ["log_mel", "log_mel_of", "mel_filters"]


def log_mel(
    wave: Tensor,
    rate: int,
    n_mels: int = 24,
    *,
    window: float = 0.032,
    hop: float = 0.010,
    preemphasis: float = 0.97,
    floor: float = 1e-5,
) -> Tensor:
    r"""Logarithms of the magnitudes behind mel-spaced filters.

    .. math::

       y_{tk} = \log\Big(\epsilon + \sum_f m_{kf}\,\big| \mathrm{FFT}_f (w \circ (x_n - a x_{n-1}))_t \big|\Big)

    Args:
        wave: Samples, shape (..., samples), at least one window of them.
        rate: Samples a second.
        n_mels: Filters, from 0 hertz to half the rate; librosa's, Slaney's areas.
        window: Length of a frame in seconds; it is weighed by Hamming's window.
        hop: From frame to frame, in seconds.
        preemphasis: a; 0 for none.
        floor: epsilon, which keeps silence finite.

    Returns:
        Shape (..., frames, n_mels), differentiable in ``wave``. Frames lie wholly within the wave: none is padded.

    Raises:
        ShapeError: If the wave is shorter than a window.
        InputError: If an argument is out of range, or there are more filters than the frequencies can feed.
        MissingExtraError: If librosa is not installed.

    Example:
        >>> log_mel(torch.randn(2, 16000), 16000).shape
        torch.Size([2, 97, 24])
    """
    if rate < 1 or n_mels < 1:
        raise InputError(f"rate and n_mels must be 1 or more, got {rate} and {n_mels}")
    if not (window > 0 and hop > 0 and floor > 0 and 0 <= preemphasis <= 1):
        given = f"window={window}, hop={hop}, floor={floor}, preemphasis={preemphasis}"
        raise InputError(f"window, hop and floor must be positive, and preemphasis between 0 and 1; got {given}")
    size, stride = frame_sizes(rate, window, hop)
    if not wave.ndim or wave.shape[-1] < size:
        count = wave.shape[-1] if wave.ndim else 0
        raise ShapeError(f"wave has {count} samples; one window of {window * 1e3:g} ms at {rate} Hz takes {size}")
    if not wave.is_floating_point():
        raise InputError(f"wave must be of floating point in [-1, 1], got {wave.dtype}; divide by its largest number")
    emphasized = torch.cat([wave[..., :1], wave[..., 1:] - preemphasis * wave[..., :-1]], -1) if preemphasis else wave
    points = 1 << (size - 1).bit_length()
    shape = torch.hamming_window(size, dtype=wave.dtype, device=wave.device)
    magnitude = torch.fft.rfft(emphasized.unfold(-1, size, stride) * shape, points).abs()
    return log_mel_of(magnitude, rate, n_mels, floor=floor)


def frame_sizes(rate: int, window: float, hop: float) -> tuple[int, int]:
    """Samples of a frame and from frame to frame; whole numbers, so no more than near to what was asked for."""
    return max(round(window * rate), 2), max(round(hop * rate), 1)


def log_mel_of(magnitude: Tensor, rate: int, n_mels: int = 24, *, floor: float = 1e-5) -> Tensor:
    r"""Logarithms of given magnitudes behind mel-spaced filters: :math:`\log(\epsilon + \sum_f m_{kf} |X_{tf}|)`.

    Args:
        magnitude: Of a Fourier transform of ``2 (frequencies - 1)`` points, shape (..., frames, frequencies).
        rate: Samples a second.
        n_mels: Filters.
        floor: epsilon.

    Returns:
        Shape (..., frames, n_mels), differentiable.

    Raises:
        InputError: If a number is out of range, or there are more filters than the frequencies can feed.
        MissingExtraError: If librosa is not installed.

    Example:
        >>> log_mel_of(torch.rand(7, 257), 16000, 24).shape
        torch.Size([7, 24])
    """
    filters = mel_filters(rate, 2 * (magnitude.shape[-1] - 1), n_mels).to(magnitude)
    found: Tensor = (magnitude @ filters.T + floor).log()
    return found


@functools.lru_cache(maxsize=32)
def mel_filters(rate: int, points: int, n_mels: int) -> Tensor:
    """The filters themselves, shape (filters, frequencies), float32.

    Args:
        rate: Samples a second.
        points: Of the Fourier transform.
        n_mels: Filters.

    Raises:
        InputError: If a number is out of range, or there are more filters than the frequencies can feed.
        MissingExtraError: If librosa is not installed.
    """
    if not 1 <= rate < math.inf or points < 2 or n_mels < 1:
        raise InputError(f"rate and n_mels must be 1 or more, and points 2; got {rate}, {n_mels} and {points}")
    if n_mels > 2 * (points // 2 + 1):  # said before memory is taken for them: a frequency feeds two at most
        raise InputError(f"n_mels={n_mels} leaves filters without a frequency: there are {points // 2 + 1}; take fewer")
    try:
        from librosa.filters import mel
    except ImportError as error:
        raise MissingExtraError("audio", "the mel scale") from error
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below, as an error
        filters = torch.from_numpy(mel(sr=rate, n_fft=points, n_mels=n_mels))
    empty = int((filters.amax(1) <= 0).sum())
    if empty:
        raise InputError(f"n_mels={n_mels} leaves {empty} filters without a frequency at {rate} Hz; take fewer")
    return filters
