"""Layers and models on a device: against PyTorch's without imperfections, against the chips with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import counterflow as cf
from counterflow import backward
from counterflow.analog import AnalogLinear, Board, DeviceModel, SynapseArray, deploy
from counterflow.analog.circuits import Neuron
from counterflow.exceptions import InputError, UnsupportedError

PAPER = DeviceModel.paper()
STATIC = PAPER.without("output_bits", "input_bits", "leakage", "write_noise", "weight_resolution")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


X = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
T = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def gradients(model: nn.Module, factor: float = 1.0) -> list[torch.Tensor]:
    model.zero_grad()
    (factor * 0.5 * (model(X) - T).square().sum()).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_an_ideal_device_is_the_plain_model() -> None:
    plain, model = net(), net()
    deploy(model, DeviceModel.ideal(), inputs=X)
    torch.testing.assert_close(model(X), plain(X), rtol=0, atol=1e-12)
    for got, wanted in zip(gradients(model), gradients(plain), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layers_batch_is_the_sum_of_what_the_array_makes_of_its_examples(bias: bool) -> None:
    layer = AnalogLinear(4, 3, bias, STATIC, seed=5, dtype=torch.float64)
    weights = layer.weight.detach() if not bias else torch.cat([layer.weight, layer.bias[:, None]], 1).detach()
    array = SynapseArray(4 + bias, 3, STATIC, weights=weights.numpy())
    array.cells = layer.get_buffer("analog_cells").numpy()
    x, errors = X[:, :4].clone().requires_grad_(), 0.7 * torch.cat([T, T[:, :1]], 1)
    out = layer(x)
    out.backward(-errors)
    change, back = np.zeros(array.weights.shape), []
    for i in range(len(x)):
        given = np.append(x[i].detach(), np.ones(int(bias)))
        sums = array.forward(given) + layer.get_buffer("analog_sums").numpy()
        np.testing.assert_allclose(out[i].detach(), sums, rtol=0, atol=1e-12)
        back.append(array.backward(errors[i])[:4])
        start = array.weights
        array.update(1.0)
        change += array.weights - start
        array.weights = start
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, -np.array(back), rtol=0, atol=1e-12)
    got = layer.weight.grad if not bias else torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1)
    np.testing.assert_allclose(got, -change, rtol=0, atol=1e-12)


def test_a_deployed_perceptron_learns_as_the_board_does_step_by_step() -> None:
    device = STATIC.without("amplifier_offset", "rate_resolution")
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    deploy(model, device, optimizer=optimizer, inputs=X)
    board = Board(4, 6, 2, device)
    for layer, index in zip(board.layers, (0, 2), strict=True):
        module = model[index]
        layer.weights = torch.cat([module.weight, module.bias[:, None]], 1).detach().numpy()
        layer.cells = module.get_buffer("analog_cells").numpy()
    board._hidden.parts = model[1].get_buffer("analog_neurons").numpy().copy()
    board._hidden.parts[Neuron.INPUT] = model[0].get_buffer("analog_sums").numpy()
    board._output.parts[Neuron.INPUT] = model[2].get_buffer("analog_sums").numpy()
    for i in np.random.default_rng(0).integers(0, 8, 40):
        y = model(X[i : i + 1])
        np.testing.assert_allclose(y[0].detach(), board.forward(X[i].numpy()), rtol=0, atol=1e-10)
        optimizer.zero_grad()
        (0.5 * (T[i : i + 1] - y).square().sum()).backward()
        optimizer.step()
        board.backward(T[i].numpy() - y[0].detach().numpy())
        board.update(0.1)


@pytest.mark.parametrize("kind", [nn.Tanh, nn.Sigmoid])
def test_sigmoids_have_the_bell_of_a_differential_pair(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), kind()).double()
    nn.init.eye_(model[0].weight)
    wanted = model[1](X[:, :3])
    deploy(model, DeviceModel(min_select=True), inputs=X[:, :3])
    x = X[:, :3].clone().requires_grad_()
    y = model(x)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-14)
    y.sum().backward()
    bell = 1 - y.abs() if kind is nn.Tanh else torch.minimum(y, 1 - y) / 2
    torch.testing.assert_close(x.grad, bell.detach())


def test_a_mean_over_the_batch_needs_its_size_for_the_errors_scale() -> None:
    # All that depends on the error's size alone; a write's charge comes with each example.
    device = STATIC.without("update_offset")
    one, other = net(), net()
    deploy(one, device, inputs=X)
    deploy(other, device, inputs=X, error_scale=8.0)
    for got, wanted in zip(gradients(other, 1 / 8), gradients(one), strict=True):
        torch.testing.assert_close(8 * got, wanted)
    assert not torch.allclose(8 * gradients(one, 1 / 8)[0], gradients(one)[0], rtol=1e-3)


def test_steps_write_the_weights() -> None:
    model = nn.Sequential(nn.Linear(100, 100)).double()
    weight, bias = model[0].weight, model[0].bias
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    device = DeviceModel(leakage=5.0, sample_rate=100.0, weight_range=0.5, write_noise=0.01)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight.fill_(0.2)
        bias.fill_(7.0)
    h = deploy(model, device, optimizer=optimizer, generator=generator)
    optimizer.zero_grad()
    model(torch.zeros(1, 100, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert weight.mean().item() == pytest.approx(0.2 * math.exp(-0.05), abs=5 * 0.01 / 100)
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert bias.max().item() <= 0.5 < bias.max().item() + 0.05
    kept = weight.clone()
    h.undo()
    assert torch.equal(weight, kept)
    optimizer.step()
    assert weight.std().item() == pytest.approx(kept.std().item(), rel=1e-6)


def test_a_weight_that_two_layers_share_is_written_once() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.ones_(model[0].weight)
    model[1].weight = model[0].weight
    deploy(model, DeviceModel(leakage=1.0, sample_rate=100.0)).write()
    assert model[0].weight.item() == pytest.approx(math.exp(-0.01))


def test_weights_are_refreshed_in_turn() -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False)).double()
    q = 1 / 32
    h = deploy(model, DeviceModel(weight_resolution=q, refresh_interval=0.05, sample_rate=100.0))
    for turn in range(1, 6):
        h.write()
        rounded = torch.isclose(model[0].weight / q, torch.round(model[0].weight / q), atol=1e-9)
        assert int(rounded.sum()) == 20 * turn


def test_an_optimizers_rate_is_one_that_the_chip_has() -> None:
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    nn.init.zeros_(model[0].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.014)
    deploy(model, DeviceModel(rate_resolution=0.01), optimizer=optimizer)
    model(torch.ones(1, 2, dtype=torch.float64)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), torch.full((1, 2), -0.01, dtype=torch.float64))
    assert optimizer.param_groups[0]["lr"] == 0.014
    other = net()
    with pytest.raises(InputError, match="rounds to zero"):
        deploy(other, DeviceModel(rate_resolution=0.1), optimizer=torch.optim.SGD(other.parameters(), lr=0.01))
    assert not other[0]._forward_hooks


def test_converters_stand_at_both_ends_of_the_model() -> None:
    plain, model = net(), net()
    deploy(model, DeviceModel(output_bits=4, input_bits=8, converter_used=0.5))
    x = (0.5 * X).requires_grad_()
    sent = (torch.round(0.5 * X * 4) / 4).clamp(-2, 1.75)
    read = (torch.round(plain(sent) * 64) / 64).clamp(-2, 2 - 1 / 64)
    y = model(x)
    torch.testing.assert_close(y, read, rtol=0, atol=1e-12)
    y.sum().backward()
    sent.requires_grad_()
    plain(sent).sum().backward()
    torch.testing.assert_close(x.grad, sent.grad)  # straight through


CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(2, 3, 3), (4, 2, 6, 5)),
    "strided": (
        lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        (2, 4, 7, 8),
    ),
    "reflected": (lambda: nn.Conv2d(1, 2, 3, padding="same", padding_mode="reflect", bias=False), (3, 1, 5, 5)),
    "line": (lambda: nn.Conv1d(3, 6, 4, groups=3, padding=2, padding_mode="circular"), (2, 3, 9)),
    "alone": (lambda: nn.Conv1d(2, 3, 2, stride=2), (2, 9)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_on_an_ideal_device_is_pytorchs(kind: str) -> None:
    make, shape = CONVOLUTIONS[kind]
    torch.manual_seed(0)
    plain = nn.Sequential(make()).double()
    model = nn.Sequential(make()).double()
    model.load_state_dict(plain.state_dict())
    found = []
    deploy(model, DeviceModel.ideal())
    for each in (plain, model):
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = each(x)
        (0.5 * y.square()).sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in each.parameters())])
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)


def test_each_place_of_a_convolution_is_an_example_for_its_array() -> None:
    """On a device with all that stands still: its patches, brought to a linear layer with the same cells."""
    torch.manual_seed(0)
    line = nn.Conv1d(2, 3, 4).double()
    dense = nn.Linear(8, 3).double()
    dense.load_state_dict({"weight": line.weight.flatten(1), "bias": line.bias})
    models = nn.Sequential(line, nn.Tanh()), nn.Sequential(dense, nn.Tanh())
    x = 0.5 * torch.randn(5, 2, 9, dtype=torch.float64)
    patches = x.unfold(2, 4, 1).permute(0, 2, 1, 3).flatten(2)
    outputs = []
    for model, inputs in zip(models, (x, patches), strict=True):
        handle = deploy(model, STATIC, inputs=inputs[:1])
        assert [row.done for row in handle.table()] == ["synapses", "neurons"]
        outputs.append(model(inputs))
    torch.testing.assert_close(outputs[0].transpose(1, 2), outputs[1], rtol=0, atol=1e-12)
    for y in outputs:
        (0.5 * y.square()).sum().backward()
    torch.testing.assert_close(line.weight.grad.flatten(1), dense.weight.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(line.bias.grad, dense.bias.grad, rtol=0, atol=1e-12)


def test_what_is_left_alone_is_said() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lstm = nn.Conv3d(1, 2, 3), nn.LSTM(2, 3)
            self.attention, self.norm = nn.MultiheadAttention(4, 1), nn.LayerNorm(4)
            self.head, self.gate = nn.Linear(4, 4), nn.Tanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.gate(self.head(x) + x)

    found = {row.layer: row.why for row in deploy(Parts(), PAPER, inputs=torch.zeros(1, 4)).table()}
    assert found == {
        "conv": "patches are brought to an array for Conv1d and Conv2d only",
        "lstm": "its products are inside PyTorch's recurrent kernel; write the cell out with linear layers",
        "attention": "its products are inside PyTorch's attention; write it out with linear layers",
        "attention.out_proj": "attention uses its weights without calling it",
        "norm": "it is no product of signals and weights that a synapse array makes",
        "head": "",
        "gate": "it is not right behind a layer",
    }
    assert deploy(net(), PAPER).table()["1"].why == "its neurons are not known; give inputs="


def test_a_sigmoid_that_is_left_alone_has_its_own_reason() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(4, 3), nn.Linear(3, 6), nn.Linear(6, 2)
            self.gate, self.idle, self.last = nn.Tanh(), nn.Sigmoid(), nn.Tanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.head(self.gate(self.second(self.gate(self.first(x))))))

    found = {row.layer: row.why for row in deploy(Parts(), PAPER, inputs=torch.zeros(1, 4)).table()}
    assert found["gate"] == "it is behind layers of unlike widths or kinds; give each a sigmoid of its own"
    assert found["idle"] == "the model does not call it on these inputs"
    assert found["last"] == ""
    model = Parts()
    deploy(model, PAPER, layers="*a*", inputs=torch.zeros(1, 4))  # head, gate and last
    assert deploy(model, PAPER, inputs=torch.zeros(1, 4)).table()["last"].why == "it is on a device already"


def test_what_cannot_be_used_is_said_in_one_line() -> None:
    model = net()
    for call, words in {
        lambda: deploy(model, "paper"): "device must be a DeviceModel such as",  # type: ignore[arg-type]
        lambda: deploy("model", PAPER): "model must be a torch.nn.Module, got str",  # type: ignore[arg-type]
        lambda: deploy(model, PAPER, error_scale=0.0): "error_scale is 0.0",
        lambda: deploy(model, PAPER, optimizer=torch.optim.SGD(net().parameters(), lr=0.1)): "holds none of the",
    }.items():
        with pytest.raises(InputError, match=words):
            call()
    assert "analog_cells" not in dict(model[0].named_buffers())
    deploy(model, PAPER)
    with pytest.raises(UnsupportedError, match=r"nothing to deploy .* it is on a device already"):
        deploy(model, PAPER)
    with pytest.raises(UnsupportedError, match="it holds no linear layer"):
        deploy(nn.Sequential(nn.ReLU()), PAPER)
    with pytest.raises(UnsupportedError, match="float16 loss scaling"), torch.autocast("cpu", torch.float16):
        model(X)
    with pytest.raises(UnsupportedError, match="it has an analog device already"):
        cf.attach(model, {"0": backward.shunt()})


def test_weights_that_were_taken_off_the_device_are_not_written() -> None:
    handle = deploy(net(), PAPER)
    handle.undo()
    with pytest.raises(InputError, match=r"write\(\) after undo\(\): .* deploy the model again"):
        handle.write()


# Together with other methods


@pytest.mark.parametrize("first", ["temper", "deploy"])
def test_a_tempered_net_keeps_its_attenuation_on_a_device_in_either_order(first: str) -> None:
    def temper(model: nn.Module) -> None:
        cf.temper(model, X, loss="cross_entropy_sum", input_power={"0": 4.0}, local_output=False, shunt=False)

    def on_chip(model: nn.Module) -> None:
        deploy(model, DeviceModel.ideal(), inputs=X)

    wanted, plain = net(), net()
    temper(wanted)
    model = net()
    for each in (temper, on_chip) if first == "temper" else (on_chip, temper):
        each(model)
    tempered = gradients(wanted)
    for got, want in zip(gradients(model), tempered, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert not torch.allclose(tempered[0], gradients(plain)[0])


def test_a_probe_sees_the_error_that_the_chip_sends_back() -> None:
    model = net()
    deploy(model, STATIC, inputs=X)
    with cf.probe(model, "*", every=1) as seen:
        wanted = gradients(model)
    rms = {row.layer: row.values["rms"] for row in seen.table()}
    model.zero_grad()
    hidden = model[1](model[0](X)).detach().requires_grad_()
    (0.5 * (model[2](hidden) - T).square().sum()).backward()
    assert hidden.grad is not None
    assert rms["1"] == pytest.approx(hidden.grad.square().mean().sqrt().item())
    assert rms["1"] != pytest.approx(0.0)
    assert len(wanted) == 4


def test_converters_are_there_for_keywords_and_for_structures() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.tanh = nn.Linear(4, 3), nn.Tanh()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": self.tanh(input=self.linear(x))}

    model = Both().double()
    handle = deploy(model, DeviceModel(output_bits=2, input_bits=3), inputs=X)
    assert "neurons" in str(handle.table())
    assert torch.equal(model(x=X)["y"], model(X)["y"])
    torch.testing.assert_close(model(X)["y"] * 4, (model(X)["y"] * 4).round())
    handle.undo()
    assert not torch.equal((model(X)["y"] * 4).round(), model(X)["y"] * 4)


def test_a_convolution_takes_an_empty_batch() -> None:
    model = nn.Conv2d(1, 2, 3)
    deploy(model, STATIC)
    assert model(torch.zeros(0, 1, 5, 6)).shape == (0, 2, 3, 4)


def test_a_weight_that_is_made_of_others_is_left_alone() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))
    assert "its weight is made of other parameters" in str(deploy(model, PAPER).table())


def test_a_layer_with_arithmetic_of_its_own_is_left_alone() -> None:
    class Standardized(nn.Conv1d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)

    doubled = nn.Linear(4, 4)
    forward = doubled.forward
    doubled.forward = lambda input: 2 * forward(input)  # type: ignore[method-assign]
    model = nn.Sequential(Standardized(2, 2, 3), doubled, nn.Linear(4, 1))
    x = torch.randn(3, 2, 6)
    wanted = model(x)
    table = deploy(model, DeviceModel.ideal()).table()
    torch.testing.assert_close(model(x), wanted)
    assert [row.done for row in table] == ["left alone", "left alone", "synapses"]
    assert table["0"].why == "its class overrides forward, so its arithmetic is unknown"
    assert table["1"].why == "its forward has been exchanged on the module itself"


def test_a_rate_that_rounds_to_zero_leaves_the_others_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    groups = [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[0].bias], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    deploy(model, PAPER, optimizer=optimizer)
    optimizer.param_groups[1]["lr"] = 1e-6
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(InputError, match="rounds to zero"):
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1e-6]
