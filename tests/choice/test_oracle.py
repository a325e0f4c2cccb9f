"""The oracle's choice against its definition, example by example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import counterflow as cf
from counterflow.choice import annealed, choose, winners, winners_only
from counterflow.exceptions import InputError, PatternError, ShapeError

INF, NAN = float("inf"), float("nan")


@settings(max_examples=40, deadline=None)
@given(members=st.integers(1, 5), batch=st.integers(1, 6), levels=st.integers(1, 4), data=st.data())
def test_the_least_win_and_ties_go_to_the_first(members: int, batch: int, levels: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, members))
    values = data.draw(st.lists(st.integers(0, levels), min_size=members * batch, max_size=members * batch))
    losses = torch.tensor(values, dtype=torch.float64).view(batch, members).t()  # not contiguous
    loss, chosen = cf.oracle_loss(losses, k)
    assert (chosen.sum(0) == k).all()
    total = 0.0
    for i in range(batch):
        order = sorted(range(members), key=lambda m: (float(losses[m, i]), m))
        assert chosen[:, i].nonzero().flatten().tolist() == sorted(order[:k])
        total += sum(float(losses[m, i]) for m in order[:k])
    np.testing.assert_allclose(float(loss), total / batch)


def test_gradients_are_exact_away_from_ties() -> None:
    losses = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    for k in (1, 3, 4):
        assert torch.autograd.gradcheck(lambda x, k=k: cf.oracle_loss(x, k)[0], losses)


def test_nan_never_wins_and_does_not_leak() -> None:
    losses = torch.tensor([[float("nan"), 1.0], [float("inf"), 2.0]], requires_grad=True)
    loss, chosen = cf.oracle_loss(losses)
    assert chosen.tolist() == [[False, True], [True, False]]
    losses = torch.tensor([[float("nan"), 1.0], [3.0, 2.0]], requires_grad=True)
    loss, _ = cf.oracle_loss(losses)
    loss.backward()
    assert loss.item() == 2.0
    assert losses.grad is not None
    assert losses.grad.tolist() == [[0.0, 0.5], [0.5, 0.0]]


@pytest.mark.parametrize(
    ("losses", "temperature", "weights"),
    [
        ([1.0, 2.0], 1e-39, [1, 0]),
        ([2.0, 1.0], 1e-60, [0, 1]),
        ([1.0, 1.0, 2.0], 1e-60, [0.5, 0.5, 0]),
        ([2000.0, 2001.0], 0.001, [1, 0]),
        ([5.0, INF], 1.0, [1, 0]),
        ([INF, INF], 1.0, [0.5, 0.5]),
        ([INF, NAN, INF], 1e-39, [0.5, 0, 0.5]),
        ([-INF, 1.0], 1.0, [1, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_annealed_weights_go_to_the_winner_at_any_temperature(
    losses: list[float], temperature: float, weights: list[float], dtype: torch.dtype
) -> None:
    found = annealed(torch.tensor(losses, dtype=dtype).unsqueeze(1), temperature)
    assert found.dtype == dtype
    if dtype == torch.bfloat16 and losses[0] == 2000.0:  # where 2001 is 2000
        weights = [0.5, 0.5]
    assert found.flatten().tolist() == weights


def test_annealed_weights_are_those_of_the_equation() -> None:
    losses = torch.randn(4, 9)
    torch.testing.assert_close(annealed(losses, 0.7), torch.softmax(-losses / 0.7, 0))
    losses[2, 3] = NAN
    weights = annealed(losses, 0.7)
    assert weights[2, 3] == 0
    torch.testing.assert_close(weights[[0, 1, 3], 3], torch.softmax(-losses[[0, 1, 3], 3] / 0.7, 0))


def test_too_few_numbers_are_an_error() -> None:
    losses = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    with pytest.raises(InputError, match=r"only 1 of example 1 are numbers, but k is 2"):
        winners(losses, 2)


def test_what_cannot_be_used_is_named() -> None:
    with pytest.raises(ShapeError, match=r"losses has shape \(3,\)"):
        cf.oracle_loss(torch.zeros(3))
    for k in (0, 4, 1.5, True):
        with pytest.raises(InputError, match=f"whole number from 1 to 3, the number of members, got {k}"):
            cf.oracle_loss(torch.zeros(3, 2), k)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="reduction is 'max'"):
        cf.oracle_loss(torch.zeros(3, 2), reduction="max")  # type: ignore[arg-type]
    with pytest.raises(PatternError):
        choose(torch.nn.Sequential(torch.nn.Identity()), "nothing")
    with pytest.raises(InputError, match="k must be a whole number from 1 to the number of members, got 0"):
        choose(torch.nn.Identity(), "", 0)


def test_reductions() -> None:
    losses = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    assert cf.oracle_loss(losses, reduction="none")[0].tolist() == [1.0, 0.5]
    assert float(cf.oracle_loss(losses, reduction="sum")[0]) == 1.5
    assert float(cf.oracle_loss(losses, k=2)[0]) == 3.25


def test_it_runs_under_vmap_grad_and_compile() -> None:
    losses = torch.randn(5, 3, 4)
    loss, chosen = torch.func.vmap(cf.oracle_loss)(losses)
    for index in range(5):
        wanted = cf.oracle_loss(losses[index])
        assert torch.equal(loss[index], wanted[0])
        assert torch.equal(chosen[index], wanted[1])
    grads = torch.func.vmap(torch.func.grad(lambda x: cf.oracle_loss(x, reduction="sum")[0]))(losses)
    assert torch.equal(grads, chosen.float())
    compiled = torch.compile(cf.oracle_loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(losses[0])[1], chosen[0])


def test_bfloat16_and_the_gate() -> None:
    losses = torch.rand(3, 5, dtype=torch.bfloat16, requires_grad=True)
    gated = winners_only(losses, 2)
    assert torch.equal(gated, losses)
    gated.sum().backward()
    assert losses.grad is not None
    assert torch.equal(losses.grad.bool(), winners(losses, 2))


def test_the_gate_steps_aside_where_no_error_goes_back() -> None:
    model, losses = torch.nn.Sequential(torch.nn.Identity()), torch.full((2, 3), torch.nan)
    with choose(model, "0"):
        with torch.no_grad():
            assert model(losses).isnan().all()
        exported = torch.export.export(model, (torch.rand(2, 3),))
    assert "sort" not in str(exported.graph)
