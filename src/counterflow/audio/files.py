"""Audio files as tensors."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from counterflow.exceptions import DataError, InputError, MissingExtraError
from counterflow.files import write_whole

__all__ = ["is_silent", "load_soundfile", "opened", "read", "read_channels", "read_frames", "write"]

BLOCK = 1 << 20  # samples of all channels that are read at once
SILENT = 1e-4  # root mean square below which a recording, in [-1, 1], is called silent


def read(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """Read a WAV, FLAC or other file that soundfile knows; several channels are averaged.

    Args:
        path: The file.

    Returns:
        The samples (samples,) in [-1, 1], float32, and the rate in hertz.

    Raises:
        DataError: If it cannot be read, is shorter than it says, or holds no sound.
        MissingExtraError: If soundfile is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/two.wav", torch.tensor([[0.0, 1.0], [0.0, 0.5]]), 8000)
        ...     read(f"{folder}/two.wav")
        (tensor([0.0000, 0.7500]), 8000)
    """
    wave, rate = read_channels(path)
    return wave.mean(0), rate


def read_channels(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """Read a file with its channels apart.

    Args:
        path: The file.

    Returns:
        The samples (channels, samples) in [-1, 1], float32, and the rate in hertz.

    Raises:
        DataError: If it cannot be read, is shorter than it says, or holds no sound.
        MissingExtraError: If soundfile is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/two.wav", torch.tensor([[0.0, 1.0], [0.0, 0.5]]), 8000)
        ...     read_channels(f"{folder}/two.wav")
        (tensor([[0.0000, 1.0000],
                 [0.0000, 0.5000]]), 8000)
    """
    with opened(path) as file:
        samples, rate, promised = read_frames(file, file.frames), file.samplerate, file.frames
    held = samples.shape[1]
    if held < promised:
        raise DataError(f"{path} is truncated: it has {held} of {promised} samples; copy it again")
    if not held:
        raise DataError(f"{path} holds no samples; leave it out")
    wave = torch.from_numpy(samples)
    if not bool(wave.isfinite().all()):
        raise DataError(f"{path} holds samples that are not finite; leave it out")
    return wave, int(rate)


def write(path: str | os.PathLike[str], wave: Tensor, rate: int) -> None:
    """Write a WAV file of 32-bit floats, by `counterflow.files.write_whole`.

    Args:
        path: The file.
        wave: Shape (samples,) or (channels, samples).
        rate: Samples a second.

    Raises:
        InputError: If it cannot be written, the wave has another shape, or the rate is none.
        MissingExtraError: If soundfile is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/tone.wav", torch.arange(8000).mul(0.1).sin(), 8000)
        ...     wave, rate = read(f"{folder}/tone.wav")
        >>> wave.shape, rate
        (torch.Size([8000]), 8000)
    """
    soundfile = load_soundfile(f"writing {path}")
    if wave.ndim not in (1, 2) or not rate >= 1:
        raise InputError(
            f"a wave of shape {tuple(wave.shape)} at {rate} Hz cannot be written; it has to be (samples,) or "
            "(channels, samples), at 1 Hz or more"
        )
    # In memory first: what goes wrong in a file is hidden by the library's callbacks.
    content = io.BytesIO()
    soundfile.write(content, wave.detach().cpu().float().numpy().T, rate, format="WAV", subtype="FLOAT")
    try:
        write_whole(Path(path), content.getbuffer())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error


def is_silent(wave: Tensor) -> bool:
    """Whether there is nothing to be heard."""
    return float(wave.square().mean().sqrt()) < SILENT


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A `soundfile.SoundFile` of a file; what is wrong with it is raised as DataError, also while it is read."""
    soundfile = load_soundfile(f"reading {path}")
    try:
        with Path(path).open("rb") as stream:
            missing = _missing_bytes(stream)
            if missing:
                raise DataError(
                    f"{path} is truncated: {missing} bytes that its header promises are missing; copy it again"
                )
            stream.seek(0)
            with soundfile.SoundFile(stream) as file:
                yield file
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        reason = str(getattr(error, "error_string", str(error))).splitlines()[0]
        raise DataError(f"{path} cannot be read as audio: {reason}") from error


def read_frames(file: Any, frames: int, dtype: str = "float32") -> NDArray[Any]:
    """The next samples of an open file, so many at most: memory grows with what is there, not with what is promised.

    Args:
        file: A `soundfile.SoundFile`.
        frames: Samples a channel.
        dtype: Of the samples, as soundfile names it.

    Returns:
        Shape (channels, samples).
    """
    size = max(BLOCK // file.channels, 1)
    blocks = []
    while frames > 0:
        blocks.append(file.read(min(frames, size), dtype=dtype, always_2d=True))
        if len(blocks[-1]) < min(frames, size):
            break
        frames -= size
    found = np.empty((file.channels, sum(map(len, blocks))), dtype)
    if blocks:
        np.concatenate([block.T for block in blocks], axis=1, out=found)
    return found


def _missing_bytes(stream: BinaryIO) -> int:
    """How many bytes of a WAV file's samples are not there; the library reads what is left without a word."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 0
    at, block = 12, 1
    while at + 8 <= size:
        stream.seek(at)
        name, length = (chunk := stream.read(8))[:4], int.from_bytes(chunk[4:], "little")
        if name == b"data":
            # Whoever writes into a pipe does not know the length, and says the largest: of 32 bits, or of 31, of which
            # SoX leaves 4 kB to the header and takes whole blocks.
            unknown = length >= 0xFFFFFF00 or 0x7FFFF000 - block < length <= 0x80000000
            return 0 if unknown else max(at + 8 + length - size, 0)
        if name == b"fmt ":
            block = int.from_bytes(stream.read(14)[12:], "little")
        at += 8 + length + length % 2
    return 0


def load_soundfile(purpose: str) -> Any:
    """The library, or MissingExtraError."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, and its library is not
        raise MissingExtraError("audio", purpose) from error
    return soundfile
