"""The training loop that papers share, where the model itself draws random numbers."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from counterflow.competition import AnnealedRate, MomentumRamp
from counterflow.lab import loop
from counterflow.lab.trials import Context


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = (x * self.weight + torch.randn(len(x), 3)).square().mean()
        return y


def learned(folder: Path, updates: int, noise: int | None, stop: int | None = None) -> tuple[Tensor, Any]:
    torch.manual_seed(int(folder.stat().st_ino) + updates)  # whatever ran before
    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x = torch.ones(2, 3)

    def loss(step: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        y: Tensor = model(x)
        return y

    def measured() -> dict[str, float]:
        with torch.no_grad():
            return {"error": float(model(x))}

    at = range(updates + 1)
    curves = loop.train(model, optimizer, loss, measured, at, Context(folder), noise=noise)
    return model.weight.detach(), curves


def test_noise_follows_from_the_seed_and_a_stopped_run_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    for name in "abcd":
        (tmp_path / name).mkdir()
    whole, curves = learned(tmp_path / "a", 8, noise=1)
    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path / "b", 8, noise=1, stop=5)
    again, curves_again = learned(tmp_path / "b", 8, noise=1)
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    assert curves_again == curves
    assert not torch.equal(learned(tmp_path / "c", 8, noise=2)[0], whole)
    assert not torch.equal(learned(tmp_path / "d", 8, noise=None)[0], whole)


def annealed(folder: Path, stop: int | None = None, enough: float = 0.0) -> tuple[list[Any], Any]:
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    schedules = [AnnealedRate(optimizer, 0.5, 0.001), MomentumRamp(optimizer, 0.5, 0.9, 4)]
    x, seen = torch.ones(2, 3), []

    def loss(step: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        y: Tensor = model(x).square().mean()
        return y

    def measured() -> dict[str, float]:
        with torch.no_grad():
            return {"error": float(model(x).square().mean())}

    at = range(0, 13, 2)
    until = (lambda found: found["error"] < enough) if enough else (lambda found: False)
    curves = loop.train(model, optimizer, loss, measured, at, Context(folder), schedules=schedules, until=until)
    return seen, curves


def test_schedules_step_at_measured_points_and_go_on_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    for name in "abc":
        (tmp_path / name).mkdir()
    seen, curves = annealed(tmp_path / "a")
    assert [rate for rate, _ in seen[::2]] == pytest.approx([0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125])
    assert [momentum for _, momentum in seen[1::2]] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    with pytest.raises(KeyboardInterrupt):
        annealed(tmp_path / "b", stop=5)
    again, curves_again = annealed(tmp_path / "b")
    assert again == seen[4:]
    assert curves_again == curves
    level = curves["error"][3]
    assert level is not None
    _, short = annealed(tmp_path / "c", enough=level + 1e-9)
    assert short["update"] == curves["update"][: len(short["update"])]
    assert short["error"][-1] <= level + 1e-9


PAGES = """
import resource
import torch
from counterflow.lab.loop import keep_freed_memory

def fetched():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(9_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def faults():
    # Where a small object lies behind a freed block, the next does not fit there and the heap grows: a few of many.
    return sum(fetched() for _ in range(60))

given_back = faults()
keep_freed_memory()
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")
def test_freed_memory_is_kept_and_its_pages_are_not_fetched_again() -> None:
    run = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, check=True, text=True)
    given_back, kept = map(int, run.stdout.split())
    assert kept < given_back / 5


@pytest.mark.parametrize(("most", "kept"), [(2**30, True), (2**25, True), (0, False)])
def test_an_older_allocator_keeps_what_it_may(monkeypatch: pytest.MonkeyPatch, most: int, kept: bool) -> None:
    held: dict[int, int] = {}

    def mallopt(option: int, value: int) -> int:
        if option == -3 and value > most:
            return 0
        held[option] = value
        return 1

    monkeypatch.setattr(loop.sys, "platform", "linux")
    monkeypatch.setattr(loop.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert loop.keep_freed_memory() is kept
    assert held == {-1: 2**30, **({-3: most} if kept else {})}
    monkeypatch.setattr(loop.sys, "platform", "darwin")
    assert loop.keep_freed_memory() is False
