"""Train on a sequence that is far longer than its memory: what comes at the start decides what is right at the end.

    python examples/long_sequence.py [STEPS] [BUDGET] [UPDATES]

The net sees a sign at the first step, then noise, and has to name the sign at the last step. Its core is a module of
one's own; inputs are made step by step, outputs are not kept, and all that going back needs stays within the budget.
"""

from __future__ import annotations

import torch
from arguments import run
from torch import Tensor, nn

import counterflow as cf

BATCH, WIDTH = 32, 16


class Sum(nn.Module):
    """A memory that nothing fades from: what a step adds to it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.take, self.head = nn.Linear(2, WIDTH, bias=False), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Map the inputs of one step and the state to outputs and the next state."""
        state = state + self.take(x).tanh()
        return self.head(state)[:, 0], state


def main(steps: int | str = 2000, budget: str = "64KiB", updates: int | str = 30) -> None:
    """Show what the budget costs, then train within it."""
    steps, updates = int(steps), int(updates)
    torch.manual_seed(0)
    core, state = Sum(), torch.zeros(BATCH, WIDTH)
    optimizer = torch.optim.Adam(core.parameters(), lr=0.1)
    sign = torch.ones(BATCH)

    def inputs(t: int) -> Tensor:
        noise = (
            torch.randn(BATCH, generator=torch.Generator().manual_seed(t)) / 100
        )  # the same whenever it is asked for
        return torch.stack([sign if t == 0 else torch.zeros(BATCH), noise], 1)

    def loss_fn(t: int, y: Tensor) -> Tensor:
        return nn.functional.soft_margin_loss(y, sign) if t == steps - 1 else y.new_zeros(())

    print(cf.bptt.explain(core, inputs, state, steps=steps, loss_fn=loss_fn))
    for update in range(updates):
        sign = torch.randint(2, (BATCH,)).float() * 2 - 1
        optimizer.zero_grad()
        loss, _ = cf.bptt.unroll(core, inputs, state, steps=steps, budget=budget, loss_fn=loss_fn)
        loss.backward()
        optimizer.step()
        if update % 5 == 0 or update == updates - 1:
            print(f"update {update}: loss {loss.item():.4f}")


if __name__ == "__main__":
    run(main)
