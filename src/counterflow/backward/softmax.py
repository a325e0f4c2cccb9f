"""Shares that go to the best at low temperatures: for members that compete for examples, and units within a block."""

from __future__ import annotations

import torch
from torch import Tensor

from counterflow.backward.reduce import widen

__all__ = ["softmax_at"]


def softmax_at(scores: Tensor, temperature: float, dim: int) -> Tensor:
    r""":math:`e^{s_j / T} / \sum_k e^{s_k / T}`, whatever the scores and however low the temperature.

    The best score is taken off before the division, whose result may be infinite then but is no difference of
    infinities. An infinite score counts as the largest number, so that several share alike. NaN is not hidden.

    Args:
        scores: Any floating-point tensor.
        temperature: T > 0.
        dim: The dimension that shares sum to 1 over.

    Returns:
        In float32 (float64 for float64 scores).
    """
    wide = widen(scores)
    limits = torch.finfo(wide.dtype)
    wide = wide.clamp(limits.min, limits.max)
    behind = wide - wide.detach().amax(dim, keepdim=True)
    # Below the least normal number the temperature itself would be rounded to zero.
    return (behind / max(temperature, limits.tiny)).softmax(dim)
