"""``counterflow completion``: what makes a shell complete the commands and their options."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Annotated, Literal

import tyro

from counterflow.exceptions import MissingExtraError

__all__ = ["completion_command"]


def completion_command(shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional], /) -> int:
    """Print a script that makes a shell complete commands, options and their choices.

    For example:

        counterflow completion bash > ~/.local/share/bash-completion/completions/counterflow
        counterflow completion zsh > ~/.zfunc/_counterflow
        counterflow completion fish > ~/.config/fish/completions/counterflow.fish

    Args:
        shell: The shell that is meant.

    Returns:
        The exit status, 0.
    """
    from counterflow.cli import VERBS
    from counterflow.cli.help import REGISTRY, documented

    functions = {}
    for verb, entry in VERBS.items():
        with contextlib.suppress(MissingExtraError):  # a command that cannot run here needs no completion
            functions[verb] = documented(
                getattr(importlib.import_module(f"counterflow.cli.{entry.module}"), entry.function)
            )
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            functions, prog="counterflow", args=["--tyro-print-completion", shell], registry=REGISTRY
        )
    print(script.getvalue(), end="")
    return 0
