"""The task as a whole: scenes, measures, tuning, and `cancel`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

import counterflow as cf
from counterflow.analog import DeviceModel
from counterflow.exceptions import InputError, ShapeError
from counterflow.noise_control import (
    CONTROLLERS,
    LMS,
    NLMS,
    CubicDistortion,
    Design,
    FiniteResponse,
    Measures,
    Scene,
    Stream,
    a_weighting,
    cancel,
    causal_margin,
    noise_reduction,
    third_octaves,
    tune,
)
from counterflow.noise_control.scene import parse_decibels


def noise(samples: int = 6000, seed: int = 0) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).uniform(-1, 1, samples)


def test_a_scene_is_what_its_equation_says() -> None:
    x = noise()
    scene = Scene("H2", distortion_db=6.0, level_db=-20.0, seed=3)
    acoustics = scene.measure([x])
    heard = acoustics.run(x)
    unit = x / np.abs(x).max()
    u = FiniteResponse("H2").run(unit)
    np.testing.assert_allclose(heard.reference, unit, rtol=0, atol=1e-15)
    assert acoustics.speaker is not None
    assert acoustics.speaker.coefficient == pytest.approx(CubicDistortion.fit(u, 6.0).coefficient)
    added = heard.noise - acoustics.speaker(u)
    # The power of 6000 samples of noise is right to 2%; five of them.
    assert 10 * np.log10(np.mean(added**2) / np.mean(u**2)) == pytest.approx(-20, abs=0.45)
    np.testing.assert_array_equal(heard.target, heard.noise)
    assert acoustics.loop == {}


def test_in_the_loop_the_loudspeaker_is_the_controllers() -> None:
    x = noise()
    acoustics = Scene("H1", distortion_db=6.0, sign="expanding", place="speaker", slope="one").measure([x])
    np.testing.assert_allclose(acoustics.run(x).noise, FiniteResponse("H1").run(x / np.abs(x).max()), atol=1e-15)
    assert acoustics.speaker is not None
    assert acoustics.speaker.coefficient < 0
    assert acoustics.loop == {"speaker": acoustics.speaker, "slope": "one"}


@pytest.mark.parametrize(("quantized", "which"), [("input", "reference"), ("target", "target"), ("both", "both")])
def test_converters_are_where_they_are_asked_for(quantized: Any, which: str) -> None:
    x = noise()
    plain = Scene("H1").measure([x]).run(x)
    heard = Scene("H1", quantized=quantized, bits=6, used=0.5).measure([x]).run(x)
    np.testing.assert_array_equal(heard.noise, plain.noise)
    for name in ("reference", "target"):
        error = getattr(heard, name) - getattr(plain, name)
        full = 1.0 if name == "reference" else np.abs(plain.noise).max()
        q = 2 / 64 / 0.5 * full
        if which in (name, "both"):
            assert np.var(error) == pytest.approx(q**2 / 12, rel=0.1)
        else:
            assert not error.any()


@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(0, 700), max_size=6))
def test_a_stream_in_blocks_is_one_block(sizes: list[int]) -> None:
    x = noise(2000)
    cuts = np.minimum(np.cumsum(sizes), len(x)).astype(int)
    found = []
    for blocks in ([x], np.split(x, cuts)):
        acoustics = Scene("H2", distortion_db=8.0, level_db=-15.0, quantized="both").measure([x])
        stream = Stream(acoustics, LMS(5, 0.05), 8000)
        parts = [*stream.run(blocks)]
        found.append([np.concatenate(each) for each in zip(*parts, strict=True)])
        assert stream.measures.reduction_db == pytest.approx(noise_reduction(found[0][0][1000:], found[0][2][1000:]))
    for one, many in zip(*found, strict=True):
        np.testing.assert_array_equal(one, many)


def test_decibels_are_those_of_bands_and_of_the_ear() -> None:
    rate, n = 16000, 64000
    t = np.arange(n) / rate
    low, high = np.sin(2 * np.pi * 63.1 * t), np.sin(2 * np.pi * 1000 * t)
    seen = Measures(n, rate, converged=1.0)
    for part in np.array_split(np.arange(n), 7):
        seen.add((low + high)[part], (0.1 * low + high)[part])
    thirds = seen.thirds_db
    near = {round(middle): value for middle, value in thirds.items()}
    assert near[63] == pytest.approx(20, abs=0.1)
    assert near[1000] == pytest.approx(0, abs=0.01)
    # Of the two tones A-weighting leaves the upper, nearly.
    weight = float(a_weighting(63.1))
    assert seen.a_weighted_db == pytest.approx(10 * math.log10((1 + weight) / (1 + 0.01 * weight)), abs=0.01)
    assert seen.reduction_db == pytest.approx(10 * math.log10(2 / 1.01), abs=1e-3)
    seconds, curve = seen.curve
    assert len(seconds) == len(curve) == 200
    assert (seconds[0], seconds[-1]) == pytest.approx((0.01, 3.99))  # the middles of 20 ms each
    assert curve.mean() == pytest.approx(seen.reduction_db, abs=0.1)


def test_spectra_are_scipys_by_welchs_method() -> None:
    rate, n, size = 16000, 64000, 8192
    noise, rest = np.random.default_rng(0).standard_normal((2, n)) * np.linspace(0.5, 2.0, n)
    seen = Measures(n, rate, converged=1.0)
    seen.add(noise, rest)
    settings = {"window": np.hanning(size), "noverlap": size // 2, "detrend": False, "return_onesided": False}
    (f, before), (_, after) = (scipy.signal.welch(each, rate, nperseg=size, **settings) for each in (noise, rest))
    half = slice(size // 2 + 1)
    weights = a_weighting(f[half])
    assert seen.a_weighted_db == pytest.approx(10 * math.log10(weights @ before[half] / (weights @ after[half])))
    # A band is an integral of the spectrum, whose bins are as wide as they lie apart.
    edges = (np.arange(size // 2 + 2) - 0.5) * rate / size
    sums = [np.concatenate([[0.0], np.cumsum(each[half])]) for each in (before, after)]
    for middle, decibels in seen.thirds_db.items():
        powers = [np.diff(np.interp([middle * 10**-0.05, middle * 10**0.05], edges, each)) for each in sums]
        assert decibels == pytest.approx(10 * math.log10(powers[0].item() / powers[1].item()))


def test_no_third_octave_is_narrower_than_a_bin() -> None:
    seen = Measures(1000, rate=8000, converged=1.0)
    noise = np.random.default_rng(0).standard_normal(1000)
    seen.add(noise, noise)
    # Windows have 128 samples, bins 62.5 Hz, and the band at 251 Hz is 58 Hz wide.
    assert min(seen.thirds_db) == pytest.approx(316.2, rel=1e-3)


def test_the_weighting_is_the_standards_table() -> None:
    table = {31.5: -39.4, 63: -26.2, 125: -16.1, 250: -8.6, 500: -3.2, 1000: 0.0, 2000: 1.2, 4000: 1.0, 8000: -1.1}
    exact = [1000 * 10 ** (round(10 * math.log10(f / 1000)) / 10) for f in table]
    found = 10 * np.log10(a_weighting(exact))
    np.testing.assert_allclose(found, [*table.values()], atol=0.06)
    assert third_octaves(16000).max() == pytest.approx(6310, rel=1e-3)
    assert len(third_octaves(2000)) == 16


def test_equal_budgets_choose_what_is_best_afterwards_too() -> None:
    x = noise(4000)
    d = FiniteResponse("H1").run(x)
    tuned = tune(lambda step: NLMS(4, step), [1e-4, 0.5, 2.5], x, d)
    assert tuned.best == 0.5
    assert tuned.interior
    assert tuned.reductions_db[2] == -math.inf
    assert tuned.reductions_db[1] > tuned.reductions_db[0]
    with pytest.raises(InputError, match=r"values are from 3 to 9: the controller diverged at all of them"):
        tune(lambda step: NLMS(4, step), [3.0, 9.0], x, d)
    with pytest.raises(InputError, match="values is empty"):
        tune(lambda step: NLMS(4, step), [], x, d)
    for family in CONTROLLERS.values():
        values = family.values(7, Design(), 0.1)
        assert len(values) == 7
        family.make(float(values[3]), Design())


def test_cancel_tunes_on_the_first_half_and_reports_the_last() -> None:
    x = noise()
    run = cf.noise_control.cancel(x, channel="H1", distortion="10dB", controller="nlms", level="-30dB", budget=5)
    assert run.tuned is not None
    assert len(run.tuned.tried) == 5
    assert run.step == run.tuned.best
    assert run.reduction_db == pytest.approx(noise_reduction(run.noise[3000:], run.residual[3000:]))
    np.testing.assert_allclose(run.residual, run.noise - run.anti_noise, atol=1e-15)
    assert np.abs(x).max() == pytest.approx(0.2, rel=0.01)
    assert np.abs(run.noise).max() < 0.3  # as loud as what came in
    # A linear filter cannot go below the part of the cubic that is not linear; here about 20 dB.
    assert 10 < run.reduction_db < 25
    assert run.warnings == []


def test_a_perceptron_beats_a_linear_filter_where_the_distortion_is_severe() -> None:
    x = np.random.default_rng(5).uniform(-1, 1, 60_000)
    reductions = {
        name: cancel(x, "H1", distortion=0.0, controller=name, step=step).reduction_db
        for name, step in (("nlms", 0.01), ("perceptron", 0.05), ("volterra", 0.3))
    }
    assert reductions["perceptron"] > reductions["nlms"] + 2
    assert reductions["volterra"] > reductions["perceptron"]


def test_a_secondary_path_without_margin_is_warned_of() -> None:
    x = noise(3000)
    late, early = [0.0, 0.0, 0.0, 0.5], [0.0, 0.9, 0.1]
    assert causal_margin(late, early) == 2
    assert cancel(x, late, secondary=early, controller="fxlms", step=0.1, taps=8).warnings == []
    [warning] = cancel(x, early, secondary=late, controller="fxlms", step=0.01, taps=8).warnings
    assert "no causal margin: the loudspeaker is heard 2 samples after the noise" in warning
    with pytest.raises(InputError, match="controller is 'rls', which has no secondary path in its loop; take fxlms"):
        cancel(x, late, secondary=early, controller="rls", step=0.99)


def test_an_ideal_chip_is_the_perceptron_and_the_papers_is_worse() -> None:
    x = noise(20_000)
    common: dict[str, Any] = {"channel": "H1", "distortion": "15dB", "step": 0.05}
    float_, ideal, paper = (
        cancel(x, controller=name, device=device, **common)
        for name, device in (("perceptron", None), ("chip", DeviceModel.ideal()), ("chip", None))
    )
    np.testing.assert_allclose(ideal.residual, float_.residual, rtol=0, atol=1e-12)
    assert paper.reduction_db < float_.reduction_db - 3
    for loop in ({"place": "speaker"}, {"secondary": [0.0, 0.5]}):
        with pytest.raises(InputError, match="controller is 'chip', whose board gets a reference and a target"):
            cancel(x, controller="chip", **{**common, **loop})


def test_figure_6_is_drawn(tmp_path: Path) -> None:
    run = cancel(noise(3000), "H1", controller="lms", step=0.05)
    run.plot(tmp_path / "six.png")
    assert (tmp_path / "six.png").stat().st_size > 20_000
    with pytest.raises(InputError, match="suffix must be"):
        run.plot(tmp_path / "six.xyz")


def test_what_cannot_be_used_is_said_in_one_line() -> None:
    x = noise(100)
    bad = x.copy()
    bad[7] = np.inf
    for call, words in {
        lambda: cancel(bad): "noise: sample 7 is inf",
        lambda: cancel(0 * x): "the noise is silent",
        lambda: cancel([]): "noise is empty",
        lambda: cancel(x, "H9"): "channel is 'H9'; give one of H1, H2",
        lambda: cancel(x, controller="pid"): "controller is 'pid'; give one of lms, nlms",
        lambda: cancel(x, distortion="loud"): "distortion is 'loud'; give decibels, such as 10 or '10dB'",
        lambda: cancel(x, distortion="-1e9dB"): "distortion is -1000000000.0; give decibels from -300 to 300",
        lambda: cancel(x, level=1e9): "level is 1000000000.0; give decibels from -300 to 300",
        lambda: Scene(distortion_db=math.nan): "distortion_db is nan; give decibels",
        lambda: CubicDistortion.fit(x, -1e9): "ratio_db is -1000000000.0; give decibels",
        lambda: cancel(x, [0.0, 0.0]): "channel is silent",
        lambda: cancel(1e-60 * x, controller="lms", step=0.01): "scale it, so that the largest is about 1",
        lambda: cancel(1e60 * x, controller="lms", step=0.01): "scale it, so that the largest is about 1",
        lambda: cancel(x, rate=math.nan, controller="lms"): "rate is nan",
        lambda: cancel(x, controller="lms", step=0.01, device=DeviceModel()): "device is of chip",
        lambda: cancel(x, controller="chip", step=-1.0): "step is -1.0",
        lambda: cancel(np.append(np.zeros(300), x), controller="lms"): "silent in the part on which a step is chosen",
        lambda: cancel(x, place="there"): "place is 'there'; give one of target, speaker",  # type: ignore[arg-type]
        lambda: cancel(x, quantized="all"): "quantized is 'all'; give one of none, input",  # type: ignore[arg-type]
        lambda: cancel(x, bits=0): "bits is 0; give a whole number >= 1",
        lambda: cancel(x, used=1.5): "used is 1.5; give a fraction",
        lambda: cancel(x, budget=0, controller="lms"): "budget is 0",
        lambda: cancel(x, taps=100): "taps is 100, and the noise has 100 samples",
        lambda: cancel(x, controller="lms", step=1e6): "LMS diverged",
        lambda: causal_margin([0.0], [1.0]): "primary is silent",
        lambda: Measures(0, 8000): "samples is 0",
        lambda: cancel(x, rate=0, controller="lms"): "rate is 0",
        lambda: Measures(10, 0): "rate is 0",
        lambda: Measures(10, 8000, 0.0): "converged is 0.0",
    }.items():
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(ShapeError):
        cancel(x[None])
    assert parse_decibels("3", "level") == 3.0
    assert parse_decibels(None, "level") is None


@pytest.mark.parametrize("name", CONTROLLERS)
def test_weights_are_what_was_learned_and_a_copy(name: str) -> None:
    controller = CONTROLLERS[name].make(0.9, Design(taps=4, hidden=3, memory=2))
    before = controller.weights()
    x = 0.5 * noise(50)
    controller.run(x, x)
    after, state = controller.weights(), controller.state()
    assert list(after) == [key for key in state if key.endswith(("weights", "bias", "biases"))]
    assert all(np.any(after[key] != before[key]) for key in after)
    if hasattr(controller, "coefficients"):
        np.testing.assert_array_equal(after["weights"][3::-1], controller.coefficients)
    before["weights" if "weights" in before else "hidden_weights"][:] = np.nan
    assert all(np.isfinite(values).all() for values in controller.weights().values())
