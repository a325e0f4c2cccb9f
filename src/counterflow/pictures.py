"""Writing a picture with matplotlib: what is found out before the work, and a file that is whole or not there."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import Any

from counterflow.exceptions import InputError, MissingExtraError
from counterflow.files import write_whole

__all__ = ["PICTURES", "require_picture", "write_picture"]

PICTURES = (".png", ".svg", ".pdf", ".eps", ".jpg", ".jpeg")


def require_picture(path: str | PathLike[str], doing: str) -> Path:
    """Find out before the work that a picture can be written.

    Args:
        path: The file; its suffix, one of ``PICTURES``, says what kind of picture.
        doing: What matplotlib is needed for.

    Returns:
        The file.

    Raises:
        InputError: If there is no such folder, or the suffix is none of a picture.
        MissingExtraError: If matplotlib is not installed.

    Example:
        >>> require_picture("error.png", "plot").name
        'error.png'
        >>> require_picture("error.txt", "plot")
        Traceback (most recent call last):
        counterflow.exceptions.InputError: cannot write 'error.txt': its suffix must be .png or .svg or .pdf ...
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"cannot write {str(target)!r}: there is no folder {str(target.parent)!r}; make it first")
    if target.is_dir():
        raise InputError(f"cannot write {str(target)!r}: it is a folder; name a file in it")
    if target.suffix.lower() not in PICTURES:
        raise InputError(f"cannot write {str(target)!r}: its suffix must be {' or '.join(PICTURES)}")
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("plot", doing) from None
    return target


def write_picture(figure: Any, target: Path, dpi: int) -> None:
    r"""Draw a figure, and write it by `counterflow.files.write_whole`.

    Args:
        figure: A figure of matplotlib.
        target: What `require_picture` has found good.
        dpi: Dots an inch.

    Raises:
        InputError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = require_picture(Path(folder) / "empty.png", "plot")
        ...     write_picture(Figure(figsize=(1, 1)), target, dpi=50)
        ...     target.read_bytes()[:4]
        b'\x89PNG'
    """
    try:
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=dpi, format=target.suffix[1:].lower())
        write_whole(target, drawn.getbuffer())
    except OSError as error:
        raise InputError(f"cannot write {str(target)!r}: {error.strerror or error}") from None
