"""The board: a two-layer perceptron out of several chips, behind converters."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from counterflow.adaptive import count, positive, quantize
from counterflow.analog.arrays import NeuronBank, SynapseArray, vector
from counterflow.analog.circuits import Array, Neuron, noise_key, signs
from counterflow.analog.device import DeviceModel, known_device
from counterflow.exceptions import InputError
from counterflow.seeding import numpy_generator

__all__ = ["Board", "Chip", "Rule", "chips_needed", "initial_weights"]

Rule = Literal["backpropagation", "random_feedback", "weight_perturbation"]

# Of the paper's synapse chip, neuron chip and board.
ROWS, COLUMNS, NEURONS, SYNAPSE_CHIPS = 25, 10, 20, 6


@runtime_checkable
class Chip(Protocol):
    """What can stand in a training loop: a board on the bench, a model of it, or a recorded trace.

    `forward` is given inputs and returns outputs, `backward` the direction in which the outputs should go and returns
    the same for the inputs, `update` learns from both. `SynapseArray`, `Board`, `Recorder` and `Replay` are chips.
    """

    def forward(self, x: ArrayLike) -> Array:
        """The outputs, ``(outputs,)``, for inputs, ``(inputs,)``."""

    def backward(self, delta: ArrayLike) -> Array:
        """The errors at the inputs, ``(inputs,)``, for those at the outputs, ``(outputs,)``, target less output."""

    def update(self, step: float) -> None:
        """Change the weights along the last errors, by the learning rate."""


def chips_needed(inputs: int, hidden: int, outputs: int) -> tuple[int, int]:
    """How many of the paper's synapse chips the two layers take; each has a bias, which is one more input.

    A chip has 25 rows and 10 columns, and a pin for each. What does not fit goes to another chip, whose currents are
    added at the pins.

    Raises:
        InputError: If an argument is not a whole number of at least one.

    Example:
        >>> chips_needed(25, 10, 1)
        (2, 1)
    """
    wanted = count(inputs, "inputs"), count(hidden, "hidden"), count(outputs, "outputs")
    first, second = (math.ceil((rows + 1) / ROWS) * math.ceil(columns / COLUMNS) for rows, columns in pairwise(wanted))
    return first, second


def check_size(inputs: int, hidden: int, outputs: int, synapse_chips: int) -> None:
    """Raise if a board with so many synapse chips, and one neuron chip a layer, has too few chips or pins."""
    needed = sum(chips_needed(inputs, hidden, outputs))
    if needed > count(synapse_chips, "synapse_chips"):
        raise InputError(
            f"inputs={inputs}, hidden={hidden} and outputs={outputs} take, with biases, {needed} synapse chips "
            f"of {ROWS} by {COLUMNS} pins; the board has {synapse_chips}: take fewer units, or give "
            f"synapse_chips={needed}"
        )
    for name, value in {"hidden": hidden, "outputs": outputs}.items():
        if value > NEURONS:
            raise InputError(f"{name} is {value}; a neuron chip has pins for {NEURONS}, and a layer has one such chip")


def initial_weights(inputs: int, hidden: int, outputs: int, seed: int) -> tuple[Array, Array]:
    """Both layers' weights at first, biases last and zero, uniform within one over the root of a unit's inputs.

    These are the numbers that the float perceptron of noise control draws from the same seed.
    """
    draw = numpy_generator(seed, "perceptron")
    layers = []
    for rows, columns in ((inputs, hidden), (hidden, outputs)):
        bound = 1 / math.sqrt(rows)
        layers.append(np.hstack([draw.uniform(-bound, bound, (columns, rows)), np.zeros((columns, 1))]))
    return layers[0], layers[1]


def feedback_weights(hidden: int, outputs: int, seed: int) -> Array:
    """Fixed weights that errors are sent back through, ``(outputs, hidden + 1)``, as large as the initial ones."""
    bound = 1 / math.sqrt(hidden)
    drawn = numpy_generator(seed, "feedback").uniform(-bound, bound, (outputs, hidden))
    return np.hstack([drawn, np.zeros((outputs, 1))])


class Board:
    r"""A two-layer perceptron out of synapse and neuron chips, which learns one example at a time.

    .. math::  y = V\, [A \tanh(\beta\, W [x, 1]), 1]

    A bias is a synapse whose input is 1. The paper gives neither sizes nor initial weights nor the output's unit: a
    linear output is our choice; with ``output="sigmoid"`` it is a neuron like the hidden ones. What the computer sends
    has the device's ``output_bits``, what it reads its ``input_bits``.

    Learning rules:

    ``"backpropagation"``
        The paper's.
    ``"random_feedback"``
        Errors go back through weights that are fixed and random (feedback alignment), which needs no copy of the
        forward weights and none of their precision.
    ``"weight_perturbation"``
        All weights are moved by a small amount of random sign, s, and back; with the half squared error E before and
        E' meanwhile, :math:`w \leftarrow w - \eta\, s\, (E' - E) / |s|^2`. It needs no backward pass on the chip, and
        takes many more examples: the noise of its gradient grows with the number of weights.

    Args:
        inputs: Inputs, besides the bias.
        hidden: Hidden units.
        outputs: Outputs.
        device: The imperfections; by default none.
        rule: How `learn` learns.
        output: ``"linear"`` or ``"sigmoid"``.
        slope: :math:`\beta`.
        amplitude: A.
        perturbation: The size of s, in units of weight.
        seed: Of the initial weights, of the cells and of noise.
        synapse_chips: How many there are: 6 on the paper's board.

    Attributes:
        layers: The two `SynapseArray`, biases last among their inputs.

    Raises:
        InputError: If an argument is outside of its range, or the board has too few chips or pins.

    References:
        Cho and Lee (1998), section 2. Lillicrap and others, "Random synaptic feedback weights support error
        backpropagation for deep learning", Nature Communications 7 (2016). Cauwenberghs, "A fast stochastic
        error-descent algorithm for supervised learning and optimization", NIPS 1992.

    Example:
        >>> board = Board(inputs=2, hidden=3, outputs=1)
        >>> board.forward([0.5, -0.5]).shape, board.backward([0.1]).shape
        ((1,), (2,))
    """

    def __init__(
        self,
        inputs: int = 25,
        hidden: int = 10,
        outputs: int = 1,
        device: DeviceModel | None = None,
        *,
        rule: Rule = "backpropagation",
        output: Literal["linear", "sigmoid"] = "linear",
        slope: float = 1.0,
        amplitude: float = 1.0,
        perturbation: float = 0.01,
        seed: int = 0,
        synapse_chips: int = SYNAPSE_CHIPS,
    ) -> None:
        check_size(inputs, hidden, outputs, synapse_chips)
        check_rule(rule, output)
        self.inputs, self.hidden, self.outputs = inputs, hidden, outputs
        self.device = device = DeviceModel.ideal() if device is None else known_device(device)
        self.rule, self.output = rule, output
        self.perturbation = positive(perturbation, "perturbation")
        first, second = initial_weights(inputs, hidden, outputs, seed)
        self.layers = (
            SynapseArray(inputs + 1, hidden, device, seed=seed, weights=first, purpose="first"),
            SynapseArray(hidden + 1, outputs, device, seed=seed, weights=second, purpose="second"),
        )
        self._hidden = NeuronBank(hidden, slope, amplitude, device, seed=seed, purpose="hidden")
        self._output = NeuronBank(outputs, slope, amplitude, device, seed=seed, purpose="output")
        self._feedback = feedback_weights(hidden, outputs, seed)
        self._keys = noise_key(seed, "perturb-first"), noise_key(seed, "perturb-second")

    def forward(self, x: ArrayLike) -> Array:
        """The outputs, ``(outputs,)``, as the computer reads them, for inputs, ``(inputs,)``, as it sends them.

        Raises:
            InputError: If an input is not finite.
            ShapeError: If there are not as many as there are inputs.
        """
        return self._read(self._forward(self._sent(vector(x, self.inputs, "x"))))

    def backward(self, delta: ArrayLike) -> Array:
        """The errors at the inputs, ``(inputs,)``, for errors at the outputs, ``(outputs,)``, which the computer sends.

        Raises:
            InputError: If an error is not finite.
            ShapeError: If there are not as many as there are outputs.
        """
        return self._read(self._backward(self._sent(vector(delta, self.outputs, "delta"))))

    def update(self, step: float) -> None:
        """Write all weights, along the signals of the last `forward` and `backward`.

        Raises:
            InputError: If the step is not a positive number, or rounds to zero.
        """
        for layer in self.layers:
            layer.update(step)

    def learn(self, x: ArrayLike, target: ArrayLike, step: float) -> Array:
        """One example by the board's learning rule, with the error made on the chip.

        Args:
            x: Inputs, ``(inputs,)``.
            target: Targets, ``(outputs,)``.
            step: The learning rate.

        Returns:
            The outputs before the weights changed, ``(outputs,)``, as the computer reads them.

        Raises:
            InputError: If a number is not finite, or the step is not positive or rounds to zero.
            ShapeError: If there are not as many as there are inputs or outputs.
        """
        given = self._sent(vector(x, self.inputs, "x"))
        return self.learn_sent(given, self._sent(vector(target, self.outputs, "target")), step)

    def learn_sent(self, x: Array, target: Array, step: float) -> Array:
        """As `learn`, with what has been through the converters."""
        self.device.rate(positive(step, "step"))  # before a weight is moved
        y = self._forward(x)
        error = self._error(target, y)
        if self.rule == "weight_perturbation":
            self._perturb(x, target, error, step)
        else:
            self._backward(error)
            self.update(step)
        return self._read(y)

    def _forward(self, x: Array) -> Array:
        h = self._hidden.forward(self.layers[0].forward(np.append(x, 1.0)))
        currents = self.layers[1].forward(np.append(h, 1.0))
        if self.output == "sigmoid":
            return self._output.forward(currents)
        return np.asarray(currents + self._output.parts[Neuron.INPUT])

    def _error(self, target: Array, y: Array) -> Array:
        """The target less the output, by an operational amplifier."""
        return np.asarray(target - y + self._output.parts[Neuron.ERROR])

    def _backward(self, error: Array) -> Array:
        delta = error * self._output.bell() if self.output == "sigmoid" else error
        feedback = self._feedback if self.rule == "random_feedback" else None
        back = self.layers[1].backward(delta, feedback)[:-1]
        return self.layers[0].backward(self._hidden.backward(back))[:-1]

    def _perturb(self, x: Array, target: Array, error: Array, step: float) -> None:
        kept = [layer.weights for layer in self.layers]
        moves = []
        for layer, key in zip(self.layers, self._keys, strict=True):
            moves.append(signs(key, layer.samples, layer.weights.size).reshape(layer.weights.shape))
            layer.weights = layer.weights + self.perturbation * moves[-1]
        moved = self._error(target, self._forward(x))
        slope = (moved @ moved - error @ error) / (2 * self.perturbation)
        for layer, weights, move in zip(self.layers, kept, moves, strict=True):
            layer.weights = weights
            layer.write(-slope * move, step)

    def _sent(self, values: Array) -> Array:
        bits = self.device.output_bits
        return values if bits is None else quantize(values, bits, self.device.converter_used)

    def _read(self, values: Array) -> Array:
        bits = self.device.input_bits
        return values if bits is None else quantize(values, bits, self.device.converter_used)


def check_rule(rule: str, output: str) -> None:
    """Raise if there is no such learning rule, or no such output."""
    if rule not in get_args(Rule):
        raise InputError(f"rule is {rule!r}; give one of {', '.join(get_args(Rule))}")
    if output not in ("linear", "sigmoid"):
        raise InputError(f"output is {output!r}; give 'linear' or 'sigmoid'")
