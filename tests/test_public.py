"""What is public says what it is for."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import counterflow


def public_modules() -> list[str]:
    found = pkgutil.walk_packages(counterflow.__path__, "counterflow.")
    names = [name for name in (module.name for module in found) if "._" not in name]
    return ["counterflow", *names]


def lacking(module: ModuleType) -> Iterator[str]:
    """Public names without a docstring of their own, as dotted names."""
    for name in getattr(module, "__all__", ()):
        value = getattr(module, name)
        if inspect.isclass(value):
            doc = vars(value).get("__doc__") or ""
            # A dataclass without one gets its signature for a docstring.
            if not doc or doc.startswith(f"{value.__name__}("):
                yield name
            if not value.__module__.startswith("counterflow"):
                continue
            for key, member in vars(value).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                # What a base class has said need not be said again.
                bare = inspect.isfunction(function) and not inspect.getdoc(getattr(value, key))
                if bare and not key.startswith("_"):
                    yield f"{name}.{key}"
        elif inspect.isroutine(value) and not value.__doc__:
            yield name


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_has_a_docstring(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert list(lacking(module)) == []


@pytest.mark.parametrize("name", public_modules())
def test_every_name_that_is_said_to_be_public_is_there_once(name: str) -> None:
    module = importlib.import_module(name)
    names = list(getattr(module, "__all__", ()))
    assert len(names) == len(set(names))
    assert [each for each in names if not hasattr(module, each)] == []


def test_the_check_can_fail() -> None:
    module = ModuleType("counterflow.invented", "Invented.")

    class Bare:
        def method(self) -> None: ...

    def function() -> None: ...

    Bare.__module__ = "counterflow.invented"
    vars(module).update(Bare=Bare, function=function, __all__=["Bare", "function"])
    assert list(lacking(module)) == ["Bare", "Bare.method", "function"]
