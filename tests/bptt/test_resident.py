"""Freed memory goes back to the system where the process has grown above its budget, and only there."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch

from counterflow import bptt
from counterflow.bptt import resident
from counterflow.bptt.resident import Ceiling

MEBI = 2**20
glibc = pytest.mark.skipif(resident._trim() is None, reason="needs /proc and glibc")


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []

    def trim(pad: int) -> int:
        calls.append(pad)
        return 1

    monkeypatch.setattr(resident, "_trim", lambda: trim)
    return calls


def test_memory_is_given_back_above_the_budget_only(trims: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100 * MEBI
    monkeypatch.setattr(resident, "_resident", lambda: now)
    ceiling = Ceiling(64 * MEBI, MEBI)
    now = 171 * MEBI
    for _ in range(40):
        ceiling.step()
    assert trims == []
    now = 173 * MEBI
    for _ in range(16):
        ceiling.step()
    assert trims == [0, 0]  # once for every 8 MiB


def test_without_a_budget_nothing_is_watched(trims: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_resident", lambda: pytest.fail("looked"))
    ceiling = Ceiling(None, 2**40)
    ceiling.step()
    assert trims == []


def test_without_glibc_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_trim", lambda: None)
    monkeypatch.setattr(resident, "_resident", lambda: pytest.fail("looked"))
    Ceiling(1, 2**40).step()


def test_every_stored_state_and_every_step_backward_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Ceiling, "step", lambda self: seen.append(self))
    y, _ = bptt.unroll(torch.nn.GRUCell(2, 3), torch.randn(2, 30, 2), budget="2KiB")
    stored = len(seen)
    assert 0 < stored < 30
    y.sum().backward()
    assert len(seen) >= stored + 30


@glibc
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_holes_are_given_back() -> None:
    # Blocks below glibc's threshold for mappings of their own, every second of them freed.
    size, count = 64 * 1024, 1024
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    libc.malloc_trim(0)  # or what earlier tests have freed is taken first, and nothing grows
    before = resident._resident()
    ceiling = Ceiling(0, 8 * MEBI)
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    grown = resident._resident() - before
    for block in blocks[::2]:
        libc.free(block)
    holding = resident._resident() - before
    ceiling.step()
    after = resident._resident() - before
    for block in blocks[1::2]:
        libc.free(block)
    assert grown > 60 * MEBI
    assert holding > 60 * MEBI  # freed is not given back
    assert after < 40 * MEBI
