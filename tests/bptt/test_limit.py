"""The recurrent layers of a model within a budget: what comes out is what the model gives by itself."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import counterflow as cf
from counterflow.bptt import limit
from counterflow.exceptions import InputError, UnsupportedError

from .examples import Gradients, assert_close, gradients, learned, weighted

BATCH, TIME, WIDTH = 3, 23, 4


class Reader(nn.Module):
    """Recurrent layers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, WIDTH)
        self.lstm = nn.LSTM(WIDTH, 5, num_layers=2, batch_first=True)
        self.projected = nn.LSTM(5, 6, proj_size=3, batch_first=True)
        self.gru = nn.GRU(3, 6, batch_first=True)
        self.rnn = nn.RNN(6, 4, nonlinearity="relu")
        self.both = nn.GRU(4, 2, bidirectional=True)
        self.cell = nn.GRUCell(4, 3)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        y, (h, c) = self.lstm(self.embedding(tokens))
        y, _ = self.projected(y)
        y, g = self.gru(y)
        y, r = self.rnn(y.transpose(0, 1))
        y, _ = self.both(y)
        return y, h, c, g, r, self.cell(y[-1])


def reader() -> Reader:
    torch.manual_seed(0)
    return Reader().double()


def results(model: nn.Module, *args: Any) -> tuple[tuple[Tensor, ...], Gradients]:
    outputs = model(*args)
    return outputs, gradients(weighted(outputs), list(model.parameters()))


@pytest.mark.parametrize(("budget", "chunk"), [("40KiB", "auto"), ("1MiB", "auto"), ("64KiB", 1), ("80KiB", 5)])
def test_the_model_gives_what_it_gave(budget: str, chunk: Any) -> None:
    model, tokens = reader(), torch.randint(9, (BATCH, TIME))
    outputs, expected = results(model, tokens)
    with limit(model, budget, chunk=chunk) as h:
        mine, got = results(model, tokens)
        assert h.model is model
        with torch.no_grad():
            for y, known in zip(model(tokens), outputs, strict=True):
                assert torch.equal(y, known)
    assert_close(list(mine), list(outputs))
    assert_close(got, expected)
    assert "forward" not in vars(model.lstm)


def test_the_table_says_what_was_done_and_what_was_not() -> None:
    model = reader()
    h = limit(model, "64KiB")
    table = h.table()
    assert [(row.layer, row.done) for row in table] == [
        ("lstm", "limited"),
        ("projected", "limited"),
        ("gru", "limited"),
        ("rnn", "limited"),
        ("both", "left alone"),
        ("cell", "left alone"),
    ]
    assert "bidirectional" in table["both"].why
    assert "bptt.unroll" in table["cell"].why
    assert table["lstm"].values["chunk"] is None
    results(model, torch.randint(9, (BATCH, TIME)))
    values = h.table()["lstm"].values
    assert isinstance(values["chunk"], int)
    assert isinstance(values["forwards a step"], float)
    # Shares follow the sizes of hidden states, 20 of 20 + 12 + 6 + 4, and leave nothing over.
    assert cf.bptt.parse_bytes(str(values["budget"])) == pytest.approx(65536 * 20 / 42, rel=0.01)


def test_states_packed_sequences_and_single_examples() -> None:
    layer = nn.GRU(WIDTH, 5).double()
    x, state, lengths = learned(TIME, BATCH, WIDTH), learned(1, BATCH, 5), torch.tensor([TIME, 4, 9])

    def run() -> list[tuple[tuple[Any, ...], Gradients]]:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        found = []
        for args in ((x, state), (packed, state), (packed,), (x[:, 0],), (x[:, 0], state[:, 0])):
            y, end = layer(*args)
            y = y.data if isinstance(y, PackedSequence) else y
            found.append(((y, end), gradients(weighted(y, end), [x, state, *layer.parameters()], retain_graph=True)))
        return found

    wanted = run()
    with limit(layer, "8KiB", chunk=4):
        for (mine, got), (outputs, expected) in zip(run(), wanted, strict=True):
            assert_close(list(mine), list(outputs))
            assert_close(got, expected)


def test_keys_parameters_and_types_stay() -> None:
    model = reader()
    keys, parameters, kinds = list(model.state_dict()), list(model.parameters()), [type(m) for m in model.modules()]
    limit(model, "64KiB")
    assert list(model.state_dict()) == keys
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    assert [type(m) for m in model.modules()] == kinds


def test_a_copy_and_a_pickled_model_are_limited_by_themselves() -> None:
    model, tokens = reader(), torch.randint(9, (BATCH, TIME))
    h = limit(model, "64KiB")
    _, expected = results(model, tokens)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            twin.lstm.weight_hh_l0.mul_(2)
        _, got = results(twin, tokens)
        assert not torch.equal(got[1], expected[1]), "the copy runs the original's weights"
    h.undo()
    twin = copy.deepcopy(model)
    assert "forward" not in vars(twin.lstm)


@pytest.mark.parametrize("budget", [1, "2KiB"])  # of one byte, most layers would have none
@pytest.mark.parametrize("strategy", [None, "internal", "mixed", "chen-recursive"])
def test_a_budget_that_is_too_small_names_the_layer_and_the_smallest(budget: Any, strategy: Any) -> None:
    model, tokens = reader(), torch.randint(9, (BATCH, TIME))

    def refusal(budget: str | int) -> str:
        with limit(model, budget, strategy=strategy), pytest.raises(InputError) as caught:
            model(tokens)
        return str(caught.value)

    asked = re.search(r"^budget=(.*) is too small: layer 'lstm' \(LSTM\) .* at least (\d+) bytes", refusal(budget))
    assert asked is not None
    assert asked[1] == repr(budget)
    enough = int(asked[2])
    assert "layer 'lstm'" in refusal(enough - 1)
    with limit(model.lstm, enough * 20 // 42, strategy=strategy):  # what the layer's share of it is
        model.lstm(torch.randn(BATCH, TIME, WIDTH).double())


def test_under_autocast_a_layer_is_limited_as_often_as_it_is_called() -> None:
    layer, x = nn.GRU(WIDTH, WIDTH, batch_first=True), torch.randn(BATCH, TIME, WIDTH)

    def twice() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(layer(x)[0])[0]
        return gradients(y.float().square().sum(), list(layer.parameters()))

    expected = twice()
    for chunk in ("auto", 4):
        with limit(layer, "8KiB", chunk=chunk):  # type: ignore[arg-type]
            for mine, theirs in zip(twice(), expected, strict=True):
                assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), 0) > 0.999


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")  # of PyTorch's own layer
def test_an_exported_model_is_the_bare_model() -> None:
    layer, x = nn.GRU(WIDTH, 5), torch.randn(TIME, BATCH, WIDTH)
    expected = layer(x)[0]
    limit(layer, "64KiB")
    exported = torch.export.export(layer, (x,)).module()
    assert torch.allclose(exported(x)[0], expected, atol=1e-6)


def test_what_cannot_be_limited_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no recurrent layer"):
        limit(nn.Linear(2, 2), "1MiB")
    with pytest.raises(UnsupportedError, match="bidirectional"):
        limit(nn.LSTM(2, 2, bidirectional=True), "1MiB")
    with pytest.raises(InputError, match="budget must be"):
        limit(nn.LSTM(2, 2), "much")
    with pytest.raises(InputError, match="chunk must be"):
        limit(nn.LSTM(2, 2), "1MiB", chunk=0)
    with pytest.raises(InputError, match="strategy must be one of hidden"):
        limit(nn.LSTM(2, 2), "1MiB", strategy="best")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        limit(3, "1MiB")  # type: ignore[arg-type]
    layer = nn.LSTM(2, 2)
    limit(layer, "1MiB")
    with pytest.raises(UnsupportedError, match="limited already"):
        limit(layer, "2MiB")

    class Other(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            return super().forward(2 * input, hx)

    with pytest.raises(UnsupportedError, match="Other has a forward of its own"):
        limit(Other(2, 2), "1MiB")
