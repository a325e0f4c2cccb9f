"""The explicit form in a whitened basis against the contracts; the registry has it before its first projection."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import counterflow as cf
from counterflow.exceptions import UnsupportedError
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


def pruned(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, amount=0.3)


def parametrized(module: nn.Module, name: str) -> None:
    parametrize.register_parametrization(module, name, nn.Identity())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("change", "name"),
    [(f, name) for f in (pruned, parametrized) for name in ("weight", "bias")] + [(nn.utils.weight_norm, "weight")],
)
def test_a_weight_that_is_computed_since_is_neither_projected_nor_unwhitened(change, name):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(64, 6) + 1
    optimizer = torch.optim.Adam(model.parameters())
    h = cf.whiten(model, optimizer, every=1, loader=[x])
    change(model[2], name)
    before, state = model(x), {key: value.clone() for key, value in model.state_dict().items()}
    for act in (h.project, h.fold, h.undo, h.undo):
        with pytest.raises(UnsupportedError, match=rf"'2' .*its {name} is computed from other parameters"):
            act()
    assert h.attached
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(x), before)


def test_it_goes_on_where_that_is_made_a_parameter_again():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(64, 6) + 1
    h = cf.whiten(model, torch.optim.Adam(model.parameters()), loader=[x])
    pruned(model[0], "weight")
    prune.remove(model[0], "weight")
    before = model(x)
    h.project()
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    h.undo()
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_attentions_weight_that_is_pruned_since_is_not_unwhitened():
    torch.manual_seed(0)
    model, x = nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(8, 3, 4)
    batch = {"query": x, "key": x, "value": x}
    h = cf.whiten(model, torch.optim.Adam(model.parameters()), loader=[batch])
    pruned(model.out_proj, "weight")
    with pytest.raises(UnsupportedError, match=r"'out_proj' .*its weight is computed from other parameters"):
        h.undo()
