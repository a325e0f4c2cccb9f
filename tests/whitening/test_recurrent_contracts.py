"""Whitening inside a recurrent layer against the contracts, but for compiling, which PyTorch itself refuses there."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from counterflow.registry import Example, Waiver, methods

from ..contracts import checks
from . import test_explicit_contracts


class Reader(nn.Module):
    """A recurrent layer over four time steps of four features, and a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][:, -1])
        return y


EXAMPLE = Example(
    name="lstm",
    model=Reader,
    inputs=lambda n: torch.randn(n, 4, 4),
    targets=lambda n: torch.randint(3, (n,)),
    loss=lambda y, t: nn.functional.cross_entropy(y, t, reduction="sum"),
)
WAIVERS = {
    "compile": Waiver("Dynamo traces no LSTM.", torch._dynamo.exc.Unsupported, "wrap RNN, GRU, or LSTM"),
}
CASES = [
    pytest.param(method, contract, id=f"{method.key}-{contract}")
    for method in (methods()["whitening"], methods()["whitening-gathering"], test_explicit_contracts.METHOD)
    for contract in checks.CHECKS
    # Once projected, canonical weights come back by undo() within rounding only.
    if method is not test_explicit_contracts.METHOD or contract not in ("undo", "deepcopy")
]


@pytest.mark.parametrize(("method", "contract"), CASES)
def test_contract(method, contract, request):
    if contract == "amp":
        request.getfixturevalue("bfloat16")
    waived = dataclasses.replace(method, examples=(EXAMPLE,), waivers={**WAIVERS, **method.waivers})
    checks.hold(waived, contract, EXAMPLE)
