r"""Analog neuro-chips that learn on the chip, with their imperfections.

Cho, Lee, "Active Noise Canceling using Analog Neuro-Chip with On-Chip Learning Capability", NIPS 1998.

==============================  ==================================================================================
the paper                       here
==============================  ==================================================================================
synapse chip, 25 by 10          `SynapseArray`: forward :math:`w x`, backward :math:`w \delta`, update :math:`x \delta`
neuron chip, 20 cells           `NeuronBank`: a sigmoid of adjustable slope and amplitude, and its bell
neuro-board, 6 and 2 chips      `Board`; on a delay line and compiled, `ChipPerceptron`
non-ideal characteristics       `DeviceModel`, one field each
converters of the GDAB          ``output_bits`` and ``input_bits`` of a `DeviceModel`
==============================  ==================================================================================

Vectors are ``(inputs,)`` and ``(outputs,)``, one example at a time, as on the board; weights are ``(neurons, inputs)``.
A `Chip` is what keeps a small protocol, `Recorder` and `Replay` among them, and `learn` trains one in the loop. In
PyTorch, where batches are ``(..., in_features)``, `AnalogLinear` is a layer on a device, and `deploy` puts the layers
of a model on one.
"""

from counterflow.analog import methods as _methods  # noqa: F401 - enters them in the registry
from counterflow.analog.arrays import NeuronBank, SynapseArray
from counterflow.analog.board import Board, Chip, Rule, chips_needed
from counterflow.analog.deployment import Deployment, deploy
from counterflow.analog.device import DeviceModel
from counterflow.analog.linear import AnalogLinear
from counterflow.analog.perceptron import ChipPerceptron
from counterflow.analog.traces import Recorder, Replay, learn

__all__ = [
    "AnalogLinear",
    "Board",
    "Chip",
    "ChipPerceptron",
    "Deployment",
    "DeviceModel",
    "NeuronBank",
    "Recorder",
    "Replay",
    "Rule",
    "SynapseArray",
    "chips_needed",
    "deploy",
    "learn",
]
