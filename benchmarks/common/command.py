"""What the benchmarks' commands share: options that are checked before hours of measuring, and errors in one line."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

from counterflow.exceptions import CounterflowError


def output(text: str) -> Path:
    """The type of an option that names a file to write."""
    if text == "-":
        raise argparse.ArgumentTypeError("standard output has the table, so - cannot be it; name a file")
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}; make it first")
    return path


def folder(text: str) -> Path:
    """The type of an option that names a folder to write into."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}; make it first")
    return path


def positive(text: str) -> int:
    """The type of an option that counts something."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"it must be a whole number of at least 1, got {text}")
    return number


def duration(text: str) -> float:
    """The type of an option that is a time in seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"it must be a number of seconds of at least 0, got {text}")
    return seconds


def status_of(main: Callable[[], int]) -> int:
    """A script's exit status; what the user can mend is one line and 2."""
    try:
        return main()
    except CounterflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
