"""Analog devices as entries of the registry."""

from __future__ import annotations

from counterflow.analog.deployment import deploy
from counterflow.analog.device import DeviceModel
from counterflow.registry import Method, cnn_example, mlp_example, register

__all__: list[str] = []

# The converters round what goes in and out, so that a float32 result may differ by a step of them from a float64 one.
_DEVICE = DeviceModel.paper().without("output_bits", "input_bits")

register(
    Method(
        key="analog",
        summary="Send signals, errors and weight changes through the circuits of an analog chip.",
        paper="Cho, Lee, Active Noise Canceling using Analog Neuro-Chip with On-Chip Learning Capability, NIPS 1998",
        site="adjoint",
        attach=lambda model, inputs: deploy(model, _DEVICE, inputs=inputs),
        examples=(mlp_example(), cnn_example()),
        keeps_forward=False,
        homogeneous=False,
        adds_buffers=True,
    )
)
