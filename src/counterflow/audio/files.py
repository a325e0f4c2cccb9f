"""Audio files as tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterflow.exceptions import DataError, MissingExtraError

__all__ = ["read", "read_channels", "write"]


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
    wave, rate = read_channels(path)
    return wave.mean(0), rate


def read_channels(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """Read a file with its channels apart.

    Args:
        path: The file.

    Returns:
        The samples (channels, samples) in [-1, 1], float32, and the rate in hertz.

    Raises:
        DataError: If it cannot be read, or holds no sound.
        MissingExtraError: If soundfile is not installed.
    """
    soundfile = _soundfile(f"reading {path}")
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
    wave = torch.from_numpy(samples.T.copy())
    if not bool(wave.isfinite().all()):
        raise DataError(f"{path} holds samples that are not finite; leave it out")
    return wave, int(rate)


def write(path: str | os.PathLike[str], wave: Tensor, rate: int) -> None:
    """Write a WAV file of 32-bit floats, under another name first, which is then renamed.

    Args:
        path: The file.
        wave: Shape (samples,) or (channels, samples).
        rate: Samples a second.

    Raises:
        DataError: If it cannot be written.
        MissingExtraError: If soundfile is not installed.
    """
    soundfile = _soundfile(f"writing {path}")
    target = Path(path)
    new = target.with_name(f".{target.name}.{os.getpid()}")
    samples = wave.detach().cpu().float().numpy()
    try:
        with new.open("wb") as stream:
            soundfile.write(stream, samples.T, rate, format="WAV", subtype="FLOAT")
        os.replace(new, target)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def _soundfile(purpose: str) -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package is there, and its library is not
        raise MissingExtraError("audio", purpose) from error
    return soundfile
