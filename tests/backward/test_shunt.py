"""Shunting against its definition: plain autograd on centered errors for weights, the mean error for biases."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.prune import identity

from counterflow.backward import attach, scale, shunt
from counterflow.exceptions import InputError, ShapeError, UnsupportedError

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(3, 4), (5, 3)),
    "linear without bias": (lambda: nn.Linear(3, 4, bias=False), (5, 3)),
    "linear over time": (lambda: nn.Linear(3, 4), (5, 6, 3)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (5, 3, 8)),
    "conv1d same": (lambda: nn.Conv1d(3, 4, 4, padding="same"), (5, 3, 8)),
    "conv1d valid, dilated": (lambda: nn.Conv1d(3, 4, 3, padding="valid", dilation=2), (5, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (5, 2, 6, 7)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 4, 3, bias=False), (5, 2, 6, 7)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (5, 4, 6, 7)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (5, 4, 6, 7)),
    "conv2d circular": (lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (5, 2, 6, 7)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 4, 3, padding=(2, 1), padding_mode="reflect"), (5, 2, 6, 7)),
    "conv2d replicate same": (
        lambda: nn.Conv2d(2, 4, (2, 3), padding="same", padding_mode="replicate"),
        (5, 2, 6, 7),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), (5, 2, 3, 4, 5)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, output_padding=1), (5, 2, 6)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, groups=2), (5, 2, 4, 5)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, dilation=2), (5, 2, 3, 3, 4)),
}


def features(module: nn.Module, error: Tensor) -> int:
    return error.ndim - 1 if isinstance(module, nn.Linear) else 1


def by_definition(module: nn.Module, x: Tensor, error: Tensor, bias: str) -> dict[str, Tensor | None]:
    """Plain autograd: on the error for what is handed down, on the centered error for the weight."""
    x = x.detach().requires_grad_()
    weight: Tensor = module.get_parameter("weight")
    samples = [axis for axis in range(error.ndim) if axis != features(module, error)]
    centered = error - error.mean(samples, keepdim=True)
    (down,) = torch.autograd.grad(module(x), x, error)
    (weight_gradient,) = torch.autograd.grad(module(x), weight, centered)
    reduced = error.mean(samples) if bias == "mean" else error.sum(samples)
    return {"x": down, "weight": weight_gradient, "bias": None if module.bias is None else reduced}


def shunted(module: nn.Module, x: Tensor, error: Tensor, call: Any = None) -> dict[str, Tensor | None]:
    x = x.detach().requires_grad_()
    (call or module)(x).backward(error)
    bias = module.bias
    assert bias is None or isinstance(bias, Tensor)
    return {"x": x.grad, "weight": module.get_parameter("weight").grad, "bias": None if bias is None else bias.grad}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("bias", ["mean", "sum"])
@pytest.mark.parametrize("name", LAYERS)
def test_closed_form(name: str, bias: Any) -> None:
    make, shape = LAYERS[name]
    module = make().double()
    x = torch.randn(shape, dtype=torch.float64)
    output = module(x)
    error = torch.randn_like(output) + 0.5
    wanted = by_definition(module, x, error, bias)
    attach(module, {"": shunt(bias=bias)})
    assert torch.equal(module(x), output)
    got = shunted(module, x, error)
    for key, value in wanted.items():
        torch.testing.assert_close(got[key], value, rtol=1e-10, atol=1e-10)


def test_transposed_with_an_output_size() -> None:
    module = nn.ConvTranspose2d(2, 3, 3, stride=3).double()
    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    size = [10, 11]
    error = torch.randn_like(module(x, output_size=size))
    samples = (0, 2, 3)
    (wanted,) = torch.autograd.grad(
        module(x, output_size=size), module.weight, error - error.mean(samples, keepdim=True)
    )
    attach(module, {"": shunt()})
    got = shunted(module, x, error, lambda x: module(x, output_size=size))
    torch.testing.assert_close(got["weight"], wanted)


def test_frozen_parts_get_no_gradient() -> None:
    module = nn.Linear(3, 2)
    module.weight.requires_grad_(False)
    attach(module, {"": shunt()})
    module(torch.randn(4, 3)).sum().backward()
    assert module.weight.grad is None
    torch.testing.assert_close(module.bias.grad, torch.ones(2))


def test_called_with_a_keyword() -> None:
    module = nn.Linear(3, 2)
    attach(module, {"": shunt()})
    module(input=torch.randn(4, 3)).sum().backward()
    assert module.weight.grad is not None
    torch.testing.assert_close(module.weight.grad, torch.zeros(2, 3), atol=1e-6, rtol=0)


def test_used_twice() -> None:
    layer = nn.Linear(3, 3).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    first = layer(x)
    error = torch.randn_like(first)
    inner = by_definition(layer, x, error @ layer.weight, "mean")
    outer = by_definition(layer, first.detach(), error, "mean")
    attach(layer, {"": shunt()})
    layer(layer(x)).backward(error)
    for name in ("weight", "bias"):
        a, b = inner[name], outer[name]
        assert a is not None
        assert b is not None
        torch.testing.assert_close(layer.get_parameter(name).grad, a + b)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(3, 2), (1, 3)),
        (nn.Linear(3, 2), (3,)),
        (nn.Conv2d(1, 2, 3), (1, 1, 5, 5)),
        (nn.Conv2d(1, 2, 3), (1, 5, 5)),
    ],
)
def test_a_batch_of_one_is_refused(module: nn.Module, shape: tuple[int, ...]) -> None:
    attach(module, {"": shunt()})
    with pytest.raises(ShapeError, match=r"shunt\(\) mixes the examples of a batch"):
        module(torch.randn(shape)).sum().backward()


def test_running_means_take_a_single_example_without_a_batch_dimension() -> None:
    alone, batched = nn.Linear(3, 2), nn.Linear(3, 2)
    batched.load_state_dict(alone.state_dict())
    for layer in (alone, batched):
        attach(layer, {"": shunt(momentum=0.9)})
    for _ in range(2):
        x, error = torch.randn(3), torch.randn(2)
        alone(x).backward(error)
        batched(x[None]).backward(error[None])
    for one, other in zip(alone.parameters(), batched.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert alone.state_dict().keys() == batched.state_dict().keys()
    for name, value in batched.state_dict().items():
        assert torch.equal(alone.state_dict()[name], value), name


class _Gated(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).sigmoid()


def _exchanged() -> nn.Linear:
    """A layer whose forward is another on the instance itself."""
    layer = nn.Linear(3, 3)
    forward = layer.forward
    layer.forward = lambda input: 3 * forward(input)  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.LayerNorm(3), "splits the gradient of a linear or convolutional layer"),
        (nn.LSTM(3, 3), "splits the gradient of a linear or convolutional layer"),
        (_Gated(3, 3), "overrides forward"),
        (_exchanged(), "its forward has been exchanged on the module itself"),
        (spectral_norm(nn.Linear(3, 3)), "parametrized"),
    ],
)
def test_layers_that_it_does_not_know(module: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), module)
    with pytest.raises(UnsupportedError, match=rf"shunt\(\) cannot be attached to '1' .*{reason}") as error:
        attach(model, {"1": shunt()})
    assert "\n" not in str(error.value)
    assert not any(m._forward_hooks for m in model.modules())
    handle = attach(model, {"*": shunt()})
    assert [(row.layer, row.done) for row in handle.table()] == [("0", "shunt()"), ("1", "left alone")]
    assert reason in handle.table()["1"].why


def test_a_subclass_that_keeps_forward_is_known() -> None:
    class Named(nn.Linear):
        pass

    attach(Named(3, 3), {"": shunt()})


def test_two_adjoints_on_one_layer_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    handle = attach(model, {"0": shunt()})
    with pytest.raises(UnsupportedError, match=r"'0' \(Linear\): it has shunt\(\) already, .* undo that first"):
        attach(model, {"0": shunt(bias="sum")})
    assert [row.done for row in attach(model, {"*": shunt()}).table()] == ["left alone", "shunt()"]
    handle.undo()
    attach(model, {"0": shunt(bias="sum")})
    with pytest.raises(UnsupportedError, match="one backward pass"):
        attach(nn.Sequential(nn.Linear(3, 3)), {"0": shunt(), "**.0": shunt()})


def test_order_of_attaching_beside_a_tap_makes_no_difference() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    results = []
    for order in ((shunt(), scale(0.5)), (scale(0.5), shunt())):
        model = copy.deepcopy(plain)
        for each in order:
            attach(model, {"0": each})
        model(x).square().sum().backward()
        results.append([p.grad for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_double_backward_of_the_weight_gradient() -> None:
    for layer, shape in ((nn.Linear(3, 2), (4, 3)), (nn.Conv1d(2, 2, 2), (4, 2, 4))):
        module = layer.double()
        attach(module, {"": shunt()})
        x = torch.randn(shape, dtype=torch.float64)
        error = torch.randn_like(module(x), requires_grad=True)

        def weight_gradient(error: Tensor, module: nn.Module = module, x: Tensor = x) -> Tensor:
            (result,) = torch.autograd.grad(module(x), module.get_parameter("weight"), error, create_graph=True)
            return result

        assert torch.autograd.gradcheck(weight_gradient, error)


def test_bias_must_be_known() -> None:
    with pytest.raises(InputError, match="bias must be 'mean' or 'sum', got 'none'"):
        shunt(bias="none")  # type: ignore[arg-type]


CENTERED = ["linear", "linear over time", "conv1d same", "conv2d", "conv2d grouped", "conv2d reflect", "transposed 1d"]


def patches(module: nn.Module, x: Tensor, error: Tensor) -> Tensor:
    """The mean over samples of what every weight multiplies, in the weight's shape."""
    count = error.numel() / error.shape[features(module, error)]
    weight: Tensor = module.get_parameter("weight")
    (total,) = torch.autograd.grad(module(x), weight, torch.ones_like(error))
    return total / count


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", CENTERED)
def test_running_means_of_errors_and_inputs(name: str) -> None:
    """Small batches: the sum of (error - d)(input - m), with what plain autograd makes of each part."""
    make, shape = LAYERS[name]
    bare = make().double()
    module = copy.deepcopy(bare)
    attach(module, {"": shunt(momentum=0.6)})
    error_mean, input_mean = torch.zeros(()).double(), torch.zeros(()).double()
    weight: Tensor = bare.get_parameter("weight")
    for step in range(4):
        x = torch.randn(shape, dtype=torch.float64) + 1.0
        error = torch.randn_like(bare(x)) + 0.5
        axis = features(bare, error)
        samples = [i for i in range(error.ndim) if i != axis]
        share = max(1 / (step + 1), 0.4)
        error_mean = error_mean + share * (error.mean(samples, keepdim=True) - error_mean)
        seen = patches(bare, x, error)
        input_mean = input_mean + share * (seen - input_mean)
        off = error - error_mean
        (wanted,) = torch.autograd.grad(bare(x), weight, off)
        # Less the sum of the centered errors times m, for the unit that each weight leads to.
        by_unit = off.sum(samples)
        beside = [1] * (weight.ndim - 2)
        by_unit = by_unit.reshape((1, -1, *beside) if name.startswith("transposed") else (-1, 1, *beside))
        module.zero_grad()
        got = shunted(module, x, error)
        torch.testing.assert_close(got["weight"], wanted - by_unit * input_mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got["bias"], error.mean(samples))


def test_running_means_on_line() -> None:
    """One example at a time, by hand."""
    layer = nn.Linear(3, 2).double()
    attach(layer, {"": shunt(momentum=0.5)})
    d, m = torch.zeros(2).double(), torch.zeros(3).double()
    for step in range(5):
        x, error = torch.randn(1, 3).double(), torch.randn(1, 2).double()
        share = max(1 / (step + 1), 0.5)
        d, m = d + share * (error[0] - d), m + share * (x[0] - m)
        layer.zero_grad()
        torch.testing.assert_close(shunted(layer, x, error)["weight"], torch.outer(error[0] - d, x[0] - m))


def test_in_full_batch_running_means_are_shunting() -> None:
    """Equation 21: with inputs that stay, their mean is exact, and the errors' mean does not matter."""
    plain, running = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    attach(plain, {"": shunt()})
    attach(running, {"": shunt(momentum=0.9)})
    x = torch.randn(20, 5).double() + 2.0
    for _ in range(4):
        error = torch.randn(20, 3).double() + torch.rand(3).double()
        plain.zero_grad()
        running.zero_grad()
        wanted, got = shunted(plain, x, error), shunted(running, x, error)
        for name in ("bias", "weight"):
            torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=1e-11)


def test_running_means_pass_over_what_is_not_finite_and_go_with_undo() -> None:
    layer = nn.Linear(2, 2)
    handle = attach(layer, {"": shunt(momentum=0.9)})
    layer(torch.tensor([[1.0, 2.0]])).sum().backward()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert before["shunt_input_mean"].tolist() == [1.0, 2.0]
    layer(torch.tensor([[float("inf"), 0.0]])).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    handle.undo()
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Linear(2, 2), (2,)), (nn.Conv1d(2, 2, 2), (2, 3))], ids=["linear", "convolution"]
)
def test_an_empty_batch_tells_the_running_means_nothing(layer: nn.Module, shape: tuple[int, ...]) -> None:
    attach(layer, {"": shunt(momentum=0.9)})
    layer(torch.randn(4, *shape)).sum().backward()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.zero_grad()
    layer(torch.zeros(0, *shape)).sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_running_means_of_a_weight_that_is_made_of_others() -> None:
    plain = nn.Linear(3, 2)
    pruned = copy.deepcopy(plain)
    identity(pruned, "weight")
    for layer in (plain, pruned):
        attach(layer, {"": shunt(momentum=0.9)})
        torch.manual_seed(1)
        for _ in range(2):
            (layer(torch.randn(4, 3)) * torch.randn(4, 2)).sum().backward()
    assert plain.weight.grad is not None
    torch.testing.assert_close(pruned.get_parameter("weight_orig").grad, plain.weight.grad)


def test_running_means_are_refused_where_they_cannot_be() -> None:
    for momentum in (1.0, -0.1, "x"):
        with pytest.raises(InputError, match=r"momentum must lie in \[0, 1\)"):
            shunt(momentum=momentum)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="transposed convolution with groups"):
        attach(nn.ConvTranspose2d(2, 4, 3, groups=2), {"": shunt(momentum=0.5)})
    model = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(2))
    table = attach(model, {"*": shunt(momentum=0.5)}).table()
    assert [row.why for row in table] == ["", "its weight has no shape yet; run a batch through the model first"]
