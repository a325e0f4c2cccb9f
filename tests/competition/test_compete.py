"""`compete`: which modules are exchanged, along which dimension, what is left alone, and what raises."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import counterflow as cf
from counterflow import backward
from counterflow.competition.exchange import ACTIVATIONS
from counterflow.exceptions import InputError, PatternError, UnsupportedError


class Block(nn.Module):
    """A residual block whose one activation module is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.norm(self.second(self.act(self.first(x)))) + x)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.block = Block()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Sigmoid())

    def forward(self, x):
        return self.head(self.pool(self.block(self.stem(x))))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(4, 8), nn.Linear(8, 4), nn.ReLU()

    def forward(self, x):
        return self.down(F.relu(self.up(self.act(x))))


class Calling(nn.Module):
    """Calls a function between two layers."""

    def __init__(self, function, *further) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.function, self.further = function, further

    def forward(self, x):
        return self.down(self.function(self.up(x), *self.further))


class ByMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(4, 8), nn.Linear(8, 4)])

    def forward(self, x):
        return self.inner[1](self.inner[0](x).tanh_())


class Branching(nn.Module):
    """What torch.fx cannot follow."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)
        self.functional = functional

    def forward(self, x, scale=1.0):
        if x.sum() > 1e9:
            return x
        h = self.up(x) * scale
        return self.down(torch.relu(h) if self.functional else self.act(h))


class Gated(nn.Module):
    """Squeeze and excitation, with a gate that is a module and one that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.mix = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 4)
        self.gate, self.out = nn.Sigmoid(), nn.Linear(4, 2)

    def forward(self, x):
        h = self.act(self.conv(x))
        h = h * self.gate(self.mix(h.mean((2, 3))))[:, :, None, None]
        h = torch.sigmoid(h) * h
        return self.out(h.mean((2, 3)))


@pytest.mark.parametrize("inputs", [None, torch.randn(2, 1, 6, 6)], ids=["fx", "trial"])
def test_gates_are_left_alone(inputs):
    table = cf.compete(Gated(), inputs=inputs).table()
    assert [(row.layer, row.done) for row in table] == [("act", "LWTA-2"), ("gate", "left alone")]
    assert "multiplied with something else" in table["gate"].why


@pytest.mark.parametrize("inputs", [None, torch.randn(2, 1, 6, 6)], ids=["fx", "trial"])
def test_a_residual_net(inputs):
    model = ResNet()
    running = model.block.norm.running_mean.clone()
    keys = list(model.state_dict())
    parameters = list(model.parameters())
    h = cf.compete(model, inputs=inputs)
    rows = {row.layer: (row.kind, row.done, row.values.get("dim"), row.values.get("blocks")) for row in h.table()}
    assert rows == {
        "block.act": ("ReLU", "LWTA-2", -3, 2),
        "head.2": ("Tanh", "LWTA-2", -1, 3),
        "head.4": ("Sigmoid", "left alone", None, None),
    }
    assert "makes the model's output" in h.table()["head.4"].why
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model.block.norm.running_mean, running)
    assert model.training
    assert model.block.norm.training
    y = model.block.act(torch.randn(2, 4, 3, 3))
    assert ((y != 0).view(2, 2, 2, 9).sum(2) == 1).all()
    h.undo()
    assert type(model.block.act) is nn.ReLU
    assert model.block.act.inplace


def test_what_it_computes_is_the_layer_in_the_place_of_the_activation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))
    wanted = nn.Sequential(model[0], cf.LocalWinnerTakeAll(3), model[2])
    x = torch.randn(5, 3)
    model.eval()
    cf.compete(model, 3)
    assert torch.equal(model(x), wanted(x))
    assert not model[1].training
    assert copy.deepcopy(model)[1].block == 3


@pytest.mark.parametrize("inputs", [None, torch.randn(2, 4)], ids=["fx", "trial"])
def test_a_functional_activation_raises_with_the_place_of_the_call(inputs):
    with pytest.raises(UnsupportedError, match=r"'relu' as a function \(test_compete.py:\d+: return self.down\(F.relu"):
        cf.compete(Functional(), inputs=inputs)
    with pytest.raises(UnsupportedError, match=r"ByMethod calls the activation 'tanh_' as a function"):
        cf.compete(ByMethod(), inputs=inputs)


@pytest.mark.parametrize("inputs", [None, torch.randn(2, 4)], ids=["fx", "trial"])
def test_the_function_of_every_activation_raises(inputs):
    further = {"prelu": (torch.tensor(0.1),), "threshold": (0.0, 0.0)}
    names = ["leaky_relu" if kind is nn.LeakyReLU else kind.__name__.lower() for kind in ACTIVATIONS]
    for function in (*(getattr(F, name) for name in names), torch.special.expit):
        with pytest.raises(UnsupportedError, match="Calling calls the activation"):
            cf.compete(Calling(function, *further.get(function.__name__.strip("_"), ())), inputs=inputs)


def test_the_message_names_the_inner_module_and_layers_leaves_it_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Functional())
    with pytest.raises(UnsupportedError, match=r"module '2' \(Functional\)"):
        cf.compete(model)
    h = cf.compete(model, layers="1")
    assert isinstance(model[1], cf.LocalWinnerTakeAll)
    assert isinstance(model[2].act, nn.ReLU)
    assert len(h.table()) == 1


def test_where_fx_cannot_follow_an_example_is_asked_for():
    with pytest.raises(UnsupportedError, match=r"more than torch.fx can follow .* inputs=x"):
        cf.compete(Branching(False))
    for inputs in (torch.randn(3, 4), (torch.randn(3, 4), 2.0), {"x": torch.randn(3, 4), "scale": 0.5}):
        model = Branching(False)
        assert cf.compete(model, inputs=inputs).table()["act"].values == {"dim": -1, "blocks": 4}
    with pytest.raises(UnsupportedError, match=r"Branching calls the activation 'relu' as a function \(test_compete"):
        cf.compete(Branching(True), inputs=torch.randn(3, 4))


def test_a_trial_pass_draws_no_numbers_and_leaves_no_hook():
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 2))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    cf.compete(model, inputs=torch.zeros(1, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_transformer_layers_leave_their_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(3, 5, 8), torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])
    with torch.no_grad():
        bare = model(x, src_key_padding_mask=padding)
    h = cf.compete(model)
    assert [(row.layer, row.kind, row.done) for row in h.table()] == [
        ("layers.0.activation", "relu", "LWTA-2"),
        ("layers.1.activation", "relu", "LWTA-2"),
    ]
    with torch.no_grad():  # where the fast path would be taken
        got = model(x, src_key_padding_mask=padding)
    slow = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(got, slow.detach())
    assert not torch.allclose(got[0], bare[0])
    h.undo()
    assert model.layers[0].activation is F.relu
    assert model.layers[0].activation_relu_or_gelu == 1
    assert "activation" not in model.layers[0]._modules
    with torch.no_grad():
        assert torch.equal(model(x, src_key_padding_mask=padding), bare)


def test_a_transformer_and_its_decoder():
    model = nn.Transformer(8, 2, 1, 1, 12, activation=nn.GELU(), batch_first=True)
    # A copy of PyTorch's own layers forgets a module that was given to it; what is there comes back.
    before = [each.activation for each in (model.encoder.layers[0], model.decoder.layers[0])]
    h = cf.compete(model, 3)
    assert {row.layer: row.values["blocks"] for row in h.table()} == {
        "encoder.layers.0.activation": 4,
        "decoder.layers.0.activation": 4,
    }
    model(torch.randn(2, 3, 8), torch.randn(2, 3, 8)).sum().backward()
    h.undo()
    assert [each.activation for each in (model.encoder.layers[0], model.decoder.layers[0])] == before


def test_a_transformer_inside_a_model():
    head = nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)
    leaky = partial(F.leaky_relu, negative_slope=0.1)
    model = nn.Sequential(nn.Embedding(5, 8), nn.TransformerEncoderLayer(8, 2, 12, activation=leaky), *head)
    rows = list(cf.compete(model).table())
    assert [(row.layer, row.kind) for row in rows] == [("1.activation", "partial"), ("3", "ReLU")]


def test_what_is_left_alone_and_why():
    model = nn.Sequential(
        nn.Linear(4, 6),
        nn.PReLU(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 2 * 3),
        nn.Unflatten(1, (2, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.RNN(6, 2),
    )
    table = cf.compete(model).table()
    assert table["9"].done == "LWTA-2"
    reasons = {"1": "parameters of its own", "3": "does not divide its 5", "6": "Unflatten", "10": "kernel"}
    for layer, why in reasons.items():
        assert table[layer].done == "left alone"
        assert why in table[layer].why


@pytest.mark.parametrize(
    "attach",
    [
        lambda model: cf.attach(model, {"1": backward.scale(0.0)}),
        lambda model: cf.attach(model, {"1": backward.clip(1.0)}),
        lambda model: cf.probe(model, "1").__enter__(),
        lambda model: setattr(model[1], "forward", torch.tanh),
    ],
)
@pytest.mark.parametrize("inputs", [None, torch.randn(2, 4)], ids=["fx", "trial"])
def test_what_is_on_an_activation_stays(attach, inputs):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    before = model[1]
    attach(model)
    table = cf.compete(model, inputs=inputs).table()
    assert model[1] is before
    assert "a hook is on it" in table["1"].why or "its forward has been exchanged" in table["1"].why
    assert (table["1"].done, table["3"].done) == ("left alone", "LWTA-2")
    with pytest.raises(UnsupportedError, match=r"a hook is on it|its forward has been exchanged"):
        cf.compete(model, inputs=inputs, layers="1")


def test_what_is_on_the_activation_of_a_transformer_stays():
    model = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 12, activation=nn.GELU()) for _ in range(2)))
    cf.attach(model, {"0.activation": backward.scale(0.5)})
    table = cf.compete(model).table()
    assert "a hook is on it" in table["0.activation"].why
    assert (table["0.activation"].done, table["1.activation"].done) == ("left alone", "LWTA-2")


def test_a_dimension_can_be_named():
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(UnsupportedError, match="name it by dim"):
        cf.compete(model)
    cf.compete(model, dim=1)
    y = model[:3](torch.randn(5, 4))
    assert ((y != 0).sum(1) == 1).all()


def test_a_dimension_that_is_not_there_is_named_where_an_example_shows_it():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(UnsupportedError, match=r"dim=5 is not a dimension of what it makes, which has shape \(3, 6\)"):
        cf.compete(net, dim=5, inputs=torch.randn(3, 4))


def test_an_activation_comes_back_in_the_mode_that_the_model_is_in_now():
    model = nn.Sequential(nn.Linear(4, 6), nn.RReLU(), nn.Linear(6, 2))  # it draws in training alone
    h = cf.compete(model)
    model.eval()
    h.undo()
    assert not model[1].training


def test_one_module_on_units_in_different_dimensions():
    act = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), act, nn.Flatten(), nn.Linear(4, 4), act, nn.Linear(4, 2))
    with pytest.raises(UnsupportedError, match="different dimensions; use one module for each call"):
        cf.compete(model)
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 6), shared, nn.Linear(6, 4), shared, nn.Linear(4, 2))
    h = cf.compete(model)
    assert model[1] is model[3]
    assert isinstance(model[1], cf.LocalWinnerTakeAll)
    h.undo()
    assert model[1] is model[3] is shared


def test_bad_arguments():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(InputError, match="block must be an integer"):
        cf.compete(net, 0)
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, got str"):
        cf.compete("net")
    with pytest.raises(InputError, match=r"before torch\.compile"):
        cf.compete(nn.DataParallel(net))
    with pytest.raises(PatternError, match="matches no module"):
        cf.compete(net, layers="body.*")
    with pytest.raises(UnsupportedError, match="holds no activation module"):
        cf.compete(nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match=r"'1' \(ReLU\): block=4 does not divide its 6 units"):
        cf.compete(net, 4)
    assert isinstance(net[1], nn.ReLU)
