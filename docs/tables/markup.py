"""reStructuredText, and the records that tables are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
EVIDENCE = DOCS.parent / "evidence"
MET = {True: "met", False: "missed", None: ""}


def record(name: str) -> Any:
    """What ``benchmarks/NAME.py`` found when its committed results were made."""
    return json.loads((EVIDENCE / "benchmarks" / f"{name}.json").read_text("utf-8"))


def plain(text: str) -> str:
    """Text in which nothing is markup; ``N. N. Name`` would begin an enumerated list."""
    return "\\ " + re.sub(r"([\\`*_|])", r"\\\1", text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], widths: str = "auto") -> str:
    """A list-table; cells are reStructuredText."""
    rows = [*rows]
    assert all(len(row) == len(head) for row in rows), f"a row has not the columns {', '.join(head)}"
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in (head, *rows):
        lines += [f"   {'* -' if column == 0 else '  -'} {cell}" for column, cell in enumerate(row)]
    return "\n".join(lines)


def size_text(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
