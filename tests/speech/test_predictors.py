"""Banks of predictors against one network at a time, in plain lines."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from counterflow.exceptions import InputError, ShapeError
from counterflow.speech import PredictorBank, path_error

BANKS = {
    "perceptron": {"n_networks": 5},
    "linear": {"n_networks": 5, "kind": "linear"},
    "hidden control": {"n_networks": 2, "states": 3},
    "one for all": {"n_networks": 1, "states": 6},
    "long window": {"n_networks": 3, "window": 4, "hidden": 1},
}


def bank_of(name: str) -> PredictorBank:
    torch.manual_seed(len(name))
    bank = PredictorBank(n_features=3, **{"hidden": 4, **BANKS[name]}).double()
    for parameter in bank.parameters():
        torch.nn.init.normal_(parameter)
    return bank


def predicted(bank: PredictorBank, x: np.ndarray) -> np.ndarray:
    """Each network by itself, each frame by itself."""
    values = {name: each.detach().numpy() for name, each in bank.named_parameters()}
    found = np.zeros((len(x), bank.n_predictors, x.shape[1]))
    for t, n, k in itertools.product(range(len(x)), range(bank.n_networks), range(bank.states)):
        seen = np.concatenate([x[max(t - back, 0)] for back in range(bank.window, 0, -1)])
        out = values["inner"][n] @ seen + values["inner_bias"][n]
        if bank.kind == "perceptron":
            for bit in range(values["control"].shape[2] if "control" in values else 0):
                out = out + values["control"][n, :, bit] * (1 if k >> bit & 1 else -1)
            out = values["outer"][n] @ np.tanh(out) + values["outer_bias"][n]
        found[t, n * bank.states + k] = out
    return found


@pytest.mark.parametrize("name", BANKS)
def test_all_together_are_as_each_alone(name: str) -> None:
    bank = bank_of(name)
    x = torch.randn(8, 3, dtype=torch.float64)
    wanted = predicted(bank, x.numpy())
    np.testing.assert_allclose(bank(x).detach().numpy(), wanted, atol=1e-12)
    distances = np.square(wanted - x.numpy()[:, None]).sum(-1)
    np.testing.assert_allclose(bank.costs(x).numpy(), distances, atol=1e-10)


@pytest.mark.parametrize("name", BANKS)
def test_the_aligned_error_and_its_gradient_are_those_of_the_whole_bank(name: str) -> None:
    bank = bank_of(name)
    x = torch.randn(12, 3, dtype=torch.float64)
    order = torch.randperm(bank.n_predictors)[:3]
    error, path = path_error((x[:, None] - bank(x)).square().sum(-1)[None, :, order])
    error.sum().backward()
    wanted = {key: each.grad.clone() for key, each in bank.named_parameters()}
    bank.zero_grad()
    short = bank.aligned_error(x, order[path[0]])
    short.sum().backward()
    torch.testing.assert_close(short.sum(), error[0])
    for key, each in bank.named_parameters():
        torch.testing.assert_close(each.grad, wanted[key], atol=1e-10, rtol=1e-10)


def test_a_long_utterance_is_cut_into_chunks_without_a_seam() -> None:
    bank = bank_of("perceptron")
    x = torch.randn(1100, 3, dtype=torch.float64)
    torch.testing.assert_close(bank.costs(x), (bank(x) - x[:, None]).square().sum(-1).detach())


def test_hidden_control_has_fewer_parameters() -> None:
    def size(bank: PredictorBank) -> int:
        return sum(each.numel() for each in bank.parameters())

    assert size(PredictorBank(40, 16, states=2)) < 0.55 * size(PredictorBank(80, 16))


def test_specialization_two_voices_find_their_predictors() -> None:
    """Trained through the alignment from a flat start, each of two predictors comes to own one of two regimes."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    utterances, changes = [], []
    for number in range(8):
        frames, change = [torch.tensor([1.0, 0.0])], 8 + number
        for t in range(1, 24):
            frames.append((turn if t < change else turn.T) @ frames[-1])
        noise = 0.02 * torch.randn(24, 2, generator=generator)
        utterances.append(torch.stack(frames) + noise)
        changes.append(change)
    torch.manual_seed(1)
    bank = PredictorBank(2, 2, window=1, kind="linear")
    optimizer = torch.optim.Adam(bank.parameters(), lr=0.05)
    for _ in range(60):
        for x in utterances:
            optimizer.zero_grad()
            error, _ = path_error((x[:, None] - bank(x)).square().sum(-1)[None])
            error.sum().backward()
            optimizer.step()
    for x, change in zip(utterances, changes, strict=True):
        _, path = path_error(bank.costs(x)[None])
        assert abs(int((path == 0).sum()) - change) <= 1


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(InputError, match="hidden must be a whole number from 1 on, got 0"):
        PredictorBank(2, 3, hidden=0)
    with pytest.raises(InputError, match="kind must be"):
        PredictorBank(2, 3, kind="cubic")
    with pytest.raises(InputError, match="states=2 needs kind='perceptron'"):
        PredictorBank(2, 3, kind="linear", states=2)
    bank = PredictorBank(2, 3)
    with pytest.raises(ShapeError, match=r"x has shape \(4, 2\); it needs \(time, 3\)"):
        bank(torch.randn(4, 2))
    with pytest.raises(ShapeError, match="a time of 1 or more"):
        bank.costs(torch.randn(0, 3))
    with pytest.raises(ShapeError, match="predictors must be whole numbers"):
        bank.aligned_error(torch.randn(4, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="predictors must lie between 0 and 1"):
        bank.aligned_error(torch.randn(2, 3), torch.tensor([0, 2]))
    assert bank.costs(torch.randn(1, 3)).shape == (1, 2)
