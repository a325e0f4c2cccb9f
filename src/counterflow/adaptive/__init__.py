"""What adaptive controllers share, in software and in hardware: signals in blocks, divergence, state, converters.

A signal is a one-dimensional array of samples, taken as float64. What has a memory keeps it between calls: blocks of
any size, of one sample too, give what one block gives.
"""

from counterflow.adaptive.checks import Signal, count, positive, signal
from counterflow.adaptive.controller import Controller, follows
from counterflow.adaptive.converters import quantize
from counterflow.adaptive.sigmoids import tanh

__all__ = ["Controller", "Signal", "count", "follows", "positive", "quantize", "signal", "tanh"]
