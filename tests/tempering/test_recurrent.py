"""Recurrent layers: their rates, and their errors along time, against backpropagation through time written out."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import counterflow as cf
from counterflow.exceptions import UnsupportedError

from .nets import Classifier
from .tables import column
from .unrolled import Loop, Silent, Whole, assert_close, attenuate, gradients

Array = NDArray[np.float64]
GATES = {nn.RNNCell: 1, nn.GRUCell: 3, nn.LSTMCell: 4}
SUM = "half_squared_error_sum"
FUSED = "what goes back through time inside the fused kernel is not bounded"


# -- cells in a loop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [False, True])
def test_a_loop_against_backpropagation_through_time_in_numpy(every: bool) -> None:
    torch.manual_seed(0)
    model, x = Loop(nn.RNNCell, every).double(), torch.randn(6, 5, 3).double()
    target = torch.randn(6, 5, 2).double()
    h = cf.temper(model, x, loss=SUM, shunt=False)
    y = model(x)
    wanted = target if every else target[:, -1]
    (0.5 * (y - wanted).square().sum()).backward()

    w, u, b, c, v, o = (p.detach().numpy() for p in model.parameters())
    inputs, goals = x.numpy(), target.numpy()
    states = [np.zeros((6, 4))]
    for t in range(5):
        states.append(np.tanh(inputs[:, t] @ w.T + b + states[-1] @ u.T + c))
    # |P| counts the next step's four units, and the head's two where every state is read.
    a = 1 / math.sqrt(4 + 2 * every)
    dw, du, db, dv = (np.zeros_like(p) for p in (w, u, b, v))
    from_next: Array = np.zeros((6, 4))
    for t in reversed(range(5)):
        read = every or t == 4
        error = states[t + 1] @ v.T + o - goals[:, t] if read else np.zeros((6, 2))
        dv += error.T @ states[t + 1]
        delta = (1 - states[t + 1] ** 2) * a * (error @ v + from_next)
        dw, du, db = dw + delta.T @ inputs[:, t], du + delta.T @ states[t], db + delta.sum(0)
        from_next = delta @ u
    assert model.cell.weight_ih.grad is not None
    for got, value in zip(model.parameters(), (dw, du, db, db, dv), strict=False):
        np.testing.assert_allclose(got.grad.numpy(), value, rtol=1e-9, atol=1e-12)  # type: ignore[union-attr]
    assert h.table()["cell"].done == "rate, attenuated"
    assert column(h.table(), "attenuation")["cell"] == pytest.approx(a)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("cell", GATES)
def test_only_the_hidden_state_of_a_cell_is_attenuated(cell: type[nn.RNNCellBase], every: bool) -> None:
    model, x = Loop(cell, every).double(), torch.randn(6, 5, 3).double()
    bare = copy.deepcopy(model)
    table = cf.temper(model, x, loss=SUM, shunt=False).table()
    # A GRU's state feeds itself by the way past its gates; the cell state of an LSTM is left alone.
    fan_out = 4 * GATES[cell] + (cell is nn.GRUCell) + 2 * every
    assert column(table, "fan-out") == {"cell": fan_out, "head": 0}
    assert column(table, "attenuation")["cell"] == pytest.approx(1 / math.sqrt(fan_out))
    wanted = gradients(bare, bare(x, attenuate(1 / math.sqrt(fan_out))))
    assert_close(gradients(model, model(x)), wanted)


def test_what_stays_unbounded_is_said() -> None:
    x = torch.randn(6, 5, 3)
    why = {cell: cf.temper(Loop(cell), x, loss=SUM).table()["cell"].why for cell in GATES}
    assert why == {
        nn.RNNCell: "",
        nn.GRUCell: "the state that passes by the gates is attenuated too",
        nn.LSTMCell: "errors that the cell state carries are not attenuated",
    }


def test_undo_gives_plain_gradients_back() -> None:
    x = torch.randn(6, 5, 3).double()
    for model in (Loop(nn.LSTMCell).double(), Whole(nn.LSTM).double()):
        wanted = gradients(model, model(x))
        h = cf.temper(model, x, loss=SUM, shunt=False)
        assert any(not torch.equal(g, wanted[name]) for name, g in gradients(model, model(x)).items())
        h.undo()
        assert_close(gradients(model, model(x)), wanted)
        assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("fused", [False, True])
def test_the_error_stays_bounded_deep_in_time_in_a_loop(fused: bool) -> None:
    steps, hidden = 60, 16
    torch.manual_seed(0)
    model, x = Silent(fused, hidden).double(), torch.zeros(steps, 4, hidden).double().requires_grad_()

    def errors() -> list[float]:
        """The mean square of the error at the net input of every step."""
        (error,) = torch.autograd.grad(model(x).sum(), x)
        found: list[float] = error.square().mean((1, 2)).tolist()
        return found

    plain = errors()
    cf.temper(model, torch.randn(steps, 4, hidden).double(), loss=SUM, shunt=False)
    tempered = errors()
    for earlier, later in pairwise(plain):
        assert earlier == pytest.approx(hidden * later)
    assert plain[0] / plain[-1] > 1e70
    if fused:  # inside the kernel it is as it was
        assert tempered == pytest.approx([0.5 * error for error in plain])
    else:  # equation 12 with weights of size 1: the average over the errors of the next step
        assert tempered == pytest.approx([plain[-1] / hidden] * steps)


# -- fused layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "settings"),
    [
        (nn.RNN, {}),
        (nn.RNN, {"nonlinearity": "relu", "bias": False}),
        (nn.GRU, {"batch_first": True}),
        (nn.GRU, {"bidirectional": True}),
        (nn.LSTM, {"batch_first": True, "num_layers": 2}),
        (nn.LSTM, {"bidirectional": True, "num_layers": 2}),
        (nn.LSTM, {"proj_size": 2}),
    ],
)
def test_a_fused_layer_is_attenuated_at_its_output(layer: type[nn.RNNBase], settings: dict[str, Any]) -> None:
    model, x = Whole(layer, **settings).double(), torch.randn(6, 5, 3).double()
    if layer is not nn.LSTM:
        model.carried.requires_grad_(False)
    bare = copy.deepcopy(model)
    table = cf.temper(model, x, loss=SUM, shunt=False).table()
    # The layers above alone: an output feeds two units, a last hidden state two more (it is an output as well).
    top = [row for row in table if row.kind == layer.__name__][-1]
    assert top.values["fan-out"] == 4
    assert top.values["attenuation"] == 0.5
    assert top.why == FUSED
    assert top.done == "rate, attenuated"
    assert_close(gradients(model, model(x)), gradients(bare, bare(x, attenuate(0.5))))


def test_a_single_example_without_a_batch() -> None:
    for model in (Whole(nn.LSTM).double(), Whole(nn.GRU).double().requires_grad_(True)):
        model.carried.requires_grad_(isinstance(model.layer, nn.LSTM))
        x = torch.randn(5, 3).double()
        bare = copy.deepcopy(model)
        cf.temper(model, x[:, None], loss=SUM, shunt=False)
        outputs, _ = model.layer(x)
        wanted, _ = bare.layer(x)
        assert_close(gradients(model.layer, outputs), gradients(bare.layer, attenuate(0.5)(wanted)))


def test_a_packed_sequence_is_for_training_only() -> None:
    torch.manual_seed(0)
    model, x = Whole(nn.LSTM).double(), torch.randn(5, 6, 3).double()
    packed = pack_padded_sequence(x, torch.tensor([5, 2, 4, 1, 1, 3]), enforce_sorted=False)
    with pytest.raises(UnsupportedError, match=r"'layer' is given a packed sequence.*does not pack") as caught:
        cf.temper(model, (packed,), loss=SUM)
    assert "\n" not in str(caught.value)
    bare = copy.deepcopy(model)
    cf.temper(model, x, loss=SUM, shunt=False)
    assert_close(gradients(model, model(packed)), gradients(bare, bare(packed, attenuate(0.5))))


def test_the_table_of_a_stack_of_two() -> None:
    table = cf.temper(Classifier(), torch.randint(11, (4, 5)), loss="cross_entropy", local_output=False).table()
    assert {row.layer: (row.done, row.why) for row in table} == {
        "embedding": ("rate, attenuated", ""),
        "lstm.weight_ih_l0": (
            "rate",
            "not attenuated: its errors stay inside the fused kernel, where they are not bounded",
        ),
        "lstm.weight_ih_l1": ("rate, attenuated", FUSED),
        "head": ("rate, shunted", ""),
    }
    assert column(table, "fan-out") == {"embedding": 28, "lstm.weight_ih_l0": 28, "lstm.weight_ih_l1": 3, "head": 0}
    assert column(table, "attenuation") == pytest.approx(
        {"embedding": 1 / math.sqrt(28), "lstm.weight_ih_l0": 1, "lstm.weight_ih_l1": 1 / math.sqrt(3), "head": 1}
    )
    assert column(table, "fan-in")["lstm.weight_ih_l1"] == 7 + 7 + 2


# -- rates ------------------------------------------------------------------------------------------------------------


def test_the_input_power_counts_inputs_hidden_units_and_biases() -> None:
    x = torch.randn(6, 5, 3)
    # Equation 7 for external inputs with both biases, as the mean over samples and steps, and (9) for four states.
    wanted = (x.square().sum(-1) + 2).square().mean().item() + 4
    for model in (Loop(nn.LSTMCell), Whole(nn.LSTM, batch_first=True)):
        table = cf.temper(model, x, loss=SUM).table()
        (row,) = (row for row in table if row.kind.startswith("LSTM"))
        assert row.values["fan-in"] == pytest.approx(wanted)
        assert row.values["power"] == "measured"
        assert row.values["rate"] == pytest.approx(1 / math.sqrt(wanted))
    bare = cf.temper(Loop(nn.GRUCell, bias=False), x, loss=SUM).table()
    assert column(bare, "fan-in")["cell"] == pytest.approx(x.square().sum(-1).square().mean().item() + 4)


def test_the_input_power_of_other_units() -> None:
    class Deep(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.below, self.layer, self.head = nn.Linear(3, 3), layer, nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.layer(torch.tanh(self.below(x)))[1][-1])
            return y

    x = torch.randn(5, 6, 3)
    bounded = cf.temper(Deep(nn.GRU(3, 4, 2, dropout=0.5)), x, loss=SUM).table()
    assert column(bounded, "fan-in")["layer.weight_ih_l0"] == 3 + 4 + 2
    # Dropout makes what it keeps twice as large, and its square on average.
    assert column(bounded, "fan-in")["layer.weight_ih_l1"] == 4 * 2**2 + 4 + 2
    assert column(bounded, "power")["layer.weight_ih_l1"] == "bound"
    relu = Deep(nn.RNN(3, 4, nonlinearity="relu"))
    power = relu.layer(torch.tanh(relu.below(x)))[0].square().mean().item()
    measured = cf.temper(relu, x, loss=SUM).table()
    assert column(measured, "fan-in")["layer"] == pytest.approx(3 + 4 * power**2 + 2)
    assert column(measured, "power")["layer"] == "measured"


def test_a_bias_of_a_head_that_every_step_calls_learns_from_one_mean() -> None:
    class Reader(Loop):
        def forward(self, x: Tensor, tap: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
            state, outputs = None, []
            for step in x.unbind(1):
                state = self.cell(step, state)
                outputs.append(self.head(state))
            return torch.stack(outputs, 1)

    torch.manual_seed(0)
    x = torch.randn(6, 5, 3).double()
    steps = []
    for model in (Loop(nn.RNNCell, every=True), Reader(nn.RNNCell)):
        torch.manual_seed(1)
        model.double().load_state_dict(steps[0][2] if steps else model.state_dict())
        h = cf.temper(model, x, loss=SUM)
        (group,) = (g for g in h.param_groups(lr=0.1) if any(p is model.head.bias for p in g["params"]))
        model(x).square().sum().backward()
        steps.append((group["lr"] * model.head.bias.grad, h.table(), model.state_dict()))
    assert steps[1][1]["head"].why == "its bias learns from the mean over 5 calls"
    torch.testing.assert_close(steps[1][0], steps[0][0])


# -- attenuation by the weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("cell", GATES)
def test_every_unit_of_a_cell_by_its_outgoing_weights(cell: type[nn.RNNCellBase], every: bool) -> None:
    model, x = Loop(cell, every).double(), torch.randn(6, 5, 3).double()
    bare = copy.deepcopy(model)
    table = cf.temper(model, x, loss=SUM, shunt=False, attenuation="weights").table()
    assert table["cell"].done == "rate, attenuated by weights"
    assert isinstance(bare.cell.weight_hh, Tensor)
    gates, head = (w.detach().square().sum(0) for w in (bare.cell.weight_hh, bare.head.weight))
    gates = gates + (cell is nn.GRUCell)  # the state that is carried on, with a weight of one at most
    # Where states are stacked, units are not followed: the head's largest vector stands for all of them.
    a = (gates + head.max() if every else torch.maximum(gates, head)).rsqrt()
    assert_close(gradients(model, model(x)), gradients(bare, bare(x, attenuate(a))))


def test_a_fused_layer_by_the_weights_above_it_and_what_feeds_it_by_its_own() -> None:
    model = Classifier().double()
    words = torch.randint(11, (4, 5))
    embedding, above = model.lstm.weight_ih_l0.detach(), model.head.weight.detach()
    h = cf.temper(model, words, loss=SUM, attenuation="weights")
    assert h.table()["lstm.weight_ih_l1"].done == "rate, attenuated by weights"
    wanted = {"embedding": embedding, "lstm.weight_ih_l0": None, "lstm.weight_ih_l1": above, "head": None}
    for name, weight in wanted.items():  # the largest vector stands for units that cannot be told apart
        a = 1.0 if weight is None else weight.square().sum(0).max().rsqrt().item()
        assert column(h.table(), "attenuation")[name] == pytest.approx(a)
    output, (hidden, carried) = model.lstm(model.embedding(words))
    ones = torch.autograd.grad(output.sum() + hidden.sum() + carried.sum(), model.lstm.weight_hh_l1)[0]
    h.undo()
    output, (hidden, carried) = model.lstm(model.embedding(words))
    tap = attenuate(above.square().sum(0).max().rsqrt().item())
    plain = torch.autograd.grad(tap(output).sum() + tap(hidden).sum() + carried.sum(), model.lstm.weight_hh_l1)[0]
    torch.testing.assert_close(ones, plain)


def test_the_weights_above_a_cell_state_do_not_count() -> None:
    model, x = Whole(nn.LSTM).double(), torch.randn(6, 5, 3).double()
    bare = copy.deepcopy(model)
    cf.temper(model, x, loss=SUM, shunt=False, attenuation="weights")
    a = sum(head.weight.detach().square().sum(0).max() for head in (bare.outputs, bare.hidden)) ** -0.5
    assert_close(gradients(model, model(x)), gradients(bare, bare(x, attenuate(a))))


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_by_the_weights_the_error_keeps_its_size_deep_in_time(size: float) -> None:
    steps, hidden = 60, 16
    model, x = Silent(False, hidden).double(), torch.zeros(steps, 4, hidden).double().requires_grad_()
    with torch.no_grad():
        for weight in (model.layer.weight_hh, model.head.weight):
            weight.mul_(size)
    cf.temper(model, torch.randn(steps, 4, hidden).double(), loss=SUM, shunt=False, attenuation="weights")
    (error,) = torch.autograd.grad(model(x).sum(), x)
    sizes = error.square().mean((1, 2))
    torch.testing.assert_close(sizes, sizes[-1:].expand(steps))


def test_the_state_of_a_stack_by_its_fan_out() -> None:
    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.GRU(3, 4, 2), nn.GRU(2, 4, 2)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            y: Tensor = self.decoder(target, self.encoder(source)[1])[0]
            return y

    sample = torch.randn(5, 6, 3), torch.randn(7, 6, 2)
    table = cf.temper(Translator(), sample, loss=SUM, attenuation="weights").table()
    assert "which layer of the stack 'decoder' takes its state cannot be told" in table["encoder.weight_ih_l1"].why


# -- what is left alone -----------------------------------------------------------------------------------------------


def test_the_measured_variance_leaves_recurrent_layers_at_their_fan_out() -> None:
    for model, name in ((Loop(nn.LSTMCell), "cell"), (Whole(nn.LSTM), "layer")):
        bare = copy.deepcopy(model.double())
        x = torch.randn(6, 5, 3).double()
        table = cf.temper(model, x, loss=SUM, shunt=False, variance="measured").table()
        assert table[name].done == "rate, attenuated"
        assert f"attenuated by its fan-out: the error of {name!r} cannot be measured by itself" in table[name].why
        a = table[name].values["attenuation"]
        assert a == (0.25 if name == "cell" else 0.5)
        assert_close(gradients(model, model(x)), gradients(bare, bare(x, attenuate(a))))


def test_a_cell_state_alone_is_left_alone() -> None:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.layer(x)[1][1][-1])
            return y

    model, x = Memory().double(), torch.randn(5, 6, 3).double()
    wanted = gradients(model, model(x))
    table = cf.temper(model, x, loss=SUM, shunt=False).table()
    assert table["layer"].done == "rate"
    assert table["layer"].why == f"{FUSED}; not attenuated: its hidden state feeds no layer"
    assert_close(gradients(model, model(x)), wanted)
    (output,) = cf.temper(nn.LSTM(3, 4), x.float(), loss=SUM).table()
    assert (output.done, output.why) == ("rate", FUSED)


def test_a_cell_that_is_no_module_is_left_alone() -> None:
    class Bare(nn.Module):
        def __init__(self, gates: int, steps: int) -> None:
            super().__init__()
            self.gates, self.steps = gates, steps
            self.w, self.u = nn.Parameter(torch.randn(4 * gates, 3)), nn.Parameter(torch.randn(4 * gates, 4))

        def forward(self, x: Tensor) -> Tensor:
            first = x.new_zeros(len(x), 4)
            if self.gates == 4:
                hidden: Tensor = torch.lstm_cell(x, (first, first), self.w, self.u)[0]
                return hidden
            for _ in range(self.steps):
                first = torch.rnn_tanh_cell(x, first, self.w, self.u)
            return first

    x = torch.randn(6, 3)
    for bare, reason in (
        (Bare(4, 1), "the cell state is no output of its own"),
        (Bare(1, 2), "the output of '0' is not its own"),
    ):
        row = cf.temper(nn.Sequential(bare, nn.Linear(4, 2)), x, loss=SUM).table()["0"]
        assert row.why == f"not attenuated: {reason}"
        assert row.done == "rate"
