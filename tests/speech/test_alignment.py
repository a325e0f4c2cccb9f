"""Alignment against every path there is, and its error against autograd through the recursion."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from counterflow.exceptions import InputError, PatternError, ShapeError
from counterflow.speech import Lexicon, Linkage, Phoneme, best_path, follow, path_error


def every_path(frames: int, states: int, skip: bool) -> list[tuple[int, ...]]:
    """All monotone paths from the first state to the last, by enumeration."""
    found = []
    for path in itertools.product(range(states), repeat=frames):
        steps = [b - a for a, b in itertools.pairwise(path)]
        if path[0] == 0 and path[-1] == states - 1 and all(0 <= step <= 1 + skip for step in steps):
            found.append(path)
    return found


def recursion(costs: Tensor, skip: bool) -> Tensor:
    """Dynamic time warping as section 2.1 has it, a cell at a time, for autograd to go through."""
    infinite = costs.new_tensor(torch.inf)
    column = [costs[0, s] if s == 0 else infinite for s in range(costs.shape[1])]
    for t in range(1, len(costs)):
        following = []
        for s in range(costs.shape[1]):
            before = [column[s - step] for step in range(2 + skip) if s >= step]
            following.append(costs[t, s] + min(before, key=lambda each: float(each.detach())))
        column = following
    return column[-1]


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 6), states=st.integers(1, 4), skip=st.booleans(), seed=st.integers(0, 999))
def test_the_best_of_all_paths_is_found(frames: int, states: int, skip: bool, seed: int) -> None:
    costs = torch.rand(1, frames, states, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.3
    paths = every_path(frames, states, skip)
    if not paths:
        with pytest.raises(InputError, match="transcript is too long"):
            path_error(costs, skip=skip)
        return
    totals = {path: sum(float(costs[0, t, s]) for t, s in enumerate(path)) for path in paths}
    error, path = path_error(costs, skip=skip)
    assert tuple(path[0].tolist()) == min(totals, key=totals.__getitem__)
    assert float(error) == pytest.approx(min(totals.values()), abs=1e-12)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_is_that_of_autograd_through_the_recursion(skip: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = [(9, 4), (5, 5), (1, 1), (12, 2)]
    costs = torch.rand(4, 12, 5, dtype=dtype)
    weights = torch.randn(4, dtype=dtype)
    mine = costs.clone().requires_grad_()
    frames, states = torch.tensor(sizes).T
    error, path = path_error(mine, frames, states, skip=skip)
    (error * weights).sum().backward()
    theirs = costs.clone().requires_grad_()
    slow = torch.stack([recursion(theirs[b, :t, :s], skip) for b, (t, s) in enumerate(sizes)])
    (slow * weights).sum().backward()
    torch.testing.assert_close(error, slow)
    assert torch.equal(mine.grad, theirs.grad)
    assert all((path[b, t:] == -1).all() and path[b, t - 1] == s - 1 for b, (t, s) in enumerate(sizes))


def test_gradients_pass_finite_differences() -> None:
    torch.manual_seed(1)
    costs = torch.rand(2, 7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: path_error(x)[0], costs)
    assert torch.autograd.gradgradcheck(lambda x: path_error(x)[0].square(), costs)


def test_predictors_specialize_along_the_path() -> None:
    """Figure 2: a predictor's error is the difference of prediction and frame where the path is its, else nothing."""
    torch.manual_seed(2)
    x = torch.randn(6, 3)
    predicted = torch.randn(6, 4, 3, requires_grad=True)
    error, path = path_error((x[:, None] - predicted).square().sum(-1)[None])
    error.sum().backward()
    for t, s in itertools.product(range(6), range(4)):
        wanted = 2 * (predicted[t, s] - x[t]) if path[0, t] == s else torch.zeros(3)
        torch.testing.assert_close(predicted.grad[t, s], wanted.detach())


def test_a_model_follows_the_path_until_it_is_undone() -> None:
    torch.manual_seed(3)
    model, x = nn.Sequential(nn.Linear(2, 3)), torch.randn(2, 6, 2)
    bare = model(x)
    handle = follow(model, "0")
    costs = model(x)
    assert torch.equal(costs, bare)
    costs.sum().backward()
    counts = torch.zeros(3).index_add(0, best_path(bare.detach()).flatten(), torch.ones(12))
    assert torch.equal(model[0].bias.grad, counts)
    handle.undo()
    model.zero_grad()
    model(x).sum().backward()
    assert torch.equal(model[0].bias.grad, torch.full((3,), 12.0))


def test_what_cannot_be_aligned_is_said() -> None:
    costs = torch.rand(2, 4, 3)
    with pytest.raises(InputError, match="sequence 1 has 2 frames; its 3 states take 3"):
        path_error(costs, frames=torch.tensor([4, 2]))
    with pytest.raises(InputError, match="frames must lie between 1 and 4"):
        best_path(costs, frames=torch.tensor([4, 0]))
    with pytest.raises(ShapeError, match=r"states must be whole numbers of shape \(2,\)"):
        best_path(costs, states=torch.tensor([3]))
    with pytest.raises(ShapeError, match="costs must be"):
        best_path(costs[0])
    with pytest.raises(ShapeError, match="none of it empty"):
        best_path(costs[:, :0])
    costs[1] = torch.nan
    with pytest.raises(InputError, match="costs of sequence 1 are not finite"):
        best_path(costs)
    with pytest.raises(PatternError):
        follow(nn.Linear(1, 1), "head")


@pytest.mark.parametrize("skip", [False, True])
def test_what_is_no_number_is_passed_over(skip: bool) -> None:
    costs = torch.tensor([[[0.0, 9.0], [0.0, torch.nan], [9.0, 0.0]]])
    assert best_path(costs, skip=skip).tolist() == [[0, 0, 1]]
    pattern = Linkage(["A"], Lexicon({"A": [("A",)]}), Phoneme(1, 1))
    assert pattern.align(costs[0])[0].tolist() == pattern.align(costs[0].nan_to_num(torch.inf))[0].tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12), st.booleans(), st.booleans(), st.integers(0, 999))
def test_wherever_it_is_no_number_it_is_as_if_infinite(
    frames: int, states: int, holes: int, skip: bool, half: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(2, frames + states, states, generator=generator)
    costs = costs.bfloat16() if half else costs
    costs[1].view(-1)[torch.randint(costs[1].numel(), (holes,), generator=generator)] = torch.nan
    ends = torch.tensor([frames + states, states]), torch.tensor([states, max(1, states - 1)])

    def found(each: Tensor) -> list[list[int]] | str:
        try:
            return best_path(each, *ends, skip=skip).tolist()
        except InputError as error:
            return str(error)

    assert found(costs) == found(costs.nan_to_num(torch.inf))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_all_frames_and_states_are_meant_where_none_are_given(skip: bool, dtype: torch.dtype) -> None:
    turned = torch.rand(2, 5, 9, generator=torch.Generator().manual_seed(4)).to(dtype).requires_grad_().mT
    frames, states = torch.tensor([9, 9]), torch.tensor([5, 5], dtype=torch.int32)
    path = best_path(turned, skip=skip)
    assert path.dtype == torch.int64
    assert not path.requires_grad
    assert torch.equal(path, best_path(turned, frames, states, skip=skip))
    assert torch.equal(path, best_path(turned, frames=frames, skip=skip))
    assert torch.equal(path, best_path(turned.detach().contiguous(), states=states, skip=skip))
    with pytest.raises(InputError, match="sequence 0 has 2 frames; its 5 states take"):
        best_path(turned[:, :2], skip=skip)


def test_where_nobody_can_look_an_impossible_path_is_not_a_number() -> None:
    error, path = torch.func.vmap(path_error)(torch.rand(2, 1, 2, 3))
    assert error.isnan().all()
    assert (path == -1).all()


def test_batches_of_none_and_transforms() -> None:
    assert path_error(torch.rand(0, 4, 3))[0].shape == (0,)
    costs = torch.rand(3, 2, 5, 3)
    each = torch.func.vmap(lambda c: path_error(c)[0])(costs)
    torch.testing.assert_close(each, torch.stack([path_error(c)[0] for c in costs]))
    compiled = torch.compile(lambda c: path_error(c)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(costs[0]), each[0])
