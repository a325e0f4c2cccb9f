"""What the registry of methods knows."""

from __future__ import annotations

import itertools
import json
import string

from counterflow.registry import Method, methods

from .markup import DOCS, plain, table


def methods_table() -> str:
    """All registered methods and what each does."""
    return table(
        ("method", "site", "what it does"),
        ((f"``{m.key}``", m.site, plain(m.summary)) for m in methods().values()),
    )


def declarations_table() -> str:
    """What each method declares."""
    return table(
        ("method", "identity", "keeps the forward pass", "couples the batch", "homogeneous", "stateful", "random"),
        ((f"``{m.key}``", *map(_mark, _declared(m))) for m in methods().values()),
    )


def _declared(method: Method) -> tuple[bool, ...]:
    return (
        method.identity,
        method.keeps_forward,
        method.batch_coupled,
        method.homogeneous,
        method.stateful,
        method.random,
    )


def _mark(value: bool) -> str:
    return "yes" if value else "–"


def waivers_table() -> str:
    """Contracts that methods cannot keep."""
    # A contract on parameters is a comparison, which fails in the test alone: a user meets no error.
    rows = [
        (
            f"``{method.key}``",
            f"``{contract}``",
            plain(waiver.reason),
            "a property, not an error" if waiver.error is AssertionError else f"``{waiver.error.__name__}``",
        )
        for method in methods().values()
        for contract, waiver in method.waivers.items()
    ]
    return table(("method", "contract", "why", "what a user sees"), rows) if rows else "No method waives a contract."


def pairs_table(kind: str) -> str:
    """Every ordered pair of methods on one kind of layers, as tests/contracts/pairs.py found it."""
    cells = json.loads((DOCS / "combinations.json").read_text("utf-8"))[kind]
    keys = list(dict.fromkeys(pair.split(", ")[0] for pair in cells))
    reasons = dict.fromkeys(reason for reason in cells.values() if reason)
    # a to z, then aa to zz: there are more reasons than letters.
    letters = string.ascii_lowercase
    names = itertools.chain(letters, map("".join, itertools.product(letters, repeat=2)))
    # Escaped, since `(a)` alone begins a list.
    notes = {reason: f"\\({name})" for reason, name in zip(reasons, names, strict=False)}
    rows = []
    for number, first in enumerate(keys, 1):
        marks = [cells[f"{first}, {second}"] for second in keys]
        shown = [notes[each] if each else "✓" for each in marks]
        rows.append((f"{number} ``{first}``", *shown))
    below = (f"{note} {plain(reason)}" for reason, note in notes.items())
    return "\n\n".join([table(("first, then →", *map(str, range(1, len(keys) + 1))), rows), *below])
