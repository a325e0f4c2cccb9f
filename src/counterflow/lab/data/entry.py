"""What the catalog says of a data set: the set, the forms in which it comes, and their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from counterflow.lab.data.checksums import files_sha256

__all__ = ["DataSet", "File", "Form", "Provision"]

Provision = Literal["generated", "package scikit-learn", "files"]


@dataclass(frozen=True)
class File:
    """One file of a data set.

    Args:
        path: Where it lies below a data folder, with forward slashes, such as ``"mnist/mnist.npz"``.
        sha256: The checksum of its bytes, 64 hex digits; empty if neither its publisher nor we know one.
        size: Bytes; 0 if it is not known.
        urls: Where it can be downloaded, the publisher's or mirrors of the same bytes, tried in order;
            empty if it can only be put there by hand.
    """

    path: str
    sha256: str
    size: int
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """One form in which a data set comes: repacked, or the files of its publisher.

    Args:
        format: How the files are read, in the loader's words, such as ``"npz"``.
        sha256: The checksum of the *content*, the arrays that the loader returns (``arrays_sha256``).
            Forms that hold the same data have the same checksum, whatever their files look like. Empty
            for a publisher's files of which we know no content: then the files' checksums name it.
        files: What it consists of; none if it is generated or part of a package.
        differs: How the content differs from what the publisher released; empty if it does not.
        source: Where a person gets files that are not downloaded by themselves.
    """

    format: str
    sha256: str
    files: tuple[File, ...] = ()
    differs: str = ""
    source: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def downloadable(self) -> bool:
        """Whether each of its files has an address, and a checksum to hold the answer to."""
        return bool(self.files) and all(file.urls and file.sha256 for file in self.files)

    @property
    def identity(self) -> str:
        """What names the content in a record, its checksum or that of its files; empty if a file has none."""
        if self.sha256 or not all(file.sha256 for file in self.files):
            return self.sha256
        return files_sha256(self.format, [file.sha256 for file in self.files])


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Args:
        name: Its key in the catalog.
        title: What it is called.
        description: What it holds, in one sentence.
        splits: Examples in each split of the preferred form; a single ``"all"`` if it has no split of its own.
        license: The license as its publisher states it; if there is none, that is said.
        citation: Whom to cite, in one line.
        publisher: The publisher's page; empty if there is none.
        provided: Where it comes from.
        forms: The forms in which it is read, the preferred one first; at least one.
    """

    name: str
    title: str
    description: str
    splits: Mapping[str, int] = field(hash=False)
    license: str
    citation: str
    publisher: str
    provided: Provision
    forms: tuple[Form, ...]

    @property
    def by_hand(self) -> Form:
        """The form that a person can get, else the preferred one."""
        return next((form for form in self.forms if form.source), self.forms[0])
