"""A benchmark's record: a JSON file that is there whole or not at all, and is added to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from counterflow.exceptions import RecordError
from counterflow.files import replacing


def read_record(path: Path | None) -> dict[str, Any]:
    """What a record holds by now; nothing where there is none.

    Raises:
        RecordError: The file is no record.
    """
    if path is None or not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RecordError(f"{path} is no JSON ({error}); remove it, or name another file") from error
    if not isinstance(found, dict):
        raise RecordError(f"{path} is no record of a benchmark; name another file")
    return found


def write_record(path: Path | None, content: dict[str, Any], indent: int | None = 1) -> None:
    """Replace a record, if there is to be one; without an indentation it has no spaces either."""
    if path is None:
        return
    separators = (",", ":") if indent is None else None
    with replacing(path) as new:
        new.write_text(json.dumps(content, indent=indent, separators=separators) + "\n", "utf-8")
