"""Convolutions on a synapse array: one array, to whose taps the patches of a signal are brought one after another.

The chip's delay line does so in time: a filter of the paper is a convolution whose patch is the line. Every place of an
output is an example of its own for the array: it has its own products, and the weights are written once for each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from counterflow.analog.device import DeviceModel
from counterflow.analog.linear import currents, refuse_loss_scaling

__all__ = ["Convolution", "analog_convolution"]

Convolution = nn.Conv1d | nn.Conv2d


def analog_convolution(module: Convolution, x: Tensor, device: DeviceModel, scale: float) -> Tensor:
    """What an equipped convolution's arrays, one a group, make of signals, ``(batch, channels, ...)`` or without batch.

    Args:
        module: The layer.
        x: Its input.
        device: The imperfections.
        scale: As ``error_scale`` of `AnalogLinear`.

    Returns:
        What the layer's own output has the shape of.
    """
    refuse_loss_scaling(x)
    places = len(module.kernel_size)
    batched = x if x.ndim == places + 2 else x.unsqueeze(0)
    pads = module._reversed_padding_repeated_twice
    if any(pads):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        batched = nn.functional.pad(batched, pads, mode)
    one = (1,) * (2 - places)
    kernel, stride, dilation = (one + tuple(each) for each in (module.kernel_size, module.stride, module.dilation))
    sizes = tuple(batched.shape[2:])
    wide = batched.unsqueeze(2) if places == 1 else batched
    out = [
        (size - gap * (width - 1) - 1) // step + 1
        for size, gap, width, step in zip(sizes, dilation[-places:], kernel[-places:], stride[-places:], strict=True)
    ]
    with torch.autocast(x.device.type, enabled=False):
        weight = module.weight.flatten(1)
        patches = nn.functional.unfold(wide.to(weight.dtype), kernel, dilation, 0, stride)  # (batch, inputs, places)
        rows = patches.transpose(1, 2).flatten(0, 1).chunk(module.groups, 1)
        neurons = len(weight) // module.groups
        found = [
            currents(part, weight[at : at + neurons], module, slice(at, at + neurons), device, scale)
            for part, at in zip(rows, range(0, len(weight), neurons), strict=True)
        ]
        sums = torch.cat(found, 1).reshape(len(batched), math.prod(out), len(weight)).transpose(1, 2)
    result: Tensor = sums.reshape(len(batched), len(weight), *out)
    return result if x.ndim == places + 2 else result.squeeze(0)
