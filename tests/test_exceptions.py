"""The tree of errors is the one that its docstring draws."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from counterflow import exceptions
from counterflow.exceptions import CounterflowError, MissingExtraError

CLASSES = [getattr(exceptions, name) for name in exceptions.__all__]


def test_every_error_is_public() -> None:
    found = {
        name for name, value in vars(exceptions).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert found == set(exceptions.__all__)


@pytest.mark.parametrize("error", CLASSES)
def test_all_stem_from_one(error: type[Exception]) -> None:
    assert issubclass(error, CounterflowError)


def test_the_drawing_is_true() -> None:
    assert exceptions.__doc__ is not None
    above: list[str] = []
    drawn: dict[str, tuple[str, str]] = {}
    for line in exceptions.__doc__.splitlines():
        if found := re.match(r"^([ │├└─]*)([A-Z]\w+Error)(?: \(also (?:an? )?(\w+)\))?", line):
            depth = (len(found[1]) - 4) // 4
            above[depth:] = [found[2]]
            drawn[found[2]] = (above[depth - 1] if depth else "Exception", found[3] or "")
    assert set(drawn) == set(exceptions.__all__)
    for name, (parent, also) in drawn.items():
        bases = {base.__name__ for base in getattr(exceptions, name).__bases__}
        assert bases == {parent} | ({also} if also else set()), name


def test_a_missing_extra_says_how_to_get_it() -> None:
    error = MissingExtraError("plot", "drawing the error")
    assert str(error) == "drawing the error needs an optional dependency: pip install 'counterflow[plot]'"
    assert error.extra == "plot"
    assert isinstance(error, ImportError)


def test_errors_cross_processes() -> None:
    for error in CLASSES:
        made = error("plot", "drawing") if error is MissingExtraError else error("said")
        again = pickle.loads(pickle.dumps(made))
        assert type(again) is error
        assert str(again) == str(made)
