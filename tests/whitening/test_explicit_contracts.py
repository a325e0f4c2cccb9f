"""The explicit form in a whitened basis against the contracts; the registry has it before its first projection."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import counterflow as cf
from counterflow.handle import Handle
from counterflow.registry import Method, methods

from ..contracts import checks


def explicit(model: nn.Module, inputs: Tensor) -> Handle:
    optimizer = torch.optim.Adam(model.parameters())
    return cf.whiten(model, optimizer, epsilon=0.1, loader=[inputs])


METHOD = Method(
    key="whitening-projected",
    summary="The explicit form, projected.",
    site="update",
    attach=explicit,
    examples=methods()["whitening"].examples,
    keeps_forward=False,
    adds_buffers=True,
)


@pytest.mark.parametrize("contract", [name for name in checks.CHECKS if name not in ("undo", "deepcopy")])
@pytest.mark.parametrize("example", METHOD.examples, ids=lambda example: example.name)
def test_contract(example, contract):
    checks.hold(METHOD, contract, example)


@pytest.mark.parametrize("example", METHOD.examples, ids=lambda example: example.name)
def test_undo_gives_the_bare_model_within_rounding(example):
    data = checks.make_data(example)
    wanted = checks.gradients(example, checks.make_model(example), data)
    model = checks.make_model(example)
    before = checks.hooks(model)
    handle = explicit(model, data[0])
    handle.undo()
    assert checks.hooks(model) == before
    checks.assert_close(checks.gradients(example, model, data), wanted, "after undo")
