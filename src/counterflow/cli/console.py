"""Where commands print tables and progress: rich's console, but for a reader that goes away."""

from __future__ import annotations

import errno
import os
import threading
from typing import NoReturn

import rich.console

__all__ = ["Console"]


class Console(rich.console.Console):
    """Rich's console; where nobody reads it any more, the command hears of it as it does after a plain print."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise what `counterflow.cli.main` waits for; rich would exit with 1, which here means a fault.

        Raises:
            BrokenPipeError: Always in the main thread.
            SystemExit: In the thread that draws a live table, which ends without a word: the command's next line
                fails too, and tells.
        """
        if threading.current_thread() is not threading.main_thread():
            raise SystemExit
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
