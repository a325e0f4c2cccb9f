"""Files that are cut short, changed, or not of their kind: what a reader has to take or to refuse."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from counterflow.exceptions import CounterflowError

EXAMPLES = int(os.environ.get("COUNTERFLOW_EXAMPLES", "0"))  # so many, drawn anew; else a few, the same every time
fuzzed = settings(
    max_examples=EXAMPLES or 30,
    deadline=None,
    derandomize=not EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def damaged(draw: Callable[[Any], Any], whole: bytes) -> bytes:
    """A file cut short, with bytes changed, put in or taken out, or not of its kind at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


def read_or_refused(read: Callable[[], object]) -> None:
    """It is read, or refused by an exception of ours."""
    with contextlib.suppress(CounterflowError):
        read()
