"""The gallery: every example with its text, its source, and what came out when it ran in full.

``.. gallery::`` stands for all of it. ``make gallery`` runs the examples and writes their records; this only reads
them, so that building the documentation computes nothing and every number on the page is one of a record.
"""

from __future__ import annotations

import ast
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from tables.markup import plain, table

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
SHARED = ("arguments", "comparison", "models")  # what examples import, and no examples
sys.path.insert(0, str(EXAMPLES))

from comparison import Comparison  # noqa: E402

__all__ = ["gallery", "setup"]

RECORDS = DOCS.parent / "evidence" / "examples"
LINES = 60  # of what an example printed


def gallery() -> str:
    """Combinations first, then the others, in reStructuredText."""
    parts = []
    names = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in SHARED)
    for title, compares in (("Combinations", True), ("Methods and tools", False)):
        found = [name for name in names if ("import Comparison" in source_of(name)) is compares]
        parts += [f"{title}\n{'-' * len(title)}", *(entry(name) for name in found)]
    return "\n\n".join(parts)


def source_of(name: str) -> str:
    """The text of an example."""
    return (EXAMPLES / f"{name}.py").read_text("utf-8")


def entry(name: str) -> str:
    """One example."""
    kept = RECORDS / f"{name}.json"
    record = json.loads(kept.read_text("utf-8")) if kept.is_file() else None
    text = ast.get_docstring(ast.parse(source_of(name)))
    assert text is not None
    title, *paragraphs = text.split("\n\n")
    command = next(
        (each.strip() for each in paragraphs if each.strip().startswith("python ")), f"python examples/{name}.py"
    )
    words = [each for each in paragraphs if not each.strip().startswith("python ")]
    title = " ".join(title.split()).rstrip(".")
    source = f":download:`{name}.py <../examples/{name}.py>`"
    parts = [
        f".. _example-{name.replace('_', '-')}:",
        f"{title}\n{'^' * len(title)}",
        *words,
        f"{source} · ``{command}``",
    ]
    if record is None:
        parts.append("It has not been run for this page yet; ``make gallery`` does.")
    else:
        cost = f"It took {record['seconds']:.0f} seconds of one processor, with torch {record['torch']}."
        parts += [result(record), *pictures(record), cost]
    return "\n\n".join(part for part in parts if part)


def result(record: dict[str, Any]) -> str:
    """The table of a comparison and what follows from it; what any other example has printed."""
    if record["comparison"] is None:
        lines = record["output"].rstrip().splitlines()
        if len(lines) > LINES:
            lines = [*lines[:LINES], f"... and {len(lines) - LINES} lines more"]
        return ".. code-block:: text\n\n" + textwrap.indent("\n".join(lines), "   ")
    found = compared(record)
    rows = found.rows()
    head = list(dict.fromkeys(name for row in rows for name in row))
    seeds = len(next(iter(found.scores.values())))
    shown = table(head, ([plain(row.get(name, "")) for name in head] for row in rows))
    shown += f"\n\n{plain(found.legend())}" if found.legend() else ""
    answers = "\n".join(f"* {plain(line)}" for line in found.answers())
    return f"{plain(found.measure)}; {seeds} seeds, less is better:\n\n{shown}\n\n{answers}"


def compared(record: dict[str, Any]) -> Comparison:
    """The comparison that a record holds."""
    held = record["comparison"]
    return Comparison(**{**held, "asked": [tuple(pair) for pair in held["asked"]]})


def pictures(record: dict[str, Any]) -> list[str]:
    """Its pictures, each for the page that it was drawn for."""
    found = []
    for name in record["pictures"]:
        theme = next((each for each in ("light", "dark") if name.endswith(f"-{each}.png")), "")
        heading = record["comparison"]["heading"] if record["comparison"] else "What the example has drawn."
        lines = [f".. image:: gallery/{name}", f"   :alt: {heading}"]
        found.append("\n".join([*lines, *([f"   :class: only-{theme}"] if theme else [])]))
    return found


class Gallery(SphinxDirective):
    """Puts the gallery where it stands."""

    def run(self) -> list[nodes.Node]:
        """The nodes of all examples."""
        return self.parse_text_to_nodes(gallery(), allow_section_headings=True)


def setup(app: Sphinx) -> None:
    """Called by ``conf.py``."""
    app.add_directive("gallery", Gallery)
