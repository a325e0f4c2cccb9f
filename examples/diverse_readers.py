"""Two answers to one question: recurrent members of competing units share the examples, each within a memory budget.

    python examples/diverse_readers.py [STEPS] [UPDATES]

Whether a sequence turns left or right at its end is not told by the sequence: half of the examples say so and half say
otherwise. One net can only hedge. Of two members trained by multiple choice learning one says left and the other right,
and an oracle who may pick is always content. Within a member units compete in pairs, and of all steps it keeps no more
than 64 KiB for the way back.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

import counterflow as cf


class Core(nn.Module):
    """One step: ``(x_t, state) -> (y_t, state)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs, self.recurrent = nn.Linear(3, width), nn.Linear(width, width)
        self.act = cf.LocalWinnerTakeAll(2)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.act(self.inputs(x) + 0.5 * self.recurrent(state))
        return state, state


class Reader(nn.Module):
    """Reads a sequence within a budget, and answers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.core, self.head, self.width = Core(width), nn.Linear(width, 2), width

    def forward(self, x: Tensor) -> Tensor:
        _, state = cf.bptt.unroll(self.core, x, x.new_zeros(len(x), self.width), budget="64KiB")
        answer: Tensor = self.head(state)
        return answer


def main(steps: int | str = 200, updates: int | str = 20) -> None:
    """Train two members, and see who answers what."""
    torch.manual_seed(0)
    x, y = torch.randn(32, int(steps), 3), torch.arange(32) % 2
    loss_fn = nn.CrossEntropyLoss(reduction="none")
    ensemble = cf.MultipleChoice([Reader(), Reader()])
    optimizer = torch.optim.Adam(ensemble.parameters(), 0.01)
    for update in range(int(updates) + 1):
        optimizer.zero_grad()
        step = ensemble.step(x, y, loss_fn)
        optimizer.step()
        if update % 10 == 0:
            wins = ", ".join(f"{share:.0%}" for share in step.usage.tolist())
            print(f"update {update:2}: oracle loss {float(step.loss):.3f}, wins {wins}")
    print("left and right go to", cf.choice.assignment_matrix(step.winners, y, 2).tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
