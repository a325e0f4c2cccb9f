"""Giving freed memory back to the system, so that a long sequence stays within its budget there too.

What a plan stores lies between what steps need for a moment. After some ten thousand steps the C library's heap is full
of holes that no state of the next kind fits into: it holds what the plan says, and as much again that is free but still
resident. glibc gives such holes back on request.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["Ceiling"]

_MEBI = 2**20
# Looking costs microseconds, giving back milliseconds; what is promised is 32 MiB beyond the budget.
_SPARE = 8 * _MEBI
_EVERY = 8 * _MEBI
_STATM = Path("/proc/self/statm")


class Ceiling:
    """Watches resident memory from now on, and gives back what is free where it has grown above a budget.

    Args:
        budget: Bytes; None watches nothing, as does a system without ``/proc`` or without ``malloc_trim``.
        size: Bytes that a step takes or frees.
    """

    def __init__(self, budget: int | None, size: int) -> None:
        self._trim = _trim() if budget is not None else None
        self._limit = 0 if self._trim is None else _resident() + (budget or 0) + _SPARE
        self._size, self._since = size, 0

    def step(self) -> None:
        """Call this after a step that was stored, or whose memory has been freed."""
        if self._trim is None:
            return
        self._since += self._size
        if self._since < _EVERY:
            return
        self._since = 0
        if _resident() > self._limit:
            self._trim(0)


def _resident() -> int:
    """This process's own memory; mapped files are not counted."""
    _, resident, shared, *_ = map(int, _STATM.read_bytes().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if not _STATM.exists():
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return None
