"""`whiten` in training: what it preserves, keeps, refuses and leaves alone."""

from __future__ import annotations

import copy
import math

import onnx
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import counterflow as cf
from counterflow.exceptions import InputError, ShapeError, UnsupportedError

X = torch.randn(256, 5, generator=torch.Generator().manual_seed(1)) + 0.5
T = torch.randint(3, (256,), generator=torch.Generator().manual_seed(2))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def sgd(model: nn.Module, lr: float = 0.05, **options: float) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def train(model, optimizer, steps, start=0, call=None, size=16):
    for index in range(start, start + steps):
        part = slice(index * size % 256, index * size % 256 + size)
        optimizer.zero_grad()
        loss = F.cross_entropy((call or model)(X[part]), T[part])
        loss.backward()
        optimizer.step()
    return float(loss.detach())


# The function stays


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 3]))
    channels = groups * draw(st.integers(1, 2))
    # Every padding mode asks that padding be at most the input's size; reflection that it be less.
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    padding = draw(st.sampled_from([0, 1, "valid", *(["same"] if stride == 1 else [])]))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(
        channels,
        groups * draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    return layer.double(), torch.randn(4, channels, *[5] * dims, dtype=torch.float64) + 1


@st.composite
def linears(draw):
    n, m = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    shape = (6, *[3] * draw(st.integers(0, 2)), n)
    return nn.Linear(n, m, bias=draw(st.booleans())).double(), torch.randn(shape, dtype=torch.float64) - 2


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=st.one_of(convolutions(), linears()), options=st.sampled_from(["auto", "explicit"]), seed=st.integers(0, 99)
)
def test_the_function_is_preserved_at_every_projection(case, options, seed):
    layer, x = case
    torch.manual_seed(seed)
    bare = copy.deepcopy(layer)
    h = cf.whiten(layer, sgd(layer), loader=[x], form=options, epsilon=1e-3)
    wanted = bare(x)
    for _ in range(3):
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12 * max(1.0, float(wanted.detach().abs().max())))
        h._loader = [x * torch.rand(()) + torch.randn(())]  # other statistics
        h.project()
    folded = h.fold()
    torch.testing.assert_close(folded(x), wanted, rtol=0, atol=1e-12 * max(1.0, float(wanted.detach().abs().max())))
    # A layer that is called without a batch dimension.
    torch.testing.assert_close(layer(x[0]), wanted[0], rtol=0, atol=1e-11)
    layer(x[0]).sum().backward()


@pytest.mark.parametrize("form", ["canonical", "explicit"])
def test_the_function_is_preserved_in_float32(form):
    model = net()
    wanted = model(X).detach()
    h = cf.whiten(model, sgd(model), loader=[X], form=form)
    for _ in range(3):
        assert float((model(X) - wanted).detach().abs().max()) <= 1e-6
        h.project()


# Training state


@pytest.mark.parametrize("make", [lambda m: sgd(m, momentum=0.9), adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize("stop", [1, 3, 7, 10, 12])
def test_stop_load_and_go_on_is_the_same_trajectory_to_the_bit(make, stop):
    """Wherever it stops: before the first projection, while gathering, right after a projection."""
    options = {"every": 6, "samples": 40, "epsilon": 0.1}
    model = net()
    optimizer = make(model)
    h = cf.whiten(model, optimizer, **options)
    train(model, optimizer, stop)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 15, start=stop)
    torch.manual_seed(9)
    again = net()
    with torch.no_grad():
        again[0].weight.normal_()
    second = make(again)
    h2 = cf.whiten(again, second, **options)
    again.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    train(again, second, 15, start=stop)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert [row.values for row in h.table()] == [row.values for row in h2.table()]


def test_the_schedule_gathers_in_the_last_steps_before_a_projection_only():
    model = net()
    optimizer = sgd(model)
    h = cf.whiten(model, optimizer, every=6, samples=40)  # three steps of 16
    seen = []
    for step in range(16):
        seen.append(model[0].whiten_gathering)
        train(model, optimizer, 1, start=step)
    first, rest = [True] * 3, [False] * 3 + [True] * 3
    assert seen == [*first, *rest, *rest, False]
    assert h.table()["0"].values["projected"] == 15


def test_without_an_initial_projection_the_first_one_comes_after_every_steps():
    model, bare = net(), net()
    optimizer, plain = sgd(model), sgd(bare)
    h = cf.whiten(model, optimizer, every=6, samples=16, initial=False)
    seen = []
    for step in range(6):
        seen.append(h._schedule.gathering)
        train(model, optimizer, 1, start=step)
        train(bare, plain, 1, start=step)
    assert seen == [True, False, False, False, False, True]  # the first step tells how many examples a step has
    torch.testing.assert_close(model[0].weight, bare[0].weight)
    assert h.table()["0"].values["projected"] == 6


def test_folding_gives_the_plain_model_and_leaves_this_one_alone():
    model = net()
    optimizer = adam(model)
    h = cf.whiten(model, optimizer, every=4, samples=32)
    train(model, optimizer, 9)
    folded = h.fold()
    bare = net()
    bare.load_state_dict(folded.state_dict())  # strict
    torch.testing.assert_close(bare(X), model(X), rtol=1e-5, atol=1e-6)
    exported = torch.export.export(folded, (X,)).module()
    torch.testing.assert_close(exported(X), model(X), rtol=1e-5, atol=1e-6)
    assert h.attached
    train(model, optimizer, 9, start=9)
    assert h.table()["0"].values["projected"] == 18


def test_the_table_prints_what_was_done():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0], [2.0, 0.0], [2.0, 4.0]])
    h = cf.whiten(model, sgd(model), loader=[x], every=50)
    lines = str(h.table()).splitlines()
    assert " ".join(lines[1].split()) == "layer kind form inputs smallest largest projected done why"
    assert lines[2].split() == ["0", "Linear", "canonical", "2", "0.5", "2", "0", "whitened"]
    assert lines[-1] == "step 0, projected every 50 steps, epsilon 0.01"


def test_undo_leaves_a_plain_model_that_goes_on_as_plain():
    """Also the momentum is canonical again."""
    model = net().double()
    optimizer = sgd(model, momentum=0.9)
    h = cf.whiten(model, optimizer, loader=[X.double()], form="explicit")
    twin = net().double()
    other = sgd(twin, momentum=0.9)
    h2 = cf.whiten(twin, other, loader=[X.double()], form="canonical")
    x, t = X.double(), T
    for m, o in ((model, optimizer), (twin, other)):
        for _ in range(3):
            o.zero_grad()
            F.cross_entropy(m(x), t).backward()
            o.step()
    h.undo()
    h2.undo()
    for first, second in zip(optimizer.state.values(), other.state.values(), strict=True):
        torch.testing.assert_close(first["momentum_buffer"], second["momentum_buffer"], rtol=1e-9, atol=1e-12)
    assert list(model.state_dict()) == list(net().state_dict())
    optimizer.step()  # no hook is left
    with pytest.raises(InputError, match="undone"):
        h.project()


# What a loop may do


def test_compiled_training_is_the_same_trajectory():
    nets, losses = [], []
    for compiled in (False, True):
        model = net()
        optimizer = sgd(model, momentum=0.9)
        cf.whiten(model, optimizer, every=5, samples=32)
        call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        losses.append(train(model, optimizer, 14, call=call))
        nets.append(model)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    torch.testing.assert_close(nets[0][0].weight, nets[1][0].weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [sgd, adam], ids=["SGD", "Adam"])
def test_accumulated_gradients_are_those_of_the_whole_batch(make):
    nets = []
    for parts in (1, 4):
        model = net().double()
        optimizer = make(model)
        h = cf.whiten(model, optimizer, every=3, samples=64)
        for _ in range(7):
            optimizer.zero_grad()
            for x, t in zip(X[:64].double().chunk(parts), T[:64].chunk(parts), strict=True):
                (F.cross_entropy(model(x), t) / parts).backward()
            optimizer.step()
        assert h.table()["0"].values["projected"] == 7
        nets.append(model)
    torch.testing.assert_close(nets[0][0].weight, nets[1][0].weight, rtol=1e-8, atol=1e-10)


def test_clipping_bounds_the_whitened_gradient():
    model = net()
    optimizer = sgd(model, lr=1.0)
    cf.whiten(model, optimizer, loader=[X], epsilon=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(X), T, reduction="sum").backward()
    assert float(nn.utils.clip_grad_norm_(model.parameters(), 0.5)) > 0.5
    optimizer.step()
    moved = sum(float((p - q).detach().square().sum()) for p, q in zip(model.parameters(), before, strict=True))
    assert math.sqrt(moved) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    h = cf.whiten(model, optimizer, every=10, samples=32)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (False, True, False):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X[:16]), T[:16])
        scaler.scale(loss * (math.inf if bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert h._schedule.step == 2


def test_scaling_the_loss_and_unscaling_changes_nothing():
    nets = []
    for scale in (1.0, 1024.0):
        model = net().double()
        optimizer = sgd(model)
        cf.whiten(model, optimizer, every=4, samples=32, errors=0.1)
        for step in range(9):
            optimizer.zero_grad()
            (F.cross_entropy(model(X[step * 16 :][:16].double()), T[step * 16 :][:16]) * scale).backward()
            for p in model.parameters():
                p.grad /= scale
            optimizer.step()
        nets.append(model)
    torch.testing.assert_close(nets[0][0].weight, nets[1][0].weight, rtol=1e-9, atol=1e-12)


# Bad batches


@pytest.mark.parametrize("form", ["canonical", "explicit"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e25])
def test_a_batch_with_nan_or_what_overflows_is_refused_and_the_state_untouched(form, bad):
    model = net()
    h = cf.whiten(model, sgd(model), form=form)
    model(X).sum().backward()
    before = {name: value.clone() for name, value in model.named_buffers()}
    x = X.clone()
    x[3, 2] = bad
    model(x).sum().backward()
    # Behind tanh; in the explicit form an infinity becomes NaN before it.
    finite_again = math.isfinite(bad) or (math.isinf(bad) and form == "canonical")
    for name, value in model.named_buffers():
        if not name.endswith("refused") and not (finite_again and name.startswith("2")):
            assert torch.equal(value, before[name]), name
    assert h.table()["0"].why == "1 batch with NaN, infinity or inputs too large to be squared refused"
    assert h.table()["2"].why == ("" if finite_again else h.table()["0"].why)
    h.project()  # begins the statistics anew, and still tells of the batch
    counts = [value.tolist() for name, value in model.named_buffers() if name.endswith("whiten_count")]
    assert counts == [[0, 0]] * 2
    assert h.table()["0"].why == "1 batch with NaN, infinity or inputs too large to be squared refused"


def test_nothing_but_bad_batches_keeps_the_basis_and_says_so():
    model = net()
    h = cf.whiten(model, sgd(model), loader=[X])
    before = model[0].whiten_metric.clone()
    h._loader = [X * math.nan]
    h.project()
    assert torch.equal(model[0].whiten_metric, before)
    assert "kept its basis, since no input came by" in h.table()["0"].why


@pytest.mark.parametrize("make", [sgd, adam], ids=["SGD", "Adam"])
def test_batches_of_one_constant_and_deficient_inputs_train(make):
    model = net()
    optimizer = make(model)
    x = X[:, :1].expand(-1, 5) * torch.tensor([1.0, 2.0, 0.0, 1.0, 0.0])  # rank one, two inputs constant
    h = cf.whiten(model, optimizer, every=3, samples=2)
    for step in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x[step : step + 1]), T[step : step + 1]).backward()
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert h.table()["0"].values["projected"] == 20


@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 4), lambda: nn.Conv1d(3, 4, 2)], ids=["linear", "convolution"])
def test_a_call_without_a_batch_gathers_as_a_batch_of_one(make):
    """Inputs and errors; the convolution has as many positions as outputs, so that a mixed-up dimension would fit."""
    torch.manual_seed(0)
    model = make()
    cf.whiten(model, sgd(model), errors=0.1, samples=9)
    twin = copy.deepcopy(model)
    x = X[:3]
    model(x if isinstance(model, nn.Conv1d) else x[0]).square().sum().backward()
    twin(x[None] if isinstance(model, nn.Conv1d) else x[:1]).square().sum().backward()
    assert int(model.whiten_error_count[1]) == 1
    for (name, value), wanted in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(value, wanted, msg=name)


def test_an_empty_batch_is_no_bad_batch():
    model = net()
    h = cf.whiten(model, sgd(model))
    model(X).sum().backward()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(X[:0]).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert h.table()["0"].why == ""


@pytest.mark.parametrize("groups", [1, 2])
def test_an_empty_batch_goes_through_an_explicit_convolution(groups):
    layer = nn.Conv1d(4, 4, 2, groups=groups)
    cf.whiten(layer, adam(layer), loader=[torch.randn(8, 4, 6)])
    assert layer(torch.randn(0, 4, 6)).shape == (0, 4, 5)


def test_a_mean_far_from_zero_costs_no_digits():
    model = nn.Linear(5, 2)
    x = X + 3000.0
    h = cf.whiten(model, sgd(model), samples=256)
    for part in x.split(32):
        model(part).sum().backward()
    h.project()
    wanted = torch.linalg.inv(torch.cov(x.double().T, correction=0) + 0.01 * torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(model.whiten_metric[0].double(), wanted, rtol=1e-2, atol=1e-2)


# Options


def test_the_second_moment_and_the_ridge_outside():
    model = nn.Linear(5, 2).double()
    x = X.double()
    cf.whiten(model, sgd(model), loader=[x], matrix="second-moment", ridge="outside", epsilon=0.2)
    eigenvalues, vectors = torch.linalg.eigh(x.T @ x / len(x))
    wanted = (vectors / (eigenvalues.sqrt() + 0.2) ** 2) @ vectors.T
    torch.testing.assert_close(model.whiten_metric[0], wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.whiten_mean[0], x.mean(0))


def test_adaptive_projects_the_layers_that_have_drifted():
    model = net()
    optimizer = sgd(model, lr=0.0)
    h = cf.whiten(model, optimizer, every=4, samples=256, adaptive=0.5)
    train(model, optimizer, 4, size=64)  # all the data each time
    assert {h.table()[name].values["projected"] for name in ("0", "2")} == {4}
    train(model, optimizer, 4, size=64)
    assert h.table()["0"].values["projected"] == 4
    assert 0 <= h.table()["0"].values["drift"] < 1e-3
    with torch.no_grad():
        model[0].weight.mul_(4.0)  # the second layer's inputs change, the first one's do not
    train(model, optimizer, 4, size=64)
    assert h.table()["2"].values["drift"] == 0.0
    assert [h.table()[name].values["projected"] for name in ("0", "2")] == [4, 12]


def test_the_diagonal_gives_whitened_inputs_unit_variance_in_each_batch():
    model = nn.Linear(5, 3).double()
    x = X.double() @ torch.randn(5, 5, dtype=torch.float64)
    cf.whiten(model, sgd(model), loader=[x], diagonal=True, epsilon=1e-9)
    bare = nn.Linear(5, 3).double()
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if "whiten" not in name})
    part = 3.0 * x[:32]
    for each in (model, bare):
        F.cross_entropy(each(part), T[:32]).backward()
    # With hardly any ridge, unit variance for each of the directions of U.
    basis, c = model.whiten_basis[0], x.mean(0)
    scaled = basis / ((part - c) @ basis.T).std(0, correction=0)[:, None]
    centered = bare.weight.grad - bare.bias.grad[:, None] * c
    torch.testing.assert_close(model.weight.grad, centered @ scaled.T @ scaled, rtol=1e-6, atol=1e-8)
    with pytest.raises(ShapeError, match="one example"):
        model(x[:1]).sum().backward()


@pytest.mark.parametrize("basis", ["pca", "zca"])
def test_the_diagonal_is_one_where_inputs_are_as_they_were(basis):
    """Ridge and all."""
    gradients = []
    for diagonal in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)).double()
        x = X[:, :4].double().reshape(-1, 2, 2)
        cf.whiten(model, sgd(model), loader=[x], diagonal=diagonal, epsilon=0.5, basis=basis)
        F.cross_entropy(model(x), T).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, scaled in zip(*gradients, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-9, atol=1e-12)


def test_two_sided_whitening_is_the_closed_form():
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    x = X.double()
    h = cf.whiten(model, sgd(model), errors=0.3, epsilon=0.1)
    F.cross_entropy(model(x), T).backward()
    y = model(x).detach().requires_grad_()
    g = torch.autograd.grad(F.cross_entropy(y, T), y)[0]
    h.project()
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    F.cross_entropy(model(leaf), T).backward()
    power = g.T @ g / len(g)
    left = torch.linalg.inv(power / power.diagonal().mean() + 0.3 * torch.eye(3, dtype=torch.float64))
    centered = x - x.mean(0)
    right = torch.linalg.inv(centered.T @ centered / len(x) + 0.1 * torch.eye(5, dtype=torch.float64))
    wanted = left @ g.T @ centered @ right
    torch.testing.assert_close(model.weight.grad, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.bias.grad, left @ g.sum(0) - wanted @ x.mean(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(leaf.grad, g @ model.weight.detach())  # the error below stays whole


# What is left alone


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose1d(4, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.tied = nn.Linear(4, 9, bias=False)
        self.tied.weight = self.embed.weight
        self.shunted = nn.Linear(4, 4)
        self.lazy = nn.LazyLinear(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.rnn = nn.LSTM(4, 3, num_layers=2)
        self.free = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        cf.attach(self, {"shunted": cf.backward.shunt()})


def test_what_is_left_alone_is_listed_with_the_reason():
    model = Odd()
    held = [p for name, p in model.named_parameters() if not name.startswith(("free", "lazy", "frozen"))]
    h = cf.whiten(model, torch.optim.SGD(held, lr=0.1))
    alone = {row.layer: row.why for row in h.table() if row.done == "left alone"}
    assert alone == {
        "embed": "whitening knows no linear map of the inputs in a Embedding",
        "up": "whitening knows no linear map of the inputs in a ConvTranspose1d",
        "norm": "whitening knows no linear map of the inputs in a LayerNorm",
        "frozen": "its weight is frozen",
        "normed": "its weight is parametrized",
        "normed.parametrizations.weight": "whitening knows no linear map of the inputs in a ParametrizationList",
        "tied": "it shares a parameter with another module, whose inputs are others",
        "shunted": "it has shunt() already, and a layer has one backward pass; undo that first",
        "lazy": "its weight has no shape yet; run a batch through the model first",
        "free": "its weight is not in the optimizer",
    }
    done = [row.layer for row in h.table() if row.done != "left alone"]
    inside = ["attention.q", "attention.k", "attention.v", "attention.out_proj"]
    inside += ["rnn.ih_l0", "rnn.hh_l0", "rnn.ih_l1", "rnn.hh_l1"]
    assert done == ["conv", *inside, "head"]


def test_a_bias_with_a_rate_of_its_own_makes_the_layer_explicit():
    model = net()
    groups = [{"params": [model[0].weight, *model[2].parameters()]}, {"params": [model[0].bias], "weight_decay": 0.1}]
    h = cf.whiten(model, torch.optim.SGD(groups, lr=0.1), loader=[X])
    assert [h.table()[name].values["form"] for name in ("0", "2")] == ["explicit", "canonical"]
    h.undo()
    with pytest.raises(UnsupportedError, match="different weight_decay"):
        cf.whiten(model, torch.optim.SGD(groups, lr=0.1), form="canonical")


def test_what_an_optimizer_keeps_that_is_not_known_is_said():
    model = net()
    optimizer = torch.optim.ASGD(model.parameters(), lr=0.1)
    h = cf.whiten(model, optimizer, every=3, samples=16)
    train(model, optimizer, 5)
    assert "the optimizer's 'ax' stayed in the old basis" in h.table()["0"].why


def test_numbers_in_a_loaders_dictionary_are_no_examples():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 2)

        def forward(self, x, factor):
            return self.inner(x) * factor

    model = Scaled()
    h = cf.whiten(model, sgd(model), loader=[{"factor": torch.tensor(2.0), "x": X}])
    assert h.table()["inner"].done == "whitened"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be a whole number >= 1, got 0"),
        ({"samples": 2.5}, "samples must be a whole number >= 1, got 2.5"),
        ({"epsilon": 0}, "epsilon must be a number > 0, got 0"),
        ({"adaptive": -1}, "adaptive must be a number > 0, got -1"),
        ({"errors": True}, "errors must be a number > 0, got True"),
        ({"basis": "cholesky"}, "basis must be 'pca' or 'zca', got 'cholesky'"),
        ({"loader": []}, "loader gives no batch"),
        ({"loader": [3]}, "loader must give tensors"),
        ({"loader": [{"input": [1.0]}]}, "loader must give tensors"),
        ({"loader": 3}, "loader must be an iterable of batches, such as a DataLoader, got int"),
        ({"loader": X}, "but a tensor gives one example at a time"),
        ({"loader": [X], "errors": 0.1}, "leave loader out"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(options, message):
    model = net()
    optimizer = sgd(model)
    before = list(model.state_dict())
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        cf.whiten(model, optimizer, **options)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == before  # nothing is left behind


def test_a_model_that_cannot_be_used_is_said_in_a_line():
    model = net()
    with pytest.raises(InputError, match="optimizer holds no parameter of this Sequential"):
        cf.whiten(model, sgd(net()))
    with pytest.raises(UnsupportedError, match="several steps in one"):
        cf.whiten(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(UnsupportedError, match="needs the canonical form, but '0'"):
        cf.whiten(model, adam(model), diagonal=True)
    norm = nn.LayerNorm(3)
    with pytest.raises(UnsupportedError, match="no layer to whiten"):
        cf.whiten(norm, sgd(norm))
    cf.whiten(model, sgd(model))
    with pytest.raises(InputError, match="whitened already"):
        cf.whiten(model, sgd(model))
    recurrent = nn.Sequential(nn.LSTM(3, 2))
    cf.whiten(recurrent, sgd(recurrent))
    with pytest.raises(InputError, match="this LSTM is whitened already"):
        cf.whiten(recurrent[0], sgd(recurrent))
    with pytest.raises(InputError, match="nothing has been gathered"):
        cf.whiten(net2 := net(), sgd(net2)).project()


def test_a_sharded_model_is_refused_at_once():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(net(), mesh=init_device_mesh("cpu", (1,)))
        before = list(model.state_dict())
        with pytest.raises(InputError, match=r"this FSDPSequential has sharded parameters .* needs whole ones"):
            cf.whiten(model, sgd(model))
        assert list(model.state_dict()) == before
    finally:
        dist.destroy_process_group()


def test_a_loader_may_give_pairs_and_dictionaries():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(5, 2)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.body(input=x))

    wanted = None
    for loader in ([X], [(X, T)], [{"x": X}]):
        model = Named()
        cf.whiten(model, sgd(model), loader=loader)
        metric = model.body.whiten_metric
        assert model.drop.training
        assert wanted is None or torch.equal(metric, wanted)
        wanted = metric


@pytest.mark.filterwarnings("ignore")  # PyTorch's exporter warns of itself
def test_the_folded_model_exports_to_onnx(tmp_path):
    model = nn.Sequential(nn.Conv1d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(15, 2))
    optimizer = adam(model)
    x = X[:8, None]
    h = cf.whiten(model, optimizer, loader=[X[:, None]])
    F.cross_entropy(model(x), T[:8] % 2).backward()
    optimizer.step()
    path = tmp_path / "folded.onnx"
    torch.onnx.export(h.fold().eval(), (x,), path, dynamo=True, verbose=False)
    (got,) = ReferenceEvaluator(str(path)).run(None, {onnx.load(path).graph.input[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_loop_that_gives_the_optimizer_a_closure_is_the_same_trajectory():
    nets = []
    for with_closure in (False, True):
        model = net()
        optimizer = sgd(model, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, gamma=0.5)
        h = cf.whiten(model, optimizer, every=4, samples=32)
        for step in range(12):

            def closure(model=model, optimizer=optimizer, step=step):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(X[step * 16 :][:16]), T[step * 16 :][:16])
                loss.backward()
                return loss

            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
            scheduler.step()
        assert h.table()["0"].values["projected"] == 10
        nets.append(model)
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)


@pytest.mark.parametrize("make", [sgd, adam], ids=["SGD", "Adam"])
def test_training_under_autocast_whitens_in_full_precision(make):
    model = net()
    optimizer = make(model)
    h = cf.whiten(model, optimizer, every=4, samples=32)
    start = None
    for step in range(14):
        optimizer.zero_grad()
        part = slice(step * 16, step * 16 + 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(X[part]), T[part])
        start = float(loss.detach()) if start is None else start
        loss.backward()
        optimizer.step()
    assert h.table()["0"].values["projected"] == 14
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    # To seven digits, where bfloat16 has two: the last two batches, and what was made of them.
    last = X[12 * 16 :][:32].double()
    wanted = torch.linalg.inv(torch.cov(last.T, correction=0) + 0.01 * torch.eye(5, dtype=torch.float64))
    first = model[0]
    metric = first.whiten_metric[0] if make is sgd else first.whiten_basis[0].T @ first.whiten_basis[0]
    torch.testing.assert_close(metric.double(), wanted, rtol=1e-4, atol=1e-4)


def test_the_waterfall_schedule_is_torchs_own():
    model = net()
    optimizer = sgd(model, lr=0.1)
    h = cf.whiten(model, optimizer, every=2, samples=16)
    waterfall = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=1)
    rates = []
    for loss in (1.0, 0.5, 0.5, 0.5, 0.4):  # of validation
        train(model, optimizer, 2)
        waterfall.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01])
    assert h.table()["0"].values["projected"] == 9


def test_two_sided_whitening_needs_its_damping():
    """At one rate: plain PRONG learns, hardly damped errors blow up, damped ones learn."""
    from sklearn.datasets import load_digits

    pictures, classes = load_digits(return_X_y=True)
    x, t = torch.tensor(pictures, dtype=torch.float32) / 16, torch.tensor(classes)
    losses = {}
    for errors in (None, 0.001, 0.1):
        torch.manual_seed(0)
        body = [nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU()]
        model = nn.Sequential(*body, nn.Linear(50, 10))
        optimizer = sgd(model, lr=0.1)
        cf.whiten(model, optimizer, every=40, samples=512, epsilon=0.1, errors=errors)
        for _ in range(160):
            chosen = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), t[chosen]).backward()
            optimizer.step()
        losses[errors] = float(F.cross_entropy(model(x), t).detach())
    assert losses[None] < 0.3
    assert losses[0.1] < 0.3
    assert not losses[0.001] < 2.3  # no better than chance, or not finite


@pytest.mark.parametrize("form", ["canonical", "explicit"])
def test_weights_are_averaged_in_the_canonical_form_or_folded(form):
    """As the docs say; averages of V, over a projection, are another function."""
    model = net()
    optimizer = sgd(model) if form == "canonical" else adam(model)
    h = cf.whiten(model, optimizer, every=5, loader=[X], form=form)
    folded, raw = (torch.optim.swa_utils.AveragedModel(each) for each in (h.fold(), copy.deepcopy(model)))
    mean: dict[str, list[torch.Tensor]] = {}
    for step in range(8):
        train(model, optimizer, 1, start=step)
        folded.update_parameters(h.fold())
        raw.update_parameters(model)
        for name, p in h.fold().named_parameters():
            mean.setdefault(name, []).append(p.detach())
    wanted = h.fold()
    wanted.load_state_dict({name: torch.stack(each).mean(0) for name, each in mean.items()})
    torch.testing.assert_close(folded(X), wanted(X))
    assert torch.allclose(raw(X), wanted(X), rtol=1e-4) == (form == "canonical")
