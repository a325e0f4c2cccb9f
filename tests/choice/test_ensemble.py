"""The step of an ensemble against the naive one: a graph of all members, and a masked loss."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import counterflow as cf
from counterflow import backward
from counterflow.backward.tap import Tap
from counterflow.choice import MultipleChoice
from counterflow.exceptions import InputError, ShapeError, UnsupportedError
from counterflow.tempering.recurrent import at_hidden_state


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(out, y, reduction="none")


def net(kind: str = "plain") -> nn.Module:
    extra: dict[str, Callable[[], nn.Module]] = {
        "plain": nn.Tanh,
        "batchnorm": lambda: nn.BatchNorm1d(8),
        "dropout": lambda: nn.Dropout(0.5),
        "lwta": lambda: cf.LocalWinnerTakeAll(2),
        "rrelu": nn.RReLU,
        "variational": lambda: cf.variational.VariationalLinear(8, 8),
    }
    return nn.Sequential(nn.Linear(6, 8), extra[kind](), nn.Linear(8, 4))


def ensemble(kind: str = "plain", members: int = 4, trunk: bool = False, **options: object) -> MultipleChoice:
    torch.manual_seed(0)
    shared = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3)) if trunk else None
    return MultipleChoice([net(kind) for _ in range(members)], shared, **options).double()  # type: ignore[arg-type]


def data(batch: int = 16) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 6, dtype=torch.float64), torch.randint(4, (batch,))


def naive(model: MultipleChoice, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    loss, chosen = cf.oracle_loss(model.losses(x, y, cross_entropy), model.k)
    loss.backward()
    return loss.detach(), chosen


def test_winners_rows_keep_their_memory_format() -> None:
    seen = []

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((len(x), x.is_contiguous(memory_format=torch.channels_last), x.is_contiguous()))
            return x

    torch.manual_seed(0)
    model = MultipleChoice([nn.Sequential(Look(), nn.Flatten(), nn.Linear(48, 4)) for _ in range(4)])
    x, y = torch.randn(16, 3, 4, 4), torch.randint(4, (16,))
    for layout, kept in ((torch.channels_last, (True, False)), (torch.contiguous_format, (False, True))):
        seen.clear()
        model.step(x.contiguous(memory_format=layout), y, cross_entropy)
        assert {each[1:] for each in seen} == {kept}
        assert len(seen) > 4  # some of them on winners' rows


@pytest.mark.parametrize("kind", ["plain", "batchnorm", "dropout", "lwta", "rrelu", "variational"])
@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_gradients_equal_the_naive_ones(kind: str, trunk: bool, k: int) -> None:
    model = ensemble(kind, trunk=trunk, k=k)
    reference = copy.deepcopy(model)
    x, y = data()
    for _ in range(2):  # gradients are added up
        loss, chosen = naive(reference, x, y)
        torch.manual_seed(2)
        step = model.step(x, y, cross_entropy)
    assert step.cut == (kind in ("plain", "lwta") and k < 4,) * 4
    assert torch.equal(step.winners, chosen)
    torch.testing.assert_close(step.loss, loss, rtol=0, atol=1e-10)
    for (name, got), wanted in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert got.grad is not None, name
        torch.testing.assert_close(got.grad, wanted.grad, rtol=0, atol=1e-10)
    for got, wanted in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.equal(got, wanted)


def test_losers_rows_are_never_in_a_backward_pass() -> None:
    model = ensemble()
    seen: list[int] = []

    def watch(module: nn.Module, args: object, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(lambda g: seen.append(len(g)))

    for member in model.members:
        member.register_forward_hook(watch)
    x, y = data()
    step = model.step(x, y, cross_entropy)
    assert sum(seen) == len(x)
    assert sorted(seen) == sorted(n for n in step.winners.sum(1).tolist() if n)


def test_a_member_without_wins_gets_zeros_and_is_dead() -> None:
    model = ensemble(members=2)
    with torch.no_grad():
        model.members[1].load_state_dict(model.members[0].state_dict())  # ties go to the first
    x, y = data()
    step = model.step(x, y, cross_entropy)
    assert step.dead == [1]
    assert step.usage.tolist() == [1.0, 0.0]
    assert float(step.entropy) == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in model.members[1].parameters())


def test_a_member_that_has_gone_to_nan_never_wins_and_spoils_nobody() -> None:
    model = ensemble(trunk=True)
    with torch.no_grad():
        next(model.members[2].parameters()).fill_(float("nan"))
    step = model.step(*data(), cross_entropy)
    assert step.dead == [2] or not step.winners[2].any()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    with torch.no_grad():
        for member in model.members:
            next(member.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="only 0 of example 0 are numbers, but k is 1"):
        model.step(*data(), cross_entropy)


class Poled(nn.Module):
    """A member that has no number for inputs above 9."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (9 - x[:, :1]).sqrt()


def test_a_losers_row_without_a_number_spoils_its_member_on_the_naive_path_alone() -> None:
    x, y = data()
    x[3, 0] = 10
    for cut, spoiled in ((None, False), (False, True)):
        torch.manual_seed(0)
        model = MultipleChoice([net(), Poled(), net()], cut=cut).double()
        step = model.step(x, y, cross_entropy)
        assert step.losses[1].isnan().nonzero().flatten().tolist() == [3]
        assert step.winners[1].any()
        for member, bad in zip(model.members, (False, spoiled, False), strict=True):
            assert all(bool(p.grad.isnan().any()) == bad for p in member.parameters() if p.grad is not None)
    assert "all gradients of its member" in " ".join(str(MultipleChoice.__doc__).split())


def test_the_table_says_who_takes_the_naive_path_and_why() -> None:
    model = MultipleChoice([net(), net("batchnorm"), net("dropout")])
    whys = [row.why for row in model.table()]
    assert whys == ["", "BatchNorm1d takes statistics of the whole batch", "Dropout draws a mask for the whole batch"]
    assert [row.why for row in model.eval().table()] == ["", "", ""]
    model.k = 3
    assert model.table()["members.0"].why == "3 of 3 members win"
    model.cut = True
    assert model.table()["members.0"].why == ""
    model.cut = False
    assert model.table()["members.0"].done == "naive"


def test_a_second_forward_pass_that_is_another_is_known() -> None:
    layers = {
        "new": nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)),
        "old": nn.utils.spectral_norm(nn.Linear(6, 4)),
        "regions": nn.FractionalMaxPool2d(2, output_size=2),
    }
    model = MultipleChoice(list(layers.values()))
    assert [row.done for row in model.table()] == ["naive"] * 3
    assert "spectral normalization" in model.table()["members.0"].why
    assert "FractionalMaxPool2d draws its regions" in model.table()["members.2"].why
    assert [row.done for row in model.eval().table()] == ["rows cut", "rows cut", "naive"]


def tapped(transform: backward.Transform | backward.Adjoint) -> Callable[[MultipleChoice], object]:
    return lambda model: cf.attach(model, {"members.*.0": transform})


def layered(make: Callable[[], nn.Module]) -> Callable[[MultipleChoice], None]:
    def exchange(model: MultipleChoice) -> None:
        for member in model.members:
            member[1] = make().double()  # type: ignore[operator]

    return exchange


def tempered(model: MultipleChoice) -> None:
    for member in model.members:
        cf.temper(member, data()[0], loss="cross_entropy")


HINDERED = {
    "center": (tapped(backward.center()), "center() on a Linear mixes the examples of a batch"),
    "clip": (tapped(backward.clip(1.0)), "clip(1.0) on a Linear mixes the examples of a batch"),
    "chain": (
        tapped(backward.Chain(backward.scale(2.0), backward.center())),
        "Chain(scale(2.0), center()) on a Linear mixes the examples of a batch",
    ),
    "shunt": (tapped(backward.shunt()), "shunt() on a Linear mixes the examples of a batch"),
    "noise": (
        tapped(backward.noise(0.1, units="absolute")),
        "noise(0.1, units='absolute') on a Linear counts every row, whatever its error",
    ),
    "temper": (tempered, "summed errors on a Sequential counts every row, whatever its error"),
    "temper shunts": (
        lambda model: cf.temper(model, data()[0], loss="cross_entropy_sum", shunt=True),
        "shunt() on a Linear mixes the examples of a batch",
    ),
    "deploy": (
        lambda model: cf.analog.deploy(model, cf.analog.DeviceModel.paper(), inputs=data()[0]),
        "an analog device on a Linear counts every row, whatever its error",
    ),
    "analog": (
        layered(lambda: cf.analog.AnalogLinear(8, 8, device=cf.analog.DeviceModel.paper())),
        "AnalogLinear counts every row, whatever its error",
    ),
    "type A": (
        layered(lambda: cf.variational.GaussianDropout(0.5)),
        "GaussianDropout draws noise for the whole batch",
    ),
    "type B": (
        layered(lambda: cf.variational.GaussianDropout(0.5, "B", nn.Linear(8, 8))),
        "VariationalLinear draws noise for the whole batch",
    ),
}


@pytest.mark.parametrize("what", HINDERED)
def test_what_losers_take_part_in_takes_the_naive_path(what: str) -> None:
    attach, why = HINDERED[what]
    found = []
    for cut in (None, True, False):
        model = ensemble(cut=cut)
        attach(model)
        if cut is not False:
            assert [row.why for row in model.table()] == [why] * 4
        for batch in (16, 5):  # of which some members win a row or none
            torch.manual_seed(2)
            model.step(*data(batch), cross_entropy)
        found.append([parameter.grad for parameter in model.parameters()])
    for mine in found[:2]:
        for got, wanted in zip(mine, found[2], strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_what_sees_one_row_at_a_time_leaves_rows_to_be_cut() -> None:
    keep = torch.arange(8) > 2
    for transform in (backward.scale(2.0), backward.mask(keep), backward.clip(1e-3, units="absolute")):
        models = [ensemble(cut=cut) for cut in (None, False)]
        for model in models:
            tapped(transform)(model)
            model.step(*data(), cross_entropy)
        assert [row.done for row in models[0].table()] == ["rows cut"] * 4
        for got, wanted in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(got.grad, wanted.grad, rtol=0, atol=1e-12)
    assert cf.variational.GaussianDropout(0.0).noisy is False
    assert cf.variational.GaussianDropout(0.5).eval().noisy is False


def test_a_tap_inside_a_recurrent_member_is_known() -> None:
    cell = nn.LSTMCell(6, 4)
    cell.register_forward_hook(at_hidden_state(cell, Tap(backward.center(), "")), with_kwargs=True)
    assert (
        MultipleChoice([cell, cell]).table()["members.0"].why == "center() on a LSTMCell mixes the examples of a batch"
    )


@pytest.mark.parametrize("cut", [None, False])
def test_an_input_with_a_graph_of_its_own_gets_the_members_errors_once(cut: bool | None) -> None:
    model, (x, y) = ensemble(cut=cut), data()
    found = []
    stem = nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double()
    for trunk in (stem, None):
        step = MultipleChoice(list(model.members), trunk, cut=cut).step(x if trunk else stem(x), y, cross_entropy)
        assert step.winners.any(1).sum() > 1
        found.append([p.grad.clone() for p in stem.parameters() if p.grad is not None])
        stem.zero_grad()
    torch.testing.assert_close(*found)


def test_members_with_sparse_gradients() -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Embedding(9, 4, sparse=sparse), nn.Flatten()) for sparse in (True, False)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, y = torch.randint(9, (12, 1)), torch.randint(4, (12,))
    norms = [MultipleChoice([each]).step(x, y, cross_entropy).gradient_norms for each in nets]
    torch.testing.assert_close(*norms)


def test_the_scaled_step_scales_the_gradients() -> None:
    x, y = data()
    plain, scaled = ensemble(trunk=True).eval(), ensemble(trunk=True).eval()
    plain.step(x, y, cross_entropy)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled.step(x, y, cross_entropy, scaler=scaler)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    assert torch.allclose(next(scaled.parameters()).grad, 1024 * next(plain.parameters()).grad)  # type: ignore[arg-type,operator]
    scaler.unscale_(optimizer)
    for got, wanted in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_autocast_gives_every_winner_its_gradients() -> None:
    model = ensemble().float()
    x, y = data()
    with torch.autocast("cpu", torch.bfloat16):
        step = model.step(x.float(), y, cross_entropy)
    for member, won in zip(model.members, step.winners.any(1).tolist(), strict=True):
        assert all(bool(p.grad.any()) == won for p in member.parameters() if p.grad is not None)
        assert all(p.grad is not None for p in member.parameters())


def test_a_mask_of_winners_counts_one_and_zero() -> None:
    x, y = data()
    found = []
    for kind in (torch.bool, torch.long, torch.float64):
        model = ensemble()
        chosen = cf.choice.winners(model.losses(x, y, cross_entropy)).to(kind)
        for weights in (chosen, lambda losses, chosen=chosen: chosen):
            model.zero_grad()
            step = model.step(x, y, cross_entropy, weights=weights)
            found.append([step.loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for each in found[1:]:
        for got, wanted in zip(each, found[0], strict=True):
            torch.testing.assert_close(got.double(), wanted.double(), rtol=1e-6, atol=1e-8)


def test_rows_are_cut_for_weights_of_a_function_where_that_is_asked_for() -> None:
    x, y = data()
    cutting, plain = ensemble(cut=True), ensemble()
    for model, cut in ((cutting, True), (plain, False)):
        step = model.step(x, y, cross_entropy, weights=lambda losses: cf.choice.relaxed(losses, 0.0))
        assert step.cut == (cut,) * 4
    for got, wanted in zip(cutting.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad)


def test_inputs_and_targets_may_be_nested() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4).double()

        def forward(self, x: dict[str, Tensor]) -> Tensor:
            out: Tensor = self.linear(x["a"] + x["b"])
            return out

    x, y = data()
    model = MultipleChoice([Sum(), Sum(), Sum()])
    step = model.step({"a": x, "b": x}, (y,), lambda out, y: cross_entropy(out, y[0]))
    assert (step.winners.sum(0) == 1).all()


def test_checkpoints_go_into_a_fresh_model() -> None:
    x, y = data()
    model, fresh = (
        ensemble(trunk=True).eval(),
        MultipleChoice([net() for _ in range(4)], nn.Sequential(nn.Linear(6, 6))),
    )
    fresh.double().load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    assert torch.equal(fresh.step(x, y, cross_entropy).winners, model.step(x, y, cross_entropy).winners)


def test_what_cannot_be_used_is_named() -> None:
    x, y = data()
    with pytest.raises(InputError, match="members is empty"):
        MultipleChoice([])
    with pytest.raises(InputError, match="from 1 to 2, the number of members, got 3"):
        MultipleChoice([net(), net()], k=3)
    with pytest.raises(ShapeError, match="loss_fn gives shape"):
        ensemble().step(x, y, nn.functional.cross_entropy)
    for wrong in (
        lambda out, y: cross_entropy(out, y).mean()[None],  # which would be taken for the first example's
        lambda out, y: cross_entropy(out, y).repeat(2),
    ):
        with pytest.raises(ShapeError, match=r"give one loss an example, \(16,\)"):
            ensemble().step(x, y, wrong)
    with pytest.raises(ShapeError, match=r"weights has shape \(4, 10\); give \(members, batch\), here \(4, 16\)"):
        ensemble().step(x, y, cross_entropy, weights=torch.ones(4, 10))
    with pytest.raises(UnsupportedError, match="trunk gives a tuple"):
        MultipleChoice([net()], nn.LSTM(6, 6)).double().step(x, y, cross_entropy)


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    _share(rank, folder)
    dist.barrier()
    # No model may hold the group any more: where the last one goes after this, gloo's thread can wait for the
    # interpreter, which waits for that thread.
    dist.destroy_process_group()


def _share(rank: int, folder: str) -> None:
    whole = ensemble(members=3, trunk=True).eval()
    mine = whole.members[:1] if rank == 0 else whole.members[1:]
    model = MultipleChoice(list(mine), whole.trunk, group=dist.group.WORLD).eval()
    step = model.step(*data(), cross_entropy)
    grads = {name: p.grad for name, p in model.named_parameters()}
    torch.save((step.winners, step.loss, grads), f"{folder}/{rank}.pt")
    # The same ensemble on both ranks, each with half of the batch.
    parallel = nn.parallel.DistributedDataParallel(ensemble(members=3, trunk=True).eval())
    x, y = data()
    half = slice(8 * rank, 8 * rank + 8)
    losses = torch.stack([cross_entropy(out, y[half]) for out in parallel(x[half])])
    cf.oracle_loss(losses)[0].backward()
    torch.save({name: p.grad for name, p in parallel.module.named_parameters()}, f"{folder}/parallel{rank}.pt")


@pytest.mark.distributed
def test_two_processes_equal_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("ranks.py")
    ranks = [subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for each in ranks:
            each.kill()
    model = ensemble(members=3, trunk=True).eval()
    step = model.step(*data(), cross_entropy)
    wanted = {name: p.grad for name, p in model.named_parameters()}
    for rank in range(2):
        chosen, loss, grads = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(chosen, step.winners)
        torch.testing.assert_close(loss, step.loss)
        for name, got in grads.items():
            part, _, rest = name.partition(".")
            index, _, tail = rest.partition(".")
            key = f"members.{int(index) + rank}.{tail}" if part == "members" else name
            torch.testing.assert_close(got, wanted[key], rtol=0, atol=1e-10)
        parallel = torch.load(tmp_path / f"parallel{rank}.pt", weights_only=True)
        for name, got in parallel.items():
            torch.testing.assert_close(got, wanted[name], rtol=0, atol=1e-10)
