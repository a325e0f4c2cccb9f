"""The competition itself, against a loop in plain Python: values, layouts, ties, NaN, gradients, transforms."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import counterflow as cf
from counterflow.competition import Competition, LocalWinnerTakeAll, k_winners, lwta, soft_winner, winners
from counterflow.exceptions import InputError, ShapeError

INF, NAN = float("inf"), float("nan")
VALUES = torch.tensor([0.0, -1, 1, 2, float("nan"), float("inf"), -float("inf")])


def reference(x: Tensor, block: int, dim: int) -> Tensor:
    """Who wins, unit by unit: the larger, the lower index at ties, a block's first NaN."""
    mask = torch.zeros_like(x, dtype=torch.bool)
    values, won = x.movedim(dim, -1), mask.movedim(dim, -1)
    for index in itertools.product(*map(range, values.shape[:-1])):
        for start in range(0, values.shape[-1], block):
            each = values[index][start : start + block].tolist()
            best = 0
            for j in range(1, block):
                a, b = each[best], each[j]
                if b > a or (b != b and a == a):
                    best = j
            won[(*index, start + best)] = True
    return mask


# Every block of every type and layout is a kernel of its own, compiled for seconds: float64 takes two of them.
@pytest.mark.parametrize(
    ("block", "dtype"),
    [
        *itertools.product((1, 2, 3, 4, 5), (torch.float32, torch.bfloat16)),
        *itertools.product((2, 3), (torch.float64,)),
    ],
)
@pytest.mark.parametrize(
    ("shape", "dim"), [((4, 60), 1), ((2, 60, 3), 1), ((2, 3, 60), -1), ((2, 60, 2, 2), 1), ((60, 3), 0)]
)
def test_the_first_largest_of_each_block_passes(shape, dim, block, dtype):
    torch.manual_seed(block)
    x = VALUES[torch.randint(len(VALUES), shape)].to(dtype)
    forms = [x, x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 0]]  # contiguous, transposed, with gaps
    forms += [x.contiguous(memory_format=torch.channels_last)] if x.ndim == 4 else []
    for form in forms:
        mask = reference(form, block, dim)
        assert torch.equal(winners(form, block, dim), mask)
        wanted = torch.where(mask, form, torch.zeros((), dtype=dtype))
        torch.testing.assert_close(lwta(form, block, dim), wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("block", [2, 3])
@pytest.mark.parametrize("pixels", [1024, 1025, 2209])
def test_pictures_larger_than_a_cache_are_compared_pixel_by_pixel(block, pixels):
    x = torch.randn(2, 6, pixels)  # no two are equal
    best = x.unflatten(1, (-1, block)).amax(2).repeat_interleave(block, 1)
    assert torch.equal(lwta(x, block, 1), torch.where(x == best, x, 0.0))
    assert torch.equal(winners(x, block, 1), x == best)


@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(1, 5),
    block=st.integers(1, 6),
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_any_shape(blocks: int, block: int, before: int, after: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(before, blocks * block, after)
    y = lwta(x, block, 1)
    assert torch.equal(winners(x, block, 1), reference(x, block, 1))
    assert ((y != 0).unflatten(1, (blocks, block)).sum(2) == 1).all()


def test_table_1_a_pair_beside_two_rectified_units() -> None:
    pairs = torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -2.0], [-2.0, -1.0]])
    assert lwta(pairs).tolist() == [[2, 0], [0, 2], [1, 0], [0, 1], [-1, 0], [0, -1]]
    assert torch.relu(pairs).tolist() == [[2, 1], [1, 2], [1, 0], [0, 1], [0, 0], [0, 0]]


def test_the_error_goes_through_winners_alone_and_to_the_first_at_a_tie() -> None:
    x = torch.tensor([[1.0, 3.0, 2.0, 2.0]], requires_grad=True)
    lwta(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 1, 1, 0]]


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(1, 4),
    block=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    layouts=st.tuples(*[st.sampled_from(["contiguous", "channels last", "transposed", "gaps", "expanded"])] * 2),
    ties=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_way_back_in_any_layout_of_net_inputs_and_errors(blocks, block, dtype, layouts, ties, seed):
    """Winners get the error that arrives, to the bit, and others zero, however both lie in memory."""
    torch.manual_seed(seed)
    shape = (2, blocks * block, 1, 2)

    def laid_out(x: Tensor, layout: str) -> Tensor:
        if layout == "channels last":
            return x.contiguous(memory_format=torch.channels_last)
        if layout == "transposed":
            return x.mT.contiguous().mT
        return torch.stack([x, x], -1)[..., 0] if layout == "gaps" else x

    values = torch.randint(-2, 3, shape) if ties else torch.randn(shape)
    x = laid_out(values.to(dtype), layouts[0]).requires_grad_()
    error = laid_out(torch.randn(shape).to(dtype), layouts[1])
    if layouts[1] == "expanded":  # as a sum hands it down
        error = torch.ones((), dtype=dtype).expand(shape)
    lwta(x, block).backward(error)
    assert torch.equal(x.grad, torch.where(reference(x.detach(), block, 1), error, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_lay_out_memory_as_they_tell_the_compiler(dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 3, 5).to(dtype)
    forms = [x, x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT, torch.stack([x, x], -1)[..., 0]]
    operators = torch.ops.counterflow
    for form in forms:
        mask = operators.compete(form, 2, 1)[1]
        with FakeTensorMode() as mode:
            known, known_mask = mode.from_tensor(form), mode.from_tensor(mask)
            told = [*operators.compete(known, 2, 1), operators.route(known, known_mask)]
        done = [*operators.compete(form, 2, 1), operators.route(form, mask)]
        assert [each.stride() for each in done] == [each.stride() for each in told]
    assert lwta(forms[1]).is_contiguous(memory_format=torch.channels_last)


def draw(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_gradcheck_away_from_ties() -> None:
    for block in (2, 3, 4):
        assert torch.autograd.gradcheck(lambda x, block=block: lwta(x, block), draw(3, 12))
    assert torch.autograd.gradcheck(lambda x: lwta(x, 2), draw(2, 4, 2, 3))
    assert torch.autograd.gradgradcheck(lambda x: lwta(x, 2), draw(3, 12))
    assert torch.autograd.gradcheck(lambda x: lwta(x, 4, competition=k_winners(2)), draw(3, 12))
    assert torch.autograd.gradcheck(lambda x: lwta(x, 4, competition=soft_winner(0.5)), draw(3, 12))


def test_transforms() -> None:
    x = draw(5, 12).detach()
    assert torch.equal(torch.vmap(lambda row: lwta(row, 2, 0))(x), lwta(x, 2))
    each = torch.vmap(torch.func.grad(lambda row: lwta(row, 3, 0).square().sum()))(x)
    assert torch.equal(each, 2 * lwta(x, 3))
    tangent = torch.func.jvp(lambda v: lwta(v, 2), (x,), (torch.ones_like(x),))[1]
    assert torch.equal(tangent, winners(x, 2).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_jacobians_send_many_errors_back_through_one_mask(dtype: torch.dtype) -> None:
    x = draw(3, 4, 2, 1).detach().to(dtype)
    wanted = torch.diag(reference(x, 2, 1).flatten().to(dtype)).view(*x.shape, *x.shape)
    assert torch.equal(torch.func.jacrev(lwta)(x), wanted)
    assert torch.equal(torch.autograd.functional.jacobian(lwta, x, vectorize=True), wanted)
    hessian = torch.func.hessian(lambda v: lwta(v).square().sum())(x)
    assert torch.equal(hessian, 2 * wanted)
    x.requires_grad_()
    errors = torch.randn(5, *x.shape).to(dtype)
    (found,) = torch.autograd.grad(lwta(x), x, errors, is_grads_batched=True)
    assert torch.equal(found, torch.where(reference(x.detach(), 2, 1), errors, 0.0))


def test_a_competition_may_expand_a_mask() -> None:
    x, fixed = draw(50, 8), torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    y = lwta(x, competition=lambda blocks: fixed.expand(blocks.shape))
    mask = fixed.flatten().expand(x.shape)
    assert torch.equal(y, torch.where(mask, x, 0.0))
    y.sum().backward()
    assert torch.equal(x.grad, mask.double())


def test_compiled_it_is_the_same() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), LocalWinnerTakeAll(), nn.Flatten(), nn.Linear(64, 6), LocalWinnerTakeAll(3))
    x = torch.randn(5, 1, 6, 6)
    net(x).square().sum().backward()
    plain = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    torch.compile(net, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    for p, g in zip(net.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_traced_it_is_one_node_and_exported_it_is_plain_pytorch() -> None:
    net = nn.Sequential(nn.Linear(4, 6), LocalWinnerTakeAll(3), nn.Linear(6, 2))
    x = torch.randn(5, 4)
    traced = torch.fx.symbolic_trace(net)
    assert torch.equal(traced(x), net(x))
    exported = torch.export.export(net, (x,))
    assert all("counterflow" not in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), net(x))


def test_under_autocast_the_winners_are_those_of_the_rounded_net_inputs() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 40), torch.randn(30, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = layer(x)
        y = lwta(h)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    error = 2 * torch.where(reference(h, 2, 1), h, 0.0).float()
    torch.testing.assert_close(layer.weight.grad, error.T @ x, rtol=0.02, atol=0.2)


def test_what_is_kept_for_the_way_back_is_one_byte_a_unit() -> None:
    saved: list[Tensor] = []
    x = draw(10, 40)

    def keep(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        lwta(x)
    assert [(t.dtype, t.shape) for t in saved] == [(torch.bool, x.shape)]


def test_other_functions_and_competitions() -> None:
    x = torch.tensor([[1.0, -3.0, 2.0, 0.5]])
    assert lwta(x, 2, activation=torch.abs).tolist() == [[0, 3, 2, 0]]
    assert lwta(x, 4, competition=k_winners(2)).tolist() == [[1, 0, 2, 0]]
    assert torch.equal(lwta(x, 2, competition=k_winners(1)), lwta(x, 2))
    assert lwta(x, 2, competition=lambda blocks: blocks * 0.5).tolist() == (x * 0.5).tolist()
    soft = lwta(x, 2, competition=soft_winner(1e-3))
    torch.testing.assert_close(soft, lwta(x, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("blocks", "temperature", "outputs"),
    [
        ([10.0, 20.0], 1e-38, [0.0, 20.0]),
        ([10.0, 20.0], 1e-60, [0.0, 20.0]),
        ([-3.0, -3.0], 1e-60, [-1.5, -1.5]),
        ([1.0, -INF], 1.0, [1.0, 0.0]),
        ([1.0, INF], 1.0, [0.0, INF]),
        ([-INF, -INF], 1.0, [-INF, -INF]),
        ([1.0, NAN], 1.0, [NAN, NAN]),
    ],
)
def test_the_soft_competition_goes_to_the_winner_at_any_temperature(
    blocks: list[float], temperature: float, outputs: list[float], dtype: torch.dtype
) -> None:
    x = torch.tensor([blocks], dtype=dtype, requires_grad=True)
    y = lwta(x, competition=soft_winner(temperature))
    torch.testing.assert_close(y, torch.tensor([outputs], dtype=dtype), equal_nan=True)
    y.sum().backward()
    if math.isfinite(sum(outputs)):
        assert x.grad is not None
        torch.testing.assert_close(x.grad, y.detach() / x.detach().masked_fill(y == 0, 1.0))


def test_the_soft_competition_is_that_of_its_equation() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    y = lwta(x, 4, competition=soft_winner(0.7))
    blocks = x.unflatten(1, (-1, 4))
    torch.testing.assert_close(y, (blocks * (blocks / 0.7).softmax(-1)).flatten(1))
    assert torch.autograd.gradcheck(lambda x: lwta(x, 4, competition=soft_winner(0.7)), x)


@pytest.mark.parametrize("competition", [k_winners(2), soft_winner(0.5)])
def test_a_competition_is_pickled_and_shown_with_its_layer(competition: Competition) -> None:
    layer, x = LocalWinnerTakeAll(4, competition=competition), torch.randn(3, 8)
    again = pickle.loads(pickle.dumps(layer))
    assert torch.equal(again(x), layer(x))
    assert repr(again) == f"LocalWinnerTakeAll(block=4, dim=1, competition={competition})"
    assert str(competition) in ("k_winners(2)", "soft_winner(0.5)")


def test_bad_arguments() -> None:
    x = torch.randn(2, 6)
    with pytest.raises(InputError, match="block"):
        lwta(x, 0)
    with pytest.raises(ShapeError, match="4"):
        lwta(x, 4)
    with pytest.raises(ShapeError):
        lwta(x, 2, 5)
    with pytest.raises(InputError, match="floating"):
        lwta(torch.ones(2, 6, dtype=torch.long))
    with pytest.raises(ShapeError, match="activation"):
        lwta(x, 2, activation=lambda v: v[:, :2])
    with pytest.raises(InputError, match="function"):
        LocalWinnerTakeAll(activation=3)  # type: ignore[arg-type]


def test_under_a_memory_budget_winners_are_the_same() -> None:
    """Combination: competing units in a recurrent core within a budget have the gradients of the plain loop."""

    class Core(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.compete = nn.Linear(7, 8), LocalWinnerTakeAll(2, dim=-1)
            self.down = nn.Linear(8, 4)

        def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.down(self.compete(self.inner(torch.cat([x, state], -1)))))
            return h, h

    torch.manual_seed(0)
    core = Core().double()
    x, start = torch.randn(2, 40, 3).double(), torch.zeros(2, 4).double()
    state, outputs = start, []
    for t in range(40):
        y, state = core(x[:, t], state)
        outputs.append(y)
    torch.stack(outputs, 1).square().sum().backward()
    exact = [p.grad.clone() for p in core.parameters() if p.grad is not None]
    core.zero_grad()
    y, _ = cf.bptt.unroll(core, x, start, slots=5, strategy="mixed")
    y.square().sum().backward()
    for p, g in zip(core.parameters(), exact, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-11)
