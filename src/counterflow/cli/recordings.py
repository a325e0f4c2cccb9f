"""Recordings as people have them: in a folder for each name, all of one rate, none of them silent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from counterflow.exceptions import DataError, InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["in_folders", "require_heard"]

SOUNDS = (".wav", ".flac")


def in_folders(folder: Path, name: str, *, least: int) -> tuple[list[Path], list[str]]:
    """The files of a folder that holds a folder for each name, and their names, in order.

    Args:
        folder: Where they are.
        name: What a folder's name names, such as ``"speaker"``.
        least: How many names there have to be.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; it should hold a folder for each {name}")
    try:
        places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        # What begins with a dot is no recording: macOS puts a ._name beside each file on a disk of another system.
        found = {
            path.name: sorted(f for f in path.iterdir() if f.suffix.lower() in SOUNDS and not f.name.startswith("."))
            for path in places
        }
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    for each, files in found.items():
        if not files:
            raise InputError(f"{folder / each} holds no {' or '.join(SOUNDS)} file; add some or remove it")
    if len(found) < least:
        many = f"{len(found)} folder{'s' * (len(found) != 1)} of {name}s"
        raise InputError(f"{folder} holds {many}; {least} or more are needed")
    pairs = [(file, each) for each, files in found.items() for file in files]
    return [file for file, _ in pairs], [each for _, each in pairs]


def require_heard(file: Path, wave: Tensor, rate: int, wanted: int, whose: object, shortest: float) -> None:
    """Raise DataError for a recording of another rate, without sound, or too short.

    Args:
        file: It is named by the error.
        wave: Its samples.
        rate: Its samples a second.
        wanted: What they have to be,
        whose: because this has as many.
        shortest: How many seconds it has to last.
    """
    if rate != wanted:
        raise DataError(f"{file} has {rate} samples a second, and {whose} has {wanted}; resample it")
    from counterflow.audio.files import is_silent

    if is_silent(wave):
        raise DataError(f"{file} is silent; leave it out, or record it louder")
    if len(wave) < shortest * rate:
        raise DataError(f"{file} lasts {len(wave) / rate:.3f} s; {shortest} s is the least")
