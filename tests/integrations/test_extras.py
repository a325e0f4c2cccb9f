"""Each integration needs its own package alone, and says how to get it."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from counterflow.exceptions import MissingExtraError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["lightning", "transformers", "accelerate"])
def test_a_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"counterflow.integrations.{name}"
    for each in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingExtraError) as caught:
        importlib.import_module(module)
    assert str(caught.value) == f"{module} needs an optional dependency: pip install 'counterflow[{name}]'"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras[name][0].split(">")[0] == name
