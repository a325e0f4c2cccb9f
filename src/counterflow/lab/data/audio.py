"""Audio files as arrays of 16-bit samples."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from counterflow.exceptions import DataError, MissingExtraError

__all__ = ["read_audio"]


def read_audio(source: Path | bytes, rate: int, *, called: str = "") -> NDArray[np.int16]:
    """Read a FLAC, WAV or SPHERE file of one channel.

    Args:
        source: The file, or its content.
        rate: The samples a second that it must have.
        called: What it is called in messages; the path if not given.

    Returns:
        Shape (samples,), int16.

    Raises:
        DataError: It cannot be read, or has another rate or several channels.
        MissingExtraError: soundfile is not installed.
    """
    from counterflow.audio.files import read_frames  # late: it loads torch, which the lists of data sets do without

    called = called or str(source)
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, and its library is not
        raise MissingExtraError("audio", f"reading {called}") from error
    try:
        stream = io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
        with soundfile.SoundFile(stream) as file:
            samples, found = read_frames(file, file.frames, "int16"), file.samplerate
    except OSError as error:
        raise DataError(f"{called} cannot be read: {error.strerror}") from error
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        reason = getattr(error, "error_string", str(error)).splitlines()[0]
        raise DataError(f"{called} cannot be read as audio: {reason}") from error
    if found != rate or len(samples) != 1:
        raise DataError(f"{called} has {found} samples a second and {len(samples)} channels: {rate} and 1 are needed")
    return np.asarray(samples[0], np.int16)
