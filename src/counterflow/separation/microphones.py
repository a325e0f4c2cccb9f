r"""The paper's nonlinear microphones: why independent component analysis alone may fail (section 2.2, figure 2).

.. math:: s_j^* = g(s_j), \qquad z_i = \sum_j a_{ij} * s_j^*, \qquad x_i = h(z_i)

g leaves sources independent, and changes their densities; h is applied to the sum, so that what is heard is no linear
mixture any more: no unmixing matrix gives independent outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from counterflow.audio import images
from counterflow.exceptions import InputError

__all__ = ["Microphones", "saturation"]


def saturation(drive: float) -> Callable[[Tensor], Tensor]:
    r"""A microphone that saturates: :math:`\tanh(a x / r)\, r / a`, with r the root mean square of the whole.

    Small signals pass as they are.

    Args:
        drive: a; the larger, the more is cut off.

    Raises:
        InputError: If it is not positive.

    Example:
        >>> saturation(2.0)(torch.tensor([1.0, -1.0]))
        tensor([ 0.4820, -0.4820])
    """
    if not drive > 0:
        raise InputError(f"drive must be positive, got {drive}")

    def bend(x: Tensor) -> Tensor:
        level = x.square().mean().sqrt().clamp_min(1e-20)
        return (drive * x / level).tanh() * level / drive

    return bend


@dataclass(frozen=True)
class Microphones:
    """Microphones that distort what is recorded of a source, and what they add up.

    Args:
        g: What happens to each source; nothing if not given.
        h: What happens to each microphone's sum; nothing if not given.

    Example:
        >>> sources, responses = torch.randn(2, 100), torch.randn(2, 2, 5)
        >>> linear, bent = Microphones(), Microphones(h=saturation(2.0))
        >>> linear.record(sources, responses).shape
        torch.Size([2, 100])
        >>> bool(bent.record(sources, responses).abs().max() < linear.record(sources, responses).abs().max())
        True
    """

    g: Callable[[Tensor], Tensor] | None = None
    h: Callable[[Tensor], Tensor] | None = None

    def record(self, sources: Tensor, responses: Tensor) -> Tensor:
        """The mixture at the microphones.

        Args:
            sources: Shape (sources, samples).
            responses: Shape (microphones, sources, taps).

        Returns:
            Shape (microphones, samples).

        Raises:
            ShapeError: If there are not as many sources as responses.
        """
        bent = sources if self.g is None else torch.stack([self.g(each) for each in sources])
        sums = images(bent, responses).sum(0)
        return self.hear(sums)

    def hear(self, sums: Tensor) -> Tensor:
        """H alone, on what has been added up already: shape (microphones, samples)."""
        return sums if self.h is None else torch.stack([self.h(each) for each in sums])
