"""The projections inside attention and recurrent layers: their step against its closed form, and what may be done."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import counterflow as cf

EPSILON = 0.1


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) + 0.5


def sgd(module: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def output_of(result) -> Tensor:
    first = result[0]
    return first.data if isinstance(first, PackedSequence) else first


def wanted(weight: Tensor, bias: Tensor | None, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """The whitened gradients from the plain ones."""
    h = inputs.reshape(-1, inputs.shape[-1])
    c = h.mean(0) if bias is not None else torch.zeros(h.shape[1], dtype=h.dtype)
    sigma = (h - c).T @ (h - c) / len(h) + EPSILON * torch.eye(h.shape[1], dtype=h.dtype)
    gradient = weight - (0.0 if bias is None else bias[:, None] * c)
    gradient = gradient @ torch.linalg.inv(sigma)
    return gradient, None if bias is None else bias - gradient @ c


def whitened_gradients(module: nn.Module, call, **options) -> tuple[nn.Module, nn.Module, Tensor]:
    """The module with whitened gradients, its bare twin with plain ones, and the output."""
    bare = copy.deepcopy(module)
    h = cf.whiten(module, sgd(module), epsilon=EPSILON, every=50, samples=1, **options)
    output_of(call(module)).square().sum().backward()
    h.project()
    module.zero_grad()
    got, plain = output_of(call(module)), output_of(call(bare))
    assert torch.equal(got, plain)
    got.square().sum().backward()
    plain.square().sum().backward()
    assert all(isinstance(p, nn.Parameter) for m in module.modules() for p in m._parameters.values() if p is not None)
    return module, bare, plain.detach()


def mixed(module: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What the output projection gets, by hand; batch first."""
    e, heads = module.embed_dim, module.num_heads
    weights = module.in_proj_weight.chunk(3) if module._qkv_same_embed_dim else None
    weights = weights or (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (heads, e // heads)).transpose(1, 2)
        for x, w, b in zip((q, k, v), weights, biases, strict=True)
    )
    scores = torch.softmax(q @ k.transpose(-1, -2) / (e // heads) ** 0.5, -1)
    return (scores @ v).transpose(1, 2).flatten(2).detach()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [None, (4, 5)], ids=["packed weights", "three weights"])
def test_attentions_gradients_are_the_closed_form(sizes, bias, batch_first):
    kdim, vdim = sizes or (6, 6)
    module = nn.MultiheadAttention(6, 2, bias=bias, batch_first=batch_first, kdim=kdim, vdim=vdim).double()
    q, k, v = randn(7, 3, 6), randn(7, 4, kdim), randn(7, 4, vdim)  # keys of another length than queries
    given = (q, k, v) if batch_first else tuple(x.transpose(0, 1) for x in (q, k, v))
    module, bare, _ = whitened_gradients(module, lambda m: m(given[0], key=given[1], value=given[2]))
    for index, (letter, x) in enumerate(zip("qkv", (q, k, v), strict=True)):
        span = slice(6 * index, 6 * index + 6)
        name, rows = ("in_proj_weight", span) if sizes is None else (f"{letter}_proj_weight", slice(None))
        plain = bare.in_proj_bias.grad[span] if bias else None
        gradient, total = wanted(getattr(bare, name).grad[rows], plain, x)
        torch.testing.assert_close(getattr(module, name).grad[rows], gradient, rtol=1e-9, atol=1e-10)
        if bias:
            torch.testing.assert_close(module.in_proj_bias.grad[span], total, rtol=1e-9, atol=1e-10)
    plain = bare.out_proj.bias.grad if bias else None
    gradient, total = wanted(bare.out_proj.weight.grad, plain, mixed(bare, q, k, v))
    torch.testing.assert_close(module.out_proj.weight.grad, gradient, rtol=1e-9, atol=1e-10)
    if bias:
        torch.testing.assert_close(module.out_proj.bias.grad, total, rtol=1e-9, atol=1e-10)


def first_levels(module: nn.RNNBase, x, hx=None) -> list[Tensor]:
    """The outputs of each level, by layers of one level each."""
    turns, found = 1 + module.bidirectional, []
    for level in range(module.num_layers):
        features = output_of((x,)).shape[-1]
        same = {key: getattr(module, key) for key in ("bias", "batch_first", "bidirectional")}
        one = type(module)(features, module.hidden_size, **same).double()
        with torch.no_grad():
            for name in [name for name in module.state_dict() if f"_l{level}" in name]:
                one.get_parameter(name.replace(f"_l{level}", "_l0")).copy_(module.get_parameter(name))
            own = None
            if hx is not None:
                own = tuple(state[level * turns : (level + 1) * turns] for state in hx)
            x = one(x, own)[0]
        found.append(output_of((x,)))
    return found


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"bidirectional": True, "batch_first": True}, {"num_layers": 3, "bidirectional": True}],
)
def test_a_recurrent_layers_gradients_are_the_closed_form(kind, options):
    module = kind(4, 3, **options).double()
    x = randn(6, 5, 4)
    module, bare, _ = whitened_gradients(module, lambda m: m(x))
    assert_recurrent(module, bare, x, first_levels(bare, x))


def assert_recurrent(module: nn.RNNBase, bare: nn.RNNBase, x: Tensor, given: list[Tensor]) -> None:
    for name, plain in bare.named_parameters():
        kind_of, own = name.split("_", 1)
        if kind_of == "bias":
            continue
        level = int(own[4])
        states = given[level][..., 3:] if own.endswith("reverse") else given[level][..., :3]
        inputs = states if own.startswith("hh") else given[level - 1] if level else x
        bias = getattr(bare, f"bias_{own}").grad if module.bias else None
        gradient, total = wanted(plain.grad, bias, inputs)
        torch.testing.assert_close(getattr(module, name).grad, gradient, rtol=1e-9, atol=1e-10)
        if bias is not None:
            torch.testing.assert_close(getattr(module, f"bias_{own}").grad, total, rtol=1e-9, atol=1e-10)


def test_the_closed_form_of_packed_sequences_with_an_initial_state():
    module = nn.LSTM(4, 3, num_layers=2).double()
    x = pack_sequence([randn(2, 4), randn(5, 4), randn(3, 4)], enforce_sorted=False)
    hx = randn(2, 3, 3), randn(2, 3, 3)
    module, bare, _ = whitened_gradients(module, lambda m: m(x, hx))
    assert_recurrent(module, bare, x.data, first_levels(bare, x, hx))


def test_the_closed_form_of_a_sequence_without_a_batch():
    module = nn.LSTM(4, 3, num_layers=2).double()
    x, hx = randn(5, 4), (randn(2, 3), randn(2, 3))
    module, bare, _ = whitened_gradients(module, lambda m: m(input=x, hx=hx))
    assert_recurrent(module, bare, x, first_levels(bare, x, hx))


@pytest.mark.parametrize("layer", [nn.GRU(4, 3, num_layers=2), nn.MultiheadAttention(4, 2)], ids=["GRU", "attention"])
def test_a_sequence_without_a_batch_is_one_example(layer):
    h = cf.whiten(layer, sgd(layer))
    x = torch.randn(5, 4)
    output_of(layer(x) if isinstance(layer, nn.GRU) else layer(x, x, x)).sum().backward()
    assert {tuple(each["count"].tolist()) for each in h._layers} == {(5, 1)}  # time steps, examples


def test_a_bias_that_another_layer_has_too_leaves_both_alone():
    model = nn.ModuleList([nn.GRU(4, 3), nn.GRU(4, 3)])
    model[1].bias_ih_l0 = model[0].bias_ih_l0
    table = cf.whiten(model, sgd(model)).table()
    assert (
        table["0.ih_l0"].why
        == table["1.ih_l0"].why
        == ("it shares a parameter with another module, whose inputs are others")
    )
    assert [row.layer for row in table if row.done != "left alone"] == ["0.hh_l0", "1.hh_l0"]


def test_a_call_that_raises_leaves_the_weights_proper():
    module = nn.LSTM(4, 3)
    before = list(module._flat_weights)
    h = cf.whiten(module, sgd(module))
    with pytest.raises(RuntimeError):
        module(torch.randn(5, 2, 9))
    assert all(a is b for a, b in zip(module._flat_weights, before, strict=True))
    h.undo()
    assert list(module.state_dict()) == list(nn.LSTM(4, 3).state_dict())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_parameters_that_a_checkpoint_has_exchanged_are_whitened(kind):
    """A recurrent layer computes with a list of its weights, which it builds anew when one is another object."""
    module = kind(4, 3).double()
    x = randn(6, 5, 4)
    cf.whiten(module, torch.optim.Adam(module.parameters()), loader=[x], epsilon=EPSILON)
    wanted = module(x)[0].detach()
    module.load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    for _ in range(2):
        torch.testing.assert_close(module(x)[0], wanted)


OPTIMIZERS = {
    "SGD": lambda module: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9),
    "Adam": lambda module: torch.optim.Adam(module.parameters(), lr=0.003),
}


@pytest.mark.parametrize("optimize", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_transformer_trains_compiled_and_folds(optimize):
    losses = []
    x = randn(16, 5, 8)
    for compiled in (False, True):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
        optimizer = optimize(layer)
        h = cf.whiten(layer, optimizer, every=3, samples=16, epsilon=EPSILON)
        call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        for _ in range(8):
            optimizer.zero_grad()
            loss = (call(x) - x.flip(1)).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        assert {row.layer for row in h.table() if row.done == "left alone"} == {"norm1", "norm2"}
        bare = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
        bare.load_state_dict(h.fold().state_dict())
        torch.testing.assert_close(bare(x), layer(x))
        with torch.no_grad():  # here PyTorch has a fast path around the modules, which hooks must keep it from
            torch.testing.assert_close(layer.eval()(x), bare.eval()(x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("optimize", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_padding_becomes_nested_tensors_in_pytorchs_encoder(optimize):
    """In eval mode and without gradients, which is where a loader's statistics are taken."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    model = nn.TransformerEncoder(layer, 2)
    x, mask = randn(16, 5, 8), torch.arange(5).expand(16, 5) > torch.arange(16)[:, None] % 5
    with torch.no_grad():
        wanted = model.eval()(x, src_key_padding_mask=mask)[~mask]
    h = cf.whiten(model.train(), optimize(model), loader=[{"src": x, "src_key_padding_mask": mask}], epsilon=EPSILON)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x, src_key_padding_mask=mask)[~mask], wanted)
    rows = x[~mask]  # no padding among them
    sigma = torch.cov(rows.T, correction=0) + EPSILON * torch.eye(8, dtype=torch.float64)
    first = h._layers[[layer.label for layer in h._layers].index("layers.0.self_attn.q")]
    metric = first["metric"] if first.form == "canonical" else first["basis"].transpose(1, 2) @ first["basis"]
    torch.testing.assert_close(metric[0], torch.linalg.inv(sigma))


class Reader(nn.Module):
    """Recurrent states, attention over them, and a linear layer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 3, num_layers=2, bidirectional=True, batch_first=True)
        self.attention = nn.MultiheadAttention(6, 2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return self.head(self.attention(y, y, y)[0].mean(1))


def trained(optimize, steps: int = 14, **options) -> tuple[nn.Module, cf.whitening.WhitenHandle]:
    torch.manual_seed(0)
    model = Reader().double()
    optimizer = optimize(model)
    h = cf.whiten(model, optimizer, **{"every": 5, "samples": 24, "epsilon": EPSILON, **options})
    for _ in range(steps):
        x = randn(12, 5, 4)
        optimizer.zero_grad()
        (model(x) - x.mean((1, 2))[:, None]).square().mean().backward()
        optimizer.step()
    return model, h


@pytest.mark.parametrize("basis", ["pca", "zca"])
def test_the_forms_are_one_method_under_sgd(basis):
    """Over several projections, with momentum carried from basis to basis."""
    _, canonical = trained(OPTIMIZERS["SGD"], form="canonical")
    _, explicit = trained(OPTIMIZERS["SGD"], form="explicit", basis=basis)
    assert {row.values["projected"] for row in explicit.table()} == {12}
    assert len(explicit.table()) == 8 + 4 + 1
    for name, value in canonical.fold().state_dict().items():
        torch.testing.assert_close(explicit.fold().state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_other_optimizers_have_them_in_the_explicit_form():
    """The function stays at every projection, and what Adam keeps as a direction is carried along."""
    model, h = trained(OPTIMIZERS["Adam"])
    assert {row.values["form"] for row in h.table()} == {"explicit"}
    x = randn(12, 5, 4)
    before = model(x).detach()
    h._loader = [3.0 * x + 1.0]
    optimizer = h._optimizer
    weight = model.rnn.weight_hh_l1
    layer = next(layer for layer in h._layers if layer.label == "rnn.hh_l1")
    direction = optimizer.state[weight]["exp_avg"] @ layer["basis"][0]  # in the space of W
    h.project()
    assert float((layer["basis"][0] - torch.eye(3)).abs().max()) > 1e-2
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"] @ layer["basis"][0], direction)
    bare = Reader().double()
    bare.load_state_dict(h.fold().state_dict())
    torch.testing.assert_close(bare(x), before, rtol=0, atol=1e-12)
    h.undo()
    assert list(model.state_dict()) == list(bare.state_dict())
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("optimize", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_under_autocast_projects_and_stays_finite(optimize):
    torch.manual_seed(0)
    model = Reader()
    optimizer = optimize(model)
    h = cf.whiten(model, optimizer, every=3, samples=12, epsilon=EPSILON)
    x = torch.randn(12, 5, 4)
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
    assert {row.values["projected"] for row in h.table()} == {7}
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_looking_inside_draws_no_random_number():
    """Gathering leaves dropout's masks, and so the function of a training step, as they are."""
    x = torch.randn(12, 5, 4)
    outputs = []
    for whitened in (False, True):
        torch.manual_seed(0)
        model = Reader(dropout=0.5)
        if whitened:
            cf.whiten(model, sgd(model))
        torch.manual_seed(1)
        outputs.append([model(x).detach() for _ in range(2)])
    assert torch.equal(torch.stack(outputs[0]), torch.stack(outputs[1]))


def test_a_loaders_statistics_are_those_of_all_time_steps():
    module = nn.GRU(4, 3).double()
    x = randn(6, 5, 4)
    h = cf.whiten(module, sgd(module), loader=[x], epsilon=EPSILON)
    h_rows = x.reshape(-1, 4) - x.reshape(-1, 4).mean(0)
    sigma = h_rows.T @ h_rows / len(h_rows) + EPSILON * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(module.whiten_ih_l0_metric[0], torch.linalg.inv(sigma), rtol=1e-9, atol=1e-9)
    assert [row.layer for row in h.table()] == ["ih_l0", "hh_l0"]


@pytest.mark.parametrize("options", [{"diagonal": True}, {"errors": 0.1}], ids=["diagonal", "errors"])
def test_options_that_need_each_samples_error_leave_them_alone(options):
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    h = cf.whiten(model, sgd(model), **options)
    assert [row.done for row in h.table()] == ["not projected yet", "left alone", "left alone"]
    assert h.table()["1.out_proj"].why.startswith("diagonal and errors need each sample's error")


def test_adaptive_looks_at_each_projection():
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    given = {name: randn(6, 5, 4) for name in ("query", "key", "value")}
    h = cf.whiten(module, sgd(module), loader=[given], adaptive=0.5)
    h._loader = [{**given, "query": 5.0 * given["query"]}]
    for step in (7, 8):
        h._schedule.step = step
        h.project()
        table = h.table()
        assert [table[name].values["projected"] for name in "qkv"] == [7, 0, 0]
        assert [table[name].values["drift"] for name in "qkv"] == pytest.approx([0.0] * 3, abs=1e-9)
        assert table["k"].why == "kept its basis, since it has not drifted"


@pytest.mark.parametrize("frozen", ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"])
def test_a_projection_whose_weight_or_bias_is_frozen_later_is_not_centered(frozen):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    x = randn(5, 6, 4) + 2
    bare = copy.deepcopy(module)
    cf.whiten(module, sgd(module), epsilon=EPSILON, loader=[{"query": x, "key": x, "value": x}])
    module.get_parameter(frozen).requires_grad_(False)
    h = mixed(bare, x, x, x) if "out" in frozen else x
    for each in (module, bare):
        output_of(each(x, x, x)).square().sum().backward()
    other = frozen.replace("weight", "bias") if "weight" in frozen else frozen.replace("bias", "weight")
    got, plain = module.get_parameter(other).grad, bare.get_parameter(other).grad
    if "weight" in frozen:
        torch.testing.assert_close(got, plain)
    else:
        rows = h.reshape(-1, 4)
        metric = torch.linalg.inv(rows.T.cov(correction=0) + EPSILON * torch.eye(4, dtype=rows.dtype))
        torch.testing.assert_close(got, plain @ metric)
