"""Columns of parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from counterflow.exceptions import DataError, MissingExtraError

__all__ = ["parquet_columns"]


def parquet_columns(path: Path, name: str, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Read columns of a parquet file.

    Args:
        path: The file.
        name: The data set, for messages.
        columns: Which columns.

    Returns:
        Each column's values.

    Raises:
        DataError: It cannot be read, or has no such column.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("lab", f"the data set {name}") from error
    try:
        # One thread: a table of this size is read before a second one has started.
        table = pyarrow.parquet.read_table(path, columns=list(columns), use_threads=False)
        return {column: table.column(column).to_pylist() for column in columns}
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} cannot be read as a parquet file with {', '.join(columns)}: {reason}") from error
