"""The board on a delay line with one output, compiled: a controller like those of noise control."""

from __future__ import annotations

import math
from typing import Any, Literal

import numba
import numpy as np

from counterflow.adaptive import Controller, Signal, count, follows, positive, quantize, tanh
from counterflow.analog.board import SYNAPSE_CHIPS, Rule, check_rule, check_size, feedback_weights, initial_weights
from counterflow.analog.circuits import (
    FULL,
    Array,
    Cell,
    Neuron,
    cells,
    compress,
    fraction,
    neurons,
    noise_key,
    normal,
    refresh,
    sign,
)
from counterflow.analog.device import DeviceModel, known_device

__all__ = ["ChipPerceptron"]


class ChipPerceptron(Controller):
    r"""A perceptron on the board's chips, over their delay line, which learns sample by sample.

    It is a `Board` with one output whose inputs are the last samples, compiled: the same numbers, in much less time.
    With an ideal device it is the float perceptron of noise control, with the same weights at first.

    Args:
        taps: Length of the delay line.
        hidden: Number of hidden units.
        step: The learning rate, for which the chip takes the nearest one that it has.
        seed: Of the initial weights, of what differs from cell to cell, and of noise.
        device: The imperfections; by default none.
        rule: ``"backpropagation"``, ``"random_feedback"`` or ``"weight_perturbation"``, as for `Board`.
        output: ``"linear"``, or ``"sigmoid"`` for a neuron like the hidden ones.
        slope: Of the sigmoids.
        amplitude: Of the sigmoids.
        perturbation: In units of weight, as for `Board`.
        synapse_chips: How many there are: 6 on the paper's board.

    Raises:
        InputError: If a setting is outside of its range, or the board has too few chips or pins.

    References:
        Cho and Lee (1998), sections 2 and 3.

    Example:
        >>> x = 0.5 * np.random.default_rng(0).standard_normal(4000)
        >>> chip = ChipPerceptron(taps=2, hidden=4, step=0.1, device=DeviceModel.paper())
        >>> y, e = chip.run(x, np.tanh(x))
        >>> bool(np.mean(e[-500:] ** 2) < 0.1 * np.mean(np.tanh(x) ** 2))
        True
    """

    _learned = ("hidden_weights", "hidden_biases", "output_weights", "output_bias")

    def __init__(
        self,
        taps: int = 25,
        hidden: int = 10,
        step: float = 0.05,
        seed: int = 0,
        device: DeviceModel | None = None,
        *,
        rule: Rule = "backpropagation",
        output: Literal["linear", "sigmoid"] = "linear",
        slope: float = 1.0,
        amplitude: float = 1.0,
        perturbation: float = 0.01,
        synapse_chips: int = SYNAPSE_CHIPS,
    ) -> None:
        super().__init__(taps)
        # The biases' input is a sample as well: offsets alone give an output before any sound has come.
        self._arrays["peak"] = np.ones(1)
        self.hidden, self.step = count(hidden, "hidden"), positive(step, "step")
        check_size(taps, hidden, 1, synapse_chips)
        check_rule(rule, output)
        self.device = device = DeviceModel.ideal() if device is None else known_device(device)
        self.rule, self.output = rule, output
        self.slope, self.amplitude = device.slope(positive(slope, "slope")), positive(amplitude, "amplitude")
        self.perturbation = positive(perturbation, "perturbation")
        device.rate(self.step)
        first, second = initial_weights(taps, hidden, 1, seed)
        limit = device.weight_range
        self._arrays["hidden_weights"] = np.clip(first[:, :-1], -limit, limit)
        self._arrays["hidden_biases"] = np.zeros(hidden)
        self._arrays["output_weights"] = np.clip(second[0, :-1], -limit, limit)
        self._arrays["output_bias"] = np.zeros(1)
        self._cells = (
            cells(device, (hidden, taps + 1), seed, "first"),
            cells(device, (1, hidden + 1), seed, "second")[:, 0],
        )
        self._neurons = neurons(device, hidden, seed, "hidden"), neurons(device, 1, seed, "output")[:, 0]
        self._feedback = feedback_weights(hidden, 1, seed)[0]
        self._keys = tuple(
            noise_key(seed, purpose) for purpose in ("first", "second", "perturb-first", "perturb-second")
        )

    def _learn(self, x: Signal, d: Signal, y: Signal, arrays: dict[str, Array]) -> int:
        device = self.device
        # Numbers of one kind, whatever the device's are: the loops are compiled for each kind.
        signal_range, weight_range = float(device.signal_range), float(device.weight_range)
        saturation, resolution = float(device.saturation), float(device.weight_resolution)
        if device.output_bits is not None:
            x = quantize(x, device.output_bits, device.converter_used)
            d = quantize(d, device.output_bits, device.converter_used)
        w = np.hstack([arrays["hidden_weights"], arrays["hidden_biases"][:, None]])
        v = np.hstack([arrays["output_weights"], arrays["output_bias"]])
        line = compress(x + device.tap_offset, device)
        bias = float(compress(np.ones(1), device)[0])
        inverse = 1 / saturation
        signals = signal_range, FULL * saturation, inverse
        weights = min(weight_range, FULL * saturation), weight_range, inverse
        sigmoid = float(self.slope), float(self.amplitude), device.min_select, self.output == "sigmoid"
        share = 0.0
        if device.weight_resolution:
            share = 1 / (device.refresh_interval * device.sample_rate)
        write = (
            math.exp(-device.leakage / device.sample_rate),
            float(device.rate(self.step)),
            float(device.write_noise),
            share,
            resolution,
        )
        start, peak = int(arrays["samples"][0]), arrays["peak"]
        parts = (*self._cells, *self._neurons)
        if self.rule == "weight_perturbation":
            stopped = _perturb(
                line, x, d, y, w, v, *parts, bias, signals, weights, sigmoid, write, self.perturbation, peak, start,
                self._keys,
            )  # fmt: skip
        else:
            feedback = self._feedback if self.rule == "random_feedback" else v
            stopped = _backpropagate(
                line, x, d, y, w, v, feedback, *parts, bias, signals, weights, sigmoid, write, peak, start, self._keys
            )
        arrays["hidden_weights"], arrays["hidden_biases"] = w[:, :-1].copy(), w[:, -1].copy()
        arrays["output_weights"], arrays["output_bias"] = v[:-1].copy(), v[-1:].copy()
        if device.input_bits is not None:
            y[:] = quantize(y, device.input_bits, device.converter_used)
        return int(stopped)


# Sums may be made in another order, so that they are made several terms at a time. Infinities must stay what they are:
# they stand for no limit. Nor may a division be checked, which would make it one at a time.
_FAST = {"reassoc", "contract", "nsz"}

_fraction = numba.njit(inline="always")(fraction)


@numba.njit(inline="always")
def _between(u: Any, limit: Any) -> Any:
    return min(max(u, -limit), limit)


@numba.njit(inline="always")
def _stage(u: Any, limit: Any, inverse: Any) -> Any:
    """What an input stage makes of what is clipped to the smaller of its range and where the stage is full."""
    u = _between(u, limit)
    z = u * inverse
    return _fraction(u, z * z)


@numba.njit(inline="always")
def _signal(u: Any, signals: Any) -> Any:
    """What an input stage makes of a signal."""
    return _stage(_between(u, signals[0]), signals[1], signals[2])


@numba.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _forward(z: Any, h: Any, sums: Any, squashed: Any, w: Any, v: Any, c1: Any, c2: Any, n1: Any, n2: Any,
             signals: Any, weights: Any, sigmoid: Any) -> Any:  # fmt: skip
    """Through both layers: writes the hidden units' tanh and what their synapses make of it; returns the output."""
    limit, inverse = weights[0], weights[2]
    slope, amplitude, _, sigmoid_output = sigmoid
    gain, signal, weight = c1[Cell.FORWARD_GAIN], c1[Cell.FORWARD_SIGNAL], c1[Cell.FORWARD_WEIGHT]
    for j in range(len(w)):
        total = 0.0
        for k in range(len(z)):
            stage = _stage(w[j, k], limit, inverse)
            total += gain[j, k] * (z[k] + signal[j, k]) * (stage + weight[j, k])
        sums[j] = slope * (total + n1[Neuron.INPUT, j])
    tanh(sums, squashed)
    for j in range(len(w)):
        h[j] = _signal(amplitude * squashed[j] + n1[Neuron.OUTPUT, j], signals)
    out = n2[Neuron.INPUT]
    for j in range(len(h)):
        stage = _stage(v[j], limit, inverse) + c2[Cell.FORWARD_WEIGHT, j]
        out += c2[Cell.FORWARD_GAIN, j] * (h[j] + c2[Cell.FORWARD_SIGNAL, j]) * stage
    if sigmoid_output:
        out = amplitude * math.tanh(slope * out) + n2[Neuron.OUTPUT]
    return out


@numba.njit(inline="always")
def _bell(tanh: Any, min_select: Any) -> Any:
    return 1 - abs(tanh) if min_select else 1 - tanh * tanh


@numba.njit(cache=True)
def _settle(w: Any, noise: Any, limit: Any, share: Any, levels: Any, sample: Any, key: Any) -> None:
    """What follows a write: its noise, and the refresh of those cells whose turn it is."""
    if noise > 0:
        for i in range(len(w)):
            w[i] = _between(w[i] + noise * normal(key, np.uint64(sample), np.uint64(i)), limit)
    if share > 0:
        refresh(w, sample, len(w) * share, levels)


@numba.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _backpropagate(line: Any, x: Any, d: Any, y: Any, w: Any, v: Any, feedback: Any, c1: Any, c2: Any, n1: Any, n2: Any,
                   bias: Any, signals: Any, weights: Any, sigmoid: Any, write: Any, peak: Any, start: Any,
                   keys: Any) -> Any:  # fmt: skip
    """Learn from all samples; returns how many went well."""
    hidden, width = w.shape
    taps = width - 1
    z, h, delta = np.empty(width), np.empty(hidden + 1), np.empty(hidden)
    sums, squashed = np.empty(hidden), np.empty(hidden)
    gain, signal = c1[Cell.UPDATE_GAIN], c1[Cell.UPDATE_SIGNAL]
    error_offset, charge = c1[Cell.UPDATE_ERROR], c1[Cell.UPDATE_CHARGE]
    z[taps] = h[hidden] = bias
    slope, amplitude, min_select, sigmoid_output = sigmoid
    limit, bound, inverse = weights
    keep, rate, noise, share, levels = write
    for t in range(len(d)):
        for k in range(taps):
            z[k] = line[t + k]
        out = _forward(z, h, sums, squashed, w, v, c1, c2, n1, n2, signals, weights, sigmoid)
        if not follows(d[t] - out, x[t + taps - 1], d[t], peak):
            return t
        y[t] = out
        error = d[t] - out + n2[Neuron.ERROR]
        if sigmoid_output:
            # The output's own amplifier comes behind the tanh that its bell is made of.
            inside = (out - n2[Neuron.OUTPUT]) / amplitude
            error *= amplitude * slope * n2[Neuron.BELL] * _bell(inside, min_select)
        e = _signal(error, signals)
        for j in range(hidden):
            stage = _stage(feedback[j], limit, inverse) + c2[Cell.BACKWARD_WEIGHT, j]
            back = c2[Cell.BACKWARD_GAIN, j] * (e + c2[Cell.BACKWARD_ERROR, j]) * stage
            height = amplitude * slope * n1[Neuron.BELL, j] * _bell(squashed[j], min_select)
            delta[j] = _signal(back * height + n1[Neuron.ERROR, j], signals)
        for j in range(hidden):
            own = delta[j]
            for k in range(width):
                change = gain[j, k] * (z[k] + signal[j, k]) * (own + error_offset[j, k]) + charge[j, k]
                w[j, k] = _between(keep * w[j, k] + rate * change, bound)
        for j in range(hidden + 1):
            product = c2[Cell.UPDATE_GAIN, j] * (h[j] + c2[Cell.UPDATE_SIGNAL, j]) * (e + c2[Cell.UPDATE_ERROR, j])
            v[j] = _between(keep * v[j] + rate * (product + c2[Cell.UPDATE_CHARGE, j]), bound)
        if noise > 0 or share > 0:
            _settle(w.reshape(-1), noise, bound, share, levels, start + t, keys[0])
            _settle(v, noise, bound, share, levels, start + t, keys[1])
    return len(d)


@numba.njit(cache=True, fastmath=_FAST, error_model="numpy")
def _perturb(line: Any, x: Any, d: Any, y: Any, w: Any, v: Any, c1: Any, c2: Any, n1: Any, n2: Any, bias: Any,
             signals: Any, weights: Any, sigmoid: Any, write: Any, size: Any, peak: Any, start: Any,
             keys: Any) -> Any:  # fmt: skip
    """Learn from all samples by moving all weights and back; returns how many went well."""
    hidden, width = w.shape
    taps = width - 1
    z, h, sums, squashed = np.empty(width), np.empty(hidden + 1), np.empty(hidden), np.empty(hidden)
    z[taps] = h[hidden] = bias
    bound = weights[1]
    keep, rate, noise, share, levels = write
    moved_w, moved_v, signs_w, signs_v = np.empty_like(w), np.empty_like(v), np.empty_like(w), np.empty_like(v)
    for t in range(len(d)):
        for k in range(taps):
            z[k] = line[t + k]
        out = _forward(z, h, sums, squashed, w, v, c1, c2, n1, n2, signals, weights, sigmoid)
        if not follows(d[t] - out, x[t + taps - 1], d[t], peak):
            return t
        y[t] = out
        sample = np.uint64(start + t)
        for j in range(hidden):
            for k in range(width):
                signs_w[j, k] = sign(keys[2], sample, np.uint64(j * width + k))
                moved_w[j, k] = w[j, k] + size * signs_w[j, k]
        for j in range(hidden + 1):
            signs_v[j] = sign(keys[3], sample, np.uint64(j))
            moved_v[j] = v[j] + size * signs_v[j]
        moved = _forward(z, h, sums, squashed, moved_w, moved_v, c1, c2, n1, n2, signals, weights, sigmoid)
        before, after = d[t] - out + n2[Neuron.ERROR], d[t] - moved + n2[Neuron.ERROR]
        slope = (after * after - before * before) / (2 * size)
        for j in range(hidden):
            for k in range(width):
                change = c1[Cell.UPDATE_CHARGE, j, k] - slope * signs_w[j, k]
                w[j, k] = _between(keep * w[j, k] + rate * change, bound)
        for j in range(hidden + 1):
            v[j] = _between(keep * v[j] + rate * (c2[Cell.UPDATE_CHARGE, j] - slope * signs_v[j]), bound)
        if noise > 0 or share > 0:
            _settle(w.reshape(-1), noise, bound, share, levels, start + t, keys[0])
            _settle(v, noise, bound, share, levels, start + t, keys[1])
    return len(d)
