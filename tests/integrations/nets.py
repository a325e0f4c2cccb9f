"""What the tests of the three frameworks train: one small net, and every verb on it."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import counterflow as cf
from counterflow.backward.probe import Probe

STEPS, BATCH, PARTS, CLIP = 8, 16, 2, 0.5
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(STEPS * BATCH, 5, generator=GENERATOR, dtype=torch.float64) + 0.5
T = torch.randint(3, (STEPS * BATCH,), generator=GENERATOR)

# By the verb's name: the verb, its arguments, its options and those of the integration.
VERBS: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "whiten": (cf.whiten, (), {"every": 3, "samples": 32, "epsilon": 0.1}),
    "temper": (cf.temper, (X[:8], "cross_entropy"), {}),
    "make_variational": (cf.make_variational, (), {"rates": "weight", "p": 0.2, "data_size": STEPS * BATCH}),
    "probe": (cf.probe, (), {"every": 1}),
}
CHANGES = ("whiten", "temper", "make_variational")  # each is tried with a probe behind it


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def in_parts(first: int = 0, last: int = STEPS) -> DataLoader[Any]:
    """The batches in order, each in the parts that are accumulated."""
    rows = slice(first * BATCH, last * BATCH)
    # The loader draws a seed for its workers; from a generator of its own it does not disturb the noise.
    return DataLoader(TensorDataset(X[rows], T[rows]), batch_size=BATCH // PARTS, generator=torch.Generator())


def loss_of(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def needed(name: str) -> Any:
    if os.environ.get("CI") == "true":  # where it must not be skipped
        return importlib.import_module(name)
    return pytest.importorskip(name, exc_type=ImportError)


def assert_equal(got: Any, wanted: Any, at: str = "", rtol: float = 0.0) -> None:
    """To the bit unless said otherwise, through dictionaries and lists."""
    if isinstance(wanted, dict):
        assert list(got) == list(wanted), at
        for name in wanted:
            assert_equal(got[name], wanted[name], f"{at}.{name}", rtol)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), at
        for number, each in enumerate(wanted):
            assert_equal(got[number], each, f"{at}[{number}]", rtol)
    elif isinstance(wanted, Tensor):
        close = {"rtol": rtol, "atol": rtol, "equal_nan": True}
        torch.testing.assert_close(got, wanted, **close, msg=lambda m: f"{at}: {m}")
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, rel=rtol, abs=rtol, nan_ok=True), at
    else:
        assert got == wanted, at


def told(handles: list[Any]) -> list[Any]:
    """What handles tell, as numbers that can be compared."""
    return [
        (handle.table().to_dict(), handle.state_dict() if isinstance(handle, Probe) else None) for handle in handles
    ]


def assert_told_the_same(again: list[Any], whole: list[Any]) -> None:
    """A probe's sums may differ in their last bit, by where they lie in memory."""
    assert_equal([list(each) for each in again], [list(each) for each in whole], rtol=1e-12)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a test's module returns where nothing is left of this process."""
    root = str(Path(__file__).parents[2])  # where such a module is found
    sys.path.insert(0, root)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pickle.loads(pool.submit(_packed, function, *arguments).result())
    finally:
        sys.path.remove(root)


def apply(function: Callable[..., Any], *arguments: Any) -> Any:
    """The same in this process, which is faster."""
    return function(*arguments)


def _packed(function: Callable[..., Any], *arguments: Any) -> bytes:
    return pickle.dumps(function(*arguments))  # tensors by value: the process that has their memory ends
