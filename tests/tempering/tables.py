"""What tests read from a table."""

from __future__ import annotations

from typing import Any

from counterflow.handle import Table


def column(table: Table, name: str) -> dict[str, Any]:
    """One value of every layer."""
    return {row.layer: row.values[name] for row in table}


def done(table: Table) -> dict[str, str]:
    """What was done to every layer."""
    return {row.layer: row.done for row in table}
