"""Recognition of samples as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from counterflow.audio import log_mel
from counterflow.audio.features import frame_sizes
from counterflow.exceptions import DataError, InputError, ShapeError
from counterflow.speech.acoustics import HOP, WINDOW, RunningMean, reach_of, spectrum_of
from counterflow.speech.answers import Word, spoken
from counterflow.speech.gaussians import add_deltas

if TYPE_CHECKING:
    from counterflow.speech.recognizer import Recognizer

__all__ = ["RecognizerStream"]


class RecognizerStream:
    """The state of a recognizer in the midst of a recording; made by `Recognizer.stream`.

    The words are those of ``recognize(wave, running=True)``, each given out as soon as no later sound can change it.
    Memory does not grow with the recording.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self._of = recognizer
        self._before, self._after = reach_of(recognizer.model, recognizer.deltas)
        self._size, self._hop = frame_sizes(recognizer.rate or 0, WINDOW, HOP)
        self._mean = RunningMean(recognizer.center)
        self._decoder = recognizer.decoder.stream()
        self._samples = torch.zeros(0)
        self._lead = 0  # samples before the next frame, which only pre-emphasis sees
        self._frames = torch.zeros(0, len(recognizer.spread))
        self._used = 0  # frames at the beginning of those that are only neighbors

    def push(self, wave: Tensor) -> list[Word]:
        """Go on by some samples.

        Args:
            wave: Shape (samples,), at the recognizer's rate, or (frames, features) where it has none; any number of
                them.

        Returns:
            The words that are now decided.

        Raises:
            DataError: If a sample is not finite.
            InputError: If samples are not of floating point.
            ShapeError: If samples or ready features have another shape.
        """
        if self._of.rate is None:
            return self._heard(spectrum_of(wave, None, len(self._of.spread), "the stream")) if len(wave) else []
        if wave.ndim != 1:
            raise ShapeError(f"samples must be of shape (samples,), got {tuple(wave.shape)}; average their channels")
        if not wave.is_floating_point():
            raise InputError(f"samples must be of floating point in [-1, 1], got {wave.dtype}; divide by the largest")
        if not bool(wave.isfinite().all()):
            raise DataError("the stream holds samples that are not finite; mend them")
        self._samples = torch.cat([self._samples, wave])
        count = (len(self._samples) - self._lead - self._size) // self._hop + 1
        if count < 1:
            return []
        spectrum = log_mel(
            self._samples[: self._lead + self._size + (count - 1) * self._hop],
            self._of.rate,
            len(self._of.spread),
            window=WINDOW,
            hop=HOP,
        ).float()
        # One frame's step before the next frame is kept, so that its first sample has one before it.
        spectrum = spectrum[1:] if self._lead else spectrum
        self._samples = self._samples[self._lead + (count - 1) * self._hop :]
        self._lead = self._hop
        return self._heard(spectrum)

    def finish(self) -> list[Word]:
        """End the recording.

        Returns:
            The words that had not been given out.

        Raises:
            InputError: If no sequence of words that the grammar permits fits.
        """
        found = self._go_on(len(self._frames))
        return found + [spoken(span, self._of.clock) for span in self._decoder.finish().words]

    def _heard(self, spectrum: Tensor) -> list[Word]:
        frames = (spectrum - self._mean(spectrum)) / self._of.spread
        self._frames = torch.cat([self._frames, frames])
        return self._go_on(len(self._frames) - self._after)

    def _go_on(self, end: int) -> list[Word]:
        """Decode the frames until ``end``; those after it are only neighbors."""
        if end <= self._used:
            return []
        x = self._frames
        costs = self._of.model.costs(add_deltas(x, orders=self._of.deltas) if self._of.deltas else x)
        found = [spoken(span, self._of.clock) for span in self._decoder.push(costs[self._used : end])]
        kept = max(end - self._before, 0)
        self._frames, self._used = x[kept:], end - kept
        return found
