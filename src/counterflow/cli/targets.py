"""Files that a command was told to write: whether they can be is found out before the work, and they appear whole."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from counterflow.exceptions import InputError
from counterflow.files import is_special, write_whole
from counterflow.pictures import PICTURES, require_picture

__all__ = [
    "json_file",
    "require_apart",
    "require_folder",
    "require_json",
    "require_model",
    "require_plot",
    "require_seed",
    "require_target",
    "require_unread",
    "write_json",
    "write_target",
]


def require_target(name: str, path: Path | None, suffixes: tuple[str, ...] | None = None) -> None:
    """Find out before the work that the file of an option cannot be written.

    Args:
        name: The option.
        path: The file; None if there is none.
        suffixes: Which its name may have; any if not given, and for ``plot`` those of pictures.
    """
    if path is None:
        return
    if path.is_dir():
        standard = ", or - for standard output" if name == "json" else ""
        raise InputError(f"--{name} {path}: this is a folder; name a file in it{standard}")
    allowed = suffixes or (PICTURES if name == "plot" else None)
    if allowed and path.suffix.lower() not in allowed:
        raise InputError(f"--{name} {path}: the suffix has to be {' or '.join(allowed)}")
    if is_special(path):
        return
    if not path.parent.is_dir():
        raise InputError(f"--{name} {path}: there is no folder {path.parent}; make it first")
    folder = path.resolve().parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--{name} {path}: {folder} cannot be written: {error.strerror or error}") from error


def require_apart(targets: Iterable[tuple[str, Path | None]]) -> None:
    """Find out before the work that two options name one file, in which the second would take the first one's place.

    Neither may one be named after a folder that another's file will be in: where it is not there yet, it would be made
    in the course of the work.

    Args:
        targets: Options and their files; an option may have several, and a pipe or a device may be named twice.
    """
    written: dict[Path, str] = {}
    for option, path in targets:
        if path is None or is_special(path):
            continue
        first = written.setdefault(path.resolve(), option)
        if first != option:
            raise InputError(f"--{first} and --{option} both name {path}; give each a file of its own")
    for path, option in written.items():
        for folder in path.parents:
            other = written.get(folder, option)
            if other != option:
                raise InputError(f"--{other} {folder}: --{option} makes a folder of that name; name a file")


def require_unread(targets: Iterable[tuple[str, Path | None]], read: Iterable[Path]) -> None:
    """Find out before the work that the file of an option is one of those that are read, and would take its place.

    Args:
        targets: Options and their files; pipes and devices may be both read and written.
        read: All that is read, asked for only if a target is there already.
    """
    there = [(name, path, _identity(path)) for name, path in targets if path is not None and path.is_file()]
    if there:
        sources = {_identity(path) for path in read}
        for name, path, identity in there:
            if identity is not None and identity in sources:
                raise InputError(f"--{name} {path}: this is what is read; name another file")


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from others, whatever it is called; None if it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def require_folder(path: Path, name: str = "out") -> None:
    """Find out before the work that the folder of an option cannot be made or written; it is not made yet."""
    if path.is_file():
        raise InputError(f"--{name} {path}: this is a file; name a folder")
    place = path.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise InputError(f"--{name} {path}: {place} cannot be written: {error.strerror or error}") from error


def require_model(out: Path, kind: str, json: str | None, *more: Path) -> None:
    """Find out before the work that a model cannot be written to ``--out``, or would destroy one of another kind.

    Args:
        out: Its folder.
        kind: What it is.
        json: What ``--json`` names, which must not be one of its files.
        more: Files that are written there beside the model's own.
    """
    from counterflow.persist import model_files, require_kind  # it loads torch

    require_folder(out)
    require_apart([("json", json_file(json)), *(("out", path) for path in (*model_files(out), *more))])
    try:
        require_kind(out, kind)
    except InputError as error:
        raise InputError(f"--out {error}") from None


def json_file(target: str | None) -> Path | None:
    """The file that ``--json`` names; None without one, and for ``-``, standard output."""
    return None if target in (None, "-") else Path(str(target))


def require_json(target: str | None) -> None:
    """Find out before the work that ``--json`` names what cannot be written; ``-`` is standard output."""
    require_target("json", json_file(target))


def require_plot(path: Path | None, doing: str) -> None:
    """Find out before the work that ``--plot`` names what cannot be written, or that matplotlib is not installed.

    Args:
        path: The file; None if there is none.
        doing: What matplotlib is needed for.
    """
    require_target("plot", path)
    if path is not None:
        require_picture(path, doing)


def require_seed(seed: int | None) -> None:
    """Find out before the work that ``--seed`` is a number that all generators take."""
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: it has to be from 0 to 2^63 - 1")


def write_json(target: str, answer: object) -> None:
    """Write what ``--json`` asked for; a number that is not finite would be no JSON."""
    text = json.dumps(answer, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_target(Path(target), text.encode())


def write_target(path: Path, content: bytes, name: str = "json") -> None:
    """Write what an option asked for, by `write_whole`."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise InputError(f"--{name} {path}: it cannot be written: {error.strerror or error}") from error
