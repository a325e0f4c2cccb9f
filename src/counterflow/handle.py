"""Attaching to the modules of a model by pattern, and the one handle that undoes it.

A pattern is a dotted module name in which ``*`` stands for one component and ``**`` for any number of
them, none included: ``"blocks.*.mlp"``, ``"**.norm"``. ``""`` names the model itself. A module that
stands in the model under several names is meant by each of them and is touched once.
"""

from __future__ import annotations

import difflib
import html
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from counterflow.exceptions import InputError, PatternError

__all__ = ["Handle", "Row", "Table", "exporting", "reset_compiler", "select", "why_kept"]


@dataclass(frozen=True)
class Row:
    """What was done to one layer.

    Args:
        layer: The module's dotted name; ``""`` is the model itself.
        kind: The module's class.
        done: What was done, in a few words; ``"left alone"`` where nothing was.
        why: Why it was left alone, or what the reader must know.
        values: Further columns of the table, by heading.
    """

    layer: str
    kind: str
    done: str
    why: str = ""
    values: Mapping[str, float | int | str | None] = field(default_factory=dict)


class Table:
    """Rows about layers, printed as text, shown as HTML in a notebook, read as a dictionary.

    Example:
        >>> rows = [Row("head", "Linear", "scale(0.5)"), Row("norm", "LayerNorm", "left alone", "no")]
        >>> table = Table("Attached", rows)
        >>> print(table)
        Attached
        layer  kind       done        why
        head   Linear     scale(0.5)
        norm   LayerNorm  left alone  no
        >>> table.to_dict()["rows"][0]["layer"]
        'head'
    """

    def __init__(self, title: str, rows: Sequence[Row], note: str = "") -> None:
        self.title = title
        self.rows = tuple(rows)
        self.note = note

    @property
    def columns(self) -> tuple[str, ...]:
        """The headings, in order."""
        extra = dict.fromkeys(key for row in self.rows for key in row.values)
        why = ("why",) if any(row.why for row in self.rows) else ()
        return ("layer", "kind", *extra, "done", *why)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, layer: str) -> Row:
        for row in self.rows:
            if row.layer == layer:
                return row
        raise InputError(f"the table has no layer {layer!r}; it has {', '.join(repr(row.layer) for row in self.rows)}")

    def to_dict(self) -> dict[str, Any]:
        """The title, the headings, and one dictionary a row, with numbers as numbers."""
        return {
            "title": self.title,
            "note": self.note,
            "columns": list(self.columns),
            "rows": [{name: _cell(row, name) for name in self.columns} for row in self.rows],
        }

    def __str__(self) -> str:
        cells = [list(self.columns)]
        cells += [[_text(_cell(row, name)) for name in self.columns] for row in self.rows]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.columns))]
        out = io.StringIO()
        print(self.title, file=out)
        for line in cells:
            print(
                "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip(),
                file=out,
            )
        if self.note:
            print(self.note, file=out)
        return out.getvalue().rstrip("\n")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_text(_cell(row, name)))}</td>" for name in self.columns) + "</tr>"
            for row in self.rows
        )
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        title = html.escape(self.title)
        rows = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        return f"<table><caption>{title}</caption>{rows}</table>{note}"


def _cell(row: Row, name: str) -> float | int | str | None:
    if name in row.values:
        return row.values[name]
    own = {"layer": row.layer, "kind": row.kind, "done": row.done, "why": row.why}
    return own.get(name)


def _text(value: float | int | str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


class Handle:
    """What a call that changed a model returns.

    Args:
        model: The module to use from now on (the same object, unless the root itself had to be exchanged).
        table: What was done per layer; a function where the answer changes as the model is used.
        undo: Functions that take the change back, run in reverse order.

    It is a context manager: leaving the ``with`` block takes the change back.
    """

    def __init__(
        self,
        model: nn.Module,
        table: Table | Callable[[], Table],
        undo: Sequence[Callable[[], None]] = (),
    ) -> None:
        self.model = model
        self._table = table
        self._undo = list(undo)
        self._attached = True

    @property
    def attached(self) -> bool:
        """Whether the change still stands."""
        return self._attached

    def table(self) -> Table:
        """Per layer: what was done, what was left alone and why."""
        return self._table() if callable(self._table) else self._table

    def undo(self) -> None:
        """Take the change back and keep what was learned. A second call does nothing."""
        while self._undo:
            self._undo.pop()()
        self._attached = False
        reset_compiler()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def select(model: nn.Module, pattern: str) -> list[tuple[str, nn.Module]]:
    """The modules that a pattern means, in the model's order, each once.

    Args:
        model: Where to look.
        pattern: A dotted name with ``*`` for one component and ``**`` for any number of them.

    Returns:
        Pairs of (first matching name, module).

    Raises:
        PatternError: If no module matches; the message names the nearest modules.
        InputError: If the model is no module, or the pattern no string.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 1)))
        >>> [name for name, _ in select(net, "**.1")]
        ['1', '1.1']
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(pattern, str):
        raise InputError(f"pattern must be a string such as 'blocks.*.mlp', got {pattern!r}")
    expression = _compile(pattern)
    found: dict[int, tuple[str, nn.Module]] = {}
    names = []
    for name, module in model.named_modules(remove_duplicate=False):
        names.append(name)
        if expression.fullmatch(_dotted(name)) and id(module) not in found:
            found[id(module)] = (name, module)
    if not found:
        raise PatternError(f"pattern {pattern!r} matches no module of {type(model).__name__}; {_hint(pattern, names)}")
    return list(found.values())


def _compile(pattern: str) -> re.Pattern[str]:
    """The expression for a pattern; it is matched against `_dotted` names."""
    parts = pattern.split(".") if pattern else []
    if "" in parts:
        raise PatternError(f"pattern {pattern!r} has an empty component; write names joined by single dots")
    return re.compile("".join(map(_component, parts)))


def _component(part: str) -> str:
    # Every component carries the dot that ends it, so that `**` may stand for nothing at either end.
    if part == "**":
        return r"(?:[^.]+\.)*"
    if part == "*":
        return r"[^.]+\."
    return "[^.]*".join(map(re.escape, part.split("*"))) + r"\."


def _dotted(name: str) -> str:
    return name + "." if name else ""


def _hint(pattern: str, names: list[str]) -> str:
    near = difflib.get_close_matches(pattern, [name for name in names if name], n=3, cutoff=0.4)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    top = [name for name in names if name and "." not in name][:6]
    return "its children are " + (", ".join(repr(name) for name in top) if top else "none: use '' for the model itself")


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def why_kept(module: nn.Module) -> str:
    """Why a module must keep its place, since another one there would lose what is on it; empty if it need not.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> why_kept(layer)
        ''
        >>> hook = layer.register_forward_hook(lambda module, inputs, output: None)
        >>> why_kept(layer)
        'a hook is on it, which the layer in its place would not have; undo that, and attach it afterwards'
    """
    if any(hooks for part in module.modules() for name, hooks in vars(part).items() if name in _HOOKS):
        return "a hook is on it, which the layer in its place would not have; undo that, and attach it afterwards"
    if "forward" in vars(module):
        return "its forward has been exchanged on the module itself"
    return ""


def exporting() -> bool:
    """Whether the model is on its way through `torch.export`, which gets the bare model's operators.

    The flag itself is read, since before PyTorch 2.13 `torch.compiler.is_exporting` was true under `torch.compile` too,
    and compiled models would have been left alone in silence.

    Example:
        >>> exporting()
        False
    """
    return bool(torch.compiler._is_exporting_flag)


def reset_compiler() -> None:
    """Forget compiled code, since a hook added after the first compiled call is silently ignored.

    Costs nothing in a process that has compiled nothing.

    Example:
        >>> reset_compiler()
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
