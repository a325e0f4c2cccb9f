"""The registry: what is in it, and what may not enter."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.resources import files

import pytest
import torch

import counterflow
from counterflow.exceptions import InputError
from counterflow.registry import Method, methods, register


def test_nothing_enters_twice_or_without_an_example() -> None:
    some = next(iter(methods().values()))
    with pytest.raises(InputError, match=f"a method named '{some.key}' is registered already; choose another key"):
        register(some)
    with pytest.raises(InputError, match="method 'new' brings no example; the contracts need one"):
        register(replace(some, key="new", examples=()))
    assert "new" not in methods()


def test_the_view_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        methods()["x"] = next(iter(methods().values()))  # type: ignore[index]


@pytest.mark.parametrize("method", methods().values(), ids=lambda method: method.key)
def test_an_entry_is_whole(method: Method) -> None:
    assert method.summary.endswith(".")
    assert "\n" not in method.summary
    assert len({example.name for example in method.examples}) == len(method.examples)
    assert not (method.identity and method.batch_coupled), "what leaves every gradient as it was mixes nothing"
    for waiver in method.waivers.values():
        assert waiver.reason.endswith(".")


@pytest.mark.parametrize("method", methods().values(), ids=lambda method: method.key)
def test_an_example_depends_on_the_seed_alone_and_its_loss_is_a_sum(method: Method) -> None:
    for example in method.examples:
        drawn = []
        for _ in range(2):
            torch.manual_seed(3)
            model = example.model()
            drawn.append((model, example.inputs(6), example.targets(6)))
        (model, x, t), (again, x2, t2) = drawn
        assert torch.equal(x, x2)
        assert torch.equal(t, t2)
        y = model(x)
        assert torch.equal(y, again(x))
        assert len(y) == len(t) == 6
        parts = sum(example.loss(y[i : i + 1], t[i : i + 1]) for i in range(6))
        torch.testing.assert_close(example.loss(y, t), parts)


def test_every_module_that_registers_is_imported_with_the_package() -> None:
    """Else ``counterflow list`` and the contracts would not see what it registers."""
    # In a process of its own: other tests import what the package may not.
    code = "import sys; from counterflow.registry import methods; methods(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    root = files(counterflow)
    for path in sorted(root.glob("**/*.py")):  # type: ignore[attr-defined]
        name = ".".join(("counterflow", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        if name != "counterflow.registry" and "\nregister(" in path.read_text(encoding="utf-8"):
            assert name in imported, f"{name} registers methods, but importing counterflow does not import it"
