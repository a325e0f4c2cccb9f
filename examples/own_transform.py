"""A transform of one's own: only the largest errors of each example go back.

python examples/own_transform.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow.backward import Transform


class TopK(Transform):
    """Hand on the k errors of each example that are largest in size; the others become 0.

    Args:
        k: How many.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: object) -> Tensor:
        """The error with all but its largest elements set to zero, along the last dimension."""
        kept = error.abs().topk(self.k, dim=-1).indices
        return torch.zeros_like(error).scatter(-1, kept, error.gather(-1, kept))

    def __repr__(self) -> str:
        return f"TopK({self.k})"


def main() -> None:
    """Attach it, and let a probe count the zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5))
    with cf.attach(model, {"2": TopK(4)}) as h, cf.probe(model, "0") as seen:
        model(torch.randn(16, 20)).square().sum().backward()
        learning = int((model[2].weight.grad != 0).any(1).sum())
    print(h.table())
    print(seen.table())
    print(f"{learning} of 32 units of layer 2 learned from this batch")


if __name__ == "__main__":
    main()
