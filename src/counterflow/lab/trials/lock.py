"""Locks on a trial's folder, which the system opens when the process that holds them is gone, however it went.

``<out>/<paper>/<key>.part`` holds a trial's checkpoint. The run that the trial belongs to locks the file ``.run``
in it, so that two runs in one folder of runs share the work; the worker that is at it locks ``.worker``, so that a
worker which outlived its own run (a dask worker does) and one of the next run never write the same checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from counterflow.lab.trials.record import temporary_name

__all__ = ["discard", "let_go", "take"]


def take(folder: Path, name: str) -> int | None:
    """Lock a file of this name in a folder; both are made if they are not there.

    Where the file system knows no locks, everybody gets one.

    Args:
        folder: The folder.
        name: The file's name.

    Returns:
        What `let_go` wants, or ``None`` where somebody else has the lock.

    Raises:
        OSError: The folder or the file cannot be made.
    """
    path = folder / name
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder has just been discarded
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:
            return lock
        try:
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)  # it belongs to a folder that has been discarded since


def let_go(lock: int) -> None:
    """Open a lock that `take` gave."""
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_UN)  # closing would leave it to a forked child that has the file open
    os.close(lock)


def discard(folder: Path) -> None:
    """Remove a folder at one stroke for everybody who looks for it, with the locks in it."""
    aside = temporary_name(folder)
    try:
        os.rename(folder, aside)
    except OSError:
        return  # it is gone already, or nothing can be written; then writing the record has said so
    shutil.rmtree(aside, ignore_errors=True)
