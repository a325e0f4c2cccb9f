"""One thread, fixed seeds, and no test skipped in silence where the continuous integration runs."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

# A test that carries one of these needs more than Python; under CI=true it must not be skipped.
MUST_RUN = ("browser", "distributed", "data")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # PyTorch warns of itself: Dynamo instantiates `autograd.Function`; inductor and functorch use `torch.jit`.
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:FutureWarning")  # since 2.15
    config.addinivalue_line("filterwarnings", "ignore:.*should not be instantiated:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
    # What PyTorch's vmap has no rule for runs in a loop, which is right and slow.
    config.addinivalue_line("filterwarnings", "ignore:There is a performance drop:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """What earlier modules left is no garbage: to search it again took seconds for each `gc.collect` of a late test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Equal numbers whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ModuleType]:
    """Loads a script that is no part of a package; a fresh module, which the test may change."""

    def load(path: Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def bfloat16() -> Iterator[None]:
    """Autocast that works on every processor: where one has no bfloat16, oneDNN refuses even the bare nn.LSTM."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(before and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    yield
    torch._C._set_mkldnn_enabled(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:  # a generator that returns the report
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and os.environ.get("CI") == "true"
        and any(item.get_closest_marker(name) for name in MUST_RUN)
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped where CI=true lets no such test be skipped: {report.longrepr}"
    return report


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the toy paper beside the real ones; the file in which its trials leave their trace."""
    from counterflow.lab import papers

    toy = Path(__file__).with_name("toy")
    monkeypatch.syspath_prepend(str(toy))
    monkeypatch.setenv("PYTHONPATH", str(toy), prepend=os.pathsep)
    monkeypatch.setattr(papers, "__path__", [*papers.__path__, str(toy / "papers")])
    path = tmp_path / "trace.txt"
    path.touch()
    monkeypatch.setenv("TOY_TRACE", str(path))
    return path
