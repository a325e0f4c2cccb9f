"""Groups of an optimizer are divided, and its schedulers go on as if they had been made for the parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers
from torch.optim.lr_scheduler import LRScheduler

import counterflow as cf
from counterflow.integrations.attachment import Attachment

KINDS: dict[str, Any] = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda step: 1 / (1 + step)),
    "step": lambda o: schedulers.StepLR(o, 2, 0.5),
    "milestones": lambda o: schedulers.MultiStepLR(o, [2], 0.5),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 5),
    "linear": lambda o: schedulers.LinearLR(o, 0.2, 1.0, 4),
    "plateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, cooldown=0),
    "sequence": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.5, 2), schedulers.ExponentialLR(o, 0.9)], [2]
    ),
}


def run(optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> list[dict[int, float]]:
    """The rates step by step, by the parameter's place."""
    found = []
    for _ in range(6):
        found.append({id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]})
        optimizer.step()
        scheduler.step(*([1.0] if isinstance(scheduler, schedulers.ReduceLROnPlateau) else []))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_tempered_groups_follow_a_scheduler_that_was_there(kind: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(8, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.2)
    scheduler = KINDS[kind](optimizer)
    attachment = Attachment(
        cf.temper, (x, "cross_entropy"), {}, on="", data_size="unsaid", kl_weight=1.0, log_every=None
    )
    h = attachment.on_model(model)
    attachment.on_optimizer(optimizer, [scheduler])
    assert all(group["weight_decay"] == 0.2 for group in optimizer.param_groups)
    other = torch.optim.SGD(h.param_groups(lr=0.1))
    for found, wanted in zip(run(optimizer, scheduler), run(other, KINDS[kind](other)), strict=True):
        assert found == pytest.approx(wanted)


def test_names_of_parameters_stay_beside_them() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    attachment = Attachment(
        cf.temper, (torch.randn(8, 5), "cross_entropy"), {}, on="", data_size="unsaid", kl_weight=1.0, log_every=None
    )
    attachment.on_model(model)
    attachment.on_optimizer(optimizer)
    assert len(optimizer.param_groups) > 1
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert model.get_parameter(name) is parameter
    optimizer.load_state_dict(optimizer.state_dict())
