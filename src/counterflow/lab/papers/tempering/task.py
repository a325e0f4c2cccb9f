"""The family-relations task as the paper ran it, and the readings of what the paper leaves open.

Section 6, figure 1 and table 1 give: 24 people and 12 relations in a local code, encoding layers of 6, an association
layer of 12, hyperbolic tangents, a logistic output with cross-entropy, 100 of the 104 facts for training, weights
uniform within +-.3, momentum .9, weight decay 1e-4 an epoch, a zero-error radius of .2, and learning until error and
weight cost together fall below 1. What they leave open is a `Reading`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import family_relations
from counterflow.lab.training import Restarts, stack_restarts, train_restarts
from counterflow.seeding import numpy_generator, torch_generator

__all__ = ["CONDITIONS", "GAINS", "TRAINING_SET", "FamilyNet", "Reading", "effective_rates", "learn"]

CONDITIONS = ("conventional", "tempered", "shunted")
Condition = Literal["conventional", "tempered", "shunted"]

TRAINING_SET = 100
RADIUS = 0.2
WEIGHT_RANGE = 0.3
WEIGHT_DECAY = 1e-4
GOAL = 1.0
MOMENTUM = 0.9
GAINS: Mapping[str, Any] = {"trace_decay": 0.7, "gain_on": "step", "turned": 0.5}
"""Delta-bar-delta's details in the default reading: what the search found nearest to table 2 (see docs)."""


@dataclass(frozen=True)
class Reading:
    """How what the paper leaves open is filled in; the defaults are the default reading (docs: tempering).

    Args:
        zero_error: Within the zero-error radius of its target an output has no error. Outside it has the error
            to the radius's ``"edge"`` (the cost is measured to there too), or the ``"full"`` error.
        bias_start: Biases start uniform within this of 0.
        root: Whether rates are divided by the root of the input power, or by the power itself.
        attenuate_below_output: Whether errors are attenuated in the layer below the output too.
        bias_rate: With shunting, a bias moves by its local rate times the mean error; ``"global"`` takes the global
            rate into account as well.
        gains: Delta-bar-delta's details, as arguments of `counterflow.DeltaBarDelta`.
    """

    zero_error: Literal["edge", "full"] = "edge"
    bias_start: float = 0.0
    root: bool = True
    attenuate_below_output: bool = False
    bias_rate: Literal["local", "global"] = "local"
    gains: Mapping[str, Any] = field(default_factory=lambda: dict(GAINS))


class FamilyNet(nn.Module):
    """Figure 1's network: (..., 24) and (..., 12) one-hot in, 24 logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.person = nn.Linear(24, 6)
        self.relation = nn.Linear(12, 6)
        self.association = nn.Linear(12, 12)
        self.encoding = nn.Linear(12, 6)
        self.answer = nn.Linear(6, 24)

    def forward(self, person: Tensor, relation: Tensor) -> Tensor:
        """The logits of who answers the question."""
        inputs = torch.cat([torch.tanh(self.person(person)), torch.tanh(self.relation(relation))], dim=-1)
        hidden: Tensor = self.encoding(torch.tanh(self.association(inputs)))
        answer: Tensor = self.answer(torch.tanh(hidden))
        return answer


def learn(
    algorithm: str,
    condition: str,
    rate: float,
    seeds: Sequence[int],
    reading: Reading,
    max_epochs: int,
    progress: Callable[[int, int], None] = lambda epoch, left: None,
) -> Restarts:
    """Teach the family relations to one network a seed, all as one batched computation.

    Args:
        algorithm: ``"mom"`` or ``"dbd"``.
        condition: One of `CONDITIONS`.
        rate: The global learning rate, which refers to gradients summed over the training set.
        seeds: A restart each: its weights, and which 100 facts it learns from.
        reading: What the paper leaves open.
        max_epochs: When to give up.
        progress: Called with the epoch and how many restarts still learn.
    """
    facts = family_relations()
    training = np.stack([facts.split(numpy_generator(seed, "split"), TRAINING_SET)[0] for seed in seeds])
    person, relation, targets = (
        torch.from_numpy(x[training]).float() for x in (facts.person_one_hot, facts.relation_one_hot, facts.targets)
    )
    params = stack_restarts([_restart(seed, reading.bias_start) for seed in seeds])
    template = FamilyNet()
    groups = _groups(template, condition, rate, reading)

    def optimizer(stacked: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if algorithm == "mom":
            return torch.optim.SGD(stacked, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        return cf.DeltaBarDelta(stacked, **{"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, **reading.gains})

    def goal(error: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        cost = sum(v.square().flatten(1).sum(1) for v in values.values())
        return error + 0.5 * WEIGHT_DECAY * cost < GOAL

    loss = _edge_loss if reading.zero_error == "edge" else _full_loss
    return train_restarts(
        template, params, groups, (person, relation, targets), loss, optimizer, goal, max_epochs, progress
    )


def effective_rates() -> dict[str, float]:
    """Figure 1: the effective learning rate of every layer in units of the global rate."""
    handle = _temper(FamilyNet(), shunt=False, reading=Reading())
    rows = {row.layer: float(row.values["effective"] or "nan") for row in handle.table()}
    return {
        "input": rows["person"],
        **{layer: rows[layer] for layer in ("association", "encoding", "answer")},
    }


def _temper(model: FamilyNet, shunt: bool, reading: Reading) -> cf.tempering.TemperHandle:
    facts = family_relations()
    sample = tuple(torch.tensor(x, dtype=torch.float32) for x in (facts.person_one_hot, facts.relation_one_hot))
    return cf.temper(
        model,
        sample,
        loss="binary_cross_entropy_with_logits_sum",
        shunt=shunt,
        input_power={
            "person": 4.0,
            "relation": 4.0,
        },  # section 6: one input and the bias are on, always together
        local_output=not reading.attenuate_below_output,
        bias_rate=reading.bias_rate,
    )


def _groups(template: FamilyNet, condition: str, rate: float, reading: Reading) -> list[dict[str, Any]]:
    if condition == "conventional":
        return [{"params": list(template.parameters()), "lr": rate}]
    handle = _temper(template, condition == "shunted", reading)
    groups: list[dict[str, Any]] = handle.param_groups(lr=rate)
    if not reading.root:
        power = {"person": 4.0, "relation": 4.0, "association": 13.0, "encoding": 13.0, "answer": 7.0}
        owner = {id(p): name.split(".")[0] for name, p in template.named_parameters()}
        groups = [
            {**group, "params": [p], "lr": group["lr"] / math.sqrt(power[owner[id(p)]])}
            for group in groups
            for p in group["params"]
        ]
    return groups


def _restart(seed: int, bias_start: float) -> FamilyNet:
    generator = torch_generator(seed, "weights")
    net = FamilyNet()
    for name, p in net.named_parameters():
        bound = bias_start if name.endswith("bias") else WEIGHT_RANGE
        with torch.no_grad():
            p.uniform_(-bound, bound, generator=generator)
    return net


def _edge_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy to the edge of the zero-error radius, less its least value; 0 inside."""
    edge = torch.where(targets > 0, 1 - RADIUS, RADIUS)
    least = -(RADIUS * math.log(RADIUS) + (1 - RADIUS) * math.log(1 - RADIUS))
    error = nn.functional.binary_cross_entropy_with_logits(logits, edge, reduction="none") - least
    return torch.where(_outside(logits, targets), error, 0.0).sum()


def _full_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy to the target itself; 0 inside the zero-error radius."""
    error = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return torch.where(_outside(logits, targets), error, 0.0).sum()


def _outside(logits: Tensor, targets: Tensor) -> Tensor:
    return (torch.sigmoid(logits.detach()) - targets).abs() > RADIUS
