"""What the command line says of itself."""

from __future__ import annotations

import contextlib
import io
import os
import textwrap

from counterflow import cli

WIDTH = 104


def command_help(verb: str) -> str:
    """What ``counterflow VERB --help`` prints."""
    arguments = ["--help"] if verb == "counterflow" else [verb, "--help"]
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            cli.main(arguments)
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return ".. code-block:: text\n\n" + textwrap.indent(printed.getvalue().rstrip("\n"), "   ")


def commands() -> str:
    """A section a verb, with its help."""
    sections = []
    for verb in cli.VERBS:
        title = f"``counterflow {verb}``"
        sections.append(f"{title}\n{'-' * len(title)}\n\n{command_help(verb)}")
    return "\n\n".join(sections)
