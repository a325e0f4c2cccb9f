"""Whole models: conversion there and back, the bound, samples, pruning, and the variance of gradients."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import counterflow as cf
from counterflow import variational
from counterflow.exceptions import InputError, ShapeError, UnsupportedError


def mixed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)
    )


def test_there_and_back_is_the_function_to_the_bit() -> None:
    model, x = mixed().eval(), torch.randn(5, 1, 6, 6)
    y = model(x)
    h = cf.make_variational(model, rates="weight")
    assert torch.equal(h.model(x), y)
    plain = variational.deterministic(h.model)
    assert torch.equal(plain(x), y)
    assert [type(m) for m in plain.modules()] == [type(m) for m in mixed().modules()]
    mixed().load_state_dict(plain.state_dict())
    h.undo()
    assert [type(m) for m in model.modules()] == [type(m) for m in mixed().modules()]
    assert torch.equal(model(x), y)


def test_parameters_are_the_models_own_and_rates_come_beside_them() -> None:
    model = mixed()
    before = list(model.parameters())
    h = cf.make_variational(model, noise="A", rates="unit")
    assert {id(p) for p in before} < {id(p) for p in h.model.parameters()}
    assert sum(r.numel() for r in h.rates()) == 1 + 64 + 8
    assert [(row.layer, row.done) for row in h.table()] == [
        ("0", "variational"),
        ("1", "left alone"),
        ("4", "variational"),
        ("6", "variational"),
    ]
    assert "maximum likelihood" in h.table()["1"].why


def test_the_root_itself_and_fixed_rates_by_name() -> None:
    h = cf.make_variational(nn.Linear(4, 3), learn=False, p=0.2)
    assert isinstance(h.model, variational.VariationalLinear)
    assert h.rates() == []
    assert h.model.log_alpha().exp().item() == pytest.approx(0.25)
    model = cf.make_variational(mixed(), p={"0": 0.1, "*": 0.3}).model
    rates = [round(math.exp(layer.log_alpha().item()), 4) for layer in (model[0], model[4], model[6])]
    assert rates == [round(p / (1 - p), 4) for p in (0.1, 0.3, 0.3)]
    with pytest.raises(InputError, match="p names '9'"):
        cf.make_variational(mixed(), p={"9": 0.1})
    with pytest.raises(InputError, match="no rate for layer '4'"):
        cf.make_variational(mixed(), p={"0": 0.1})


def test_an_error_changes_nothing() -> None:
    model = mixed()
    with pytest.raises(InputError, match="above max_alpha"):
        cf.make_variational(model, p={"6": 0.9, "*": 0.5})
    assert [type(m) for m in model.modules()] == [type(m) for m in mixed().modules()]


def test_tied_weights_share_rates_and_count_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    h = cf.make_variational(nn.Sequential(first, second), rates="weight")
    assert h.model[0].rate is h.model[1].rate
    assert len(h.rates()) == 1
    assert variational.kl(h.model).item() == pytest.approx(
        16 * float(variational.dropout_kl(torch.zeros(()))), rel=1e-5
    )
    shared = nn.Sequential(first, nn.ReLU(), first)
    model = cf.make_variational(shared).model
    assert model[0] is model[2]


def test_what_cannot_have_a_posterior_is_listed_with_its_reason() -> None:
    model = nn.ModuleDict(
        {"lstm": nn.LSTM(3, 4), "up": nn.ConvTranspose2d(1, 1, 2), "head": nn.Linear(4, 2), "e": nn.Embedding(3, 4)}
    )
    table = cf.make_variational(model).table()
    assert [(row.layer, row.done) for row in table][:1] == [("lstm", "left alone")]
    assert "over time" in table["lstm"].why
    assert "transposed" in table["up"].why
    assert table["e"].done == "left alone"
    with pytest.raises(UnsupportedError, match="can have a posterior"):
        cf.make_variational(nn.LSTM(3, 4))
    with pytest.raises(InputError, match="must be a torch"):
        cf.make_variational("net")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="has noise already"):
        cf.make_variational(cf.make_variational(nn.Sequential(nn.Linear(2, 2))).model)


@pytest.mark.parametrize("noise", ["A", "B"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_without_noise_is_pytorchs_and_with_it_draws(noise: Any, batch_first: bool) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=batch_first).double()
    q, k = torch.randn(3, 5, 8).double(), torch.randn(3, 5, 8).double()
    holder = nn.ModuleDict({"a": copy.deepcopy(plain)})
    attention = cf.make_variational(holder, noise=noise, p=1e-12, max_alpha=None).model["a"]
    batch = 3 if batch_first else 5
    length = 5 if batch_first else 3
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)
    padding = torch.zeros(batch, length, dtype=torch.bool)
    padding[0, -1] = True
    cases: list[dict[str, Any]] = [
        {},
        {"attn_mask": mask},
        {"attn_mask": mask.repeat(batch * 2, 1, 1)},
        {"key_padding_mask": padding, "need_weights": False},
        {"attn_mask": torch.randn(length, length).double(), "average_attn_weights": False},
    ]
    for case in cases:
        ours, theirs = attention(q, k, k, **case), plain(q, k, k, **case)
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
        assert (ours[1] is None) == (theirs[1] is None)
        if ours[1] is not None:
            torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-4)
    single = attention(q[:, 0], k[:, 0], k[:, 0])
    torch.testing.assert_close(single[0], plain(q[:, 0], k[:, 0], k[:, 0])[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(attention.eval()(q, k, k)[0], plain.eval()(q, k, k)[0])
    noisy = cf.make_variational(nn.ModuleDict({"a": plain.train()}), noise=noise).model["a"]
    for estimator in ("local", "per_minibatch", "per_datum"):
        with variational.estimating(noisy, estimator):
            assert not torch.equal(noisy(q, q, q)[0], noisy(q, q, q)[0])
    back = variational.deterministic(noisy)
    assert type(back) is nn.MultiheadAttention
    assert list(back.state_dict()) == list(nn.MultiheadAttention(8, 2).state_dict())


def test_a_transformer_layer_learns_and_is_sampled() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = cf.make_variational(nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))).model
    x = torch.randn(4, 5, 8)
    draws = variational.sample(model, x, 20)
    assert float(draws.variance.min()) > 0  # the fast path would go past the noise
    assert torch.equal(model.eval()(x), model(x))


def test_the_bound_counts_each_example_of_all_data_once() -> None:
    model = cf.make_variational(nn.Linear(4, 3), rates="weight").model
    nll = torch.rand(8)
    bound = variational.elbo(nll, model, data_size=100, kl_weight=1 / 3)
    torch.testing.assert_close(bound.nll, nll.mean())
    torch.testing.assert_close(bound.kl, variational.kl(model) / 100)
    torch.testing.assert_close(bound.loss, bound.nll + bound.kl / 3)
    torch.testing.assert_close(variational.elbo(nll, model, data_size=8).kl, variational.kl(model) / 8)  # all at once
    with pytest.raises(TypeError, match="data_size"):
        variational.elbo(nll, model)  # type: ignore[call-arg]
    with pytest.raises(ShapeError, match="reduction='none'"):
        variational.elbo(nll.mean(), model, data_size=100)
    with pytest.raises(ShapeError, match="got float"):
        variational.elbo(0.3, model, data_size=100)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="less than the batch"):
        variational.elbo(nll, model, data_size=7)
    with pytest.raises(InputError, match="number of training examples"):
        variational.elbo(nll, model, data_size=0)
    with pytest.raises(InputError, match="negative"):
        variational.elbo(nll, model, data_size=10, kl_weight=-1)
    with pytest.raises(UnsupportedError, match="make_variational"):
        variational.elbo(nll, nn.Linear(2, 2), data_size=10)


def test_samples_tell_what_more_data_would_remove() -> None:
    torch.manual_seed(0)
    model = cf.make_variational(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))).model
    x = torch.randn(6, 4)
    model.train()
    draws = variational.sample(model, x, 50)
    assert model.training
    assert draws.values.shape == (50, 6, 3)
    torch.testing.assert_close(draws.values.sum(-1), torch.ones(50, 6))
    assert bool((draws.mutual_information > 0).all())
    assert bool((draws.entropy <= math.log(3) + 1e-6).all())
    small = variational.sample(model, x, 7, at_once=3, link=None)
    assert small.values.shape == (7, 6, 3)
    with pytest.raises(UnsupportedError, match="link"):
        _ = small.entropy
    still = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (still[0], still[3]):
            layer.rate.rho.fill_(80.0)  # hardly any noise
    assert float(variational.sample(still, x, 20).mutual_information.max()) < 1e-5
    both = variational.sample(model, x, 5, link="sigmoid")
    assert both.entropy.shape == (6, 3)
    for options in ({"n": 0}, {"at_once": 0}, {"link": "probit"}):
        with pytest.raises(InputError):
            variational.sample(model, x, **options)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="no layer"):
        variational.sample(nn.Linear(4, 2), x)
    with pytest.raises(ShapeError, match="a row for each of 12, got"):
        variational.sample(nn.Sequential(variational.VariationalLinear(4, 3), nn.Flatten(0)), x, 2)
    with variational.estimating(model, "per_minibatch"):  # rows share their weights, samples do not
        assert float(variational.sample(model, x[:1].expand(6, 4), 20).variance.min()) > 0


def test_pruning_makes_the_net_smaller_and_keeps_its_function() -> None:
    torch.manual_seed(0)
    model = cf.make_variational(
        nn.Sequential(nn.Linear(4, 16), nn.Sigmoid(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
        rates="unit",
        max_alpha=None,
    ).model
    with torch.no_grad():
        model[2].rate.rho.view(-1)[[0, 5, 9]] = 4.0
        model[4].rate.rho.view(-1)[1] = 4.0
    small = variational.prune(model, threshold=3.0)
    assert [(m.in_features, m.out_features) for m in small if isinstance(m, nn.Linear)] == [(4, 13), (13, 7), (7, 3)]
    zeroed = variational.deterministic(model)
    with torch.no_grad():
        zeroed[2].weight[:, [0, 5, 9]] = 0.0
        zeroed[4].weight[:, 1] = 0.0
    x = torch.randn(10, 4)
    torch.testing.assert_close(small(x), zeroed(x))
    assert all(type(m) in (nn.Sequential, nn.Linear, nn.Sigmoid, nn.ReLU) for m in small.modules())


def test_pruned_weights_and_channels() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2), nn.Flatten(), nn.Linear(16, 2)
    )
    for options in ({"rates": "weight"}, {"noise": "A", "rates": "unit"}):
        model = cf.make_variational(copy.deepcopy(net), max_alpha=None, **options).model  # type: ignore[arg-type]
        with torch.no_grad():
            rho = model[3].rate.rho
            (rho[:, 2] if rho.ndim > 1 else rho[2:3]).fill_(5.0)
        small = variational.prune(model)
        assert small[0].out_channels == small[3].in_channels == 5
        x = torch.randn(2, 1, 8, 8)
        full = variational.deterministic(model)
        with torch.no_grad():
            full[3].weight[:, 2] = 0.0
        torch.testing.assert_close(small(x), full(x), rtol=1e-4, atol=1e-5)


class _Written(nn.Module):
    """A forward pass of its own: a shortcut, a norm, functions, a tied layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.deep, self.same = nn.Conv2d(6, 4, 3), nn.Conv2d(4, 4, 1)
        self.first, self.twice, self.last = nn.Linear(16, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.deep(F.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)))
        x = torch.flatten(x + self.same(x), 1)
        x = self.twice(torch.tanh(self.twice(self.first(x))))
        return self.last(x)


class _Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = _Written()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x) if bool(x.sum() != 0) else x


@pytest.mark.parametrize("kind", [_Written, _Untraceable])
def test_pruning_follows_a_forward_pass_that_somebody_wrote(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = cf.make_variational(kind(), rates="weight", max_alpha=None).model
    part: Any = getattr(model, "part", model)
    model(torch.randn(8, 1, 8, 8))  # batch statistics that differ
    with torch.no_grad():
        part.deep.rate.rho[:, [1, 4]] = 5.0  # its feeder has no other use for them
        part.same.rate.rho[:, 2] = 5.0  # a shortcut goes round it
        part.twice.rate.rho[:, 3] = 5.0  # used twice
    model.eval()
    small: Any = variational.prune(model)
    core = getattr(small, "part", small)
    assert (core.conv.out_channels, core.norm.num_features, core.deep.in_channels) == (4, 4, 4)
    assert (core.deep.out_channels, core.first.out_features, core.twice.in_features) == (4, 8, 8)
    full: Any = variational.deterministic(model)
    other = getattr(full, "part", full)
    with torch.no_grad():
        other.deep.weight[:, [1, 4]] = 0.0
        other.same.weight[:, 2] = 0.0
        other.twice.weight[:, 3] = 0.0
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(small(x), full(x), rtol=1e-4, atol=1e-5)


class _Shortcut(nn.Module):
    """Two layers whose units another one uses, too, in one of the modes."""

    def __init__(self, in_training: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(*size) for size in ((4, 12), (12, 8), (8, 3), (8, 3)))
        self.in_training = in_training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.b(torch.relu(self.a(x))))
        if self.training:
            self.kept = h
        return self.c(h) + h[:, :3] if self.training == self.in_training else self.c(h)


@pytest.mark.parametrize("in_training", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_units_stay_that_either_mode_needs(in_training: bool, training: bool) -> None:
    torch.manual_seed(0)
    model = cf.make_variational(_Shortcut(in_training), rates="unit", max_alpha=None).model.train(training)
    with torch.no_grad():
        model.b.rate.rho.view(-1)[[2, 7]] = 4.0
        model.c.rate.rho.view(-1)[[0, 5]] = 4.0
    small: Any = variational.prune(model)
    assert (small.a.out_features, small.b.in_features, small.b.out_features) == (10, 10, 8)
    assert (small.training, small.c.training) == (training, training)
    assert not hasattr(small, "kept")
    full: Any = variational.deterministic(model)
    with torch.no_grad():
        full.b.weight[:, [2, 7]] = 0.0
        full.c.weight[:, [0, 5]] = 0.0
    x = torch.randn(6, 4)
    for mode in (True, False):
        torch.testing.assert_close(small.train(mode)(x), full.train(mode)(x))


class _Reaching(nn.Module):
    """No graph can be traced, and some of its parts are not called as a whole."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2))
        if how == "shared":
            self.other = nn.ModuleList([self.body[2]])
        if how == "hidden":
            self.plain = [self.body[2]]

    def run(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "shared":
            x = self.body(x) + self.other[0](x.repeat(1, 2))[:, :3]
        elif self.how == "hidden":
            x = self.body(x) + self.plain[0](x.repeat(1, 2))[:, :3]
        else:
            x = self.body(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() == 0):
            return x
        x = self.run(x)
        for block in self.blocks:
            x = x + block(x)
        return x


class _ByIndex(_Reaching):
    def run(self, x: torch.Tensor) -> torch.Tensor:
        first = self.body[1](self.body[0](x))
        return self.body[4](self.body[3](self.body[2](first)) + first)


class _HandedOn(_Reaching):
    def run(self, x: torch.Tensor) -> torch.Tensor:
        return _called_by_index(self, x)


def _called_by_index(model: _Reaching, x: torch.Tensor) -> torch.Tensor:
    first = model.body[1](model.body[0](x))
    return model.body[4](model.body[3](model.body[2](first)) + first)


@pytest.mark.parametrize(
    ("kind", "how", "sizes", "of_block"),
    [
        (_Reaching, "whole", (6, 7), 5),
        (_Reaching, "shared", (8, 8), 5),
        (_Reaching, "hidden", (8, 8), 8),
        (_ByIndex, "by index", (8, 8), 5),
        (_HandedOn, "handed on", (8, 8), 8),
    ],
)
def test_units_stay_that_what_cannot_be_traced_may_use(
    kind: type[_Reaching], how: str, sizes: tuple[int, int], of_block: int
) -> None:
    torch.manual_seed(0)
    model = cf.make_variational(kind(how), rates="weight", max_alpha=None).model
    drowned = {"body.2": [1, 4], "body.4": [3], "blocks.0.2": [0, 1, 2], "blocks.1.2": [0, 1, 2]}
    with torch.no_grad():
        for name, units in drowned.items():
            model.get_submodule(name).rate.rho[:, units] = 5.0
    small: Any = variational.prune(model)
    assert (small.body[0].out_features, small.body[2].out_features) == sizes
    assert [block[0].out_features for block in small.blocks] == [of_block] * 2
    full: Any = variational.deterministic(model)
    with torch.no_grad():
        for name, units in drowned.items():
            full.get_submodule(name).weight[:, units] = 0.0
    x = torch.randn(6, 4)
    torch.testing.assert_close(small(x), full(x))


def test_channels_are_taken_out_through_a_flattening() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    model = cf.make_variational(net, rates="weight", max_alpha=None).model
    with torch.no_grad():
        model[3].rate.rho[:, 4:8] = 5.0  # all that channel 1 feeds
        model[3].rate.rho[:, 0] = 5.0  # a part of what channel 0 feeds
    small = variational.prune(model)
    assert (small[0].out_channels, small[3].in_features) == (3, 12)
    full = variational.deterministic(model)
    with torch.no_grad():
        full[3].weight[:, [0, 4, 5, 6, 7]] = 0.0
    x = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(small(x), full(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("over_time", [True, False])
def test_units_are_taken_out_behind_a_norm_of_units_and_stay_behind_one_of_time(over_time: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5 if over_time else 16)
    net = nn.Sequential(nn.Linear(4, 16), norm, nn.ReLU(), nn.Linear(16, 2))
    model = cf.make_variational(net, rates="unit", max_alpha=None).model
    with torch.no_grad():
        model[3].rate.rho.view(-1)[[0, 7]] = 4.0
    small = variational.prune(model.eval())
    assert (small[0].out_features, small[1].num_features) == ((16, 5) if over_time else (14, 14))
    full = variational.deterministic(model)
    with torch.no_grad():
        full[3].weight[:, [0, 7]] = 0.0
    x = torch.randn(8, 5, 4) if over_time else torch.randn(8, 4)
    torch.testing.assert_close(small(x), full(x))


def test_a_bound_forbids_pruning_and_so_do_rates_of_whole_layers() -> None:
    with pytest.raises(InputError, match="max_alpha=None"):
        variational.prune(cf.make_variational(nn.Linear(4, 3), rates="weight").model)
    with pytest.raises(UnsupportedError, match="by unit or by weight"):
        variational.prune(cf.make_variational(nn.Linear(4, 3), max_alpha=None).model)
    with pytest.raises(
        InputError, match="threshold=0 cannot be exceeded"
    ):  # where p = .5 begins, and may go no further
        variational.prune(cf.make_variational(nn.Linear(4, 3), rates="weight").model, threshold=0.0)
    variational.prune(cf.make_variational(nn.Linear(4, 3), rates="weight").model, threshold=-1.0)


def test_gradients_vary_as_table_1_orders_them() -> None:
    torch.manual_seed(0)
    model = cf.make_variational(nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 3)), rates="weight").model
    data = [(torch.randn(100, 10), torch.randint(3, (100,))) for _ in range(20)]
    before = copy.deepcopy(model.state_dict())
    found = {
        e: variational.gradient_variance(model, F.cross_entropy, data, e, data_size=2000)["2.weight"].mean()
        for e in ("none", "local", "per_datum", "per_minibatch")
    }
    assert all(bool(found[a] < found[b]) for a, b in itertools.pairwise(found))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    few = variational.gradient_variance(model, F.cross_entropy, data, estimates=4)
    assert all(values.shape == (4,) for values in few.values())
    with pytest.raises(InputError, match="estimator must be one of"):
        variational.gradient_variance(model, F.cross_entropy, data, "global")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="data is empty"):
        variational.gradient_variance(model, F.cross_entropy, [])
    for options in ({"estimates": 0}, {"passes": 0}):
        with pytest.raises(InputError, match="a whole number >= 1, got 0"):
            variational.gradient_variance(model, F.cross_entropy, data, **options)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="no parameter"):
        variational.gradient_variance(model.requires_grad_(False), F.cross_entropy, data)


def test_gradients_of_a_model_without_noise_are_not_measured_for_those_with_it() -> None:
    model = cf.make_variational(nn.Sequential(nn.Linear(4, 3))).model.eval()
    data = [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(2)]
    with pytest.raises(InputError, match=r"draws noise in eval mode; call model\.train\(\)"):
        variational.gradient_variance(model, F.cross_entropy, data)
    exact = variational.gradient_variance(model, F.cross_entropy, data, "none")
    again = variational.gradient_variance(model.train(), F.cross_entropy, data, "none")
    assert all(torch.equal(exact[name], again[name]) for name in exact)


@pytest.mark.parametrize("estimator", ["local", "per_minibatch"])
def test_gradients_of_what_is_computed_again_have_the_estimators_noise(estimator: Any) -> None:
    torch.manual_seed(0)
    model = cf.make_variational(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), rates="weight").model
    data = [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(2)]

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = checkpoint(self.model, x, use_reentrant=False)
            return found

    found = []
    for each in (model, Again()):
        torch.manual_seed(1)
        found.append(list(variational.gradient_variance(each, F.cross_entropy, data, estimator).values()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_measuring_gradients_moves_no_running_statistics() -> None:
    model = cf.make_variational(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))).model
    before = copy.deepcopy(model.state_dict())
    data = [(torch.randn(5, 4) + 3, torch.randint(3, (5,)))]
    variational.gradient_variance(model, F.cross_entropy, data)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_state_goes_into_a_fresh_model_and_a_copy_after_a_pass_draws() -> None:
    model = cf.make_variational(mixed(), rates="weight").model
    x = torch.randn(3, 1, 6, 6)
    model(x).sum().backward()
    twin = copy.deepcopy(model)
    fresh = cf.make_variational(mixed(), rates="weight").model
    fresh.load_state_dict(model.state_dict())
    outputs = []
    for each in (model, twin, fresh):
        torch.manual_seed(5)
        outputs.append(each(x))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert model.double()(x.double()).dtype == torch.float64


def test_a_memory_budget_replays_the_noise() -> None:
    """Combination: a noisy cell within a budget has the gradients of the plain loop under the same noise."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(7, 4)

        def forward(self, x: Any, state: Any) -> Any:
            h = torch.tanh(self.inner(torch.cat([x, state], -1)))
            return h, h

    torch.manual_seed(0)
    cell = cf.make_variational(Cell().double(), rates="weight").model
    x, start = torch.randn(2, 30, 3).double(), torch.zeros(2, 4).double()
    torch.manual_seed(1)
    state, total = start, torch.zeros((), dtype=torch.float64)
    for t in range(30):
        y, state = cell(x[:, t], state)
        total = total + y.square().sum()
    total.backward()
    exact = [p.grad.clone() for p in cell.parameters()]
    cell.zero_grad()
    torch.manual_seed(1)
    y, _ = cf.bptt.unroll(cell, x, start, slots=4, strategy="internal")
    y.square().sum().backward()
    for p, g in zip(cell.parameters(), exact, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-9, atol=1e-10)
