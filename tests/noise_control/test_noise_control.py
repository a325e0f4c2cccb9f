"""Controllers against plain loops that follow their equations, and the acoustics against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.exceptions import InputError, ShapeError
from counterflow.noise_control import (
    CHANNELS,
    LMS,
    NLMS,
    RLS,
    Controller,
    CubicDistortion,
    FiniteResponse,
    Perceptron,
    noise_reduction,
    quantize,
)

TAPS = 5
KINDS = {
    "lms": lambda: LMS(TAPS, step=0.05),
    "nlms": lambda: NLMS(TAPS, step=0.5),
    "rls": lambda: RLS(TAPS, forgetting=0.99),
    "perceptron": lambda: Perceptron(TAPS, hidden=3, step=0.1),
}


def task(samples: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.standard_normal(samples)
    u = np.convolve(x, CHANNELS["H2"])[:samples]
    return x, u - 0.02 * u**3 + 0.1 * draw.standard_normal(samples)


def windows(x: np.ndarray) -> np.ndarray:
    """Row t is x_t, x_{t-1}, ..."""
    padded = np.concatenate([np.zeros(TAPS - 1), x])
    return np.array([padded[t : t + TAPS][::-1] for t in range(len(x))])


@pytest.mark.parametrize("kind", ["lms", "nlms", "rls"])
def test_linear_filters_follow_their_equations(kind: str) -> None:
    x, d = task()
    w, r, outputs = np.zeros(TAPS), np.eye(TAPS) / 0.1, []
    for row, wanted in zip(windows(x), d, strict=True):
        outputs.append(w @ row)
        e = wanted - outputs[-1]
        if kind == "lms":
            w = w + 0.05 * e * row
        elif kind == "nlms":
            w = w + 0.5 * e * row / (1e-3 + row @ row)
        else:
            gain = r @ row / (0.99 + row @ r @ row)
            w = w + e * gain
            r = (r - np.outer(gain, row @ r)) / 0.99
    controller = KINDS[kind]()
    y, residual = controller.run(x, d)
    np.testing.assert_allclose(y, outputs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(residual, d - outputs, rtol=0, atol=1e-10)
    np.testing.assert_allclose(controller.coefficients, w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["lms", "nlms", "rls"])
def test_linear_filters_are_padasips(kind: str) -> None:
    padasip = pytest.importorskip("padasip", reason="padasip is a peer: pip install padasip")
    x, d = task(1000)
    settings = {"lms": {"mu": 0.05}, "nlms": {"mu": 0.5, "eps": 1e-3}, "rls": {"mu": 0.99, "eps": 0.1}}[kind]
    theirs = getattr(padasip.filters, f"Filter{kind.upper()}")(n=TAPS, w="zeros", **settings)
    y, residual, _ = theirs.run(d, windows(x))
    mine, left = KINDS[kind]().run(x, d)
    np.testing.assert_allclose(mine, y, rtol=0, atol=1e-10)
    np.testing.assert_allclose(left, residual, rtol=0, atol=1e-10)


def test_the_perceptron_is_torchs_autograd_step_by_step() -> None:
    x, d = task()
    controller = KINDS["perceptron"]()
    state = controller.state()
    names = ("hidden_weights", "hidden_biases", "output_weights", "output_bias")
    w, a, v, b = (torch.tensor(state[name], requires_grad=True) for name in names)
    for t, row in enumerate(windows(x)[:, ::-1].copy()):  # the weights lie oldest sample first
        y = b[0] + v @ torch.tanh(a + w @ torch.from_numpy(row))
        got, _ = controller.run(x[t : t + 1], d[t : t + 1])
        assert got[0] == pytest.approx(y.item(), abs=1e-12)
        gradients = torch.autograd.grad(0.5 * (d[t] - y) ** 2, (w, a, v, b))
        with torch.no_grad():
            for parameter, gradient in zip((w, a, v, b), gradients, strict=True):
                parameter -= 0.1 * gradient
        for name, parameter in zip(names, (w, a, v, b), strict=True):
            np.testing.assert_allclose(controller.state()[name], parameter.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=12))
def test_blocks_of_any_size_give_what_one_block_gives(kind: str, sizes: list[int]) -> None:
    x, d = task(200)
    cuts = np.minimum(np.cumsum(sizes), 200).astype(int)
    channel, controller = FiniteResponse("H2"), KINDS[kind]()
    heard = np.concatenate([channel.run(part) for part in np.split(x, cuts)])
    parts = [controller.run(*both)[0] for both in zip(np.split(x, cuts), np.split(d, cuts), strict=True)]
    np.testing.assert_array_equal(heard, FiniteResponse("H2").run(x))
    np.testing.assert_array_equal(np.concatenate(parts), KINDS[kind]().run(x, d)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_resumes_bit_for_bit(kind: str) -> None:
    x, d = task()
    one = KINDS[kind]()
    one.run(x[:150], d[:150])
    other = KINDS[kind]()
    other.restore(one.state())
    np.testing.assert_array_equal(one.run(x[150:], d[150:])[0], other.run(x[150:], d[150:])[0])


@pytest.mark.parametrize(
    "controller",
    [LMS(TAPS, step=2.0), NLMS(TAPS, step=2.5), Perceptron(TAPS, 3, step=50.0)],
    ids=["lms", "nlms", "mlp"],
)
def test_a_diverging_step_is_reported_and_leaves_the_controller_as_it_was(controller: Controller) -> None:
    x, d = task(3000)
    before = controller.state()
    with pytest.raises(InputError, match=r"step is [\d.]+: \w+ diverged at sample \d+; lower it"):
        controller.run(x, d)
    for name, array in controller.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_the_recursive_filters_matrix_stays_symmetric_to_the_bit() -> None:
    x, d = task(3000)
    filter_ = RLS(7, forgetting=0.99)
    filter_.run(x, d)
    inverse = filter_.state()["inverse"]
    np.testing.assert_array_equal(inverse, inverse.T)


def test_a_filter_learns_the_channel() -> None:
    x, _ = task(3000)
    d = FiniteResponse("H2").run(x)
    for kind in ("lms", "nlms", "rls"):
        controller = KINDS[kind]()
        _, residual = controller.run(x, d)
        assert noise_reduction(d[1500:], residual[1500:]) > 60, kind
        np.testing.assert_allclose(controller.coefficients, [*CHANNELS["H2"], 0.0], atol=1e-3)


def test_the_channel_is_a_convolution() -> None:
    x, _ = task()
    np.testing.assert_allclose(FiniteResponse("H2").run(x), np.convolve(x, CHANNELS["H2"])[: len(x)], atol=1e-14)


@pytest.mark.parametrize(("sign", "direction"), [("saturating", -1), ("expanding", 1)])
def test_the_distortion_has_the_ratio_that_was_asked_for(sign: str, direction: int) -> None:
    u, _ = task()
    distortion = CubicDistortion.fit(u, 7.0, sign)(u) - u  # type: ignore[arg-type]
    assert 10 * np.log10(np.mean(u**2) / np.mean(distortion**2)) == pytest.approx(7.0, abs=1e-9)
    assert np.all(distortion * u * direction >= 0)


@pytest.mark.parametrize("used", [1.0, 0.125])
def test_the_quantizers_error_has_variance_q_squared_over_12(used: float) -> None:
    x = np.random.default_rng(1).uniform(-0.99, 0.99, 100_000)
    error = quantize(x, bits=8, used=used) - x
    q = 2 / 256 / used
    # The sample variance of a uniform error spreads by sqrt(0.8 / n): 0.3%; five of them.
    assert np.var(error) == pytest.approx(q**2 / 12, rel=0.015)
    assert np.abs(error).max() <= q / 2 * (1 + 1e-9)


def test_what_cannot_be_used_is_said_in_one_line() -> None:
    x, d = task(10)
    bad = x.copy()
    bad[3] = np.nan
    for call, words in {
        lambda: LMS(TAPS).run(bad, d): "reference: sample 3 is nan; give finite samples",
        lambda: LMS(0): "taps is 0; give a whole number >= 1",
        lambda: LMS(TAPS, step=-1.0): "step is -1.0; give a finite number > 0",
        lambda: RLS(TAPS, forgetting=1.5): "forgetting is 1.5; give a factor above 0 and at most 1",
        lambda: FiniteResponse("H3"): "channel is 'H3'; give one of H1, H2, or an impulse response",
        lambda: FiniteResponse([]): "response is empty; give at least one sample",
        lambda: CubicDistortion.fit(0 * x, 3.0): "samples are silent",
        lambda: CubicDistortion.fit(x, 3.0, "bent"): "sign is 'bent'; give 'saturating' or 'expanding'",  # type: ignore[arg-type]
        lambda: CubicDistortion.fit(x, np.nan): "ratio_db is nan; give decibels from -300 to 300",
        lambda: quantize(x, bits=33): "bits is 33; give 1 to 32",
        lambda: quantize(x, used=2.0): "used is 2.0; give a fraction of the full scale",
        lambda: noise_reduction(0 * x, x): "noise is silent",
        lambda: LMS(TAPS).restore(
            RLS(TAPS).state()
        ): "a controller of class LMS needs past, peak, pending, samples, weights",
    }.items():
        with pytest.raises(InputError, match=words):
            call()
    for call in (
        lambda: LMS(TAPS).run(x, d[1:]),
        lambda: LMS(TAPS).run(x[None], d),
        lambda: noise_reduction(x, d[1:]),
        lambda: LMS(TAPS).restore(LMS(TAPS + 1).state()),
    ):
        with pytest.raises(ShapeError):
            call()
