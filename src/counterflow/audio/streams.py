"""Audio files of any length, block by block."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from counterflow.audio.files import load_soundfile, opened
from counterflow.exceptions import DataError, InputError
from counterflow.files import beside, is_special

__all__ = ["Recording", "Writer"]


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

    Example:
        >>> import torch
        >>> from counterflow.audio import write
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(f"{folder}/tone.wav", torch.arange(3000.0).sin(), 8000)
        ...     [len(block) for block in Recording.open(f"{folder}/tone.wav").blocks(2000)]
        [2000, 1000]
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
        with opened(path) as file:
            rate, frames, channels, subtype = file.samplerate, file.frames, file.channels, file.subtype
        if not frames:
            raise DataError(f"{path} holds no samples; leave it out")
        bits = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}.get(subtype, 0)
        return cls(
            Path(path),
            int(rate),
            int(frames),
            int(channels),
            bits > 0,
            2.0 ** (1 - bits) if bits else 0.0,
        )

    def blocks(self, size: int = 65536) -> Iterator[NDArray[np.float64]]:
        """The mean of its channels in [-1, 1], ``size`` samples at a time.

        Raises:
            DataError: If it ends before its end, or a sample is not finite.
        """
        for block in self.blocks_apart(size):
            yield block.mean(1)

    def blocks_apart(self, size: int = 65536) -> Iterator[NDArray[np.float64]]:
        """Its channels in [-1, 1], ``size`` samples at a time, shape (samples, channels).

        Raises:
            DataError: If it ends before its end, or a sample is not finite.
        """
        soundfile = load_soundfile(f"reading {self.path}")
        found = 0
        try:
            with self.path.open("rb") as stream, soundfile.SoundFile(stream) as file:
                while True:
                    block = file.read(size, dtype="float64", always_2d=True)
                    if not len(block):
                        break
                    bad = np.argwhere(~np.isfinite(block))
                    if len(bad):
                        value = block[tuple(bad[0])]
                        raise DataError(f"{self.path}: sample {found + bad[0, 0]} is {value}; mend the recording")
                    found += len(block)
                    yield block
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
        except soundfile.SoundFileError as error:
            reason = str(getattr(error, "error_string", str(error))).splitlines()[0]
            raise DataError(f"{self.path} is damaged after {found} samples: {reason}") from error
        if found < self.frames:
            raise DataError(f"{self.path} is truncated: it has {found} of {self.frames} samples; copy it again")

    def read(self) -> NDArray[np.float64]:
        """All samples at once, the mean of channels."""
        return np.concatenate([*self.blocks()])


class _Noting:
    """A file that keeps its first error: soundfile's callbacks print one, and go on as if nothing had been."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def _done(self, call: Callable[[], int], otherwise: int) -> int:
        try:
            return call()
        except OSError as error:
            self.error = self.error or error
            return otherwise

    def write(self, data: bytes) -> int:
        return self._done(lambda: self._file.write(data), len(data))

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self._done(lambda: self._file.seek(place, whence), 0)

    def tell(self) -> int:
        return self._done(self._file.tell, 0)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        def close() -> int:
            self._file.close()
            return 0

        self._done(close, 0)


class Writer:
    """A WAV file of 32-bit floating point, written in blocks; it has its name only when it is whole.

    The header is written last, which a pipe or a device does not allow: it gets all at the end.

    Args:
        path: The file; where it is a link, what that leads to is replaced.
        rate: Samples a second.

    Raises:
        InputError: If it cannot be written, or the rate is none; also later, where a disk becomes full.
        MissingExtraError: If soundfile is not installed.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Writer(f"{folder}/long.wav", 8000) as file:
        ...         for block in range(3):
        ...             file.write(np.full(1000, block / 4))
        ...     Recording.open(f"{folder}/long.wav").frames
        3000
    """

    def __init__(self, path: str | os.PathLike[str], rate: int) -> None:
        soundfile = load_soundfile(f"writing {path}")
        if not rate >= 1:
            raise InputError(f"{path} cannot be written at {rate} Hz; it has to be 1 or more")
        self.path = Path(path)
        self._target = self.path.resolve()
        self._new = None if is_special(self.path) else beside(self._target)
        try:
            self._held: IO[bytes] = tempfile.TemporaryFile() if self._new is None else self._new.open("w+b")  # noqa: SIM115
            self._stream = _Noting(self._held)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
        self._file = soundfile.SoundFile(self._stream, "w", rate, 1, "FLOAT", format="WAV")

    def __enter__(self) -> Self:
        return self

    def write(self, samples: NDArray[np.float64]) -> None:
        """Add samples."""
        self._file.write(samples.astype(np.float32))
        self._require_written()

    def _require_written(self) -> None:
        error = self._stream.error
        if error is not None:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None and self._new is None:
                self._require_written()
                self._held.seek(0)
                with self.path.open("wb") as pipe:
                    shutil.copyfileobj(self._held, pipe)
            self._stream.close()
            if kind is None and self._new is not None:
                self._require_written()
                os.replace(self._new, self._target)
        except OSError as problem:
            raise InputError(f"{self.path} cannot be written: {problem.strerror or problem}") from problem
        finally:
            if self._new is not None:
                self._new.unlink(missing_ok=True)  # where it has its name, it is no longer there
