"""Whether a forward pass runs again what has run before: for what counts forward passes.

Within a backward pass it does, as checkpointing and a memory budget have it. What runs again before one says so by
`running_again`, which the thread of the forward pass alone sees.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

__all__ = ["running_again", "runs_again"]


class _Here(threading.local):
    again = False


_here = _Here()


@contextlib.contextmanager
def running_again() -> Iterator[None]:
    """Say that what runs within has run before, on the same inputs."""
    before, _here.again = _here.again, True
    try:
        yield
    finally:
        _here.again = before


def runs_again() -> bool:
    """Whether what runs now has run before; False in compiled code, which cannot know."""
    return not torch.compiler.is_compiling() and (_here.again or torch._C._current_graph_task_id() != -1)
