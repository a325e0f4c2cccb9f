"""Taps on all kinds of modules, outputs and calls, beside what the contracts hold for every method."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from counterflow.backward import Adjoint, Chain, Transform, attach, center, clip, mask, noise, scale, shunt
from counterflow.backward.tap import State
from counterflow.exceptions import InputError, PatternError, ShapeError, UnsupportedError


class Record(Transform):
    """Keeps what it is called with."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __call__(self, error: Tensor, batch: tuple[int, ...], state: State) -> Tensor:
        self.seen.append((tuple(error.shape), batch))
        return error


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def grads(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


# Which dimensions count examples.


@pytest.mark.parametrize(
    ("module", "shapes", "seen"),
    [
        (nn.Linear(3, 2), [(5, 3)], [((5, 2), (0,))]),
        (nn.Conv2d(1, 2, 3), [(5, 1, 4, 4)], [((5, 2, 2, 2), (0,))]),
        (nn.Conv2d(1, 2, 3), [(1, 4, 4)], [((2, 2, 2), ())]),
        (nn.RNN(3, 2), [(7, 5, 3)], [((7, 5, 2), (1,)), ((1, 5, 2), (1,))]),
        (nn.GRU(3, 2, batch_first=True), [(5, 7, 3)], [((5, 7, 2), (0,)), ((1, 5, 2), (1,))]),
        (nn.LSTM(3, 2), [(7, 5, 3)], [((7, 5, 2), (1,)), ((1, 5, 2), (1,)), ((1, 5, 2), (1,))]),
        (nn.LSTM(3, 2), [(7, 3)], [((7, 2), ()), ((1, 2), ()), ((1, 2), ())]),
        (nn.LSTMCell(3, 2), [(5, 3)], [((5, 2), (0,)), ((5, 2), (0,))]),
        (nn.MultiheadAttention(4, 2), [(7, 5, 4)] * 3, [((7, 5, 4), (1,)), ((5, 7, 7), (0,))]),
        (nn.MultiheadAttention(4, 2, batch_first=True), [(5, 7, 4)] * 3, [((5, 7, 4), (0,)), ((5, 7, 7), (0,))]),
        (nn.TransformerEncoderLayer(4, 2, 8), [(7, 5, 4)], [((7, 5, 4), (1,))]),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), [(5, 7, 4)], [((5, 7, 4), (0,))]),
        (nn.TransformerEncoderLayer(4, 2, 8), [(7, 4)], [((7, 4), ())]),
        (nn.TransformerDecoderLayer(4, 2, 8), [(7, 5, 4), (6, 5, 4)], [((7, 5, 4), (1,))]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_batch_dimensions(module: nn.Module, shapes: list[tuple[int, ...]], seen: list[Any]) -> None:
    record = Record()
    attach(module, {"": record})
    output = module(*(torch.randn(shape) for shape in shapes))
    tensors = torch.utils._pytree.tree_leaves(output)
    sum(tensor.sum() for tensor in tensors).backward()
    assert sorted(record.seen) == sorted(seen)


def test_a_packed_sequence_stays_packed() -> None:
    lstm = nn.LSTM(3, 2)
    packed = pack_sequence([torch.randn(n, 3) for n in (4, 3, 1)])
    wanted = lstm(packed)[0].data
    record = Record()
    attach(lstm, {"": Chain(record, scale(0.5))})
    output, _ = lstm(packed)
    assert isinstance(output, PackedSequence)
    assert torch.equal(output.data, wanted)
    assert torch.equal(output.batch_sizes, packed.batch_sizes)
    output.data.sum().backward()
    assert record.seen[0] == ((8, 2), (0,))


def test_a_single_example_is_refused_where_it_shows() -> None:
    for module, shape in ((nn.Conv1d(2, 3, 2), (2, 6)), (nn.LSTM(3, 2), (7, 3)), (nn.Linear(3, 2), (3,))):
        attach(module, {"": center()})
        output = module(torch.randn(shape))
        with pytest.raises(ShapeError, match="mixes the examples of a batch"):
            (output[0] if isinstance(output, tuple) else output).sum().backward()


# Outputs.


class Many(nn.Module):
    """Returns what it is told to."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(3, 2), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layer(x))


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda y: (y, None, 3), lambda out: out[0]),
        (lambda y: [y, "text"], lambda out: out[0]),
        (lambda y: {"logits": y, "index": y.argmax(1)}, lambda out: out["logits"]),
        (lambda y: OrderedDict(a=OrderedDict(b=(y,))), lambda out: out["a"]["b"][0]),
    ],
)
def test_outputs_of_all_kinds(wrap: Any, unwrap: Any) -> None:
    model = Many(wrap)
    x = torch.randn(4, 3)
    bare = model(x)
    attach(model, {"": scale(0.5)})
    output = model(x)
    assert type(output) is type(bare)
    assert torch.equal(unwrap(output), unwrap(bare))
    unwrap(output).sum().backward()
    torch.testing.assert_close(model.layer.bias.grad, torch.full((2,), 2.0))


@dataclasses.dataclass
class Answer:
    logits: Tensor


@pytest.mark.parametrize("wrap", [Answer, lambda y: y.argmax(1), lambda y: None, lambda y: "text"])
def test_an_output_that_cannot_be_reached_is_refused(wrap: Any) -> None:
    model = Many(wrap)
    attach(model, {"": scale(0.5)})
    with pytest.raises(UnsupportedError, match=r"scale\(0.5\) on a Many: its output, a .*, holds no") as error:
        model(torch.randn(4, 3))
    assert "\n" not in str(error.value)


def test_complex_outputs_are_tapped() -> None:
    model = Many(torch.view_as_complex)
    attach(model, {"": scale(0.5)})
    model(torch.randn(4, 3)).abs().sum().backward()
    bent = model.layer.weight.grad
    assert bent is not None


def test_a_frozen_layer_gets_no_gradient() -> None:
    model = mlp()
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    attach(model, {"0": scale(0.5), "2": scale(0.5)})
    assert not model[0](torch.randn(4, 3)).requires_grad
    assert len(grads(model, torch.randn(4, 3))) == 2


# Calls.


def test_a_module_used_twice_bends_each_error() -> None:
    layer = nn.Linear(2, 2, bias=False)
    x = torch.randn(3, 2)
    attach(layer, {"": scale(0.5)})
    layer(layer(x)).sum().backward()
    got = layer.weight.grad
    weight = layer.weight.detach()
    outer, inner = torch.ones(3, 2) * 0.5, (torch.ones(3, 2) * 0.5) @ weight * 0.5
    torch.testing.assert_close(got, outer.T @ (x @ weight.T) + inner.T @ x)


def test_a_module_under_two_names_is_tapped_once() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    handle = attach(model, {"*": scale(0.5)})
    assert [row.layer for row in handle.table()] == ["0"]
    assert len(layer._forward_hooks) == 1


def test_called_with_keywords() -> None:
    attention = nn.MultiheadAttention(4, 2)
    record = Record()
    attach(attention, {"": record})
    x = torch.randn(5, 3, 4)
    attention(query=x, key=x, value=x)[0].sum().backward()
    assert record.seen == [((5, 3, 4), (1,))]


@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_an_in_place_layer_after_a_tap(activation: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))
    x = torch.randn(5, 3)
    wanted = grads(model, x)
    attach(model, {"0": scale(1.0), "1": scale(1.0)})
    assert_same(grads(model, x), wanted)


def test_an_in_place_change_of_what_backward_needs_is_still_found() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.ReLU(inplace=True))
    attach(model, {"1": scale(0.5)})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(torch.randn(5, 3)).sum().backward()


@pytest.mark.parametrize("passing", [nn.Identity(), nn.Dropout().eval(), nn.ReLU(inplace=True)])
def test_an_in_place_change_of_what_passed_through_leaves_the_input_alone(passing: nn.Module) -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.passing = nn.Linear(3, 3), passing

        def forward(self, x: Tensor) -> Tensor:
            z = self.a(x).abs()
            y = self.passing(z)
            y.mul_(2)
            return y + z

    model, x = Doubled(), torch.rand(4, 3)
    attach(model, {"passing": scale(1.0)})
    for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        y = run(x)
        y.sum().backward()
        # Homogeneous of the first degree: only a true gradient gives the output back.
        assert model.a.weight.grad is not None
        assert model.a.bias.grad is not None
        back = (model.a.weight.grad * model.a.weight).sum() + (model.a.bias.grad * model.a.bias).sum()
        torch.testing.assert_close(back, y.sum())


def test_no_gradients_no_tap() -> None:
    model = mlp()
    attach(model, {"**": center()})
    with torch.no_grad():
        model(torch.randn(1, 3))
    with torch.inference_mode():
        model(torch.randn(1, 3))


# Order, undo, copies.


def test_the_transform_attached_last_acts_first() -> None:
    model = nn.Linear(1, 1)
    first = attach(model, {"": clip(1.0, units="absolute")})
    attach(model, {"": scale(10.0)})
    model(torch.zeros(1, 1)).sum().backward()
    assert model.bias.grad is not None
    assert model.bias.grad.item() == 1.0  # scaled to ten, then clipped
    first.undo()
    model.zero_grad()
    model(torch.zeros(1, 1)).sum().backward()
    assert model.bias.grad.item() == 10.0


def test_undo_in_any_order_with_state() -> None:
    model = nn.Linear(2, 2)
    bare = copy.deepcopy(model)
    x = torch.randn(4, 2)
    handles = [attach(model, {"": clip(1.0, momentum=0.9)}), attach(model, {"": scale(torch.tensor(0.5))})]
    assert set(model.state_dict()) - set(bare.state_dict()) == {"tap0_mean_square", "tap1_factor"}
    handles[0].undo()
    handles.append(attach(model, {"": scale(torch.tensor(3.0))}))
    assert_same(grads(model, x), [1.5 * g for g in grads(bare, x)])
    for handle in handles:
        handle.undo()
    assert list(model.state_dict()) == list(bare.state_dict())
    assert_same(grads(model, x), grads(bare, x))


def test_a_copy_keeps_its_transforms_when_the_original_loses_them() -> None:
    model = mlp()
    factor = torch.tensor(0.5)
    handle = attach(model, {"0": scale(factor), "2": Chain(clip(1.0, momentum=0.9), scale(2.0))})
    x = torch.randn(4, 3)
    wanted = grads(copy.deepcopy(model), x)
    twin = copy.deepcopy(model)
    handle.undo()
    factor.fill_(0.0)  # the copy has a factor of its own
    assert_same(grads(twin, x), wanted)
    assert [name for name, _ in model.named_buffers()] == []


def test_a_failed_attach_leaves_the_model_as_it_was() -> None:
    model = mlp()
    for wrong in ({"0": scale(0.5), "nowhere": scale(0.5)}, {"0": scale(0.5), "1": shunt()}):
        with pytest.raises((PatternError, UnsupportedError)):
            attach(model, wrong)
        assert not any(module._forward_hooks for module in model.modules())


# What cannot be attached.


def test_a_list_of_modules_is_never_called() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(UnsupportedError, match=r"'blocks' \(ModuleList\): .* name its members, such as 'blocks\.\*'"):
        attach(model, {"blocks": scale(0.5)})
    rows = {row.layer: row.done for row in attach(model, {"**": scale(0.5)}).table()}
    assert rows == {"": "scale(0.5)", "blocks": "left alone", "blocks.0": "scale(0.5)", "blocks.1": "scale(0.5)"}
    with pytest.raises(UnsupportedError, match="never called"):
        attach(model, {"block*": scale(0.5)})


def test_a_failure_while_attaching_leaves_the_model_as_it_was() -> None:
    class Kept(shunt):
        def buffers(self, module: nn.Module) -> dict[str, Tensor]:
            return {"kept": torch.zeros(module.get_parameter("bias").shape)}

    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    with pytest.raises(AttributeError):
        attach(model, {"*": Kept()})
    assert not any(module._forward_hooks or module._buffers for module in model.modules())


def test_attention_never_calls_its_projection() -> None:
    model = nn.TransformerEncoderLayer(4, 2, 8)
    for transform in (scale(0.5), shunt()):
        with pytest.raises(UnsupportedError, match=r"'self_attn\.out_proj' .* name 'self_attn' instead"):
            attach(model, {"self_attn.out_proj": transform})
    handle = attach(model, {"**": scale(0.5)})
    assert [row.layer for row in handle.table() if row.done == "left alone"] == ["self_attn.out_proj"]


@pytest.mark.parametrize(
    ("transforms", "error", "message"),
    [
        ({}, InputError, "attach needs a dictionary"),
        ([scale(0.5)], InputError, "attach needs a dictionary"),
        ({"0": 0.5}, InputError, r"'0': a transform such as backward.scale\(0.5\) is needed, got 0.5"),
        ({"0": scale}, InputError, "'0': a transform such as"),
        ({0: scale(0.5)}, InputError, "pattern must be a string"),
        ({"o": scale(0.5)}, PatternError, "pattern 'o' matches no module of Sequential; its children are '0', '1'"),
    ],
)
def test_arguments_that_cannot_be_used(transforms: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        attach(mlp(), transforms)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "transform", [clip(0.1, units="absolute"), noise(0.1, units="absolute"), clip(1.0, momentum=0.9)], ids=repr
)
def test_float16_loss_scaling_is_refused_for_what_it_would_change(transform: Transform) -> None:
    model = mlp()
    with attach(model, {"0": transform}), torch.autocast("cpu", dtype=torch.float16):
        with pytest.raises(UnsupportedError, match="float16 loss scaling changes; use bfloat16") as error:
            model(torch.randn(4, 3))
        assert "\n" not in str(error.value)
    with attach(model, {"0": transform}), torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(4, 3))
    with attach(model, {"0": Chain(center(), clip(1.0))}), torch.autocast("cpu", dtype=torch.float16):
        model(torch.randn(4, 3))


def test_state_is_refused_under_torch_func_in_one_line() -> None:
    model = mlp()
    attach(model, {"0": clip(1.0, momentum=0.9)})
    weights = {name: p.detach() for name, p in model.named_parameters()}
    with pytest.raises(UnsupportedError, match=r"torch\.func cannot carry") as error:
        torch.func.grad(lambda w: torch.func.functional_call(model, w, (torch.randn(4, 3),)).sum())(weights)
    assert "\n" not in str(error.value)


# Other ways to differentiate, compile and export.


def test_forward_mode() -> None:
    model = mlp()
    x, tangent = torch.randn(4, 3), torch.randn(4, 3)
    wanted = torch.func.jvp(model, (x,), (tangent,))
    hessian = torch.func.hessian(lambda x: model(x).square().sum())(x)
    attach(model, {"*": scale(1.0)})
    for got, value in zip(torch.func.jvp(model, (x,), (tangent,)), wanted, strict=True):
        torch.testing.assert_close(got, value)
    torch.testing.assert_close(torch.func.hessian(lambda x: model(x).square().sum())(x), hessian)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(model(dual)).tangent, wanted[1])


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_model_is_the_bare_model(strict: bool) -> None:
    model, x = mlp(), torch.randn(4, 3)
    bare = torch.export.export(model, (x,), strict=strict)
    attach(model, {"0": shunt(), "*": scale(0.5), "2": clip(1.0, momentum=0.5)})
    exported = torch.export.export(model, (x,), strict=strict)

    def calls(program: Any) -> list[str]:
        return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]

    assert calls(exported) == calls(bare)
    wanted = grads(bare.module(), x)
    assert_same(grads(exported.module(), x), wanted)


def test_a_schedule_recompiles_nothing() -> None:
    frames = []

    def backend(graph: Any, inputs: Any) -> Any:
        frames.append(graph)
        return graph.forward

    model = nn.Sequential(nn.Linear(3, 2))
    bare = copy.deepcopy(model)
    x = torch.randn(4, 3)
    factor = torch.tensor(1.0)
    attach(model, {"0": scale(factor)})
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for value in (1.0, 0.5, 0.25, 0.0):
        factor.fill_(value)
        model.zero_grad()
        compiled(x).square().sum().backward()
        assert_same([p.grad for p in model.parameters() if p.grad is not None], [value * g for g in grads(bare, x)])
    assert len(frames) == 1


def test_inductor_compiles_all_transforms_on_one_model() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4))
    chain = Chain(center(), clip(1.0), clip(5.0, units="absolute"), mask(torch.tensor([True, False, True, True])))
    attach(model, {"0": shunt(), "2": shunt(bias="sum"), "1": clip(1.0, momentum=0.5), "*": scale(torch.tensor(0.5))})
    attach(model, {"2": chain})
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, fullgraph=True)
    x = torch.randn(5, 1, 6)
    for _ in range(2):
        wanted = grads(model, x)
        twin.zero_grad()
        compiled(x).square().sum().backward()
        assert_same([p.grad for p in twin.parameters() if p.grad is not None], wanted)
    assert_same(list(twin.buffers()), list(model.buffers()))


def test_an_adjoint_of_ones_own() -> None:
    class Straight(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor, output: Tensor) -> Tensor:
            return output.detach()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, error: Tensor) -> Any:
            return error, None

    class straight_through(Adjoint):  # noqa: N801 - as the transforms
        def supports(self, module: nn.Module) -> str:
            return "" if isinstance(module, nn.Hardtanh) else "it passes through steps only"

        def replace(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
            result: Tensor = Straight.apply(inputs, output)
            return result

        def __repr__(self) -> str:
            return "straight_through()"

    model = nn.Sequential(nn.Identity(), nn.Hardtanh())
    handle = attach(model, {"*": straight_through()})
    assert [row.done for row in handle.table()] == ["left alone", "straight_through()"]
    x = torch.tensor([5.0, -5.0], requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0]
    with pytest.raises(UnsupportedError, match="it passes through steps only"):
        straight_through().check("0", model[0])


def test_state_is_where_the_model_is_on_modules_without_parameters_too() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Tanh())
    attach(model, {"1": mask(torch.tensor([True, False])), "0": clip(1.0, momentum=0.9)})
    assert {name: value.device.type for name, value in model.named_buffers()} == {
        "0.tap0_mean_square": "meta",
        "1.tap0_keep": "meta",
    }


def test_a_schedule_on_another_device_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Tanh())
    factor = torch.tensor(0.5)
    for transform in (scale(factor), Chain(center(), scale(factor))):
        for pattern in ("1", "*"):
            with pytest.raises(InputError, match="its tensor is on cpu, the module on meta"):
                attach(model, {pattern: transform})
    assert not model._forward_hooks
    assert not list(model.buffers())


def test_where_a_schedule_is_after_loading() -> None:
    model, factor = nn.Linear(2, 2), torch.tensor(0.5)
    attach(model, {"": scale(factor)})
    state = copy.deepcopy(model.state_dict())
    state["tap0_factor"].fill_(0.25)
    model.load_state_dict(state)
    assert model.tap0_factor is factor
    assert factor == 0.25
    model.load_state_dict(state, assign=True)
    factor.fill_(1.0)
    model(torch.zeros(1, 2)).sum().backward()
    assert model.bias.grad is not None
    assert model.bias.grad.tolist() == [0.25, 0.25]  # what the docstring says
