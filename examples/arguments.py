"""What the examples share that are run with arguments: wrong ones end in one line and exit status 2."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

from counterflow.exceptions import CounterflowError

__all__ = ["run"]


def run(main: Callable[..., Any], arguments: Sequence[str] | None = None) -> None:
    """Call an example with what was typed, where each argument whose default is a number has to be a whole one.

    Args:
        main: The example.
        arguments: ``sys.argv[1:]`` by default.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    wanted = list(inspect.signature(main).parameters.values())
    usage = " ".join(f"[{parameter.name}]" for parameter in wanted)
    if len(typed) > len(wanted):
        _refuse(f"takes {usage}, got {len(typed)} arguments")
    values: list[str | int] = []
    for parameter, word in zip(wanted, typed, strict=False):
        if isinstance(parameter.default, int):
            if not word.isdecimal() or int(word) < 1:
                _refuse(f"{parameter.name} {word}: it has to be a whole number from 1 on; it takes {usage}")
            values.append(int(word))
        else:
            values.append(word)
    try:
        main(*values)
    except CounterflowError as error:
        _refuse(str(error))


def _refuse(why: str) -> None:
    print(f"{sys.argv[0]}: {why}", file=sys.stderr)
    raise SystemExit(2)
