"""The same contracts on a graphics card: every method, on each of its examples. Skipped where there is none.

Nothing here runs where the continuous integration does; `docs/devices.rst` says what was run, and on what.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import counterflow  # noqa: F401 - enters the methods in the registry
from counterflow.registry import Contract, Example, Method, methods

from .checks import (
    CHECKS,
    assert_close,
    attached,
    check_compile,
    double,
    gradients,
    hold,
    make_data,
    make_model,
    own_state,
)

if not torch.cuda.is_available():  # once, and not for each of a thousand cases
    pytest.skip("PyTorch finds no graphics card", allow_module_level=True)

pytestmark = pytest.mark.accelerator

CASES = [
    pytest.param(method, example, id=f"{method.key}-{example.name}")
    for method in methods().values()
    for example in method.examples
]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums in one order, and products in all digits: what the contracts compare is to be equal to the bit."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()


def on_card(example: Example) -> Example:
    """The example with the same numbers, drawn on the CPU and moved."""
    return replace(
        example,
        model=lambda: example.model().cuda(),
        inputs=lambda size: example.inputs(size).cuda(),
        targets=lambda size: example.targets(size).cuda(),
    )


@pytest.mark.parametrize("contract", CHECKS)
@pytest.mark.parametrize(("method", "example"), CASES)
def test_contract(method: Method, example: Example, contract: Contract) -> None:
    # cuDNN chooses among algorithms that round differently, and its recurrent layers know no torch.func and no backward
    # pass in evaluation mode, bare or not. The other tests here have it.
    with torch.backends.cudnn.flags(enabled=False):
        hold(method, contract, on_card(example))


@pytest.mark.parametrize(("method", "example"), CASES)
def test_inductor(method: Method, example: Example) -> None:
    def check(method: Method, example: Example) -> None:
        check_compile(method, example, "inductor")

    hold(method, "compile", on_card(example), check)


def _moved(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return data[0].cuda(), data[1].cuda()


def _twice(method: Method, example: Example, model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Gradients of the second step, since what keeps state may only show there; back on the CPU."""
    found = [gradients(example, model, data) for _ in range(2)][1]
    assert all(value.device.type == data[0].device.type for value in found.values())
    return {name: value.cpu() for name, value in found.items()}


@pytest.mark.parametrize(("method", "example"), CASES)
def test_gradients_are_those_of_the_cpu(method: Method, example: Example) -> None:
    """In float64, attached before the model is moved, and after."""
    data = double(make_data(example))
    there = _moved(data)
    wanted = _twice(method, example, method.attach(make_model(example).double(), data[0]).model, data)
    first = method.attach(make_model(example).double(), data[0]).model.cuda()
    second = method.attach(make_model(example).double().cuda(), there[0]).model
    for name, model in (("attached, then moved", first), ("moved, then attached", second)):
        got = _twice(method, example, model, there)
        assert all(value.device.type == "cuda" for value in own_state(model, make_model(example)).values()), name
        if method.random:
            assert all(bool(value.isfinite().all()) for value in got.values()), name
        else:
            assert_close(got, wanted, name, 1e-9)


@pytest.mark.parametrize(("method", "example"), CASES)
def test_back_on_the_cpu(method: Method, example: Example) -> None:
    """A model that was trained on a card goes on without it, and its checkpoint loads there."""
    data = make_data(example)
    model = attached(method, example)[0].cuda()
    gradients(example, model, _moved(data))
    saved = {name: value.cpu() for name, value in model.state_dict().items()}
    back = copy.deepcopy(model).cpu()
    fresh = attached(method, example)[0]
    fresh.load_state_dict(saved)
    wanted, got = gradients(example, fresh, data), gradients(example, back, data)
    if not method.random:
        assert_close(got, wanted, "moved back")


@pytest.mark.parametrize(("method", "example"), CASES)
def test_gradient_scaler(method: Method, example: Example) -> None:
    """Under float16 autocast with a gradient scaler; what is not homogeneous says so (the contract ``amp``)."""
    if not method.homogeneous or "amp" in method.waivers:
        pytest.skip("declared not to work under float16")
    data = _moved(make_data(example))
    model = attached(method, example)[0].cuda()
    optimizer, scaler = torch.optim.SGD(model.parameters(), 1e-6), torch.amp.GradScaler(init_scale=64.0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.autocast("cuda", torch.float16):
        out = model(data[0])
    scaler.scale(example.loss(out.float(), data[1])).backward()
    scaler.unscale_(optimizer)
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 64.0, "a gradient overflowed"
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    if method.random or method.discontinuous:
        return
    wanted = gradients(example, attached(method, example)[0].cuda(), data)
    wanted.pop("<input>", None)
    assert_close(got, wanted, "scaled, and unscaled", 0.05)
