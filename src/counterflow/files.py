"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["beside", "replacing"]


def beside(path: Path) -> Path:
    """The name under which a file is written before it gets its own: in the same folder, with the same suffix.

    No other writer has that name, be it a thread, or a process on another machine of a shared folder.
    """
    return path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")


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
