"""Controllers with a loudspeaker and a path in the loop, against plain loops that follow their equations."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.exceptions import InputError
from counterflow.noise_control import (
    LMS,
    NLMS,
    RLS,
    Controller,
    CubicDistortion,
    FilteredX,
    FiniteResponse,
    Perceptron,
    Volterra,
    noise_reduction,
)

TAPS = 4
SPEAKER = CubicDistortion(0.05)
PATH = [0.0, 0.7, 0.2]


def task(samples: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.uniform(-1, 1, samples)
    return x, np.convolve(x, [0.0, 0.0, 0.8, 0.4, 0.1])[:samples]


def lines(x: np.ndarray) -> np.ndarray:
    """Row t is x_{t-TAPS+1} ... x_t."""
    padded = np.concatenate([np.zeros(TAPS - 1), x])
    return np.array([padded[t : t + TAPS] for t in range(len(x))])


def through(sounds: list[float], path: list[float]) -> float:
    return sum(c * s for c, s in zip(path, reversed(sounds), strict=False))


KINDS: dict[str, Callable[..., Controller]] = {
    "lms": lambda **loop: LMS(TAPS, step=0.05, **loop),
    "nlms": lambda **loop: NLMS(TAPS, step=0.3, **loop),
    "volterra": lambda **loop: Volterra(TAPS, memory=2, step=0.3, **loop),
    "perceptron": lambda **loop: Perceptron(TAPS, hidden=3, step=0.1, **loop),
}


@pytest.mark.parametrize("slope", ["known", "one"])
@pytest.mark.parametrize("path", [[1.0], PATH], ids=["speaker", "path"])
@pytest.mark.parametrize("kind", ["lms", "nlms", "volterra"])
def test_linear_updates_go_back_through_the_loop(kind: str, path: list[float], slope: Any) -> None:
    x, d = task()
    rows = lines(x)
    if kind == "volterra":
        pairs, triples = (list(itertools.combinations_with_replacement((2, 3), n)) for n in (2, 3))
        products = [[np.prod(row[list(each)]) for each in (*pairs, *triples)] for row in rows]
        rows = np.hstack([rows, products])
        groups = [slice(0, 4), slice(4, 7), slice(7, 11)]
    else:
        groups = [slice(0, 4)]
    delay, w, outputs = len(path) - 1, np.zeros(rows.shape[1]), []
    sounds: list[float] = []
    slopes, errors = [0.0] * delay, [0.0] * delay
    means = np.zeros(len(groups))
    early = [np.zeros(rows.shape[1])] * delay
    for t in range(len(x)):
        drive = w @ rows[t]
        sounds.append(drive - 0.05 * drive**3)
        slopes.append(1 - 0.15 * drive**2 if slope == "known" else 1.0)
        outputs.append(through(sounds, path))
        errors.append(d[t] - outputs[-1])
        row = [*early, *rows][t]
        back = slopes[t] * sum(c * errors[t + k] for k, c in enumerate(path))
        if kind == "lms":
            w = w + 0.05 * back * row
            continue
        powers = np.array([1e-3 ** (g + 1) + row[part] @ row[part] for g, part in enumerate(groups)])
        means += (powers - means) / (t + 1)
        common = back * 0.3 / ((powers / means).sum() * np.dot(path, path))
        for g, part in enumerate(groups):
            w[part] += common / means[g] * row[part]
    controller = KINDS[kind](speaker=SPEAKER, slope=slope, secondary=None if path == [1.0] else path)
    y, _ = controller.run(x, d)
    np.testing.assert_allclose(y, outputs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("slope", ["known", "one"])
@pytest.mark.parametrize("path", [[1.0], PATH], ids=["speaker", "path"])
def test_the_perceptrons_error_goes_back_through_the_loop_as_autograds(path: list[float], slope: Any) -> None:
    x, d = task(60)
    controller = KINDS["perceptron"](speaker=SPEAKER, slope=slope, secondary=path)
    state = controller.state()
    w, a, v, b = (
        torch.tensor(state[name], requires_grad=True)
        for name in ("hidden_weights", "hidden_biases", "output_weights", "output_bias")
    )
    delay, outputs, sounds, errors = len(path) - 1, [], [], [0.0] * (len(path) - 1)
    gradients: list[Any] = [[torch.zeros_like(p) for p in (w, a, v, b)]] * delay
    for t, row in enumerate(lines(x)):
        drive = b[0] + v @ torch.tanh(a + w @ torch.from_numpy(row))
        sound = drive - 0.05 * drive**3
        sounds.append(sound.item())
        outputs.append(through(sounds, path))
        errors.append(d[t] - outputs[-1])
        h = torch.tanh(a + w @ torch.from_numpy(row)).detach()
        s = 1 - 0.15 * drive.item() ** 2 if slope == "known" else 1.0
        gradients.append((torch.from_numpy(row), h, s))
        back = sum(c * errors[t + k] for k, c in enumerate(path))
        if t < delay:
            continue
        # The activations are of the time of the sound, the weights those of today.
        then, h, s = gradients[t]
        with torch.no_grad():
            delta = 0.1 * back * s * v * (1 - h**2)
            b += 0.1 * back * s
            v += 0.1 * back * s * h
            a += delta
            w += torch.outer(delta, then)
    y, _ = controller.run(x, d)
    np.testing.assert_allclose(y, outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("slope", ["known", "one"])
def test_recursive_least_squares_scales_its_line_by_the_slope(slope: Any) -> None:
    x, d = task()
    w, r, outputs = np.zeros(TAPS), np.eye(TAPS) / 0.1, []
    for row, wanted in zip(lines(x), d, strict=True):
        drive = w @ row
        outputs.append(drive - 0.05 * drive**3)
        scaled = row * (1 - 0.15 * drive**2 if slope == "known" else 1.0)
        gain = r @ scaled / (0.99 + scaled @ r @ scaled)
        w = w + (wanted - outputs[-1]) * gain
        r = (r - np.outer(gain, scaled @ r)) / 0.99
    y, _ = RLS(TAPS, forgetting=0.99, speaker=SPEAKER, slope=slope).run(x, d)
    np.testing.assert_allclose(y, outputs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("slope", "block"), [("known", 1), ("one", 1), ("known", 7), ("one", 7)])
def test_filtered_x_follows_its_equation(slope: Any, block: int) -> None:
    x, d = task()
    w, gradient, outputs = np.zeros(TAPS), np.zeros(TAPS), []
    sounds: list[float] = []
    filtered: list[np.ndarray] = []
    for t, row in enumerate(lines(x)):
        drive = w @ row
        sounds.append(drive - 0.05 * drive**3)
        filtered.append(row * (1 - 0.15 * drive**2 if slope == "known" else 1.0))
        outputs.append(through(sounds, PATH))
        r = sum(c * f for c, f in zip(PATH, reversed(filtered), strict=False))
        gradient = gradient + 0.2 * (d[t] - outputs[-1]) * r / (1e-3 + r @ r)
        if (t + 1) % block == 0:
            w, gradient = w + gradient, np.zeros(TAPS)
    y, _ = FilteredX(TAPS, step=0.2, secondary=PATH, block=block, speaker=SPEAKER, slope=slope).run(x, d)
    np.testing.assert_allclose(y, outputs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("block", [3, 4, 9])
def test_blocks_in_the_frequency_domain_are_those_in_time(block: int) -> None:
    x, d = task(300)
    both = [
        FilteredX(TAPS, step=0.05, secondary=PATH, block=block, domain=domain, normalized=False).run(x, d)[0]
        for domain in ("time", "frequency")
    ]
    np.testing.assert_allclose(*both, rtol=0, atol=1e-12)


def test_normalizing_every_frequency_learns_a_colored_noise_faster() -> None:
    white = np.random.default_rng(0).standard_normal(12000)
    x = np.zeros(len(white))
    for t in range(1, len(white)):  # 40 dB between its strongest and its weakest frequency
        x[t] = 0.98 * x[t - 1] + 0.1 * white[t]
    d = FiniteResponse([0.0, 0.3, -0.5, 0.4, 0.1]).run(x)
    found = {}
    for domain in ("time", "frequency"):
        steps = [0.01, 0.03, 0.1, 0.3, 1.0]
        reductions = []
        for step in steps:
            scaled = step / 16 if domain == "time" else step
            _, e = FilteredX(16, scaled, 1e-6, secondary=PATH, block=16, domain=domain).run(x, d)  # type: ignore[arg-type]
            reductions.append(noise_reduction(d[3000:6000], e[3000:6000]))
        found[domain] = max(reductions)
    assert found["frequency"] > found["time"] + 3


LOOPED: dict[str, Callable[[], Controller]] = {
    **{kind: lambda make=make: make(speaker=SPEAKER, secondary=PATH) for kind, make in KINDS.items()},
    "rls": lambda: RLS(TAPS, speaker=SPEAKER),
    "open volterra": lambda: KINDS["volterra"](),
    "filtered": lambda: FilteredX(TAPS, secondary=PATH, speaker=SPEAKER),
    "block": lambda: FilteredX(TAPS, secondary=PATH, block=6, speaker=SPEAKER),
    "frequency": lambda: FilteredX(TAPS, secondary=PATH, domain="frequency", speaker=SPEAKER, slope="one"),
}


@pytest.mark.parametrize("kind", LOOPED)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 25), max_size=8))
def test_blocks_of_any_size_and_a_saved_state_give_what_one_block_gives(kind: str, sizes: list[int]) -> None:
    x, d = task()
    cuts = np.minimum(np.cumsum(sizes), len(x)).astype(int)
    controller, found = LOOPED[kind](), []
    for both in zip(np.split(x, cuts), np.split(d, cuts), strict=True):
        other = LOOPED[kind]()
        other.restore(controller.state())
        controller = other
        found.append(controller.run(*both)[0])
    np.testing.assert_array_equal(np.concatenate(found), LOOPED[kind]().run(x, d)[0])


@pytest.mark.parametrize("kind", ["lms", "nlms", "volterra", "perceptron", "filtered", "frequency"])
def test_they_cancel_behind_a_path(kind: str) -> None:
    x, d = task(20000)
    controller = LOOPED[kind]()
    _, e = controller.run(x, d)
    assert noise_reduction(d[-2000:], e[-2000:]) > 12


def test_the_volterra_filter_learns_a_distortion_that_no_linear_filter_does() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 30000)
    u = FiniteResponse("H1").run(x)
    d = CubicDistortion.fit(u, 6.0)(u)
    reductions = []
    for controller in (NLMS(TAPS, step=0.1), Volterra(TAPS, memory=2, step=0.5)):
        _, e = controller.run(x, d)
        reductions.append(noise_reduction(d[-3000:], e[-3000:]))
    assert reductions[0] < 20
    assert reductions[1] > 60


def test_a_step_that_diverges_in_the_loop_is_reported() -> None:
    x, d = task(2000)
    strong = CubicDistortion(2.0)
    for make in (
        lambda: LMS(TAPS, step=5.0, speaker=strong),
        lambda: FilteredX(TAPS, step=9.0, secondary=PATH),
        lambda: Perceptron(TAPS, step=20.0, speaker=strong),
    ):
        with pytest.raises(InputError, match="diverged at sample"):
            make().run(x, d)


def test_what_cannot_be_used_is_said_in_one_line() -> None:
    for call, words in {
        lambda: LMS(TAPS, slope="none"): "slope is 'none'; give 'known' or 'one'",  # type: ignore[arg-type]
        lambda: LMS(TAPS, secondary=[0.0]): "secondary is silent",
        lambda: LMS(TAPS, secondary=[]): "secondary is silent",
        lambda: FilteredX(TAPS, model=[0.0]): "model is silent",
        lambda: FilteredX(TAPS, domain="space"): "domain is 'space'; give 'time' or 'frequency'",  # type: ignore[arg-type]
        lambda: FilteredX(TAPS, block=0): "block is 0; give a whole number >= 1",
        lambda: FilteredX(TAPS, domain="frequency", speaker=SPEAKER): "slope is 'known' in the frequency domain",
        lambda: Volterra(TAPS, memory=5): "memory is 5, and the delay line has 4 taps",
    }.items():
        with pytest.raises(InputError, match=words):
            call()
