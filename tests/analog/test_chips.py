"""The chips against plain backpropagation, each imperfection against its documented effect, the compiled loop."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterflow.adaptive import quantize
from counterflow.analog import (
    AnalogLinear,
    Board,
    Chip,
    ChipPerceptron,
    DeviceModel,
    NeuronBank,
    Rule,
    SynapseArray,
    chips_needed,
)
from counterflow.analog.circuits import Cell, Neuron, normals, refresh, signs
from counterflow.exceptions import InputError, ShapeError
from counterflow.noise_control import Perceptron

PAPER = DeviceModel.paper()
RULES = ("backpropagation", "random_feedback", "weight_perturbation")
SIZES = {"taps": 5, "hidden": 4}


def task(samples: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x = 0.4 * np.random.default_rng(seed).standard_normal(samples)
    return x, np.tanh(np.convolve(x, [0.174, 0.6, 0.6, 0.174])[:samples])


# Without imperfections


@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_an_ideal_board_is_torchs_autograd_step_by_step(output: str) -> None:
    draw = np.random.default_rng(3)
    board = Board(4, 6, 2, output=output, slope=1.3, amplitude=0.9)  # type: ignore[arg-type]
    w, v = (torch.tensor(layer.weights, requires_grad=True) for layer in board.layers)
    for _ in range(50):
        x, target = draw.standard_normal(4), draw.standard_normal(2)
        given = torch.tensor(x, requires_grad=True)
        one = torch.ones(1, dtype=torch.float64)
        y = v @ torch.cat([0.9 * torch.tanh(1.3 * (w @ torch.cat([given, one]))), one])
        if output == "sigmoid":
            y = 0.9 * torch.tanh(1.3 * y)
        loss = 0.5 * (torch.tensor(target) - y).square().sum()
        np.testing.assert_allclose(board.forward(x), y.detach(), rtol=0, atol=1e-12)
        gradients = torch.autograd.grad(loss, (w, v, given))
        np.testing.assert_allclose(board.backward(target - y.detach().numpy()), -gradients[2], rtol=0, atol=1e-12)
        board.update(0.1)
        with torch.no_grad():
            w -= 0.1 * gradients[0]
            v -= 0.1 * gradients[1]
        for layer, wanted in zip(board.layers, (w, v), strict=True):
            np.testing.assert_allclose(layer.weights, wanted.detach(), rtol=0, atol=1e-12)


def test_an_ideal_chip_is_the_float_perceptron() -> None:
    x, d = task()
    chip, wanted = ChipPerceptron(**SIZES, step=0.1), Perceptron(**SIZES, step=0.1)
    np.testing.assert_allclose(chip.run(x, d)[0], wanted.run(x, d)[0], rtol=0, atol=1e-12)
    for name, array in chip.state().items():
        np.testing.assert_allclose(array, wanted.state()[name], rtol=0, atol=1e-12)


def test_random_feedback_sends_the_error_through_other_weights() -> None:
    board = Board(3, 4, 1, rule="random_feedback")
    x, target = np.array([0.5, -0.2, 0.1]), np.array([0.7])
    w, v, feedback = board.layers[0].weights, board.layers[1].weights, board._feedback
    h = np.tanh(w @ np.append(x, 1))
    error = target - v @ np.append(h, 1)
    board.learn(x, target, 0.1)
    delta = feedback[0, :-1] * error * (1 - h**2)
    np.testing.assert_allclose(board.layers[0].weights, w + 0.1 * np.outer(delta, np.append(x, 1)), atol=1e-14)
    assert not np.allclose(feedback, v)


def test_weight_perturbation_follows_the_gradient_on_average() -> None:
    x, target = np.array([0.5, -0.2, 0.1]), np.array([0.7])
    plain = Board(3, 4, 1)
    before = [layer.weights for layer in plain.layers]
    plain.learn(x, target, 1.0)
    wanted = np.concatenate([(layer.weights - w).ravel() for layer, w in zip(plain.layers, before, strict=True)])
    total = np.zeros_like(wanted)
    board = Board(3, 4, 1, rule="weight_perturbation", perturbation=1e-4)
    for _ in range(1000):
        for layer, w in zip(board.layers, before, strict=True):
            layer.weights = w
        board.learn(x, target, 1.0)
        steps = [(layer.weights - w).ravel() for layer, w in zip(board.layers, before, strict=True)]
        total += np.concatenate(steps) / 1000
    # Each of 1000 draws is off by the root of the sum of squares of all the others.
    np.testing.assert_allclose(total, wanted, rtol=0, atol=5 * np.linalg.norm(wanted) / math.sqrt(1000))


# The compiled loop


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("output", ["linear", "sigmoid"])
def test_the_compiled_chip_is_the_board_on_a_delay_line(rule: str, output: str) -> None:
    x, d = task(120)
    options = {"device": PAPER, "rule": rule, "output": output, "seed": 2}
    board = Board(5, 4, 1, **options)  # type: ignore[arg-type]
    got, residual = ChipPerceptron(**SIZES, step=0.1, **options).run(x, d)  # type: ignore[arg-type]
    padded = np.concatenate([np.zeros(4), x])
    for t in range(len(x)):
        sent = quantize(padded[t : t + 5], 8, PAPER.converter_used) + PAPER.tap_offset
        target = quantize(d[t : t + 1], 8, PAPER.converter_used)
        assert got[t] == pytest.approx(board.learn_sent(sent, target, 0.1)[0], abs=1e-12)
    np.testing.assert_array_equal(residual, d - got)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), max_size=8))
def test_blocks_of_any_size_give_what_one_block_gives(rule: str, sizes: list[int]) -> None:
    x, d = task(200)
    cuts = np.minimum(np.cumsum(sizes), 200).astype(int)
    chip = ChipPerceptron(**SIZES, device=PAPER, rule=rule)  # type: ignore[arg-type]
    parts = [chip.run(*both)[0] for both in zip(np.split(x, cuts), np.split(d, cuts), strict=True)]
    whole = ChipPerceptron(**SIZES, device=PAPER, rule=rule).run(x, d)[0]  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("rule", RULES)
def test_a_saved_state_resumes_bit_for_bit(rule: str) -> None:
    x, d = task()
    one, other = (ChipPerceptron(**SIZES, device=PAPER, rule=rule) for _ in range(2))  # type: ignore[arg-type]
    one.run(x[:150], d[:150])
    other.restore(one.state())
    np.testing.assert_array_equal(one.run(x[150:], d[150:])[0], other.run(x[150:], d[150:])[0])


def test_a_diverging_step_is_reported_and_leaves_the_chip_as_it_was() -> None:
    x, d = task(3000)
    chip = ChipPerceptron(**SIZES, step=50.0)
    before = chip.state()
    with pytest.raises(InputError, match=r"step is 50.0: ChipPerceptron diverged at sample \d+; lower it"):
        chip.run(x, d)
    for name, array in chip.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_silence_at_first_is_not_taken_for_divergence() -> None:
    x, d = task()
    x[:5] = d[:5] = 0.0  # the chip's offsets give an output all the same
    output, _ = ChipPerceptron(**SIZES, device=PAPER).run(x, d)
    assert output[0] != 0


def test_another_seed_is_another_chip() -> None:
    x, d = task()
    state = ChipPerceptron(**SIZES).state()
    outputs = []
    for seed in (0, 1):
        chip = ChipPerceptron(**SIZES, seed=seed, device=PAPER)
        chip.restore(state)  # the same weights
        outputs.append(chip.run(x, d)[0])
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01


# Each imperfection


@pytest.mark.parametrize("name", DeviceModel.names())
def test_each_imperfection_by_itself_changes_what_the_chip_does(name: str) -> None:
    x, d = task(2000)
    runs = [
        ChipPerceptron(**SIZES, slope=0.97, device=device).run(x, 10 * d)[0]
        for device in (DeviceModel.ideal(), PAPER.only(name), PAPER, PAPER.without(name))
    ]
    assert PAPER.only(name).imperfections == (name,)
    assert not np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[2], runs[3])


def test_an_offset_of_the_update_biases_the_stationary_weight() -> None:
    array = SynapseArray(1, 1, DeviceModel(update_offset=0.05), seed=1)
    offset = float(array.cells[Cell.UPDATE_CHARGE, 0, 0])
    signal = 0.5 * np.sign(np.random.default_rng(0).standard_normal(3000))
    for x in signal:
        array.backward(0.8 * x - array.forward([x]))
        array.update(0.1)
    # The change's mean, offset + (0.8 - w) E[x^2], is zero there.
    assert abs(offset) > 0.005
    assert array.weights[0, 0] == pytest.approx(0.8 + offset / 0.25, abs=1e-9)


def test_an_offset_of_the_multipliers_is_added_to_both_of_their_inputs() -> None:
    array = SynapseArray(3, 2, DeviceModel(multiplier_offset=0.1), weights=np.full((2, 3), 0.5))
    c = array.cells
    x, delta = np.array([1.0, 0.0, -1.0]), np.array([0.3, 0.0])
    np.testing.assert_allclose(array.forward(x), ((x + c[Cell.FORWARD_SIGNAL]) * (0.5 + c[Cell.FORWARD_WEIGHT])).sum(1))
    np.testing.assert_allclose(
        array.backward(delta), ((delta[:, None] + c[Cell.BACKWARD_ERROR]) * (0.5 + c[Cell.BACKWARD_WEIGHT])).sum(0)
    )
    array.update(0.1)
    change = (x + c[Cell.UPDATE_SIGNAL]) * (delta[:, None] + c[Cell.UPDATE_ERROR])
    np.testing.assert_allclose(array.weights, 0.5 + 0.1 * change)
    # The product of the two offsets remains where nothing comes in: a weight that nothing moves drifts.
    array.forward(0 * x)
    array.backward(0 * delta)
    before = array.weights
    array.update(0.1)
    np.testing.assert_allclose(array.weights - before, 0.1 * c[Cell.UPDATE_SIGNAL] * c[Cell.UPDATE_ERROR])


def test_gains_spread_by_their_error_from_cell_to_cell_and_way_to_way() -> None:
    array = SynapseArray(100, 100, DeviceModel(gain_error=0.05), weights=np.eye(100))
    ones = np.ones(100)
    forward, backward = array.forward(ones), array.backward(ones)
    array.update(1.0)
    update = array.weights - np.eye(100)
    for gains in (forward, backward, update):
        # The standard deviation of a sample's own is 7% of it for 100 of them.
        assert np.std(gains - 1) == pytest.approx(0.05, rel=0.35)
        assert abs(np.mean(gains) - 1) < 0.025
    assert abs(np.corrcoef(forward, backward)[0, 1]) < 0.5


@pytest.mark.parametrize("u", [-20.0, -3.0, -0.1, 0.7, 2.0, 50.0])
def test_a_gilbert_cell_is_two_differential_pairs(u: float) -> None:
    s = 1.5
    got = SynapseArray(1, 1, DeviceModel(saturation=s), weights=[[1.2]]).forward([u])[0]
    assert got == pytest.approx(s * math.tanh(u / s) * s * math.tanh(1.2 / s), abs=2e-4)


def test_a_weight_stops_at_its_range() -> None:
    array = SynapseArray(2, 1, DeviceModel(weight_range=0.5), weights=[[2.0, 0.0]])
    assert array.weights.tolist() == [[0.5, 0.0]]
    for _ in range(20):
        array.forward([1.0, -1.0])
        array.backward([1.0])
        array.update(0.1)
    assert array.weights.tolist() == [[0.5, -0.5]]


def test_each_weight_is_refreshed_once_an_interval_and_then_off_by_a_twelfth_of_a_step_squared() -> None:
    q, start = 1 / 64, np.random.default_rng(0).uniform(-1, 1, (100, 40))
    device = DeviceModel(weight_resolution=q, refresh_interval=0.01, sample_rate=1000.0)  # ten samples
    array = SynapseArray(40, 100, device, weights=start)
    for turn in range(10):
        assert np.count_nonzero(array.weights != start) <= 400 * turn
        array.forward(np.zeros(40))
        array.backward(np.zeros(100))
        array.update(1.0)
    np.testing.assert_allclose(array.weights / q, np.round(array.weights / q), atol=1e-9)
    # The sample variance of 4000 uniform errors spreads by sqrt(0.8 / n), 1.4%: five of them.
    assert np.var(array.weights - start) == pytest.approx(q**2 / 12, rel=0.07)


def test_a_charge_leaks_with_its_time_constant() -> None:
    device = DeviceModel(leakage=3.0, sample_rate=1000.0)
    array = SynapseArray(1, 1, device, weights=[[0.8]])
    for _ in range(500):
        array.update(1.0)
    assert array.weights[0, 0] == pytest.approx(0.8 * math.exp(-3.0 * 0.5), rel=1e-12)
    array.wait(0.25)
    assert array.weights[0, 0] == pytest.approx(0.8 * math.exp(-3.0 * 0.75), rel=1e-12)


def test_the_noise_of_writes_adds_up_in_variance() -> None:
    array = SynapseArray(100, 100, DeviceModel(write_noise=0.01))
    for _ in range(9):
        array.update(1.0)
    assert np.std(array.weights) == pytest.approx(0.03, rel=0.05)
    assert abs(np.mean(array.weights)) < 5 * 0.03 / 100


def test_deviates_are_those_of_their_cell_and_sample() -> None:
    draws = np.array([normals(np.uint64(7), t, 1000) for t in range(100)])
    assert abs(draws.mean()) < 5 / math.sqrt(draws.size)
    assert draws.var() == pytest.approx(1, rel=0.02)
    assert np.abs(draws).max() <= math.sqrt(12)
    for a, b in ((draws[:-1], draws[1:]), (draws[:, :-1], draws[:, 1:])):
        assert abs(np.mean(a * b)) < 5 / math.sqrt(a.size)
    assert abs(signs(np.uint64(7), 3, 10_000).mean()) < 0.05


def test_signals_are_clipped_to_their_range() -> None:
    array = SynapseArray(2, 1, DeviceModel(signal_range=1.0), weights=[[0.5, 0.5]])
    assert array.forward([5.0, 0.2]).tolist() == [0.6]
    assert array.backward([-7.0]).tolist() == [-0.5, -0.5]


def test_rates_and_slopes_are_the_nearest_that_there_are() -> None:
    device = DeviceModel(rate_resolution=0.01, slope_resolution=0.25)
    array = SynapseArray(1, 1, device)
    array.forward([1.0])
    array.backward([1.0])
    array.update(0.014)
    assert array.weights[0, 0] == pytest.approx(0.01)
    assert NeuronBank(1, slope=0.9, device=device).slope == 1.0
    with pytest.raises(InputError, match=r"step is 0.004, which rounds to zero; .* learning rate has steps of 0.01"):
        ChipPerceptron(step=0.004, device=device)
    with pytest.raises(InputError, match=r"slope is 0.1, which rounds to zero; .* slope has steps of 0.25"):
        Board(slope=0.1, device=device)


def test_neurons_have_offsets_at_input_and_output_and_bells_of_their_own_height() -> None:
    bank = NeuronBank(500, slope=2.0, device=DeviceModel(neuron_offset=0.1))
    np.testing.assert_allclose(bank.forward(np.zeros(500)), np.tanh(2 * bank.parts[Neuron.INPUT]))
    assert np.std(bank.parts[Neuron.INPUT]) == pytest.approx(0.1, rel=0.2)
    bank = NeuronBank(500, device=DeviceModel(amplifier_offset=0.1))
    zero = np.zeros(500)
    for found in (bank.forward(zero), bank.backward(zero)):
        assert np.std(found) == pytest.approx(0.1, rel=0.2)
    bank = NeuronBank(500, slope=2.0, amplitude=1.5, device=DeviceModel(derivative_error=0.1))
    bank.forward(zero)
    heights = bank.backward(np.ones(500))
    assert np.mean(heights) == pytest.approx(3.0, rel=0.03)
    assert np.std(heights) == pytest.approx(0.3, rel=0.2)


def test_the_smaller_current_of_a_differential_pair_is_the_bell() -> None:
    x = np.linspace(-6, 6, 25)
    bank, exact = NeuronBank(25, device=DeviceModel(min_select=True)), NeuronBank(25)
    for each in (bank, exact):
        each.forward(x)
    pair = np.array([1 + np.tanh(x), 1 - np.tanh(x)]) / 2
    np.testing.assert_allclose(bank.bell(), 2 * pair.min(0), atol=1e-15)
    np.testing.assert_allclose(exact.bell(), 4 * pair.prod(0), atol=1e-15)


def test_all_taps_have_the_same_offset() -> None:
    array = SynapseArray(3, 2, DeviceModel(tap_offset=0.1), weights=[[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    array.push(5.0)
    assert array.push(7.0).tolist() == pytest.approx([7.1, 5.1, 0.1])
    assert array.forward().tolist() == pytest.approx([17.6, 5.1])
    assert array.forward([7.0, 5.0, 0.0]).tolist() == pytest.approx([17.0, 5.0])  # the pins have none


def test_converters_stand_between_the_computer_and_the_board() -> None:
    plain = Board(3, 4, 2)
    x = np.array([0.123, -0.5, 0.987])
    sends = Board(3, 4, 2, DeviceModel(output_bits=4, converter_used=0.5))
    np.testing.assert_array_equal(sends.forward(x), plain.forward(quantize(x, 4, 0.5)))
    reads = Board(3, 4, 2, DeviceModel(input_bits=6))
    draw = np.random.default_rng(0)
    many = draw.uniform(-0.9, 0.9, (1500, 3))
    errors = np.array([reads.forward(each) - plain.forward(each) for each in many])
    assert np.var(errors) == pytest.approx((2 / 64) ** 2 / 12, rel=0.1)


# Chips, pins, arguments


def test_a_board_has_so_many_chips_and_pins() -> None:
    assert chips_needed(24, 10, 1) == (1, 1)
    assert chips_needed(50, 20, 10) == (6, 1)
    with pytest.raises(InputError, match=r"inputs=50, hidden=20 .* take, with biases, 7 .* the board has 6"):
        Board(50, 20, 1)
    assert Board(50, 20, 1, synapse_chips=7).hidden == 20
    with pytest.raises(InputError, match="hidden is 21; a neuron chip has pins for 20"):
        ChipPerceptron(taps=10, hidden=21, synapse_chips=9)
    assert isinstance(Board(), Chip)
    assert isinstance(SynapseArray(), Chip)


def test_what_cannot_be_used_is_said_in_one_line() -> None:
    for call, words in {
        lambda: DeviceModel(leakage=-1.0): "leakage is -1.0; give a finite number >= 0",
        lambda: DeviceModel(saturation=0.0): "saturation is 0.0; give a number > 0",
        lambda: DeviceModel(tap_offset=math.nan): "tap_offset is nan; give a finite number",
        lambda: DeviceModel(output_bits=40): "output_bits is 40; give 1 to 32, or None",
        lambda: DeviceModel(converter_used=2.0): "converter_used is 2.0; give a fraction",
        lambda: DeviceModel(refresh_interval=1e-6): "refresh_interval is 1e-06 s; give at least one sample",
        lambda: PAPER.without("noise"): "'noise' is no imperfection; give names among multiplier_offset",
        lambda: PAPER.only("sample_rate"): "'sample_rate' is no imperfection",
        lambda: Board(rule="hebb"): "rule is 'hebb'; give one of backpropagation, random_feedback",  # type: ignore[arg-type]
        lambda: Board(output="step"): "output is 'step'; give 'linear' or 'sigmoid'",  # type: ignore[arg-type]
        lambda: SynapseArray(2, 1).forward([math.nan, 0.0]): "x is not finite",
        lambda: SynapseArray(2, 1, weights=[[math.inf, 0.0]]): "weights are not finite",
        lambda: SynapseArray(2, 1).wait(-1.0): "seconds is -1.0",
        lambda: SynapseArray(2, 1).update(0.0): "step is 0.0; give a finite number > 0",
    }.items():
        with pytest.raises(InputError, match=words):
            call()
    for make in (SynapseArray, NeuronBank, Board, ChipPerceptron, partial(AnalogLinear, 3, 2)):
        with pytest.raises(InputError, match=r"device must be a DeviceModel such as .*, got 'paper'"):
            make(device="paper")  # type: ignore[operator]
    for call in (
        lambda: SynapseArray(2, 1).forward([1.0]),
        lambda: SynapseArray(2, 1).backward([1.0, 2.0]),
        lambda: SynapseArray(2, 1).backward([1.0], [[1.0]]),
        lambda: SynapseArray(2, 1).write([[1.0]], 0.1),
        lambda: SynapseArray(2, 1, weights=[1.0, 2.0]),
        lambda: NeuronBank(3).forward([1.0]),
    ):
        with pytest.raises(ShapeError):
            call()
    assert replace(PAPER, leakage=0.0) == PAPER.without("leakage")
    assert repr(DeviceModel(gain_error=0.1)) == "DeviceModel(gain_error=0.1)"


@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_is_refused_leaves_the_board_as_it_was(rule: Rule) -> None:
    board = Board(2, 3, 1, DeviceModel.paper(), rule=rule)
    before = [layer.weights.copy() for layer in board.layers]
    for step, words in ((0.0, "step is 0.0"), (1e-9, "rounds to zero")):
        with pytest.raises(InputError, match=words):
            board.learn([0.1, 0.2], [0.3], step)
        for layer, weights in zip(board.layers, before, strict=True):
            np.testing.assert_array_equal(layer.weights, weights)


def test_the_array_is_refreshed_when_the_compiled_board_is() -> None:
    """At each sample the same cells, also where a product and a quotient of the same numbers are rounded apart."""
    size, device = 12, DeviceModel(weight_resolution=0.5, refresh_interval=0.1, sample_rate=44100.0)
    array = SynapseArray(size, 1, device, weights=np.full((1, size), 0.3))
    array.samples = 734
    wanted = np.full(size, 0.3)
    share = len(wanted) * (1 / (device.refresh_interval * device.sample_rate))  # as the compiled loop has it
    for sample in (734, 735):
        refresh(wanted, sample, share, device.weight_resolution)
        array.write(np.zeros((1, size)), 1.0)
        np.testing.assert_array_equal(array.weights[0], wanted)
