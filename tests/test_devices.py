"""The same numbers on a graphics card as on the CPU, of what is no registered method: functions, layers, measurements.

Each case makes its data on the CPU, in float64 where it can, and gives what it found there or on the card. On the CPU
it is run as well, so that a case that no longer fits the library is found without a card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import counterflow as cf
from counterflow import audio, bptt, choice, competition, density, separation, speech, variational

Found = Mapping[str, Tensor]
CASES: dict[str, Callable[[str], Found]] = {}


def case(function: Callable[[str], Found]) -> Callable[[str], Found]:
    """Enter a case."""
    CASES[function.__name__] = function
    return function


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same ones wherever they go."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def members(device: str, count: int = 3) -> list[nn.Module]:
    """Small nets with equal weights on every device."""
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(count)]
    return [net.double().to(device) for net in nets]


def grads(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by name."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def each(out: Tensor, y: Tensor) -> Tensor:
    """Losses of the examples."""
    return F.cross_entropy(out, y, reduction="none")


@case
def oracle(device: str) -> Found:
    losses = numbers(3, 20).abs().to(device).requires_grad_()
    choice.oracle_loss(losses, k=2)[0].backward()
    assert losses.grad is not None
    labels = (torch.arange(20) % 4).to(device)
    outputs = numbers(3, 20, 4).to(device)
    masks = outputs.argmax(-1).view(3, 1, 4, 5)
    return {
        "grad": losses.grad,
        "winners": choice.winners(losses),
        "accuracy": torch.tensor(choice.oracle_accuracy(outputs, labels)),
        "iou": torch.tensor(choice.oracle_mean_iou(masks, labels.view(1, 4, 5), 4, ignore=3)),
        "matrix": choice.assignment_matrix(choice.winners(losses), labels, 4),
        "annealed": choice.annealed(losses, 0.5),
        "relaxed": choice.relaxed(losses, 0.1),
    }


@case
def ensemble(device: str) -> Found:
    x, y = numbers(20, 6).to(device), (torch.arange(20) % 4).to(device)
    found: dict[str, Tensor] = {}
    weights = numbers(3, 20, seed=1).clamp(min=0)  # on the CPU: a plan that was made there
    for name, given in {
        "winners": None,
        "weights": weights,
        "function": lambda losses: choice.annealed(losses, 0.5),
    }.items():
        model = cf.MultipleChoice(members(device))
        step = model.step(x, y, each, weights=given)
        found |= {f"{name} {key}": value for key, value in grads(model).items()}
        found |= {f"{name} loss": step.loss, f"{name} usage": step.usage, f"{name} norms": step.gradient_norms}
    model = cf.MultipleChoice(members(device))
    done = choice.train_alternating(
        lambda: model.losses(x, y, each).detach(),
        lambda weights: [model.step(x, y, each, weights=weights)].clear(),
        rounds=2,
    )
    nets = members(device)
    in_turn = choice.train_in_turn(
        3,
        20,
        lambda number: (nets[number](x).argmax(1) == y).double(),
        lambda weights: [cf.MultipleChoice(nets).step(x, y, each, weights=weights)].clear(),
    )
    return found | {"alternating": done[-1].weights, "in turn": in_turn.weights}


@case
def trunk(device: str) -> Found:
    torch.manual_seed(3)
    model = cf.MultipleChoice(members(device), trunk=nn.Linear(5, 6).double().to(device))
    model.step(numbers(20, 5).to(device), (torch.arange(20) % 4).to(device), each)
    return grads(model)


@case
def competing(device: str) -> Found:
    found: dict[str, Tensor] = {}
    for name, x in {"dense": numbers(6, 12), "maps": numbers(2, 8, 5, 5).to(memory_format=torch.channels_last)}.items():
        for block in (2, 4):
            moved = x.to(device).detach().requires_grad_()
            y = cf.LocalWinnerTakeAll(block)(moved)
            (y * y.detach().cos()).sum().backward()
            assert moved.grad is not None
            found |= {f"{name} {block}": y, f"{name} {block} grad": moved.grad}
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), cf.LocalWinnerTakeAll(), nn.Linear(8, 3)).double().to(device)
    x, labels = numbers(30, 12).to(device), (torch.arange(30) % 3).to(device)
    found["subnetworks"] = competition.subnetworks(net, x, labels).shares
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    competition.max_norm(net, optimizer, 0.7)
    with competition.monitor(net) as watch:
        F.cross_entropy(net(x), labels).backward()
        table = watch.table()
    optimizer.step()
    assert len(table) == 1
    return found | dict(net.named_parameters())


@case
def forgetting(device: str) -> Found:
    torch.manual_seed(0)
    x, y = numbers(60, 8).float().to(device), (torch.arange(60) % 2).to(device)
    task = competition.Task(x[:40], y[:40], x[40:], y[40:])
    body = nn.Sequential(nn.Linear(8, 20), cf.LocalWinnerTakeAll()).to(device)
    found = competition.measure_forgetting(
        body,
        lambda: nn.Linear(20, 2).to(device),
        task,
        task,
        optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
        max_epochs=2,
        generator=torch.Generator().manual_seed(0),
    )
    return {"nll": torch.tensor(found.nll)}


@case
def chains(device: str) -> Found:
    torch.manual_seed(0)
    found: dict[str, Tensor] = {}
    lengths = torch.tensor([9, 5, 7])
    for backend in ("auto", "torch"):
        model = density.GaussianHMM(4, 3, 2, dtype=torch.float64).to(device)
        with torch.no_grad():
            for number, p in enumerate(model.parameters()):
                p.copy_(0.1 * numbers(*p.shape, seed=number))
        x = numbers(3, 9, 2).to(device).requires_grad_()
        with density.use_backend(model, backend):
            scores = model(x, lengths)
        scores.sum().backward()
        assert x.grad is not None
        paths, best = model.viterbi(x.detach(), lengths)
        found |= {f"{backend} {key}": value for key, value in grads(model).items()}
        found |= {f"{backend} scores": scores, f"{backend} x": x.grad}
        found |= {f"{backend} paths": paths, f"{backend} best": best}
    return found


@case
def fitted_chains(device: str) -> Found:
    torch.manual_seed(0)
    model = density.GaussianHMM(2, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        for number, p in enumerate(model.parameters()):
            p.copy_(0.5 * numbers(*p.shape, seed=number))
    model.to(device)
    model.fit(numbers(4, 9, 2).to(device), torch.tensor([9, 5, 7, 9]), iterations=3, start=False)
    return dict(model.named_parameters())


@case
def unrolled(device: str) -> Found:
    torch.manual_seed(0)
    cell = nn.GRUCell(3, 5).double().to(device)
    x = numbers(2, 12, 3).to(device).requires_grad_()
    found: dict[str, Tensor] = {}
    options: dict[str, dict[str, Any]] = {"slots": {"slots": 3}, "budget": {"budget": "64KiB"}}
    for name, given in options.items():
        cell.zero_grad()
        x.grad = None
        outputs, state = bptt.unroll(cell, x, torch.zeros(2, 5, dtype=x.dtype, device=x.device), **given)
        (outputs.square().sum() + state.sum()).backward()
        assert x.grad is not None
        found |= {f"{name} {key}": value.clone() for key, value in grads(cell).items()}
        found |= {f"{name} outputs": outputs, f"{name} x": x.grad.clone()}
    return found


@case
def divergences(device: str) -> Found:
    found: dict[str, Tensor] = {}
    for approximation in ("exact", "polynomial", "sigmoid"):
        rho = numbers(50).to(device).requires_grad_()
        variational.dropout_kl(-rho.abs(), approximation, 1.0).sum().backward()
        assert rho.grad is not None
        found[approximation] = rho.grad
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    cf.make_variational(net, p={"0": 0.2, "*": 0.5}, rates="unit")
    net.to(device)
    x, y = numbers(20, 6).to(device), (torch.arange(20) % 4).to(device)
    variational.kl(net).backward()
    found |= {f"kl {key}": value for key, value in grads(net).items()}
    found["plain"] = variational.deterministic(net)(x)
    draws = variational.sample(net, x, 5)
    assert draws.mean.device.type == device
    variances = variational.gradient_variance(
        net, F.cross_entropy, [(x[:10], y[:10]), (x[10:], y[10:])], "none", data_size=20, estimates=2
    )
    found |= {f"variance {key}": value for key, value in variances.items()}
    for estimator in ("local", "per_datum", "per_minibatch"):
        with variational.estimating(net, estimator):
            assert net(x).isfinite().all()
    torch.manual_seed(0)
    unbounded = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    cf.make_variational(unbounded, rates="unit", max_alpha=None)
    with torch.no_grad():
        next(p for name, p in unbounded.named_parameters() if name.startswith("2.") and p.ndim == 1)[:3] = 5.0
    return found | {"pruned": variational.prune(unbounded.to(device))(x)}


@case
def whitened(device: str) -> Found:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double().to(device)
    x, y = numbers(40, 6).to(device), (torch.arange(40) % 4).to(device)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    handle = cf.whiten(net, optimizer, every=2, loader=[x])
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert len(handle.table()) == 2
    return {"out": net(x), "plain": handle.fold()(x)}


@case
def unmixed(device: str) -> Found:
    spectra = torch.complex(numbers(2, 5, 60), numbers(2, 5, 60, seed=1)).to(device)
    found = {
        "iva": separation.auxiliary_iva(spectra, iterations=4, compiled=False),
        "three": separation.auxiliary_iva(
            torch.cat([spectra, spectra[:1] * 1j + spectra[1:].flip(2)]), 2, iterations=4
        ),
    }
    for permutation in ("vector", "envelope"):
        ica = separation.FrequencyICA(iterations=5, permutation=permutation).fit(spectra)
        found[permutation] = ica.matrices()
    return {name: torch.view_as_real(value.contiguous()) for name, value in found.items()}


@case
def aligned(device: str) -> Found:
    costs = numbers(3, 9, 4).abs().to(device).requires_grad_()
    found: dict[str, Tensor] = {}
    for skip in (False, True):
        costs.grad = None
        speech.path_error(costs, skip=skip)[0].sum().backward()
        assert costs.grad is not None
        found |= {f"path {skip}": speech.best_path(costs.detach(), skip=skip), f"grad {skip}": costs.grad.clone()}
    return found


@case
def heard(device: str) -> Found:
    wave = numbers(4000).to(device)
    return {"mel": audio.log_mel(wave, 8000)}


@case
def temper_and_probe(device: str) -> Found:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double().to(device)
    x, y = numbers(20, 6).to(device), (torch.arange(20) % 4).to(device)
    cf.temper(net, x, "cross_entropy")
    with cf.probe(net) as watch:
        F.cross_entropy(net(x), y).backward()
        table = watch.table()
    assert len(table) > 0
    optimizer = cf.DeltaBarDelta(net.parameters(), 0.01)
    optimizer.step()
    return {**grads(net), **{f"moved {name}": p for name, p in net.named_parameters()}}


@pytest.mark.parametrize("name", CASES)
def test_case_runs(name: str) -> None:
    assert all(bool(value.double().isfinite().all()) for value in CASES[name]("cpu").values())


@pytest.mark.accelerator
@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no graphics card")
@pytest.mark.parametrize("name", CASES)
def test_equal(name: str) -> None:
    wanted, got = CASES[name]("cpu"), CASES[name]("cuda")
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        there, tolerance = got[key].detach().cpu(), 1e-5 if value.dtype == torch.float32 else 1e-9
        assert torch.allclose(there, value.detach(), tolerance, tolerance, equal_nan=True), key
