"""The two chips: an array of synapses with a delay line, and a bank of neurons."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from counterflow.adaptive import count, positive
from counterflow.analog.circuits import (
    Array,
    Cell,
    Neuron,
    cells,
    compress,
    noise_key,
    normals,
    refresh,
    saturate,
)
from counterflow.analog.circuits import neurons as neuron_parts
from counterflow.analog.device import DeviceModel, known_device
from counterflow.exceptions import InputError, ShapeError

__all__ = ["NeuronBank", "SynapseArray"]


def vector(values: ArrayLike, size: int, name: str) -> Array:
    """So many finite numbers."""
    array = np.asarray(values, dtype=np.float64).copy()
    if array.shape != (size,):
        raise ShapeError(f"{name} has shape {array.shape}; give ({size},)")
    if not np.isfinite(array).all():
        raise InputError(f"{name} is not finite; give finite numbers")
    return array


class SynapseArray:
    r"""An array of synapses, each with three multipliers and a capacitor for its weight, and a tapped delay line.

    .. math::
        i_j = \sum_k w_{jk} x_k, \qquad \epsilon_k = \sum_j w_{jk} \delta_j, \qquad
        w_{jk} \leftarrow w_{jk} + \eta\, x_k \delta_j

    each product made by a multiplier of the `DeviceModel`. Signals are held on the chip: `backward` and `update` use
    those of the last `forward`. :math:`\delta` is the direction in which the output *should* go, the target less the
    output, so the weights grow along it.

    Args:
        inputs: Rows; 25 on the paper's chip, which are its taps, too.
        neurons: Columns; 10 on the paper's chip.
        device: The imperfections; by default none.
        seed: Of what differs from cell to cell, and of the noise of writes.
        weights: The weights at first, ``(neurons, inputs)``; zeros by default.
        purpose: A word that tells this chip's draws from those of other chips with the same seed.

    Attributes:
        weights: The weights as they are now, ``(neurons, inputs)``. A read of the capacitors has no error.
        line: The delay line, ``(inputs,)``, newest sample first.
        samples: How often it has been written.

    Raises:
        InputError: If an argument is outside of its range.
        ShapeError: If the weights have another shape.

    References:
        Cho and Lee (1998), section 2.

    Example:
        >>> array = SynapseArray(inputs=2, neurons=1, weights=[[0.5, -1.0]])
        >>> array.forward([1.0, 0.25]).tolist(), array.backward([2.0]).tolist()
        ([0.25], [1.0, -2.0])
        >>> array.update(0.1)
        >>> array.weights.tolist()
        [[0.7, -0.95]]
    """

    def __init__(
        self,
        inputs: int = 25,
        neurons: int = 10,
        device: DeviceModel | None = None,
        *,
        seed: int = 0,
        weights: ArrayLike | None = None,
        purpose: str = "array",
    ) -> None:
        self.inputs, self.neurons = count(inputs, "inputs"), count(neurons, "neurons")
        self.device = DeviceModel.ideal() if device is None else known_device(device)
        shape = (self.neurons, self.inputs)
        self.cells = cells(self.device, shape, seed, purpose)
        start = np.zeros(shape) if weights is None else np.asarray(weights, dtype=np.float64)
        if start.shape != shape:
            raise ShapeError(f"weights have shape {start.shape}; give (neurons, inputs), {shape}")
        if not np.isfinite(start).all():
            raise InputError("weights are not finite; give finite numbers")
        limit = self.device.weight_range
        self.weights = np.clip(start, -limit, limit)
        self.line = np.zeros(self.inputs)
        self.samples = 0
        self._key = noise_key(seed, purpose)
        self._x, self._delta = np.zeros(self.inputs), np.zeros(self.neurons)

    def push(self, sample: float) -> Array:
        """Shift the next sample into the delay line.

        Returns:
            The voltages of the taps, ``(inputs,)``, newest first, with the common offset of the line.

        Raises:
            InputError: If the sample is not finite.
        """
        if not math.isfinite(sample):
            raise InputError(f"sample is {sample}; give a finite number")
        self.line = np.concatenate([[float(sample)], self.line[:-1]])
        return self.line + self.device.tap_offset

    def forward(self, x: ArrayLike | None = None) -> Array:
        """The sums of currents.

        Args:
            x: Voltages at the pins, ``(inputs,)``; None for those of the delay line's taps.

        Returns:
            One sum a neuron, ``(neurons,)``.

        Raises:
            InputError: If an input is not finite.
            ShapeError: If there are not as many as there are inputs.
        """
        given = self.line + self.device.tap_offset if x is None else vector(x, self.inputs, "x")
        self._x = compress(given, self.device)
        gain, signal, weight = self.cells[[Cell.FORWARD_GAIN, Cell.FORWARD_SIGNAL, Cell.FORWARD_WEIGHT]]
        products = gain * (self._x + signal) * (self._stage(self.weights) + weight)
        return np.asarray(products.sum(1))

    def backward(self, delta: ArrayLike, weights: ArrayLike | None = None) -> Array:
        """The sums of backpropagated errors.

        Args:
            delta: Errors of the neurons, ``(neurons,)``.
            weights: Other weights to send them back through, ``(neurons, inputs)``, as random feedback does; None for
                the array's own.

        Returns:
            One sum an input, ``(inputs,)``.

        Raises:
            InputError: If an error is not finite.
            ShapeError: If there are not as many as there are neurons.
        """
        self._delta = compress(vector(delta, self.neurons, "delta"), self.device)
        back = self.weights if weights is None else np.asarray(weights, dtype=np.float64)
        if back.shape != self.weights.shape:
            raise ShapeError(f"weights have shape {back.shape}; give (neurons, inputs), {self.weights.shape}")
        gain, error, weight = self.cells[[Cell.BACKWARD_GAIN, Cell.BACKWARD_ERROR, Cell.BACKWARD_WEIGHT]]
        products = gain * (self._delta[:, None] + error) * (self._stage(back) + weight)
        return np.asarray(products.sum(0))

    def update(self, step: float) -> None:
        """Write every weight once: one sample's time of leakage, then the change, then the refresh of those in turn.

        Args:
            step: The learning rate, for which the chip takes the nearest one that it has.

        Raises:
            InputError: If the step is not a positive number, or rounds to zero.
        """
        gain, signal, error = self.cells[[Cell.UPDATE_GAIN, Cell.UPDATE_SIGNAL, Cell.UPDATE_ERROR]]
        self.write(gain * (self._x + signal) * (self._delta[:, None] + error), step)

    def write(self, change: ArrayLike, step: float) -> None:
        """Write every weight once with a change of one's own, ``(neurons, inputs)``, in place of the products.

        Raises:
            InputError: If the step is not a positive number, or rounds to zero, or a change is not finite.
            ShapeError: If the change has another shape.
        """
        rate = self.device.rate(positive(step, "step"))
        given = np.asarray(change, dtype=np.float64)
        if given.shape != self.weights.shape:
            raise ShapeError(f"change has shape {given.shape}; give (neurons, inputs), {self.weights.shape}")
        if not np.isfinite(given).all():
            raise InputError("change is not finite; give finite numbers")
        keep, limit = math.exp(-self.device.leakage / self.device.sample_rate), self.device.weight_range
        w = np.clip(keep * self.weights + rate * (given + self.cells[Cell.UPDATE_CHARGE]), -limit, limit)
        if self.device.write_noise:
            noise = normals(self._key, self.samples, w.size).reshape(w.shape)
            w = np.clip(w + self.device.write_noise * noise, -limit, limit)
        if self.device.weight_resolution:
            # In this order of operations, to the bit, the compiled board has it, too.
            share = w.size * (1 / (self.device.refresh_interval * self.device.sample_rate))
            w = np.ascontiguousarray(w)
            refresh(w.reshape(-1), self.samples, share, self.device.weight_resolution)
        self.weights = w
        self.samples += 1

    def wait(self, seconds: float) -> None:
        """Let time pass without a write or a refresh: charges leak.

        Raises:
            InputError: If it is not a finite number of at least zero.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise InputError(f"seconds is {seconds}; give a finite number >= 0")
        self.weights = self.weights * math.exp(-self.device.leakage * seconds)

    def _stage(self, weights: Array) -> Array:
        """What a multiplier's input stage makes of weights, which have a range of their own."""
        limit = self.device.weight_range
        return np.asarray(saturate(np.clip(weights, -limit, limit), self.device.saturation))


class NeuronBank:
    r"""A row of neurons with a sigmoid of adjustable slope and amplitude, and its bell-shaped derivative.

    .. math::  o = A \tanh(\beta\, i), \qquad \delta = \epsilon \cdot A \beta\, (1 - \tanh^2(\beta\, i))

    With ``min_select`` the bell is :math:`A \beta\, (1 - |\tanh(\beta\, i)|)`, the smaller of the two currents of the
    differential pair: as high in the middle, with a kink there, and half as high far out.

    Args:
        neurons: How many; 20 on the paper's chip.
        slope: :math:`\beta`, for which the chip takes the nearest one that it has.
        amplitude: A.
        device: The imperfections; by default none.
        seed: Of what differs from neuron to neuron.
        purpose: A word that tells this chip's draws from those of other chips with the same seed.

    Raises:
        InputError: If an argument is outside of its range.

    References:
        Cho and Lee (1998), section 2.

    Example:
        >>> bank = NeuronBank(neurons=2, slope=2.0)
        >>> bank.forward([0.0, 0.5]).round(3).tolist(), bank.backward([1.0, 1.0]).round(3).tolist()
        ([0.0, 0.762], [2.0, 0.84])
    """

    def __init__(
        self,
        neurons: int = 20,
        slope: float = 1.0,
        amplitude: float = 1.0,
        device: DeviceModel | None = None,
        *,
        seed: int = 0,
        purpose: str = "bank",
    ) -> None:
        self.neurons = count(neurons, "neurons")
        self.device = DeviceModel.ideal() if device is None else known_device(device)
        self.slope = self.device.slope(positive(slope, "slope"))
        self.amplitude = positive(amplitude, "amplitude")
        self.parts = neuron_parts(self.device, self.neurons, seed, purpose)
        self._tanh = np.zeros(self.neurons)

    def forward(self, currents: ArrayLike) -> Array:
        """The activations, ``(neurons,)``, of sums of currents, ``(neurons,)``.

        Raises:
            InputError: If a current is not finite.
            ShapeError: If there are not as many as there are neurons.
        """
        given = vector(currents, self.neurons, "currents")
        self._tanh = np.tanh(self.slope * (given + self.parts[Neuron.INPUT]))
        return np.asarray(self.amplitude * self._tanh + self.parts[Neuron.OUTPUT])

    def backward(self, errors: ArrayLike) -> Array:
        """The errors times the bell of the last `forward`, ``(neurons,)``.

        Raises:
            InputError: If an error is not finite.
            ShapeError: If there are not as many as there are neurons.
        """
        return np.asarray(vector(errors, self.neurons, "errors") * self.bell() + self.parts[Neuron.ERROR])

    def bell(self) -> Array:
        """The derivatives of the last activations, ``(neurons,)``, as the circuit makes them."""
        bell = 1 - np.abs(self._tanh) if self.device.min_select else 1 - self._tanh**2
        return np.asarray(self.amplitude * self.slope * self.parts[Neuron.BELL] * bell)
