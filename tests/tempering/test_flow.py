"""What a value feeds where a loop unrolls a cell: the steps of a sequence, its own next step, another layer's state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import counterflow as cf

from .tables import column

SUM = "half_squared_error_sum"


def test_a_sequence_feeds_every_step_once_and_a_context_all_of_them() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word, self.context = nn.Linear(3, 3), nn.Linear(3, 3)
            self.lower, self.upper, self.head = nn.LSTMCell(6, 4), nn.RNNCell(4, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            words, context = torch.tanh(self.word(x)), torch.tanh(self.context(x[:, 0]))
            low, high = None, None
            for step in range(x.shape[1]):
                low = self.lower(torch.cat([words[:, step], context], -1), low)
                high = self.upper(low[0], high)
            y: Tensor = self.head(high)
            return y

    table = cf.temper(Reader(), torch.randn(6, 3, 3), loss=SUM).table()
    assert column(table, "fan-out") == {
        "word": 16,  # the gates of its own step
        "context": 3 * 16,  # those of all three
        "lower": 16 + 5,  # the gates of the next step, and the units above
        "upper": 5,  # the units of the next step; the last state feeds two
        "head": 0,
    }


@pytest.mark.parametrize("way", ["select", "slice", "unbind", "split", "chunk"])
def test_ways_to_take_a_sequence_apart(way: str) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.word, self.cell = nn.Linear(3, 3), nn.RNNCell(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            words = self.word(x)
            taken = {
                "select": lambda: [words[:, i] for i in range(4)],
                "slice": lambda: [words[:, i : i + 1].squeeze(1) for i in range(4)],
                "unbind": lambda: words.unbind(1),
                "split": lambda: [w.squeeze(1) for w in words.split(1, 1)],
                "chunk": lambda: [w.squeeze(1) for w in words.chunk(4, 1)],
            }[way]()
            state = None
            for word in [*taken, words[:, -1]]:  # the last one twice
                state = self.cell(word, state)
            return state  # type: ignore[return-value]

    table = cf.temper(Reader(), torch.randn(6, 4, 3), loss=SUM).table()
    assert column(table, "fan-out")["word"] == 2 * 4


def test_an_encoder_and_a_decoder() -> None:
    class Translator(nn.Module):
        def __init__(self, layer: type[nn.RNNBase]) -> None:
            super().__init__()
            self.encoder, self.decoder = layer(3, 4), layer(2, 4)  # type: ignore[call-arg]
            self.head = nn.Linear(4, 2)

        def forward(self, source: Tensor, target: Tensor) -> Tensor:
            y: Tensor = self.head(self.decoder(target, self.encoder(source)[1])[0])
            return y

    sample = torch.randn(5, 6, 3), torch.randn(7, 6, 2)
    lstm = cf.temper(Translator(nn.LSTM), sample, loss=SUM).table()
    assert column(lstm, "fan-out") == {"encoder": 16, "decoder": 2, "head": 0}
    gru = cf.temper(Translator(nn.GRU), sample, loss=SUM).table()
    assert column(gru, "fan-out") == {"encoder": 12 + 1, "decoder": 2, "head": 0}


def test_a_loop_that_feeds_itself() -> None:
    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(2, 4, bias=False), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            state, outputs = None, []
            for _ in range(3):
                state = self.cell(x, state)
                x = torch.tanh(self.head(state))
                outputs.append(x)
            return torch.stack(outputs, 1)

    table = cf.temper(Generator(), 0.1 * torch.randn(6, 2), loss=SUM).table()
    # The first input is external and small, the others are bounded by tanh: the greater of the two powers.
    assert column(table, "fan-in")["cell"] == 2 + 4
    # State: the next step's gates, itself past them, and the head; the head: the next step's gates and the output.
    assert column(table, "fan-out") == {"cell": 3 * 4 + 1 + 2, "head": 12}
    assert column(table, "attenuation") == pytest.approx({"cell": 1 / math.sqrt(15), "head": 1 / math.sqrt(13)})
