"""What the integrations share, without any of the frameworks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import counterflow as cf
from counterflow.backward.probe import Probe
from counterflow.integrations.attachment import Attachment


def watched(model: nn.Module, optimizer: torch.optim.Optimizer, *layers: str) -> list[Probe]:
    """A probe for each of some layers, on one optimizer."""
    found = []
    for layer in layers:
        options: dict[str, Any] = {"every": 1}
        attachment = Attachment(cf.probe, (layer,), options, on="", data_size="unsaid", kl_weight=1.0, log_every=None)
        handle = attachment.on_model(model)
        assert isinstance(handle, Probe)
        attachment.on_optimizer(optimizer)
        found.append(handle)
    return found


def test_two_probes_on_one_optimizer_go_on_each_from_its_own_state() -> None:
    def net() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    model, optimizer = net()
    seen = watched(model, optimizer, "0", "2")
    model(torch.randn(8, 5)).square().sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    assert list(saved["counterflow"]) == ["probe()", "probe()#2"]
    other, resumed = net()
    again = watched(other, resumed, "0", "2")
    resumed.load_state_dict(saved)
    for one, two in zip(seen, again, strict=True):
        assert two.steps == one.steps == 1
        assert [row.values["rms"] for row in two.table()] == [row.values["rms"] for row in one.table()]
