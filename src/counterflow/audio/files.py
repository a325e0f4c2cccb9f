"""Audio files as tensors."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from counterflow.exceptions import DataError, MissingExtraError

__all__ = ["read"]


def read(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """Read a WAV, FLAC or other file that soundfile knows; several channels are averaged.

    Args:
        path: The file.

    Returns:
        The samples (samples,) in [-1, 1], float32, and the rate in hertz.

    Raises:
        DataError: If it cannot be read, or holds no sound.
        MissingExtraError: If soundfile is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, and its library is not
        raise MissingExtraError("audio", f"reading {path}") from error
    try:
        with Path(path).open("rb") as stream:
            samples, rate = soundfile.read(stream, dtype="float32", always_2d=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (soundfile.SoundFileError, TypeError, ValueError) as error:
        reason = getattr(error, "error_string", str(error)).splitlines()[0]
        raise DataError(f"{path} cannot be read as audio: {reason}") from error
    if not len(samples):
        raise DataError(f"{path} holds no samples; leave it out")
    wave = torch.from_numpy(samples).mean(1)
    if not bool(wave.isfinite().all()):
        raise DataError(f"{path} holds samples that are not finite; leave it out")
    return wave, int(rate)
