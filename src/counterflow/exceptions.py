"""Every error that counterflow raises for something the user can mend.

The command line prints such an error as one line and exits with status 2, as it does where the machine forbids
or has no room for what is asked; anything else is a fault of ours and keeps its traceback::

    CounterflowError
    ├── InputError (also a ValueError)         an argument, an option or a tensor that cannot be used
    │   ├── DivergenceError                    a setting with which learning runs away
    │   ├── PatternError                       a pattern that matches no module
    │   └── ShapeError                         a tensor of the wrong shape
    ├── UnsupportedError (also a RuntimeError) a layer, loss or context that a method cannot handle
    ├── DataError
    │   ├── DataNotFoundError                  a data set that is not on this machine
    │   └── ChecksumError                      a file that is not what its publisher released
    ├── RecordError                            a folder of runs that cannot be read or written
    └── MissingExtraError (also ImportError)   an optional dependency that is not installed
"""

from __future__ import annotations

from typing import Self

__all__ = [
    "ChecksumError",
    "CounterflowError",
    "DataError",
    "DataNotFoundError",
    "DivergenceError",
    "InputError",
    "MissingExtraError",
    "PatternError",
    "RecordError",
    "ShapeError",
    "UnsupportedError",
]


class CounterflowError(Exception):
    """Whatever the user can mend; its message is one line that says how."""


class InputError(CounterflowError, ValueError):
    """An argument, an option or a tensor that cannot be used."""


class DivergenceError(InputError):
    """A setting with which learning runs away."""


class PatternError(InputError):
    """A pattern that matches no module of the model."""


class ShapeError(InputError):
    """A tensor whose shape does not fit."""


class UnsupportedError(CounterflowError, RuntimeError):
    """A layer, a loss or a context that a method cannot handle."""


class DataError(CounterflowError):
    """Data that cannot be had or used."""


class DataNotFoundError(DataError):
    """A data set that is not on this machine."""


class ChecksumError(DataError):
    """A file that is not what its publisher released."""


class RecordError(CounterflowError):
    """A folder of runs that cannot be read or written."""


class MissingExtraError(CounterflowError, ImportError):
    """An optional dependency that is not installed.

    Args:
        extra: The extra of the package that brings it, such as ``"plot"``.
        purpose: What it is needed for, in a few words.

    Example:
        >>> print(MissingExtraError("plot", "drawing the error"))
        drawing the error needs an optional dependency: pip install 'counterflow[plot]'
    """

    def __init__(self, extra: str, purpose: str = "this") -> None:
        super().__init__(f"{purpose} needs an optional dependency: pip install 'counterflow[{extra}]'")
        self.extra = extra
        self._purpose = purpose

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        # By default the message would be the argument on the other side of a process pool.
        return type(self), (self.extra, self._purpose)
