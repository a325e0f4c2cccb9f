"""Where numba keeps what it has compiled."""

from __future__ import annotations

import contextlib
import os
import stat
import sys

__all__: list[str] = []


def require_place() -> None:
    """Give numba a folder where it would find none, and refuse to define a function that is to be kept.

    It looks beside each module and then in the user's cache; in a container whose root is read-only and whose user has
    no home, neither can be written. The folder is one of the user's own among the temporary ones. Who sets
    ``NUMBA_CACHE_DIR`` is left alone; where there is no temporary folder either, numba will say so.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    with os.scandir(os.path.dirname(__file__)) as entries:
        if all(_writable(os.path.join(each.path, "__pycache__")) for each in entries if each.is_dir()):
            return
    home = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "numba")
    if _writable(home):
        return
    with contextlib.suppress(OSError):
        os.environ["NUMBA_CACHE_DIR"] = folder = _private()
        if "numba" in sys.modules:  # it has read the environment already
            sys.modules["numba"].config.CACHE_DIR = folder


def _writable(folder: str) -> bool:
    """Whether a folder can be written; where it is not there, the nearest above, in which it would be made."""
    place = folder
    while not os.path.lexists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)


def _private() -> str:
    """A folder that nobody else can write: what is in it will be executed."""
    import tempfile

    if hasattr(os, "getuid"):
        folder = os.path.join(tempfile.gettempdir(), f"counterflow-{os.getuid()}")
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            return folder
    return tempfile.mkdtemp(prefix="counterflow-")
