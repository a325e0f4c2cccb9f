"""What a trace says of layers, fan-outs, bounds and groups."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import counterflow as cf
from counterflow.exceptions import InputError, PatternError, UnsupportedError
from counterflow.tempering import Bounds
from counterflow.tempering.activations import bounds

from .nets import Branched, Classifier, Tied, resnet, transformer
from .tables import column, done


def test_bounds_are_found_numerically() -> None:
    assert bounds(torch.tanh) == Bounds(1.0, 1.0)
    assert bounds(torch.sigmoid) == Bounds(0.25, 1.0)
    assert bounds(torch.relu) == Bounds(1.0, None)
    assert bounds(lambda u: F.hardtanh(u, -2.0, 2.0)) == Bounds(1.0, 4.0)
    assert bounds(lambda u: F.leaky_relu(u, 3.0)).slope == 3.0
    assert bounds(F.gelu).slope == pytest.approx(1.128904, abs=1e-6)
    assert bounds(F.silu).slope == pytest.approx(1.099839, abs=1e-6)
    assert bounds(torch.exp) == bounds(torch.square) == bounds(torch.log) == Bounds(None, None)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, True, "1"])
def test_bounds_are_numbers_above_zero(value: Any) -> None:
    with pytest.raises(InputError, match="Bounds: slope must be a number > 0 or None, got "):
        Bounds(slope=value)
    with pytest.raises(InputError, match="Bounds: power must be a number > 0 or None, got "):
        Bounds(slope=1.0, power=value)


def test_fan_outs_of_a_branch_and_a_skip() -> None:
    table = cf.temper(Branched(), torch.randn(20, 5), loss="mse_loss").table()
    # The stem feeds left (6), right (3) and, by the skip, join (4).
    assert column(table, "fan-out") == {"stem": 13, "left": 4, "right": 4, "join": 2, "head": 0}
    slope = {"stem": 0.25, "left": 1, "right": 1, "join": 1, "head": 1}
    assert column(table, "slope") == slope
    attenuation = {"stem": 4 / math.sqrt(13), "left": 0.5, "right": 0.5, "join": 1 / math.sqrt(2), "head": 1}
    assert column(table, "attenuation") == pytest.approx(attenuation)
    assert column(table, "power")["left"] == "bound"  # a sigmoid's output
    assert column(table, "fan-in")["left"] == 7
    assert column(table, "power")["head"] == "measured"  # a ReLU's
    assert set(column(table, "effective").values()) == {None}
    assert "footnote 2" in table.note


def test_attenuation_acts_on_the_error() -> None:
    model, x = Branched().double(), torch.randn(4, 5).double()
    wanted = torch.autograd.grad(model(x).sum(), [model.head.weight, model.join.weight, model.right.weight])
    cf.temper(model, x, loss="half_squared_error_sum", shunt=False)
    got = torch.autograd.grad(model(x).sum(), [model.head.weight, model.join.weight, model.right.weight])
    for g, w, factor in zip(got, wanted, (1.0, math.sqrt(0.5), 0.5 * math.sqrt(0.5)), strict=True):
        torch.testing.assert_close(g, factor * w)


def test_local_code_outputs_spare_the_layer_below() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6))
    for loss, local, wanted in (
        ("cross_entropy", None, [1 / math.sqrt(5), 1.0, 1.0]),
        ("cross_entropy", False, [1 / math.sqrt(5), 1 / math.sqrt(6), 1.0]),
        ("mse_loss", None, [1 / math.sqrt(5), 1 / math.sqrt(6), 1.0]),
    ):
        with cf.temper(model, torch.randn(4, 3), loss=loss, local_output=local) as h:
            assert list(column(h.table(), "attenuation").values()) == pytest.approx(wanted)
    with cf.temper(model, torch.randn(4, 3), loss="mse_loss", attenuation=None) as h:
        assert set(column(h.table(), "attenuation").values()) == {1.0}


def test_fans_of_a_convolution_count_kernel_groups_and_stride() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.Conv2d(4, 6, 4, stride=2), nn.Flatten())
    x = torch.ones(3, 2, 9, 9)
    table = cf.temper(model, x, loss="mse_loss").table()
    assert column(table, "fan-in") == pytest.approx({"0": (1 * 9 + 1) ** 2, "2": 4 * 16 + 1})
    assert column(table, "fan-out") == {"0": 6 * 16 / 4, "2": 0}


def test_left_alone_in_a_resnet() -> None:
    table = cf.temper(resnet(), torch.randn(4, 3, 8, 8), loss="cross_entropy").table()
    assert done(table) == {
        "0": "rate, attenuated, shunted",
        "2.conv1": "rate, shunted",
        "2.bn1": "rate, attenuated",
        "2.conv2": "rate, shunted",
        "2.bn2": "rate, attenuated",
        "3.down": "rate, shunted",
        "3.conv1": "rate, shunted",
        "3.bn1": "rate, attenuated",
        "3.conv2": "rate, shunted",
        "3.bn2": "rate",
        "6": "rate, shunted",
    }
    # Behind the stem: conv1 of its block (4*9), and by the skip the second block's conv1 (8*9/4) and down (8/4).
    assert column(table, "fan-out")["0"] == 36 + 18 + 2
    assert column(table, "fan-in")["2.bn1"] == 2


def test_left_alone_in_a_transformer() -> None:
    table = cf.temper(transformer(), torch.randint(11, (4, 5)), loss="cross_entropy").table()
    whole = "1.layers.0.self_attn"
    assert done(table) == {
        "0": "rate, attenuated",
        "1.layers.0.norm1": "rate, attenuated",
        whole: "rate",
        f"{whole}.out_proj": "rate, attenuated",
        "1.layers.0.norm2": "rate, attenuated",
        "1.layers.0.linear1": "rate, attenuated, shunted",
        "1.layers.0.linear2": "rate, shunted",
        "2": "rate, shunted",
    }
    assert f"not attenuated: the output of '{whole}' is not its own" in table[whole].why
    assert f"attenuated at the output of '{whole}'" in table[f"{whole}.out_proj"].why
    assert "not shunted: its own forward is not called" in table[f"{whole}.out_proj"].why
    # The residual stream behind the embedding: norm1, norm2 and the head, which is a local code.
    assert column(table, "fan-out")["0"] == 1 + 1 + 11
    assert column(table, "attenuation")["0"] == pytest.approx(1 / math.sqrt(3))
    assert column(table, "fan-in")["0"] == 1


def test_left_alone_in_an_lstm() -> None:
    table = cf.temper(Classifier(), torch.randint(11, (4, 5)), loss="cross_entropy").table()
    assert done(table) == {
        "embedding": "rate, attenuated",
        "lstm.weight_ih_l0": "rate",
        "lstm.weight_ih_l1": "rate",
        "head": "rate, shunted",
    }
    assert table["lstm.weight_ih_l0"].why == (
        "not attenuated: its errors stay inside the fused kernel, where they are not bounded"
    )
    assert table["lstm.weight_ih_l1"].why == "what goes back through time inside the fused kernel is not bounded"
    # The head is a local code, one unit for the error.
    assert column(table, "attenuation")["lstm.weight_ih_l1"] == 1
    assert column(table, "fan-in")["lstm.weight_ih_l1"] == 7 + 7 + 2
    assert column(table, "fan-out") == {
        "embedding": 28,
        "lstm.weight_ih_l0": 28,
        "lstm.weight_ih_l1": 3,
        "head": 0,
    }


def test_tied_weights_have_one_rate() -> None:
    model = Tied()
    h = cf.temper(model, torch.randint(11, (4, 5)), loss="cross_entropy")
    table = h.table()
    rates = column(table, "rate")
    assert rates["embedding"] == 1.0
    assert rates["head"] == pytest.approx(4 / math.sqrt(6))
    assert rates["position"] == 1.0
    assert "shares" in table["embedding"].why
    assert "'embedding', which learns at the smallest rate, 1" in table["head"].why
    groups = h.param_groups(lr=0.5)
    (group,) = (g for g in groups if any(p is model.head.weight for p in g["params"]))
    assert group["lr"] == 0.5


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    h = cf.temper(model, torch.randn(4, 3), loss="cross_entropy")
    assert done(h.table()) == {"0": "frozen", "2": "rate, shunted"}
    assert {id(p) for g in h.param_groups(lr=0.1) for p in g["params"]} == {id(p) for p in model[2].parameters()}


def test_a_layer_called_twice_goes_by_its_stronger_input() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leg, self.head = nn.Linear(3, 4), nn.Linear(8, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z: Tensor = self.head(torch.cat([torch.tanh(self.leg(x)), torch.tanh(self.leg(y))], -1))
            return z

    sample = {"x": torch.eye(3), "y": 2 * torch.eye(3)}
    table = cf.temper(Twins(), sample, loss="mse_loss").table()
    assert column(table, "fan-in") == pytest.approx({"leg": (4 + 1) ** 2, "head": 9})  # of the stronger input
    assert column(table, "fan-out") == {"leg": 2, "head": 0}


def test_bare_parameters_are_layers_too() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(3, 5))
            self.second = nn.Parameter(torch.randn(2, 5, 4))
            self.third = nn.Parameter(torch.randn(4, 6))
            self.token = nn.Parameter(torch.zeros(1, 1, 4))
            self.size = nn.Parameter(torch.full((4,), 1e-3))
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.bmm(torch.tanh(x @ self.first), self.second).softmax(-1)
            y = torch.cat([self.token.expand(2, -1, -1), self.size * y], 1)
            z: Tensor = self.head(torch.einsum("nti,io->nto", y, self.third).sigmoid().sum(1))
            return z

    table = cf.temper(Bare(), torch.ones(2, 7, 3), loss="cross_entropy").table()
    fan_in = column(table, "fan-in")
    assert fan_in["first"] == 9  # external and without a bias: (1 + 1 + 1)^2
    assert fan_in["second"] == 5
    assert fan_in["token"] == 1
    assert fan_in["size"] == 1
    assert column(table, "fan-out") == {"first": 4, "second": 1, "size": 6, "token": 6, "third": 2, "head": 0}
    assert column(table, "slope")["second"] == 0.25
    assert column(table, "attenuation") == dict.fromkeys(fan_in, 1.0)
    assert "not attenuated: a bare parameter" in table["token"].why
    assert "not attenuated: the output of the model is not its own" in table["first"].why
    assert table["token"].kind == "Parameter"


class Convolution(nn.Conv1d):
    """By the operator in which transposed convolutions are too."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.convolution(input, self.weight, self.bias, [1], [0], [1], False, [0], 1)


@pytest.mark.parametrize(
    ("model", "sample", "match"),
    [
        (nn.Bilinear(3, 3, 2), (torch.randn(2, 3), torch.randn(2, 3)), "'weight' is used by 'bilinear'"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
            torch.randn(2, 3),
            "parametrizations.weight.original1.*_weight_norm",
        ),
        (nn.utils.parametrizations.orthogonal(nn.Linear(3, 2)), torch.randn(2, 3), "parametriz"),
        # The power of its inputs is that of how many words are in a bag.
        (nn.EmbeddingBag(11, 6, mode="sum"), torch.randint(11, (4, 5)), "'weight' is used by 'embedding_bag'"),
        (Convolution(2, 3, 3), torch.randn(4, 2, 8), "'weight' is used by 'convolution'"),
    ],
)
def test_unknown_layers_raise_with_their_names(model: nn.Module, sample: Any, match: str) -> None:
    with pytest.raises(UnsupportedError, match=match) as caught:
        cf.temper(model, sample, loss="mse_loss")
    assert "\n" not in str(caught.value)


def test_control_flow_that_depends_on_data_raises(capfd: pytest.CaptureFixture[str]) -> None:
    class Fickle(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(UnsupportedError, match=r"Fickle by torch\.export, which stopped: .*data-dependent") as caught:
        cf.temper(Fickle(3, 3), torch.randn(2, 3), loss="mse_loss")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_an_unknown_function_asks_for_its_bounds() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(torch.erfinv(self.a(x).tanh() * 0.9))
            return y

    with pytest.raises(UnsupportedError, match=r"error of 'a' passes 'erfinv'.*activations=\{'erfinv'"):
        cf.temper(Odd(), torch.randn(4, 3), loss="mse_loss")
    stated = {"erfinv": Bounds(slope=2.0, power=3.0)}
    table = cf.temper(Odd(), torch.randn(4, 3), loss="mse_loss", activations=stated).table()
    assert table["a"].values["slope"] == pytest.approx(2.0 * 0.9)
    assert table["b"].values["fan-in"] == pytest.approx(4 * 9 + 1)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"input_power": {"nothing": 4.0}}, PatternError, "nothing"),
        ({"input_power": 4.0}, InputError, "input_power must be a dictionary from layers to numbers, .*, got 4.0"),
        ({"activations": ["tanh"]}, InputError, r"activations must be a dictionary .*, got \['tanh'\]"),
        ({"input_power": {"1": 4.0}}, InputError, "no weights of its own"),
        ({"activations": {"tanh_": Bounds(slope=1.0)}}, InputError, r"activations\['tanh_'\]: .* it calls .*tanh"),
        ({"input_power": {"0": 0.0}}, InputError, "must be a number > 0"),
        ({"input_power": {"0": True}}, InputError, "must be a number > 0, got True"),
        ({"activations": {"tanh": 1.0}}, InputError, "Bounds"),
        ({"bias_rate": "none"}, InputError, "'local' or 'global'"),
        ({"sample_input": [1.0]}, InputError, "sample_input must be a tensor"),
        ({"sample_input": torch.zeros(0, 3)}, InputError, "empty"),
        ({"sample_input": torch.full((2, 3), math.nan)}, InputError, "NaN"),
        ({"sample_input": torch.zeros(2, 7)}, InputError, "Sequential fails on it"),
        ({"model": "net"}, InputError, "torch.nn.Module"),
        ({"model": nn.Tanh()}, InputError, "no trainable parameter"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    call: dict[str, Any] = {"model": model, "sample_input": torch.randn(4, 3), "loss": "mse_loss"} | change
    with pytest.raises(error, match=match) as caught:
        cf.temper(**call)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lr", [0.0, -1.0, math.inf, math.nan, "0.1", True])
def test_bad_rates(lr: Any) -> None:
    h = cf.temper(nn.Linear(3, 2), torch.randn(4, 3), loss="mse_loss")
    with pytest.raises(InputError, match="lr must be a number > 0"):
        h.param_groups(lr=lr)


def test_no_rate_where_nothing_tells_it() -> None:
    silent = nn.Linear(3, 2, bias=False)
    with pytest.raises(InputError, match="inputs are zero"):
        cf.temper(silent, torch.zeros(4, 3), loss="mse_loss")

    class Idle(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.unused = nn.Parameter(torch.zeros(3))

    with pytest.raises(UnsupportedError, match="'unused' is not used on sample_input"):
        cf.temper(Idle(), torch.randn(4, 3), loss="mse_loss")


def test_tempering_twice_or_too_late_is_refused() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(InputError, match=r"before torch\.compile"):
        cf.temper(torch.compile(model, backend="eager"), x, loss="mse_loss")
    cf.temper(model, x, loss="mse_loss", shunt=False)
    with pytest.raises(InputError, match="tempered already"):
        cf.temper(model, x, loss="mse_loss", shunt=False)


def test_the_model_and_the_generator_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, x = torch.random.get_rng_state(), torch.ones(4, 3)
    torch.random.set_rng_state(state)
    cf.temper(model, x, loss="mse_loss")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, torch.ones(4, 3))


@settings(max_examples=12, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    functions=st.lists(st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU, nn.Identity, nn.Sigmoid]), min_size=5, max_size=5),
    bias=st.booleans(),
    norm=st.booleans(),
    shunt=st.booleans(),
)
def test_every_parameter_is_in_one_group(
    widths: list[int], functions: list[type[nn.Module]], bias: bool, norm: bool, shunt: bool
) -> None:
    layers: list[nn.Module] = []
    for into, out, function in zip([3, *widths], [*widths, 2], [*functions, nn.Identity], strict=False):
        layers.append(nn.Linear(into, out, bias=bias))
        if norm:
            layers.append(nn.LayerNorm(out))
        layers.append(function())
    model = nn.Sequential(*layers)
    try:
        h = cf.temper(model, torch.randn(6, 3), loss="cross_entropy", shunt=shunt)
    except InputError:  # units that are dead on the sample tell no rate without a bias
        assert not bias
        return
    groups = h.param_groups(lr=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert all(math.isfinite(group["lr"]) and group["lr"] > 0 and group["name"] for group in groups)
    assert all(0 < row.values["attenuation"] < math.inf for row in h.table())  # type: ignore[operator]
    torch.optim.SGD(groups, lr=0.1)
