"""The command line: one module a verb, each a typed function that tyro turns into options.

A verb's module is imported when the verb is asked for, so that help is quick. What the user can mend
(`counterflow.exceptions.CounterflowError`, everything tyro refuses, and what the machine forbids or has no room
for) ends in one line on standard error and exit status 2; a fault of ours keeps its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import importlib
import importlib.metadata
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from counterflow.exceptions import CounterflowError, InputError

__all__ = ["main"]


class Verb(NamedTuple):
    """Where a verb is, what the first page of help says of it, and under which heading."""

    module: str
    function: str
    group: str
    summary: str


VERBS = {
    "speech": Verb("speech", "speech_command", "sound", "recognize continuous speech, from transcribed recordings"),
    "identify": Verb("identify", "identify_command", "sound", "tell who speaks, from recordings of each speaker"),
    "separate": Verb("separate", "separate_command", "sound", "the sources of a recording with several microphones"),
    "cancel": Verb(
        "cancel", "cancel_command", "sound", "cancel a noise with adaptive controllers, through a loudspeaker"
    ),
    "plan": Verb("plan", "plan_command", "training", "what a memory budget costs a recurrent net in time"),
    "list": Verb("list", "list_command", "evidence", "the methods and the papers that are here, one line each"),
    "reproduce": Verb(
        "reproduce", "reproduce_command", "evidence", "rerun a paper's tables and compare them with the paper"
    ),
    "report": Verb("report", "report_command", "evidence", "write the page of a finished run again, and open it"),
    "data": Verb(
        "data", "data_command", "evidence", "which data sets there are, where they are, whether they are intact"
    ),
    "completion": Verb("completion", "completion_command", "shell", "what makes a shell complete these commands"),
}

GROUPS = {
    "sound": "work with sound",
    "training": "plan a training",
    "evidence": "check the papers",
    "shell": "set up",
}

HELP = """\
usage: counterflow VERB [OPTIONS]

See, shape and combine the error that flows backward through a PyTorch network, and rerun the papers that
its methods come from.
{verbs}

reproduce knows three sizes: smoke (the default: under a minute a paper), laptop (some minutes to some hours a paper
on two cores) and paper (the published size).

examples:
  counterflow speech train DIR --out MODEL             what is said: a folder of recordings and their texts
  counterflow identify train DIR --out MODEL           who speaks: a folder of recordings a speaker
  counterflow separate run two.wav --out DIR           the sources that two microphones heard
  counterflow cancel noise.wav --distortion 10dB       how much of a noise a controller cancels
  counterflow plan --steps 1000 --budget 64MiB         what a memory budget costs an LSTM in time
  counterflow list
  counterflow reproduce tempering                      a first look, under a minute
  counterflow reproduce tempering --profile laptop     the table, with a report
  counterflow report                                   that report again
  counterflow data where                               where data sets are looked for

exit status: 0; 1 if something that was run or checked is at fault; 2 for input that cannot be used, or where the
machine has no room for it, with one line on standard error; 130 after Ctrl-C; 141 where nobody reads the output any
more. Without a terminal, and where NO_COLOR is set, there are no colors.

counterflow VERB --help says more.
"""


# Refusals of the system that no command foresees in every place, and what mends them.
OF_THE_MACHINE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space and give the command again"),
    errno.ENAMETOOLONG: "give it a shorter name",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name a place that you may use"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What was typed after ``counterflow``; ``sys.argv`` by default.

    Returns:
        The exit status: 0, 1 if something that was checked or run is at fault, 2 for what the user can mend,
        130 after Ctrl-C, 141 where nobody reads the output any more.
    """
    # Not list(...): once the verb's module is imported, that name is counterflow.cli.list.
    verb, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or ["--help"]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as `>&-` does: what is said goes nowhere
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A file's name may hold what the terminal's encoding does not have, as it may on standard error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(verb, rest)
        finally:
            sys.stdout.flush()  # here and not when Python exits, where a failure could not be told
    except BrokenPipeError:
        _drop_output()  # whoever read it has had enough, as `| head` does
        return 141
    except CounterflowError as error:
        return _refuse(str(error))
    except MemoryError:
        return _refuse("there is not memory enough for what is asked; ask for less at once")
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        _drop_output()  # where it was standard output that had no room
        where = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{where}{error.strerror}; {OF_THE_MACHINE[error.errno]}")
    except KeyboardInterrupt:
        print("counterflow: stopped", file=sys.stderr)
        return 130


def _run(verb: str, arguments: list[str]) -> int:
    """Run a verb, or say what there is."""
    if verb in ("-h", "--help"):
        print(HELP.format(verbs=_verbs()), end="")
        return 0
    if verb == "--version":
        print(f"counterflow {importlib.metadata.version('counterflow')}")
        return 0
    return _parse(verb, arguments)()


def _refuse(reason: str) -> int:
    """Say in one line what the user can mend."""
    print(f"counterflow: {' '.join(reason.split())}", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Let what standard output does not take go nowhere; Python would try it again when it exits, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _verbs() -> str:
    """All verbs under their headings."""
    width = max(len(name) for name in VERBS)
    lines = []
    for group, heading in GROUPS.items():
        lines += ["", f"{heading}:"]
        lines += [f"  {name:{width}}  {entry.summary}" for name, entry in VERBS.items() if entry.group == group]
    return "\n".join(lines)


def _parse(verb: str, arguments: list[str]) -> Callable[[], int]:
    """The verb's function with its arguments filled in."""
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(VERBS)}"
        raise InputError(f"there is no command {verb!r}; {meant}")
    import tyro

    from counterflow.cli.help import REGISTRY, Page, about, action_asked, documented

    module = importlib.import_module(f"counterflow.cli.{VERBS[verb].module}")
    function: Callable[..., int] = getattr(module, VERBS[verb].function)

    action = action_asked(function, arguments)
    described = documented(function, action)
    prog = " ".join(filter(None, ("counterflow", verb, action)))

    @functools.wraps(described)
    def later(*values: object, **options: object) -> Callable[[], int]:
        return functools.partial(function, *values, **options)

    def parse() -> Callable[[], int]:
        filled: Callable[[], int] = tyro.cli(
            later, prog=prog, description=about(function), args=arguments, registry=REGISTRY
        )
        return filled

    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(Page(sys.stdout)) as page:
            return parse()
    except SystemExit as stop:
        if stop.code in (0, None):  # --help was asked for
            print(page.text(), end="")
            raise
    raise InputError(f"{_refusal(parse)}; counterflow {verb} --help says more")


PLAINER = {
    r"invalid literal for int\(\) with base 10: ('.*')": r"\1 is no INT",
    r"could not convert string to float: ('.*')": r"\1 is no FLOAT",
    r"is no INT": "is no whole number",
    r"is no FLOAT": "is no number",
}


def _refusal(parse: Callable[[], object]) -> str:
    """Why tyro refuses the arguments, out of the box that it draws around its reasons."""
    drawn = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"  # no line is broken
    try:
        with contextlib.redirect_stderr(drawn), contextlib.suppress(SystemExit):
            parse()
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    # Below its title the box has the reason, then a rule or an empty line, then help and similar options. Where
    # the terminal knows no Unicode, it is drawn with minus signs only.
    lines = [line.strip(" │|") for line in re.sub(r"\x1b\[[0-9;]*m", "", drawn.getvalue()).splitlines()[1:]]
    while lines and not lines[0].strip("─-"):
        del lines[0]
    end = next((number for number, line in enumerate(lines) if not line.strip("─-╰╯")), len(lines))
    if lines[:1] and lines[0].startswith("Missing from"):
        end = 2  # the name of what is missing, without its help
    reason = " ".join(lines[:end]).rstrip(".")
    below = lines[end + 1 : end + 3]
    if below[:1] == ["Perhaps you meant:"]:
        reason += f"; perhaps you meant {below[1]}"
    reason = reason.removeprefix("Error parsing ")
    for pattern, plain in PLAINER.items():
        reason = re.sub(pattern, plain, reason)
    return reason
