"""Audio files of any length, block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from counterflow.exceptions import DataError, InputError, MissingExtraError

__all__ = ["Recording", "Writer"]


def _soundfile(purpose: str) -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, and its library is not
        raise MissingExtraError("audio", purpose) from error
    return soundfile


@dataclass(frozen=True)
class Recording:
    """An audio file that is read in blocks; several channels are averaged.

    Attributes:
        path: The file.
        rate: Samples a second.
        frames: Its length in samples.
        channels: How many are averaged.
        integer: Whether samples are stored as whole numbers, so that the largest of them may be clipped.
        step: Between two neighboring whole numbers; 0 where samples are not stored so.
    """

    path: Path
    rate: int
    frames: int
    channels: int
    integer: bool
    step: float

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Look at a WAV, FLAC or other file that soundfile knows.

        Raises:
            DataError: If it cannot be read, holds no samples, or is shorter than it says.
            MissingExtraError: If soundfile is not installed.
        """
        soundfile = _soundfile(f"reading {path}")
        place = Path(path)
        try:
            with place.open("rb") as stream:
                missing = _missing_bytes(stream)
                stream.seek(0)
                info = soundfile.info(stream)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            raise DataError(f"{path} cannot be read as audio: {_reason(error)}") from error
        if missing:
            raise DataError(f"{path} is truncated: {missing} bytes that its header promises are missing; copy it again")
        if not info.frames:
            raise DataError(f"{path} holds no samples; leave it out")
        bits = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}.get(info.subtype, 0)
        return cls(
            place,
            int(info.samplerate),
            int(info.frames),
            int(info.channels),
            bits > 0,
            2.0 ** (1 - bits) if bits else 0.0,
        )

    def blocks(self, size: int = 65536) -> Iterator[NDArray[np.float64]]:
        """Its samples in [-1, 1], ``size`` at a time.

        Raises:
            DataError: If it ends before its end, or a sample is not finite.
        """
        soundfile = _soundfile(f"reading {self.path}")
        found = 0
        try:
            with self.path.open("rb") as stream, soundfile.SoundFile(stream) as file:
                while True:
                    block = file.read(size, dtype="float64", always_2d=True).mean(1)
                    if not len(block):
                        break
                    bad = np.flatnonzero(~np.isfinite(block))
                    if len(bad):
                        where = found + int(bad[0])
                        raise DataError(f"{self.path}: sample {where} is {block[bad[0]]}; mend the recording")
                    found += len(block)
                    yield block
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except soundfile.SoundFileError as error:
            raise DataError(f"{self.path} is damaged after {found} samples: {_reason(error)}") from error
        if found < self.frames:
            raise DataError(f"{self.path} is truncated: it has {found} of {self.frames} samples; copy it again")

    def read(self) -> NDArray[np.float64]:
        """All samples at once."""
        return np.concatenate([*self.blocks()])


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", str(error)).splitlines()[0])


def _missing_bytes(stream: Any) -> int:
    """How many bytes of a WAV file's samples are not there; the library reads what is left without a word."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 0
    at = 12
    while at + 8 <= size:
        stream.seek(at)
        name, length = (chunk := stream.read(8))[:4], int.from_bytes(chunk[4:], "little")
        if name == b"data":
            # Whoever writes into a pipe does not know the length, and says the largest.
            return 0 if length >= 0xFFFFFF00 else max(at + 8 + length - size, 0)
        at += 8 + length + length % 2
    return 0


class Writer:
    """A WAV file of 32-bit floating point, written in blocks; it has its name only when it is whole.

    Args:
        path: The file.
        rate: Samples a second.

    Raises:
        InputError: If it cannot be written.
        MissingExtraError: If soundfile is not installed.
    """

    def __init__(self, path: str | os.PathLike[str], rate: int) -> None:
        soundfile = _soundfile(f"writing {path}")
        self.path = Path(path)
        self._new = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self._stream = self._new.open("w+b")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
        self._file = soundfile.SoundFile(self._stream, "w", rate, 1, "FLOAT", format="WAV")

    def __enter__(self) -> Self:
        return self

    def write(self, samples: NDArray[np.float64]) -> None:
        """Add samples."""
        try:
            self._file.write(samples.astype(np.float32))
        except (OSError, RuntimeError) as error:
            raise InputError(f"{self.path} cannot be written: {error}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._stream.close()
        if kind is None:
            os.replace(self._new, self.path)
        else:
            self._new.unlink(missing_ok=True)
