"""Long recordings a part at a time, cut where nobody speaks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from counterflow.audio.files import opened, read_frames
from counterflow.exceptions import DataError, InputError

__all__ = ["read_parts"]

_FRAME = 0.02  # seconds of which the power is taken
_PAUSE = 0.3  # seconds that have to be quiet


def read_parts(
    path: str | os.PathLike[str], *, longest: float = 30.0, shortest: float = 5.0
) -> Iterator[tuple[float, Tensor, int]]:
    """Read a file in parts that end in pauses, so that memory does not grow with its length.

    A part ends at the middle of the quietest 0.3 s between ``shortest`` and ``longest``; a file of ``longest`` seconds
    or less is one part.

    Args:
        path: A WAV, FLAC or other file that soundfile knows; several channels are averaged.
        longest: Seconds of a part at most.
        shortest: Seconds of a part at least, but of the last.

    Yields:
        Where the part begins in seconds, its samples (samples,) in [-1, 1], and the rate in hertz.

    Raises:
        DataError: If the file cannot be read, is shorter than it says, or holds no sound.
        InputError: If ``shortest`` is not between 0.3 s and ``longest``.
        MissingExtraError: If soundfile is not installed.

    Example:
        >>> import tempfile, torch
        >>> from counterflow.audio import write
        >>> loud = torch.sin(0.1 * torch.arange(8000 * 6))
        >>> wave = torch.cat([loud, torch.zeros(1600), loud])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/long.wav", wave, 8000)
        ...     parts = list(read_parts(f"{folder}/long.wav", longest=10.0))
        >>> [(f"{start:.1f} s", rate) for start, part, rate in parts]
        [('0.0 s', 8000), ('6.1 s', 8000)]
    """
    if not _PAUSE <= shortest < longest:
        raise InputError(f"shortest must lie between {_PAUSE} s and longest, got {shortest} and {longest}")
    with opened(path) as file:
        rate, promised = int(file.samplerate), int(file.frames)
        buffer = torch.zeros(0)
        begin = 0
        while True:
            wanted = int(longest * rate) + 1 - len(buffer)
            block = torch.from_numpy(read_frames(file, wanted)).mean(0)
            if not bool(block.isfinite().all()):
                raise DataError(f"{path} holds samples that are not finite; leave it out")
            buffer = torch.cat([buffer, block])
            if len(buffer) <= int(longest * rate):
                break
            cut = _quietest(buffer, rate, shortest)
            yield begin / rate, buffer[:cut].clone(), rate
            buffer = buffer[cut:].clone()
            begin += cut
    if begin + len(buffer) < promised:
        raise DataError(f"{path} is truncated: it has {begin + len(buffer)} of {promised} samples; copy it again")
    if begin + len(buffer) == 0:
        raise DataError(f"{path} holds no samples; leave it out")
    if len(buffer):
        yield begin / rate, buffer, rate


def _quietest(wave: Tensor, rate: int, shortest: float) -> int:
    """The middle of the quietest pause after ``shortest`` seconds."""
    size = max(round(_FRAME * rate), 1)
    power = wave[: len(wave) // size * size].view(-1, size).square().mean(1)
    span = min(round(_PAUSE / _FRAME), len(power))
    summed = power.unfold(0, span, 1).sum(1)
    first = min(int(shortest / _FRAME), len(summed) - 1)
    return (int(summed[first:].argmin()) + first + span // 2) * size
