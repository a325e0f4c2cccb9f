"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["beside", "is_special", "replacing", "write_whole"]


def beside(path: Path) -> Path:
    """The name under which a file is written before it gets its own: in the same folder, with the same suffix.

    No other writer has that name, be it a thread, or a process on another machine of a shared folder.

    Example:
        >>> name = beside(Path("runs/report.html"))
        >>> name.parent == Path("runs"), name.suffix, name == beside(Path("runs/report.html"))
        (True, '.html', False)
    """
    return path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")


def is_special(path: Path) -> bool:
    """Whether there is a pipe or a device, such as ``/dev/null``: it is written to, and never replaced by a file.

    Example:
        >>> import os
        >>> is_special(Path(os.devnull)), is_special(Path(__file__))
        (True, False)
    """
    return path.exists() and not path.is_file() and not path.is_dir()


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is there whole or not at all; where the path is a link, what it leads to.

    Args:
        path: The file, or a pipe or device, which is written to as it is.
        content: What it holds from then on.

    Raises:
        OSError: If it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "note.txt", b"whole")
        ...     (Path(folder) / "note.txt").read_bytes()
        b'whole'
    """
    if is_special(path):
        path.write_bytes(content)
        return
    with replacing(path.resolve()) as new:
        new.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write instead of another, whose name it gets when the block ends; not so where an error ends it.

    Args:
        path: The file that is replaced, or made.

    Yields:
        A name beside it, with its suffix. Nothing is left there.

    Raises:
        OSError: If the file cannot be flushed or renamed; and what the block raises.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "table.csv"
        ...     with replacing(target) as new:
        ...         _ = new.write_text("word,count")
        ...         there = target.exists()
        ...     there, target.read_text()
        (False, 'word,count')
    """
    new = beside(path)
    try:
        yield new
        with new.open("rb+") as stream:  # on the disk before it has the name, in case the machine stops
            os.fsync(stream.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
