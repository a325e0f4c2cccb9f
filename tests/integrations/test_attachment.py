"""What the integrations share, without any of the frameworks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import counterflow as cf
from counterflow.backward.probe import Probe
from counterflow.integrations.attachment import Attachment


def attachment_of(verb: Any, *arguments: Any, log_every: int | None = None, data_size: Any = "unsaid") -> Attachment:
    return Attachment(verb, arguments, {}, on="", data_size=data_size, kl_weight=1.0, log_every=log_every)


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


def test_an_optimizer_gets_the_tempered_rates_once() -> None:
    """As that of a module that keeps its optimizer from one fit to the next."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attachment = attachment_of(cf.temper, torch.randn(8, 5), "cross_entropy")
    attachment.on_model(model)
    found = []
    for _ in range(2):
        attachment.on_optimizer(optimizer)
        found.append([group["lr"] for group in optimizer.param_groups])
        attachment.let_go()
    assert len(set(found[0])) > 1
    assert found[0] == found[1]


@pytest.mark.parametrize("unscaled", [False, True])
def test_the_loss_scale_leaves_the_divergence_alone(unscaled: bool) -> None:
    """In a hook within the step, as the Hugging Face Trainer and accelerate have it."""

    def fit(fused: bool, scale: float) -> torch.Tensor:
        torch.manual_seed(0)
        root = nn.Sequential(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
        optimizer = torch.optim.SGD(root.parameters(), lr=0.1, fused=fused)
        attachment = Attachment(cf.make_variational, (), {}, on="0", data_size=10, kl_weight=1.0, log_every=None)
        attachment.on_model(root)
        attachment.on_optimizer(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for _ in range(2):
            scaler.scale(root(torch.ones(8, 5)).sum() * 0.0).backward()
            if unscaled:  # to clip
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return next(p.detach() for name, p in root.named_parameters() if "rate" in name)

    wanted = fit(False, 1.0)
    torch.testing.assert_close([fit(fused, 1024.0) for fused in (False, True)], [wanted, wanted])
