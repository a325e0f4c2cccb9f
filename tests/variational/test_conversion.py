"""What is put in the place of plain layers, and what is there when it is taken back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import counterflow as cf
from counterflow import variational
from counterflow.exceptions import InputError


def test_layers_that_come_back_are_in_the_mode_that_the_model_is_in_now() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, dropout=0.5), "head": nn.Linear(8, 2)})
    h = cf.make_variational(model)
    model.eval()
    h.undo()
    assert not any(module.training for module in model.modules())


def test_layers_that_come_back_have_the_parameters_that_the_model_has_now() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 2)})
    h = cf.make_variational(model)
    loaded = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
    model.load_state_dict(loaded, assign=True)
    h.undo()
    assert all(bool((value == 0.5).all()) for value in model.state_dict().values())


def test_the_root_comes_back_too() -> None:
    plain = nn.Linear(4, 3)
    h = cf.make_variational(plain)
    assert h.model is not plain
    h.undo()
    assert h.model is plain


def test_layers_that_share_a_weight_cannot_begin_at_two_rates() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(InputError, match=r"'0' at 0\.1 and '1' at 0\.3, but they share"):
        cf.make_variational(model, p={"0": 0.1, "1": 0.3})
    h = cf.make_variational(model, p={"0": 0.1, "1": 0.1})
    assert h.table()["1"].values["mean p"] == pytest.approx(0.1)


@pytest.mark.parametrize("options", [{"noise": "A", "rates": "unit"}, {"rates": "weight"}, {"prior": "gaussian"}])
def test_attention_can_be_made_by_itself(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=True)
    attention = variational.VariationalMultiheadAttention(8, 2, batch_first=True, **options)
    missing, _ = attention.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.endswith(("rho", "log_variance")) for name in missing)
    x = torch.randn(3, 5, 8)
    assert not torch.equal(attention(x, x, x)[0], attention(x, x, x)[0])
    torch.testing.assert_close(attention.eval()(x, x, x), plain(x, x, x))
    for more, words in (({"kdim": 4}, "another size"), ({"add_zero_attn": True}, "of its own"), ({"p": 0.9}, "above")):
        with pytest.raises(InputError, match=words):
            variational.VariationalMultiheadAttention(8, 2, **more)


def test_each_projection_of_an_attention_counts_the_scales_that_it_draws() -> None:
    one = float(variational.dropout_kl(torch.zeros(())))
    for rates in ("layer", "unit"):
        attention = variational.VariationalMultiheadAttention(8, 2, noise="A", rates=rates)  # type: ignore[arg-type]
        # Scales of the inputs of queries, keys, values, and of the projection of the outputs.
        assert variational.kl(attention).item() == pytest.approx((3 * 8 + 8) * one, rel=1e-5)


def test_a_forward_that_somebody_exchanged_is_left_alone() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 2)})
    model["attention"].forward = lambda *inputs: inputs[0]  # type: ignore[method-assign]
    table = cf.make_variational(model).table()
    assert "forward has been exchanged" in table["attention"].why
    assert table["head"].done == "variational"


def test_attentions_that_share_a_weight_share_its_rates() -> None:
    model = nn.ModuleDict({"a": nn.MultiheadAttention(4, 2), "b": nn.MultiheadAttention(4, 2), "c": nn.Linear(4, 4)})
    model["b"].in_proj_weight = model["a"].in_proj_weight
    model["c"].weight = model["b"].out_proj.weight
    with pytest.raises(InputError, match=r"'b\.out_proj' at 0\.2 and 'c' at 0\.3, but they share"):
        cf.make_variational(model, p={"c": 0.3, "*": 0.2})
    h = cf.make_variational(model)
    ours = h.model
    assert ours["a"].rate is ours["b"].rate
    assert ours["b"].out_proj.rate is ours["c"].rate
    assert len(h.rates()) == 3  # of what projects into both, and out of each
    cf.variational.kl(ours).backward()
    assert all(rate.grad is not None for rate in h.rates())


def test_an_attention_whose_outputs_are_projected_by_another_layer_is_left_alone() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 2)})
    nn.utils.parametrizations.weight_norm(model["attention"].out_proj)
    h = cf.make_variational(model)
    assert [(row.layer, row.done) for row in h.table()] == [("attention", "left alone"), ("head", "variational")]
    assert "its out_proj (ParametrizedNonDynamicallyQuantizableLinear) has no layer" in h.table()["attention"].why
