"""What tyro is told of a command beside its types, and the page that it prints for ``--help``.

Left to itself, tyro offers the word None wherever an option need not be given, calls it a default, and breaks no line
of a docstring.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import re
import shutil
import textwrap
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TextIO, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

__all__ = ["REGISTRY", "Page", "about", "action_asked", "documented"]

REGISTRY = ConstructorRegistry()

Command = TypeVar("Command", bound=Callable[..., Any])


@REGISTRY.primitive_rule
def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """An option that need not be given: as one that has to be. None is what stands for its absence, and no word."""
    kinds = [kind for kind in get_args(info.type) if kind is not type(None)]
    if info.type_origin not in (Union, types.UnionType) or len(kinds) != 1:
        return None
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds[0], set(info.markers)))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    return replace(
        spec,
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: [] if value is None else spec.str_from_instance(value),
    )


def action_asked(function: Callable[..., Any], arguments: Sequence[str]) -> str | None:
    """The action whose help is asked for, as in ``speech align --help``."""
    actions = _choices(get_type_hints(function, include_extras=True).get("action"))
    return next((word for word in arguments[:1] if word in actions and {"-h", "--help"} & {*arguments}), None)


def documented(function: Command, action: str | None = None) -> Command:
    """A command whose options carry what its docstring says of them, and a default only where that says something.

    Args:
        function: The command.
        action: Leave out the options that are for other actions only.
    """
    said = dict(re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", _parts(function)[1], re.M))
    hints = get_type_hints(function, include_extras=True)
    actions = _choices(hints.get("action"))
    signature = inspect.signature(function)
    for name, parameter in signature.parameters.items():
        text = " ".join(said.get(name, "").split())
        hint = "" if parameter.default in (None, (), parameter.empty) else None
        hints[name] = Annotated[hints[name], tyro.conf.arg(help=text or None, help_behavior_hint=hint)]
        named = _named(text, actions)
        if action is not None and named and action not in named and parameter.kind is parameter.KEYWORD_ONLY:
            hints[name] = Annotated[hints[name], tyro.conf.Suppress]

    @functools.wraps(function)
    def with_help(*values: Any, **options: Any) -> Any:
        return function(*values, **options)

    with_help.__annotations__ = hints
    with_help.__dict__ |= {"__signature__": signature}
    del with_help.__dict__["__wrapped__"]  # tyro would look there for the types
    return with_help  # type: ignore[return-value]


def _choices(kind: Any) -> tuple[str, ...]:
    """The words of a literal type, and none of another."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _named(text: str, actions: Sequence[str]) -> set[str]:
    """The actions that an option is said to be for, as in ``run, train: of all that is random``; none if for all."""
    word = "|".join(actions)
    labels = re.findall(rf"(?:^|[.;] )((?:{word})(?:, (?:{word}))*): ", text)
    return {each for label in labels for each in label.split(", ")}


def about(function: Callable[..., Any]) -> str:
    """What a command's docstring says before its arguments: a line for each paragraph, and for each entry of a list."""
    lines: list[str] = []
    for line in _parts(function)[0].splitlines():
        before = lines[-1] if lines else ""
        deep, was = (len(each) - len(each.lstrip()) for each in (line, before))
        # What is indented stands for itself, unless it goes on below what it is about.
        if line and before and ((not deep and not was) or (was and deep > was)):
            lines[-1] = f"{before} {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _parts(function: Callable[..., Any]) -> tuple[str, str]:
    """What a docstring says of a command, and its section of arguments."""
    text, _, rest = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    return re.split(r"\n\n(?:Returns|Raises):\n", text)[0], rest.partition("\n\n")[0]


class Page(io.StringIO):
    """What tyro prints help into; it looks to it like what it is printed on then, but for NO_COLOR."""

    def __init__(self, screen: TextIO) -> None:
        super().__init__()
        self._screen = screen

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """By it tyro draws frames."""
        return getattr(self._screen, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether tyro may color it."""
        return not os.environ.get("NO_COLOR") and self._screen.isatty()

    def text(self) -> str:
        """What was printed, broken between words where the terminal ends."""
        width = shutil.get_terminal_size().columns
        lines = [_broken(line, width) for line in self.getvalue().splitlines()]
        return re.sub(r"\n{3,}", "\n\n", "".join(f"{line}\n" for line in lines))


def _broken(line: str, width: int) -> str:
    """A line of help in lines that fit; a command stays in one, so that it can be copied."""
    if len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= width:
        return line
    entry = re.match(r"usage: | +\S.*?\s{2,}(?=\S)", line)
    if line.startswith(" ") and entry is None:
        return line
    return textwrap.fill(line, width, subsequent_indent=" " * (entry.end() if entry else 0), break_on_hyphens=False)
