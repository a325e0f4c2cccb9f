"""Where commands print tables and progress: rich's console, but for a reader that goes away."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from typing import NoReturn

import rich.console
from rich.table import Table

__all__ = ["Console", "aligned", "counted"]


class Console(rich.console.Console):
    """Rich's console; where nobody reads it any more, the command hears of it as it does after a plain print."""

    def show(self, table: Table) -> None:
        """Print a table; where no terminal is, as plain lines, of which a program gets all: no frame, no cut."""
        if self.is_terminal:
            self.print(table)
            return
        columns = [[str(column.header), *map(str, column.cells)] for column in table.columns]
        rows = [[", ".join(cell.splitlines()) for cell in row] for row in zip(*columns, strict=True)]
        print(table.title, *aligned(rows), sep="\n", file=self.file)

    def say(self, line: str) -> None:
        """Print a line as it is; a terminal breaks it between words."""
        self.print(line, soft_wrap=not self.is_terminal, markup=False, highlight=False)

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


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, its cells below each other and two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line}".rstrip() for line in lines]


def counted(number: int, what: str) -> str:
    """A number of things: ``counted(1, "word")`` is 1 word, and 2 are 2 words."""
    return f"{number} {what}{'s' * (number != 1)}"
