"""One whitened step against its closed form, and the forms and bases against each other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import counterflow as cf

EPSILON = 0.05


def mlp(bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 9, bias=bias), nn.Tanh(), nn.Linear(9, 7, bias=bias), nn.Tanh(), nn.Linear(7, 3, bias=bias)
    ).double()


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(6, 4, 3, stride=2, groups=2, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(4, 4, (3, 2), groups=4, bias=False),
        nn.Flatten(),
        nn.Linear(4 * 1 * 2, 3),
    ).double()


def data(net: nn.Module, size: int = 64, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (5,) if isinstance(net[0], nn.Linear) else (2, 6, 5)
    mixing = torch.randn(shape[0], shape[0], generator=generator, dtype=torch.float64)
    x = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
    x = torch.einsum("bc...,cd->bd...", x, mixing) + 1.5
    return x, torch.randint(3, (size,), generator=generator)


def batches(net: nn.Module, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    x, t = data(net, 16 * steps)
    yield from zip(x.split(16), t.split(16), strict=True)


def sgd(net: nn.Module, **settings: float) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), **{"lr": 0.02, **settings})


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, t: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(net(x), t).backward()
    optimizer.step()


def inputs_of(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, args, y, name=name: seen.__setitem__(name, args[0].detach()))
        for name, module in net.named_modules()
        if name
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


def assert_same(first: nn.Module, second: nn.Module, tolerance: float) -> None:
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        off = float(((p - q).abs().max() / q.abs().max()).detach())
        assert off <= tolerance, f"{name} is off by {off:.3g}"


@pytest.mark.parametrize("size", [4, 64], ids=["fewer samples than outputs", "more"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["canonical", "explicit"])
def test_one_step_is_the_gradient_times_the_inverse_covariance(form, bias, size):
    """Delta W = -eta grad_W (Sigma + eps I)^-1 on centered inputs; without a bias, on inputs about zero."""
    net, eta = mlp(bias), 0.02
    x, t = data(net, size)
    everything = data(net, 200, seed=5)[0]
    bare = copy.deepcopy(net)
    optimizer = sgd(net, lr=eta)
    h = cf.whiten(net, optimizer, every=10, epsilon=EPSILON, loader=[everything], form=form)
    step(net, optimizer, x, t)
    F.cross_entropy(bare(x), t).backward()
    stats, seen = inputs_of(copy.deepcopy(bare), everything), inputs_of(copy.deepcopy(bare), x)
    for name, layer in bare.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        c = stats[name].mean(0) if bias else torch.zeros(layer.in_features, dtype=torch.float64)
        about = stats[name] - c
        sigma = about.T @ about / len(about)
        total = layer.bias.grad if bias else torch.zeros(layer.out_features, dtype=torch.float64)
        gradient = layer.weight.grad - total[:, None] * c  # on centered inputs
        delta = -eta * gradient @ torch.linalg.inv(sigma + EPSILON * torch.eye(len(c), dtype=torch.float64))
        mine = h.fold().get_submodule(name)
        torch.testing.assert_close(mine.weight - layer.weight, delta, rtol=1e-10, atol=1e-12)
        if bias:
            torch.testing.assert_close(mine.bias - layer.bias, -eta * total - delta @ c, rtol=1e-10, atol=1e-12)
    assert float((seen["0"] - stats["0"][:size]).abs().max()) > 0.1  # statistics were of other data


def test_one_step_of_a_convolution_whitens_its_channels():
    net, eta = cnn(), 0.02
    x, t = data(net)
    bare = copy.deepcopy(net)
    optimizer = sgd(net, lr=eta)
    cf.whiten(net, optimizer, epsilon=EPSILON, loader=[x])
    step(net, optimizer, x, t)
    F.cross_entropy(bare(x), t).backward()
    for name in ("0", "2", "4"):
        layer, after = bare.get_submodule(name), net.get_submodule(name)
        h = inputs_of(copy.deepcopy(bare), x)[name].movedim(1, -1).flatten(0, -2)
        n, m = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        for group in range(layer.groups):
            own, units = h[:, group * n : (group + 1) * n], slice(group * m, (group + 1) * m)
            c = own.mean(0) if layer.bias is not None else torch.zeros(n, dtype=torch.float64)
            sigma = (own - c).T @ (own - c) / len(own) + EPSILON * torch.eye(n, dtype=torch.float64)
            gradient = layer.weight.grad[units].clone()
            if layer.bias is not None:
                gradient -= layer.bias.grad[units, None, None, None] * c[None, :, None, None]
            delta = -eta * torch.einsum("mnij,np->mpij", gradient, torch.linalg.inv(sigma))
            torch.testing.assert_close((after.weight - layer.weight)[units], delta, rtol=1e-10, atol=1e-12)
            if layer.bias is not None:
                wanted = -eta * layer.bias.grad[units] - torch.einsum("mnij,n->m", delta, c)
                torch.testing.assert_close((after.bias - layer.bias)[units], wanted, rtol=1e-10, atol=1e-12)


def run(
    make: Callable[[], nn.Module], optimize, steps: int = 25, **options
) -> tuple[nn.Module, cf.whitening.WhitenHandle]:
    net = make()
    optimizer = optimize(net)
    h = cf.whiten(net, optimizer, **{"every": 6, "samples": 64, "epsilon": EPSILON, **options})
    for x, t in batches(net, steps):
        step(net, optimizer, x, t)
    return h.fold(), h


SETTINGS = {"plain": {}, "momentum": {"momentum": 0.9}, "all": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}}


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_forms_are_one_method_under_sgd(make, settings):
    """Over several projections, with what the optimizer keeps carried from basis to basis."""
    canonical, first = run(make, lambda net: sgd(net, **settings), form="canonical")
    explicit, second = run(make, lambda net: sgd(net, **settings), form="explicit")
    assert first.table()["0"].values["projected"] == second.table()["0"].values["projected"] == 22
    assert_same(explicit, canonical, 1e-10)


@pytest.mark.parametrize("form", ["canonical", "explicit"])
def test_pca_and_zca_are_one_trajectory_under_sgd(form):
    pca, _ = run(mlp, lambda net: sgd(net, momentum=0.9), form=form)
    zca, _ = run(mlp, lambda net: sgd(net, momentum=0.9), form=form, basis="zca")
    assert_same(pca, zca, 1e-12)


def test_pca_and_zca_differ_under_adam():
    pca, _ = run(mlp, lambda net: torch.optim.Adam(net.parameters(), lr=0.01))
    zca, _ = run(mlp, lambda net: torch.optim.Adam(net.parameters(), lr=0.01), basis="zca")
    assert float((pca[0].weight - zca[0].weight).detach().abs().max()) > 1e-4


def test_the_step_is_mirror_descent():
    """Equation 10, and the mirror step that it stands for, over (W, b) with one more input that is always one."""
    net, eta = mlp(), 0.02
    x, t = data(net)
    bare = copy.deepcopy(net)
    optimizer = sgd(net, lr=eta)
    cf.whiten(net, optimizer, epsilon=EPSILON, loader=[x])
    step(net, optimizer, x, t)
    F.cross_entropy(bare(x), t).backward()
    seen = inputs_of(copy.deepcopy(bare), x)
    for name, layer in bare.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        h = torch.cat([seen[name], torch.ones(len(x), 1, dtype=torch.float64)], 1)
        fisher = h.T @ h / len(h)  # of one unit; the ridge is on all but the mean
        fisher[:-1, :-1] += EPSILON * torch.eye(layer.in_features, dtype=torch.float64)
        eigenvalues, vectors = torch.linalg.eigh(fisher)
        root, inverse = (vectors * eigenvalues**power @ vectors.T for power in (0.5, -0.5))
        gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
        start = torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
        moved = net.get_submodule(name)
        new = torch.cat([moved.weight, moved.bias[:, None]], 1).detach()
        # To the dual space, a step with the gradient that is taken there, and back.
        dual = start @ root - eta * gradient @ inverse
        torch.testing.assert_close(new, dual @ inverse, rtol=1e-10, atol=1e-12)
        # The same as a mirror step with psi(w) = w F w / 2: the derivative of its objective is zero there.
        leaf = new.clone().requires_grad_()
        bregman = 0.5 * torch.einsum("mi,ij,mj->", leaf - start, fisher, leaf - start)
        slope = torch.autograd.grad((gradient * leaf).sum() + bregman / eta, leaf)[0]
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    ("make", "directions", "sizes"),
    [
        (lambda parameters: torch.optim.Adam(parameters, lr=0.01), ("exp_avg",), ("exp_avg_sq",)),
        (lambda parameters: cf.DeltaBarDelta(parameters, lr=0.01), ("trace", "velocity"), ("gain",)),
    ],
    ids=["Adam", "DeltaBarDelta"],
)
def test_directions_that_an_optimizer_keeps_are_carried_and_sizes_are_not(make, directions, sizes):
    """What they stand for as a change of W is the same before and after a projection."""
    net = mlp()
    optimizer = make(net.parameters())
    x, t = data(net)
    h = cf.whiten(net, optimizer, every=100, epsilon=EPSILON, loader=[x])
    for _ in range(3):
        step(net, optimizer, x, t)
    layer = net[2]
    state, of_bias = optimizer.state[layer.weight], optimizer.state[layer.bias]

    def canonical() -> list[Tensor]:
        weights = [state[name] @ layer.whiten_basis[0] for name in directions]
        biases = [of_bias[name] - w @ layer.whiten_mean[0] for name, w in zip(directions, weights, strict=True)]
        return [*weights, *biases]

    before, kept = canonical(), [state[name].clone() for name in sizes]
    basis = layer.whiten_basis.clone()
    h._loader = [2.0 * x - 1.0]
    h.project()
    assert float((layer.whiten_basis - basis).abs().max()) > 0.01
    torch.testing.assert_close(canonical(), before, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(state[name], value) for name, value in zip(sizes, kept, strict=True))
    assert h.table()["2"].why == ""


GATHERED = {
    "linear": (lambda: nn.Linear(5, 3), (16, 5)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 4, 5, 5)),
    "attention": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), (4, 3, 4)),
}


@pytest.mark.parametrize(("make", "shape"), GATHERED.values(), ids=GATHERED)
def test_gradients_that_wait_for_a_step_are_carried_too(make, shape):
    """Between backward pass and step, `project` and `undo` leave the gradients that the pass would give now."""
    torch.manual_seed(0)
    net, x = make().double(), torch.randn(shape, dtype=torch.float64) + 0.5
    bare = copy.deepcopy(net)
    h = cf.whiten(net, sgd(net), loader=[x], epsilon=EPSILON, form="explicit")

    def gradients(module: nn.Module) -> list[Tensor]:
        module.zero_grad()
        module(x).sin().sum().backward()
        return [p.grad for p in module.parameters()]

    before = [g.clone() for g in gradients(net)]
    h._loader = [2.0 * x - 1.0]
    h.project()
    carried = [p.grad.clone() for p in net.parameters()]
    assert any(float((a - b).abs().max()) > 0.01 for a, b in zip(carried, before, strict=True))
    torch.testing.assert_close(carried, gradients(net), rtol=1e-8, atol=1e-10)
    h.undo()
    torch.testing.assert_close([p.grad for p in net.parameters()], gradients(bare), rtol=1e-8, atol=1e-10)


def test_momentum_that_is_left_in_the_old_basis_is_another_trajectory(monkeypatch):
    wanted, _ = run(mlp, lambda net: sgd(net, momentum=0.9), form="explicit")
    monkeypatch.setattr("counterflow.whitening.projection.carry_state", lambda *_: [])
    left, _ = run(mlp, lambda net: sgd(net, momentum=0.9), form="explicit")
    assert float((left[0].weight - wanted[0].weight).detach().abs().max()) > 1e-4


def test_statistics_from_backward_and_from_a_loader_agree():
    """The same examples, seen by a loader before the step or by the backward passes of a frozen net."""
    x, t = data(mlp(), 64)
    parts = list(zip(x.split(16), t.split(16), strict=True))
    nets = []
    for loader in (None, x.split(16)):
        net = mlp()
        optimizer = sgd(net, lr=0.0)
        h = cf.whiten(net, optimizer, every=4, samples=64, loader=loader, initial=loader is None)
        for part in parts:
            step(net, optimizer, *part)
        assert h.table()["2"].values["projected"] == 4
        nets.append(net)
    for name, buffer in nets[0].named_buffers():
        if name.endswith(("mean", "metric", "eigenvalues")) and "sum" not in name:
            torch.testing.assert_close(buffer, nets[1].get_buffer(name), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: nn.Linear(4, 3), (64, 4)),
        (lambda: nn.Linear(4, 30), (6, 4)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), (5, 4, 5, 5)),
    ],
    ids=["linear", "fewer samples than outputs", "convolution"],
)
@pytest.mark.parametrize("diagonal", [False, True])
def test_what_learns_alone_is_not_centered(diagonal, make, shape, frozen):
    """A parameter that is frozen after whitening: the step of the other one goes down the loss."""
    torch.manual_seed(0)
    layer = make().double()
    x = torch.randn(shape, dtype=torch.float64) + 5
    bare = copy.deepcopy(layer)
    cf.whiten(layer, sgd(layer), epsilon=EPSILON, loader=[x], diagonal=diagonal)
    getattr(layer, frozen).requires_grad_(False)
    for each in (layer, bare):
        each(x).square().sum().backward()
    assert getattr(layer, frozen).grad is None
    if frozen == "weight":
        torch.testing.assert_close(layer.bias.grad, bare.bias.grad)
        return
    # Where inputs are those of the statistics, the diagonal makes of U the whitening without a ridge.
    h = x.movedim(1, -1).flatten(0, -2) if x.ndim > 2 else x
    groups = getattr(layer, "groups", 1)
    for group, (plain, got) in enumerate(
        zip(bare.weight.grad.chunk(groups), layer.weight.grad.chunk(groups), strict=True)
    ):
        own = h.chunk(groups, 1)[group]
        metric = torch.linalg.inv(own.T.cov(correction=0) + EPSILON * torch.eye(own.shape[1], dtype=torch.float64))
        torch.testing.assert_close(got, torch.einsum("mn...,np->mp...", plain, metric))


def test_a_weight_that_is_frozen_leaves_its_bias_going_down():
    torch.manual_seed(0)
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(15.0)
    x = torch.randn(256, 4) + 5
    optimizer = sgd(layer, lr=0.1)
    cf.whiten(layer, optimizer, every=10**6, loader=[x])
    layer.weight.requires_grad_(False)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    assert layer.bias.item() == pytest.approx(x.sum(1).mean().item(), rel=1e-3)


@pytest.mark.parametrize("make", [mlp, lambda: mlp(bias=False), cnn], ids=["mlp", "no bias", "cnn"])
def test_the_forms_are_one_method_with_a_gradient_penalty(make):
    def trained(form: str) -> nn.Module:
        net = make()
        optimizer = sgd(net, momentum=0.9)
        h = cf.whiten(net, optimizer, epsilon=EPSILON, form=form, loader=[data(net)[0]])
        for x, t in batches(net, 4):
            optimizer.zero_grad()
            x.requires_grad_()
            loss = F.cross_entropy(net(x), t)
            (of_inputs,) = torch.autograd.grad(loss, x, create_graph=True)
            (loss + 100.0 * of_inputs.square().sum()).backward()
            optimizer.step()
        return h.fold()

    assert_same(trained("explicit"), trained("canonical"), 1e-10)


@pytest.mark.parametrize("options", [{}, {"diagonal": True}, {"errors": 0.1}], ids=["plain", "diagonal", "errors"])
def test_a_penalty_alone_makes_the_step_of_the_weight_that_hands_down(options):
    layer, bare = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    bare.load_state_dict(layer.state_dict())
    x = torch.randn(32, 4, dtype=torch.float64, requires_grad=True)
    h = cf.whiten(layer, sgd(layer), epsilon=EPSILON, samples=1, every=1, **options)
    layer(x).square().sum().backward()
    h.project()
    layer.zero_grad()
    for each in (layer, bare):
        (of_inputs,) = torch.autograd.grad(each(x).sum(), x, create_graph=True)
        of_inputs.square().sum().backward()
    sigma = x.detach().T.cov(correction=0) + EPSILON * torch.eye(4, dtype=torch.float64)
    wanted = bare.weight.grad @ torch.linalg.inv(sigma)
    if "errors" in options:
        wanted = layer.whiten_error_metric[0] @ wanted
    torch.testing.assert_close(layer.weight.grad, wanted)
    torch.testing.assert_close(layer.bias.grad, -wanted @ x.detach().mean(0))
