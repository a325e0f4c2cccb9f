r"""Active noise control: the acoustics of the task, and adaptive controllers that learn sample by sample.

Cho, Lee, "Active Noise Canceling using Analog Neuro-Chip with On-Chip Learning Capability", NIPS 1998.

==============================  ==================================================================================
the paper                       here
==============================  ==================================================================================
:math:`H = C_1 / C_2`           `FiniteResponse`; ``CHANNELS["H1"]`` and ``CHANNELS["H2"]`` are the paper's two
cubic model of the loudspeaker  `CubicDistortion`, fitted to a signal-to-distortion ratio
8-bit converters                `quantize`, of whose range a stated fraction is used
LMS canceller                   `LMS`; beside it `NLMS`, `RLS`, `FilteredX` and `Volterra`, which are ours
multilayer Perceptron           `Perceptron`, of one hidden layer in double precision
noise reduction ratio           `noise_reduction`, with the other sign: positive decibels are good
==============================  ==================================================================================

Signals are one-dimensional arrays of samples, taken as float64. The reference is what a controller hears,
:math:`x`; the target is what it must produce, :math:`d`; the residual is :math:`e = d - y`. Whatever has a memory keeps
it between calls: blocks of any size, of one sample too, give what one block gives.
"""

from counterflow.adaptive import Controller, quantize
from counterflow.noise_control.cancellation import Cancellation, Stream, cancel, choose_step
from counterflow.noise_control.families import CONTROLLERS, Design
from counterflow.noise_control.filtered import FilteredX
from counterflow.noise_control.filters import LMS, NLMS, RLS
from counterflow.noise_control.measures import Measures, a_weighting, third_octaves
from counterflow.noise_control.paths import CHANNELS, CubicDistortion, FiniteResponse, noise_reduction
from counterflow.noise_control.perceptron import Perceptron
from counterflow.noise_control.rooms import room_paths
from counterflow.noise_control.scene import Acoustics, Heard, Scene, causal_margin
from counterflow.noise_control.tuning import Learner, Tuned, tune
from counterflow.noise_control.volterra import Volterra

__all__ = [
    "CHANNELS",
    "CONTROLLERS",
    "LMS",
    "NLMS",
    "RLS",
    "Acoustics",
    "Cancellation",
    "Controller",
    "CubicDistortion",
    "Design",
    "FilteredX",
    "FiniteResponse",
    "Heard",
    "Learner",
    "Measures",
    "Perceptron",
    "Scene",
    "Stream",
    "Tuned",
    "Volterra",
    "a_weighting",
    "cancel",
    "causal_margin",
    "choose_step",
    "noise_reduction",
    "quantize",
    "room_paths",
    "third_octaves",
    "tune",
]
