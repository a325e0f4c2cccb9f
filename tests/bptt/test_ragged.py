"""Rows of different lengths: a row that has ended keeps its state, puts out zeros and gets no gradient any more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_leaves

from counterflow.bptt import plan, unroll
from counterflow.exceptions import InputError, ShapeError

from .examples import (
    BATCH,
    CASES,
    TIME,
    WIDTH,
    Case,
    assert_close,
    call,
    gradients,
    learned,
    wanted,
    weighted,
)

LENGTHS = torch.tensor([4, TIME, 1])


def row_by_row(core: nn.Module, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Every row by itself, for as long as it is."""
    outputs, ends = [], []
    for row, length in enumerate(LENGTHS.tolist()):
        end, ys = state[row : row + 1], []
        for t in range(length):
            y, end = call(core, x[row : row + 1, t], end)
            ys.append(y)
        outputs.append(torch.cat([torch.stack(ys, 1), x.new_zeros(1, TIME - length, ys[0].shape[-1])], 1))
        ends.append(end)
    return torch.cat(outputs), torch.cat(ends)


@pytest.mark.parametrize("slots", [1, 4, TIME])
def test_a_cell_ends_with_its_rows(slots: int) -> None:
    cell, x, state = CASES[1].make()
    leaves = wanted(cell, x, state)
    outputs, ends = row_by_row(cell, x, state)
    expected = gradients(weighted(outputs, ends), leaves)
    mine, end = unroll(cell, x, state, plan=plan(TIME, slots, "hidden"), lengths=LENGTHS)
    assert_close([mine, end], [outputs, ends])
    assert_close(gradients(weighted(mine, end), leaves), expected)


@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=lambda case: case.name)
def test_pytrees_end_with_their_rows(case: Case) -> None:
    core, x, state = case.make()
    mine, end = unroll(core, x, state, slots=5, lengths=LENGTHS)
    short, start = unroll(core, x[:1, :4], _row(state, 0), slots=5)
    for got, known in zip(tree_leaves((mine, end)), tree_leaves((short, start)), strict=True):
        known = known[0]
        assert torch.allclose(got[0][: known.shape[0]] if known.dim() == 2 else got[0], known)
        assert known.dim() != 2 or not got[0][4:].any()
    # What lies behind a row's end has no say, even if it is not finite.
    spoiled = x.detach().clone()
    spoiled[0, 4:], spoiled[2, 1:] = torch.nan, torch.inf
    again, _ = unroll(core, spoiled.requires_grad_(), state, slots=5, lengths=LENGTHS)
    for got, known in zip(tree_leaves(again), tree_leaves(mine), strict=True):
        assert torch.equal(got, known)


def _row(tree: Any, row: int) -> Any:
    return torch.utils._pytree.tree_map(lambda leaf: leaf[row : row + 1], tree)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, TIME])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_fused_layers_end_with_their_rows(kind: type[nn.RNNBase], chunk: int, batch_first: bool) -> None:
    layer = kind(WIDTH, 5, num_layers=2, batch_first=batch_first).double()
    x = learned(*((BATCH, TIME) if batch_first else (TIME, BATCH)), WIDTH)
    leaves = wanted(layer, x)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=batch_first, enforce_sorted=False)
    outputs, ends = layer(packed)
    outputs, _ = pad_packed_sequence(outputs, batch_first=batch_first)
    expected = gradients(weighted(outputs, ends), leaves)
    mine, end = unroll(layer, x, slots=2, strategy="hidden", chunk=chunk, lengths=LENGTHS)
    assert_close([mine, *tree_leaves(end)], [outputs, *tree_leaves(ends)])
    assert_close(gradients(weighted(mine, end), leaves), expected)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.LSTMCell])
def test_packed_sequences_go_in_and_come_out(kind: type[nn.Module], enforce_sorted: bool) -> None:
    layer = nn.LSTM(WIDTH, 5).double()
    core: nn.Module = layer
    if kind is nn.LSTMCell:
        core = nn.LSTMCell(WIDTH, 5).double()
        core.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    lengths = LENGTHS.sort(descending=True).values if enforce_sorted else LENGTHS
    x = learned(BATCH, TIME, WIDTH)

    def pack() -> PackedSequence:
        return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=enforce_sorted)

    outputs, (h, c) = layer(pack())
    expected = gradients(weighted(outputs.data, h, c), wanted(layer, x))
    mine, end = unroll(core, pack(), slots=3)
    assert isinstance(mine, PackedSequence)
    assert torch.equal(mine.batch_sizes, outputs.batch_sizes)
    if not enforce_sorted:
        assert torch.equal(mine.sorted_indices, outputs.sorted_indices)
        assert torch.equal(mine.unsorted_indices, outputs.unsorted_indices)
    ends = [part.view(1, BATCH, 5) for part in end]
    assert_close([mine.data, *ends], [outputs.data, h, c])
    assert_close(gradients(weighted(mine.data, *ends), wanted(core, x)), expected)


def test_a_chunk_that_was_chosen_for_short_rows_holds_long_ones() -> None:
    layer, x = nn.LSTM(8, 32, batch_first=True), torch.randn(64, 128, 8)
    for length in (2, 128):
        y, _ = unroll(layer, x, budget="2MiB", lengths=torch.full((64,), length))
        y.sum().backward()


def test_rows_of_no_length_keep_their_state() -> None:
    lengths = torch.tensor([0, 3, 0])
    cell, x, state = CASES[1].make()
    y, end = unroll(cell, x, state, slots=3, lengths=lengths)
    assert torch.equal(end[0], state[0])
    assert not y[0].any()
    layer = nn.GRU(WIDTH, 5, batch_first=True).double()
    y, end = unroll(layer, x, state[None], slots=3, lengths=lengths, chunk=2)
    assert torch.equal(end[0, 0], state[0])
    assert not y[0].any()
    assert y[1, :3].all()


def test_dropout_and_ragged_rows_together() -> None:
    core, x, state = CASES[5].make()
    leaves = wanted(core, x, state)
    found = []
    for slots in (TIME, 2):
        torch.manual_seed(4)
        chosen = plan(TIME, slots, "hidden")
        found.append(gradients(weighted(*unroll(core, x, state, plan=chosen, lengths=LENGTHS)), leaves))
    assert_close(found[0], found[1], 1e-14)


@pytest.mark.parametrize(
    ("error", "match", "lengths"),
    [
        (ShapeError, "one entry for each of 3 rows", [1, 2]),
        (ShapeError, r"one entry for each of 3 rows, got shape \(0,\)", []),
        (InputError, f"from 0 to {TIME}", [1, 2, TIME + 1]),
        (InputError, f"from 0 to {TIME}", [1, -2, 3]),
        (InputError, "must be integers", [1.0, 2.0, 3.0]),
        (InputError, "must be integers, one for each row, got 'all'", "all"),
    ],
)
def test_lengths_that_cannot_be_used(error: type[Exception], match: str, lengths: Any) -> None:
    cell, x, state = CASES[1].make()
    with pytest.raises(error, match=match):
        unroll(cell, x, state, slots=2, lengths=lengths)


def test_lengths_need_a_batch_that_comes_first() -> None:
    with pytest.raises(ShapeError, match="dimension for the batch"):
        unroll(nn.GRU(WIDTH, 5), torch.randn(TIME, WIDTH), slots=2, lengths=[3])
    state = torch.zeros(2, BATCH, WIDTH, requires_grad=True)
    packed = pack_padded_sequence(torch.randn(BATCH, TIME, WIDTH), LENGTHS, True, enforce_sorted=False)
    with pytest.raises(ShapeError, match="first dimension"):
        unroll(lambda x, s: (x, s + x), torch.randn(BATCH, TIME, WIDTH), state, slots=2, lengths=LENGTHS)
    with pytest.raises(InputError, match="known from a PackedSequence"):
        unroll(nn.GRU(WIDTH, 5), packed, slots=2, lengths=LENGTHS)
