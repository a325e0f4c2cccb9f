"""Converters between the analog world and the digital one."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from counterflow.adaptive.checks import Signal, count, positive, signal
from counterflow.exceptions import InputError

__all__ = ["quantize"]


def quantize(samples: ArrayLike, bits: int = 8, used: float = 1.0) -> Signal:
    r"""Samples as a converter with the range [-1, 1) gives them, when a part of its range is used.

    The samples times ``used`` are rounded to multiples of :math:`q = 2^{1 - b}` and clipped to the range, and divided
    by ``used`` again. Where nothing is clipped the variance of the error is :math:`(q / \text{used})^2 / 12`.

    Args:
        samples: At most 1 in size; beyond it they are clipped if the whole range is used.
        bits: b, the resolution.
        used: Which fraction of the full scale a sample of 1 takes, above 0 and at most 1. The paper does not state it.

    Raises:
        InputError: If a sample is not finite, or ``bits`` or ``used`` is outside of its range.
        ShapeError: If there is more than one dimension.

    References:
        Cho and Lee (1998), section 3: the board's reference and target come through 8 bits.

    Example:
        >>> quantize([0.3, -1.0, 1.0], bits=2).tolist()
        [0.5, -1.0, 0.5]
    """
    x = signal(samples, "samples")
    if not 1 <= count(bits, "bits") <= 32:
        raise InputError(f"bits is {bits}; give 1 to 32")
    if positive(used, "used") > 1:
        raise InputError(f"used is {used}; give a fraction of the full scale, above 0 and at most 1")
    levels = 2.0 ** (bits - 1)
    return np.clip(np.round(x * used * levels), -levels, levels - 1) / (levels * used)
