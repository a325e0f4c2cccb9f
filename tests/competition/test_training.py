"""Schedules and max-norm, subnetworks, the monitor, and forgetting."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import counterflow as cf
from counterflow import LocalWinnerTakeAll
from counterflow.competition import (
    AnnealedRate,
    MomentumRamp,
    Task,
    max_norm,
    measure_forgetting,
    monitor,
    subnetworks,
    winners_of,
)
from counterflow.exceptions import InputError, ShapeError, UnsupportedError


def optimizer_of(*rates: float, kind: Any = torch.optim.SGD, **options: Any) -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    made: torch.optim.Optimizer = kind(groups, **options)
    return made


def test_the_rate_falls_to_its_floor_and_goes_on_from_a_checkpoint() -> None:
    optimizer = optimizer_of(0.1, 0.04)
    schedule = AnnealedRate(optimizer, 0.5, 0.02)
    seen = []
    for _ in range(4):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert seen == [
        pytest.approx([0.1, 0.04]),
        pytest.approx([0.05, 0.02]),
        pytest.approx([0.025, 0.02]),
        pytest.approx([0.02, 0.02]),
    ]
    fresh = optimizer_of(0.1, 0.04)
    again = AnnealedRate(fresh, 0.5, 0.02)
    again.load_state_dict(schedule.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    again.step()
    assert [group["lr"] for group in fresh.param_groups] == pytest.approx([0.02, 0.02])


def test_a_rate_of_zero_stays() -> None:
    assert AnnealedRate(optimizer_of(0.0, 0.1), 0.5, 0.0).get_last_lr() == [0.0, 0.1]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_momentum_rises_as_the_words_say(kind: Any) -> None:
    optimizer = optimizer_of(0.1, kind=kind, **({"momentum": 0.1} if kind is torch.optim.SGD else {}))
    ramp = MomentumRamp(optimizer, 0.5, 0.9, 4)
    seen = []
    for _ in range(6):
        group = optimizer.param_groups[0]
        seen.append(group["momentum"] if kind is torch.optim.SGD else group["betas"][0])
        optimizer.step()
        ramp.step()
    assert seen == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_max_norm_shrinks_units_until_it_is_undone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(12, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    h = max_norm(model, optimizer, 0.5)
    small = model[2].weight.detach().clone()
    with torch.no_grad():
        model[2].weight[0] *= 0.01
        small[0] *= 0.01
    optimizer.step()
    for layer in (model[0], model[2]):
        assert bool((layer.weight.flatten(1).norm(dim=1) <= 0.5 + 1e-5).all())
    torch.testing.assert_close(model[2].weight[0], small[0])  # those below are left as they are
    cosine = nn.functional.cosine_similarity(model[2].weight, small, dim=1)
    torch.testing.assert_close(cosine, torch.ones(4))
    assert [row.layer for row in h.table()] == ["0", "2"]
    h.undo()
    with torch.no_grad():
        model[2].weight.mul_(100)
    optimizer.step()
    assert float(model[2].weight.detach().norm()) > 1


def test_max_norm_breaks_no_compiled_step() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    max_norm(model, optimizer, 0.5)
    [shrink] = optimizer._optimizer_step_post_hooks.values()
    torch.compile(shrink, fullgraph=True, backend="eager")(optimizer, (), {})
    assert model.weight.norm(dim=1).max() <= 0.5 + 1e-6


def test_max_norm_of_a_transposed_convolution_is_one_a_unit_of_each_group() -> None:
    layer = nn.ConvTranspose1d(4, 2, 1, groups=2, bias=False)  # (inputs, outputs of a group, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.6, 0.6, 3.0, 4.0])[:, None, None])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    max_norm(layer, optimizer, 1.0)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach().flatten(), torch.tensor([0.6, 0.6, 0.6, 0.8]))


def test_max_norm_leaves_alone_what_it_cannot_shrink() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 2))
    table = max_norm(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5).table()
    assert (table["0"].done, table["1"].done) == ("left alone", "norm <= 0.5")
    assert "computed from other parameters" in table["0"].why
    with pytest.raises(UnsupportedError, match="a weight of its own"):
        max_norm(model[0], optimizer_of(0.1), 0.5)


def test_max_norm_shrinks_what_the_optimizer_moves() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1)
    h = max_norm(model, optimizer, 0.1)
    before = [layer.weight.detach().clone() for layer in model]
    optimizer.step()
    assert [torch.equal(layer.weight, weight) for layer, weight in zip(model, before, strict=True)] == [
        True,
        True,
        False,
    ]
    assert [(row.done, row.why) for row in h.table()] == [
        ("left alone", "its weight is frozen"),
        ("left alone", "the optimizer does not hold its weight"),
        ("norm <= 0.1", ""),
    ]
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": model[1].parameters()})
    optimizer.step()
    assert all(float(layer.weight.detach().norm(dim=1).max()) < 0.1001 for layer in model)
    assert {row.done for row in h.table()} == {"norm <= 0.1"}
    with pytest.raises(UnsupportedError, match="'': the optimizer does not hold its weight"):
        max_norm(nn.Linear(2, 2), optimizer, 1.0)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 5, "vdim": 6}])
def test_max_norm_keeps_the_projections_of_attention(sizes: dict[str, int]) -> None:
    model = nn.MultiheadAttention(8, 2, **sizes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    h = max_norm(model, optimizer, 0.1)
    optimizer.step()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    assert len(matrices) == (4 if sizes else 2)
    assert all(float(p.detach().norm(dim=1).max()) < 0.1001 for p in matrices)
    assert [row.layer for row in h.table()] == ["", "out_proj"]


def test_bad_schedules() -> None:
    with pytest.raises(InputError, match="factor"):
        AnnealedRate(optimizer_of(0.1), 1.5, 0.0)
    with pytest.raises(InputError, match="floor"):
        AnnealedRate(optimizer_of(0.1), 0.5, 0.2)
    with pytest.raises(InputError, match="final"):
        MomentumRamp(optimizer_of(0.1), 0.5, 1.0, 3)
    with pytest.raises(InputError, match="epochs"):
        MomentumRamp(optimizer_of(0.1), 0.5, 0.9, 0)
    with pytest.raises(UnsupportedError, match="no momentum"):
        MomentumRamp(optimizer_of(0.1, kind=torch.optim.Adagrad), 0.5, 0.9, 2)
    with pytest.raises(InputError, match="limit"):
        max_norm(nn.Linear(2, 2), optimizer_of(0.1), 0.0)
    with pytest.raises(UnsupportedError, match="no linear"):
        max_norm(nn.ReLU(), optimizer_of(0.1), 1.0)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), LocalWinnerTakeAll(), nn.Dropout(), nn.Linear(8, 6), LocalWinnerTakeAll(3), nn.Linear(6, 2)
    )


def test_winners_are_those_of_the_forward_pass() -> None:
    model, x = net(), torch.randn(7, 4)
    found = winners_of(model, x, batch_size=3)
    assert list(found) == ["1", "4"]
    assert torch.equal(found["1"], model[:2](x) != 0)
    assert model.training
    assert not model[1]._forward_pre_hooks
    with pytest.raises(UnsupportedError, match=r"cf\.compete"):
        winners_of(nn.Linear(2, 2), x)
    with pytest.raises(InputError, match="batch_size must be a whole number >= 1, got 0"):
        winners_of(model, x, batch_size=0)
    act = LocalWinnerTakeAll()
    with pytest.raises(UnsupportedError, match="once"):
        winners_of(nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4), act), x)


def test_subnetworks_are_units_active_for_most_of_a_class(tmp_path: Path) -> None:
    model = nn.Sequential(LocalWinnerTakeAll())
    a, b = torch.tensor([[1.0, 0, 1, 0]]), torch.tensor([[1.0, 0, 0, 1]])
    x = torch.cat([a.expand(10, 4), b.expand(9, 4), a])
    found = subnetworks(model, x, torch.tensor([3] * 10 + [7] * 10))
    assert found.classes == (3, 7)
    assert found.members.tolist() == [[True, False, True, False], [True, False, False, True]]  # 9 of 10 are enough
    assert found.overlap.tolist() == [[1, 0.5], [0.5, 1]]
    assert found.pairs() == [(3, 3, 1.0), (3, 7, 0.5), (7, 7, 1.0)]
    found.plot(tmp_path / "overlap.png")
    assert (tmp_path / "overlap.png").stat().st_size > 1000
    strict = subnetworks(model, x, torch.tensor([3] * 10 + [7] * 10), threshold=0.95)
    assert strict.overlap[1, 1] == 0.5
    found.plot(tmp_path / "both.svg", before=strict)
    assert "untrained" in (tmp_path / "both.svg").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.svg", "overlap.png"]
    with pytest.raises(InputError, match="classes"):
        found.plot(tmp_path / "no.png", before=subnetworks(model, x, torch.zeros(20, dtype=torch.long)))
    with pytest.raises(InputError, match="suffix must be"):
        found.plot(tmp_path / "overlap.txt")
    with pytest.raises(InputError, match="make it first"):
        found.plot(tmp_path / "none" / "overlap.png")
    with pytest.raises(InputError, match="layer must be one of"):
        subnetworks(model, x, torch.zeros(20, dtype=torch.long), layer="9")
    with pytest.raises(ShapeError, match="labels"):
        subnetworks(model, x, torch.zeros(3))
    with pytest.raises(InputError, match=r"whole numbers, at least one, got 20 of torch\.float32"):
        subnetworks(model, x, torch.rand(20))
    with pytest.raises(InputError, match="at least one, got 0"):
        subnetworks(model, x[:0], torch.zeros(0, dtype=torch.long))
    with pytest.raises(InputError, match="threshold"):
        subnetworks(model, x, torch.zeros(20, dtype=torch.long), threshold=0.0)


def test_the_monitor_counts_dead_and_over_used_units() -> None:
    model = net()
    with torch.no_grad():
        model[0].bias[:2] = torch.tensor([1e6, 0.0])  # the first of its block always wins
    with monitor(model) as h:
        for _ in range(4):
            model(torch.randn(50, 4))
        values = h.table()["1"].values
        assert values["inputs"] == 200
        assert values["dead"] == 1
        assert values["over-used"] == 1
        assert 0 < values["entropy"] < 1
    assert not model[1]._forward_pre_hooks
    with pytest.raises(InputError, match="overused"):
        monitor(model, 0.2)


def test_the_monitor_counts_an_input_without_a_batch() -> None:
    model = nn.Sequential(nn.Linear(4, 6), LocalWinnerTakeAll(2, dim=-1))
    with monitor(model) as h:
        model(torch.randn(4))
        model(torch.randn(3, 4))
        values = h.table()["1"].values
    assert (values["inputs"], values["units"]) == (4, 6)


def test_the_monitor_breaks_no_compiled_pass() -> None:
    model = net().eval()
    with monitor(model) as h:
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for _ in range(3):
            compiled(torch.randn(7, 4)).sum().backward()
        assert h.table()["1"].values["inputs"] == 21


class Cell(nn.Module):
    """A recurrent step of competing units, with a norm whose running statistics it keeps or none."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.weights, self.act, self.norm = nn.Linear(4, 4), LocalWinnerTakeAll(), norm

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.norm(self.act(self.weights(state) + x))
        return state, state


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm1d(4)])
def test_the_monitor_counts_once_what_a_memory_budget_runs_again(norm: nn.Module) -> None:
    cell = Cell(norm)
    with monitor(cell) as h:
        outputs, _ = cf.bptt.unroll(cell, torch.randn(5, 20, 4), torch.zeros(5, 4), slots=3)
        outputs.sum().backward()
        assert h.table()["act"].values["inputs"] == 100


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_monitor_counts_once_what_a_checkpoint_runs_again(reentrant: bool) -> None:
    model = net()
    with monitor(model) as h:
        x = torch.randn(10, 4, requires_grad=True)
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
        model(x).sum().backward()
        assert [row.values["inputs"] for row in h.table()] == [20, 20]


def test_the_monitor_counts_once_what_a_step_of_an_ensemble_runs_again() -> None:
    ensemble = cf.MultipleChoice(
        [nn.Sequential(nn.Linear(4, 6), LocalWinnerTakeAll(), nn.Linear(6, 2)) for _ in range(4)]
    )
    x, y = torch.randn(32, 4), torch.randint(2, (32,))
    weights = torch.eye(4).repeat_interleave(8, 1)
    with monitor(ensemble) as h:
        for given, counts in ((None, [32] * 4), (weights, [40] * 4)):  # what is fixed beforehand runs once
            step = ensemble.step(x, y, partial(nn.functional.cross_entropy, reduction="none"), weights=given)
            assert all(step.cut)
            assert [row.values["inputs"] for row in h.table()] == counts


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_monitored_model_counts_for_itself(again: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    with monitor(model) as h:
        model(torch.randn(3, 4))
        twin = again(model)
        twin(torch.randn(50, 4))
        assert h.table()["1"].values["inputs"] == 3
        assert len(twin.get_submodule("1")._forward_pre_hooks) == 1


def digits(which: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(which)
    y = torch.randint(2, (400,), generator=generator)
    x = torch.randn(400, 6, generator=generator)
    x[:, 3 * which] += 4.0 * (2 * y - 1)
    return x, y


def test_forgetting_stores_the_first_output_layer_and_puts_it_back() -> None:
    torch.manual_seed(0)
    tasks = [Task(x[:300], y[:300], x[300:], y[300:]) for x, y in (digits(0), digits(1))]
    body = nn.Sequential(nn.Linear(6, 20), LocalWinnerTakeAll())
    heads: list[nn.Linear] = []

    def make_head() -> nn.Linear:
        heads.append(nn.Linear(20, 2))
        return heads[-1]

    told: list[int] = []
    steps = partial(torch.optim.SGD, lr=0.05, momentum=0.5)
    found = measure_forgetting(
        body, make_head, *tasks, optimizer=steps, goal=0.1, progress=lambda task, epoch, nll: told.append(task)
    )
    assert found.reached
    assert found.before < 10
    assert found.second < 10
    assert told == [0] * found.epochs[0] + [1] * found.epochs[1]
    x, y = tasks[0].test_x, tasks[0].test_y
    under_first = 100 * float((heads[0](body(x)).argmax(1) != y).double().mean())
    assert found.after == pytest.approx(under_first)
    never = measure_forgetting(body, make_head, *tasks, optimizer=steps, goal=1e-9, max_epochs=1)
    assert not never.reached
    broken = Task(torch.full_like(x, math.nan), y, x, y)
    diverged = measure_forgetting(body, make_head, tasks[0], broken, optimizer=steps, goal=0.1)
    assert math.isnan(diverged.nll[1])
    assert not diverged.reached
    with pytest.raises(InputError, match="goal"):
        measure_forgetting(body, make_head, *tasks, optimizer=steps, goal=0)
    with pytest.raises(InputError, match="batch_size"):
        measure_forgetting(body, make_head, *tasks, optimizer=steps, batch_size=0)
    with pytest.raises(ShapeError, match="test_y"):
        Task(x, y, x, y[:3])
    with pytest.raises(InputError, match="test_x holds no example"):
        Task(x, y, x[:0], y[:0])
