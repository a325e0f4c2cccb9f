"""Delta-bar-delta against Jacobs' rule, weight by weight."""

import copy

import numpy as np
import pytest
import torch

import counterflow as cf
from counterflow.exceptions import InputError, UnsupportedError

DEFAULTS = {
    "lr": 0.02,
    "momentum": 0.9,
    "increase": 0.1,
    "decrease": 0.9,
    "trace_decay": 0.0,
    "growth": "additive",
    "compare": "trace",
    "gain_on": "gradient",
    "turned": 1.0,
    "min_gain": 0.0,
    "max_gain": None,
    "weight_decay": 0.0,
}


def jacobs(w, gradient, steps, s):
    """One weight at a time, as the paper writes it; ``s`` holds the settings."""
    w = [float(x) for x in w]
    gain, trace, velocity = [1.0] * len(w), [0.0] * len(w), [0.0] * len(w)
    for _ in range(steps):
        delta = gradient(np.array(w))
        for i in range(len(w)):
            d = delta[i] + s["weight_decay"] * w[i]
            past = trace[i] if s["compare"] == "trace" else -velocity[i]
            if past * d > 0:
                gain[i] = gain[i] + s["increase"] if s["growth"] == "additive" else gain[i] * (1 + s["increase"])
            elif past * d < 0:
                gain[i] *= s["decrease"]
                velocity[i] *= s["turned"]
            gain[i] = min(max(gain[i], s["min_gain"]), s["max_gain"] or float("inf"))
            trace[i] = (1 - s["trace_decay"]) * d + s["trace_decay"] * trace[i]
            if s["gain_on"] == "step":
                velocity[i] = s["momentum"] * velocity[i] - s["lr"] * d
                w[i] += gain[i] * velocity[i]
            else:
                velocity[i] = s["momentum"] * velocity[i] - s["lr"] * gain[i] * d
                w[i] += velocity[i]
    return np.array(w), np.array(gain)


SETTINGS = [
    {},
    {"momentum": 0.0, "trace_decay": 0.7},
    {"growth": "multiplicative", "max_gain": 1.5},
    {"weight_decay": 0.3, "increase": 0.5, "decrease": 0.5},
    {"compare": "step", "gain_on": "step", "growth": "multiplicative", "turned": 0.5},
    {"compare": "step", "min_gain": 0.95, "max_gain": 1.2, "turned": 0.0},
]


@pytest.mark.parametrize("changed", SETTINGS)
def test_equals_jacobs_rule(changed):
    settings = DEFAULTS | changed
    curvature = np.array([1.0, 10.0, 0.1, 3.0])
    start = np.array([1.0, -1.0, 2.0, 0.0])  # the last has no gradient: its gain must stay
    expected, gain = jacobs(start, lambda w: curvature * w, 30, settings)
    parts = [torch.nn.Parameter(torch.tensor(start[:2])), torch.nn.Parameter(torch.tensor(start[2:]))]
    optimizer = cf.DeltaBarDelta(parts, **settings)
    for _ in range(30):
        optimizer.zero_grad()
        w = torch.cat(parts)
        (0.5 * (torch.tensor(curvature) * w * w).sum()).backward()
        optimizer.step()
    np.testing.assert_allclose(torch.cat(parts).detach().numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(torch.cat([optimizer.state[p]["gain"] for p in parts]).numpy(), gain, rtol=1e-12)


def test_maximize_goes_the_other_way():
    up, down = (torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    rising, falling = cf.DeltaBarDelta([up], lr=0.1, maximize=True), cf.DeltaBarDelta([down], lr=0.1)
    for _ in range(3):
        up.grad, down.grad = torch.tensor([1.0]), torch.tensor([1.0])
        rising.step()
        falling.step()
    assert up.item() - 1 == pytest.approx(1 - down.item())
    assert up.item() > 1


def test_resumes_from_its_state_dict():
    def run(w, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (w.square() * torch.tensor([1.0, 5.0])).sum().backward()
            optimizer.step()

    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = cf.DeltaBarDelta([w], lr=0.01)
    run(w, optimizer, 7)
    again = torch.nn.Parameter(w.detach().clone())
    resumed = cf.DeltaBarDelta([again], lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(w, optimizer, 7)
    run(again, resumed, 7)
    assert torch.equal(w, again)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"lr": torch.ones(2)},
        {"lr": True},
        {"momentum": 1.0},
        {"increase": -0.1},
        {"decrease": 0.0},
        {"trace_decay": 1.0},
        {"weight_decay": -1.0},
        {"growth": "fast"},
        {"max_gain": 0.0},
        {"max_gain": "2"},
        {"max_gain": 0.5, "min_gain": 0.6},
        {"compare": "sign"},
        {"gain_on": "weights"},
        {"turned": 1.5},
        {"min_gain": -1.0},
    ],
)
def test_refuses_settings_out_of_range(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        cf.DeltaBarDelta([torch.nn.Parameter(torch.zeros(1))], **wrong)
    with pytest.raises(InputError, match=next(iter(wrong))):
        cf.DeltaBarDelta([{"params": [torch.nn.Parameter(torch.zeros(1))], **wrong}])


@pytest.mark.parametrize("compare", ["trace", "step"])
def test_gains_follow_gradients_whose_product_is_too_small_for_float32(compare):
    w = torch.nn.Parameter(torch.zeros(2))
    optimizer = cf.DeltaBarDelta([w], lr=0.1, compare=compare)
    for sign in (1.0, -1.0):
        w.grad = torch.tensor([1e-30, sign * 1e-30])
        optimizer.step()
    torch.testing.assert_close(optimizer.state[w]["gain"], torch.tensor([1.1, 0.9]))


def test_refuses_sparse_gradients():
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = cf.DeltaBarDelta(table.parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(UnsupportedError, match="sparse=False"):
        optimizer.step()
