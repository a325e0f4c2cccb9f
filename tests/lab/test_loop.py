"""The training loop that papers share, where the model itself draws random numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
