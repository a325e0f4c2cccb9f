"""Reading publishers' archives, zip and tar, in memory: nothing is unpacked to disk."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from counterflow.exceptions import DataError

__all__ = ["archive_members"]

LARGEST = 64 * 2**20
"""Bytes in the largest member that is read: a zip of a few kilobytes can unpack to gigabytes."""


def archive_members(path: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The wanted files of an archive, in its order, one at a time.

    Args:
        path: A zip file, or a tar file with any compression.
        wanted: Whether to read the file of this name.

    Yields:
        Names in the archive, and contents.

    Raises:
        DataError: It cannot be read, or a wanted file is larger than any in a data set.
    """
    read = _zip_members if path.suffix == ".zip" else _tar_members
    try:
        yield from read(path, wanted)
    except (
        OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, zlib.error, lzma.LZMAError,
    ) as error:  # fmt: skip
        reason = str(error).partition("\n")[0].rstrip(":")  # tarfile lists what it tried, a line each
        raise DataError(f"{path} cannot be read as an archive: {reason}") from error


def _zip_members(path: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename)
            if not info.is_dir() and _meant(name) and wanted(name):
                _require_size(path, name, info.file_size)
                try:
                    yield name, archive.read(info)
                except (RuntimeError, NotImplementedError) as error:  # a password, an unknown compression
                    raise DataError(f"{path} cannot be read as an archive: {error}") from error


def _tar_members(path: Path, wanted: Callable[[PurePosixPath], bool]) -> Iterator[tuple[PurePosixPath, bytes]]:
    with tarfile.open(path) as archive:
        for info in archive:
            name = PurePosixPath(info.name)
            if info.isreg() and _meant(name) and wanted(name):
                _require_size(path, name, info.size)
                stream = archive.extractfile(info)
                assert stream is not None  # it is a regular file
                yield name, stream.read()


def _meant(name: PurePosixPath) -> bool:
    """Whether it is a file of the publisher's; macOS adds one named ``._x`` beside each ``x``."""
    return not name.name.startswith("._") and "__MACOSX" not in name.parts


def _require_size(path: Path, name: PurePosixPath, size: int) -> None:
    if size > LARGEST:
        raise DataError(f"{path} is not what its publisher released: its file {name} has {size:,} bytes")
