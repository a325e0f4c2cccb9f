"""Sources whose loudness changes, and mixtures of them, in every frequency or over time."""

from __future__ import annotations

import torch
from torch import Tensor


def complex_sources(
    seed: int, frequencies: int = 9, count: int = 2, frames: int = 600, dtype=torch.complex64
) -> Tensor:
    """Shape (frequencies, sources, frames): loudness is common to all frequencies of a source."""
    generator = torch.Generator().manual_seed(seed)
    loud = torch.rand(1, count, frames, generator=generator) ** 3
    return (loud * torch.randn(frequencies, count, frames, dtype=torch.complex64, generator=generator)).to(dtype)


def mixing(seed: int, frequencies: int = 9, channels: int = 2, sources: int = 2, dtype=torch.complex64) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(frequencies, channels, sources, dtype=torch.complex64, generator=generator).to(dtype)


def leak(matrices: Tensor, mixing: Tensor) -> float:
    """How much of the others is in each output: the worst over frequencies, 0 for a permutation and scale."""
    total = (matrices @ mixing).abs()
    total = total / total.amax(-1, keepdim=True)
    return float((total.sum(-1) - 1).max())


def aligned(matrices: Tensor, mixing: Tensor) -> bool:
    """Whether the outputs are in one order in all frequencies."""
    order = (matrices @ mixing).abs().argmax(-1)
    return bool((order == order[0]).all())
