"""The projections inside attention and recurrent layers: their step against its closed form, and what may be done."""

from __future__ import annotations

import copy

import pytest
import torch
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
    assert all(isinstance(p, nn.Parameter) for p in module._parameters.values() if p is not None)
    return module, bare, plain.detach()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [None, (4, 5)], ids=["packed weights", "three weights"])
def test_attention(sizes, bias, batch_first):
    kdim, vdim = sizes or (6, 6)
    module = nn.MultiheadAttention(6, 2, bias=bias, batch_first=batch_first, kdim=kdim, vdim=vdim).double()
    q, k, v = randn(7, 3, 6), randn(7, 4, kdim), randn(7, 4, vdim)  # keys of another length than queries
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    module, bare, _ = whitened_gradients(module, lambda m: m(q, key=k, value=v))
    for index, (letter, x) in enumerate(zip("qkv", (q, k, v), strict=True)):
        span = slice(6 * index, 6 * index + 6)
        name, rows = ("in_proj_weight", span) if sizes is None else (f"{letter}_proj_weight", slice(None))
        plain = bare.in_proj_bias.grad[span] if bias else None
        gradient, total = wanted(getattr(bare, name).grad[rows], plain, x)
        torch.testing.assert_close(getattr(module, name).grad[rows], gradient, rtol=1e-9, atol=1e-10)
        if bias:
            torch.testing.assert_close(module.in_proj_bias.grad[span], total, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(module.out_proj.weight.grad, bare.out_proj.weight.grad)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"bidirectional": True, "batch_first": True}, {"num_layers": 2}]
)
def test_recurrent_layers(kind, options):
    module = kind(4, 3, **options).double()
    x = randn(6, 5, 4)
    module, bare, y = whitened_gradients(module, lambda m: m(x))
    top = module.num_layers - 1
    for name, plain in bare.named_parameters():
        kind_of, own = name.split("_", 1)
        visible = own.startswith(("ih_l0", f"hh_l{top}"))
        if kind_of == "bias":
            continue
        bias = getattr(bare, f"bias_{own}").grad if module.bias else None
        if not visible:
            torch.testing.assert_close(getattr(module, name).grad, plain.grad)
            continue
        states = y[..., 3:] if own.endswith("reverse") else y[..., :3]
        gradient, total = wanted(plain.grad, bias, x if own.startswith("ih") else states)
        torch.testing.assert_close(getattr(module, name).grad, gradient, rtol=1e-9, atol=1e-10)
        if bias is not None:
            torch.testing.assert_close(getattr(module, f"bias_{own}").grad, total, rtol=1e-9, atol=1e-10)


def test_packed_sequences():
    module = nn.LSTM(4, 3).double()
    x = pack_sequence([randn(5, 4), randn(3, 4), randn(2, 4)])
    module, bare, y = whitened_gradients(module, lambda m: m(x))
    gradient, _ = wanted(bare.weight_ih_l0.grad, bare.bias_ih_l0.grad, x.data)
    torch.testing.assert_close(module.weight_ih_l0.grad, gradient, rtol=1e-9, atol=1e-10)
    gradient, _ = wanted(bare.weight_hh_l0.grad, bare.bias_hh_l0.grad, y)
    torch.testing.assert_close(module.weight_hh_l0.grad, gradient, rtol=1e-9, atol=1e-10)


def test_a_call_that_raises_leaves_the_weights_proper():
    module = nn.LSTM(4, 3)
    before = list(module._flat_weights)
    h = cf.whiten(module, sgd(module))
    with pytest.raises(RuntimeError):
        module(torch.randn(5, 2, 9))
    assert all(a is b for a, b in zip(module._flat_weights, before, strict=True))
    h.undo()
    assert list(module.state_dict()) == list(nn.LSTM(4, 3).state_dict())


def test_a_transformer_trains_compiled_and_folds():
    losses = []
    x = torch.randn(16, 5, 8)
    for compiled in (False, True):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        h = cf.whiten(layer, optimizer, every=3, samples=16, epsilon=EPSILON)
        call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        for _ in range(8):
            optimizer.zero_grad()
            loss = (call(x) - x.flip(1)).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
        left = {row.layer for row in h.table() if row.done == "left alone"}
        assert left == {"self_attn.out_proj", "norm1", "norm2"}
        bare = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        bare.load_state_dict(h.fold().state_dict())
        torch.testing.assert_close(bare(x), layer(x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_statistics_from_a_loader():
    module = nn.GRU(4, 3).double()
    x = randn(6, 5, 4)
    h = cf.whiten(module, sgd(module), loader=[x], epsilon=EPSILON)
    h_rows = x.reshape(-1, 4) - x.reshape(-1, 4).mean(0)
    sigma = h_rows.T @ h_rows / len(h_rows) + EPSILON * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(module.whiten_ih_l0_metric[0], torch.linalg.inv(sigma), rtol=1e-9, atol=1e-9)
    assert [row.layer for row in h.table()] == ["ih_l0", "hh_l0"]


def test_other_optimizers_leave_them_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 3))
    h = cf.whiten(model, torch.optim.Adam(model.parameters()))
    assert "canonical form only" in h.table()["1"].why


def test_adaptive_looks_at_each_projection():
    module = nn.GRU(4, 3).double()
    x = randn(6, 5, 4)
    h = cf.whiten(module, sgd(module), loader=[x], adaptive=0.5)
    h._loader = [x + 5.0 * torch.randn(4, dtype=torch.float64) * randn(6, 5, 1)]
    h._schedule.step = 7
    h.project()
    assert h.table()["ih_l0"].values["projected"] == 7
    h._schedule.step = 8
    h.project()
    assert [row.values["projected"] for row in h.table()] == [7, h.table()["hh_l0"].values["projected"]]
    assert h.table()["ih_l0"].values["drift"] == pytest.approx(0.0, abs=1e-9)
