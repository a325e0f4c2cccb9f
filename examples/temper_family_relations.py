"""The paper's network and task with and without tempering, one restart each, until the error is below 1.

    python examples/temper_family_relations.py

``counterflow reproduce tempering`` runs the paper's experiment itself, with its criterion and restarts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow.lab.data import family_relations


class FamilyNet(nn.Module):
    """Figure 1: a person and a relation, one-hot, to the persons who answer."""

    def __init__(self) -> None:
        super().__init__()
        self.person, self.relation = nn.Linear(24, 6), nn.Linear(12, 6)
        self.association, self.encoding, self.answer = nn.Linear(12, 12), nn.Linear(12, 6), nn.Linear(6, 24)
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.uniform_(parameter, -0.3, 0.3)

    def forward(self, person: Tensor, relation: Tensor) -> Tensor:
        """The logits of who answers."""
        x = torch.cat([torch.tanh(self.person(person)), torch.tanh(self.relation(relation))], dim=1)
        return self.answer(torch.tanh(self.encoding(torch.tanh(self.association(x)))))


def error(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy to the edge of the zero-error radius of .2 around each target; nothing inside it."""
    edge = targets * 0.6 + 0.2
    outside = (torch.sigmoid(logits.detach()) - targets).abs() > 0.2
    least = nn.functional.binary_cross_entropy(edge, edge, reduction="none")
    terms = nn.functional.binary_cross_entropy_with_logits(logits, edge, reduction="none") - least
    return terms[outside].sum()


def main(epochs: int = 1000) -> None:
    """Train both until little of the error is left."""
    facts = family_relations()
    person, relation, targets = (
        torch.tensor(x, dtype=torch.float32) for x in (facts.person_one_hot, facts.relation_one_hot, facts.targets)
    )
    for name in ("conventional", "tempered"):
        torch.manual_seed(0)
        model = FamilyNet()
        if name == "tempered":
            h = cf.temper(
                model,
                (person, relation),
                loss="binary_cross_entropy_with_logits_sum",
                input_power={"person": 4.0, "relation": 4.0},  # one input and the bias are on: (1 + 1)^2
                local_output=True,
            )
            print(h.table())
            optimizer = torch.optim.SGD(h.param_groups(lr=0.04), momentum=0.9)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
        for epoch in range(epochs + 1):
            optimizer.zero_grad()
            loss = error(model(person, relation), targets)
            if loss < 1 or epoch == epochs:
                break
            loss.backward()
            optimizer.step()
        print(f"{name}: an error of {loss.item():.2f} after {epoch} epochs")


if __name__ == "__main__":
    main()
