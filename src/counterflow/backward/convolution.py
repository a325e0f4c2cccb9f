"""A convolution as an adjoint needs it: the input that it saw, its geometry, and its own backward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Geometry", "convolution_backward", "convolution_geometry"]


class Geometry(NamedTuple):
    """What ``aten.convolution_backward`` is told of a convolution beside its tensors, in that order.

    Args:
        stride: By spatial dimension, as are padding, dilation and output padding.
        padding: With zeros, on both sides.
        dilation: Between the kernel's elements.
        transposed: Whether it is a transposed convolution.
        output_padding: Of a transposed convolution.
        groups: Sets of channels that do not meet.
    """

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
    groups: int


def convolution_geometry(module: nn.modules.conv._ConvNd, x: Tensor, output: Tensor) -> tuple[Tensor, Geometry]:
    """The input as the convolution saw it, padded where padding is not zeros on both sides, and the rest.

    Args:
        module: A convolution of any dimension, transposed or not.
        x: What it was called on.
        output: What it returned; whatever ``output_size`` asked for shows in its size.

    Example:
        >>> layer = nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular")
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> seen, geometry = convolution_geometry(layer, x, layer(x))
        >>> seen.tolist(), geometry.padding
        ([[[3.0, 1.0, 2.0, 3.0, 1.0]]], [0])
    """
    stride, dilation = list(module.stride), list(module.dilation)
    none = [0] * len(stride)
    if module.transposed:
        spatial = len(stride)
        extra = [
            output.shape[i - spatial]
            - (
                (x.shape[i - spatial] - 1) * stride[i]
                - 2 * int(module.padding[i])
                + dilation[i] * (module.kernel_size[i] - 1)
                + 1
            )
            for i in range(spatial)
        ]
        return x, Geometry(stride, [int(p) for p in module.padding], dilation, True, extra, module.groups)
    padding = none
    if module.padding_mode != "zeros" or module.padding == "same":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    elif module.padding != "valid":
        padding = [int(p) for p in module.padding]
    return x, Geometry(stride, padding, dilation, False, none, module.groups)


def convolution_backward(
    error: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a convolution's input, weight and bias; those that are not wanted are None.

    Args:
        error: Of the output, with a batch dimension, as ``x``.
        x: The input as `convolution_geometry` gives it.
        weight: The kernel.
        geometry: See there.
        wanted: Which of the three.
    """
    gradients: Any = torch.ops.aten.convolution_backward(error, x, weight, None, *geometry, wanted)
    return gradients  # type: ignore[no-any-return]
