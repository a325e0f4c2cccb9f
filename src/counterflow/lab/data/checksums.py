"""Checksums of files and of arrays."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from counterflow.exceptions import ChecksumError, DataError

if TYPE_CHECKING:
    from counterflow.lab.data.entry import Form

__all__ = [
    "Loaded",
    "arrays_sha256",
    "file_sha256",
    "files_sha256",
    "json_array",
    "remembered_sha256",
    "verified",
    "verify_arrays",
    "verify_file",
]


class Loaded(Protocol):
    """What a loader returns."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, as what the checksum is taken of."""


_Loaded = TypeVar("_Loaded", bound=Loaded)

_SHOWN = 12  # digits of a checksum in a message: enough to tell two apart, few enough to read


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def remembered_sha256(path: Path) -> str:
    """A file's SHA-256, computed once in this process for as long as the file's size and time stay the same.

    Of a publisher's archive it is wanted for every trial that reads it, and takes seconds.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return _sha256_in_state(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_in_state(path: Path, *state: int) -> str:
    return file_sha256(path)


def arrays_sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The SHA-256 of named arrays: names, types, shapes and values.

    It does not depend on the order of the names, on memory layout or on the machine's byte order.

    Args:
        arrays: The arrays by name.

    Returns:
        64 hex digits.

    Example:
        >>> arrays_sha256({"a": np.arange(3, dtype=np.int64)})[:12]
        '3dd482d16a20'
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def files_sha256(format: str, sha256s: Iterable[str]) -> str:
    """One checksum for a form whose content is known only through its files.

    Args:
        format: How the files are read.
        sha256s: The files' checksums, in the form's order.

    Returns:
        64 hex digits.
    """
    return hashlib.sha256("\n".join([format, *sha256s]).encode()).hexdigest()


def json_array(value: object) -> NDArray[np.uint8]:
    """Names, texts and numbers as an array of which a checksum can be taken: their JSON, as UTF-8."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return np.frombuffer(text.encode(), np.uint8)


def verified(name: str, data: _Loaded, form: Form) -> _Loaded:
    """What was loaded, its arrays made read-only, refused if its content is not the one in the catalog.

    Args:
        name: The data set, for the message.
        data: What was loaded.
        form: The form it was read from.

    Raises:
        ChecksumError: Its arrays have another checksum than the form.
    """
    arrays = data.arrays()
    if form.sha256:
        verify_arrays(name, arrays, form.sha256)
    for array in arrays.values():
        array.flags.writeable = False
    return data


def verify_file(path: Path, sha256: str) -> None:
    """Refuse a file whose checksum is not the expected one.

    Args:
        path: The file.
        sha256: The expected checksum.

    Raises:
        ChecksumError: It is another one.
        DataError: The file cannot be read.
    """
    found = file_sha256(path)
    if found != sha256:
        raise ChecksumError(
            f"{path} is damaged or not what was published: its sha256 begins with {found[:_SHOWN]}, "
            f"not with {sha256[:_SHOWN]}; delete it or replace it"
        )


def verify_arrays(name: str, arrays: Mapping[str, NDArray[Any]], sha256: str) -> None:
    """Refuse arrays whose checksum is not the expected one.

    Args:
        name: The data set, for the message.
        arrays: The arrays by name.
        sha256: The expected checksum.

    Raises:
        ChecksumError: It is another one.
    """
    found = arrays_sha256(arrays)
    if found != sha256:
        raise ChecksumError(
            f"the data set {name} is not the one in the catalog: the sha256 of its arrays begins with "
            f"{found[:_SHOWN]}, not with {sha256[:_SHOWN]}"
        )
