"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write instead of another, whose name it gets when the block ends; not so where an error ends it.

    Args:
        path: The file that is replaced, or made.

    Yields:
        A name beside it, with its suffix. Nothing is left there.

    Raises:
        OSError: If the file cannot be renamed; and what the block raises.

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
    new = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
